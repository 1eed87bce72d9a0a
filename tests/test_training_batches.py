"""nanoprune/training/batches.py: the rows of a step on several processes, and the seed of their dropout."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small import TIMING, read_rows

from model import MLP
from nanoprune.distributed import Ranks
from nanoprune.training.batches import seed_dropout, split_rows
from train import train


@pytest.mark.parametrize("processes, size, lengths", [
    (1, 12, [12]), (1, 5, [5, 5, 2]), (3, 2, [2, 2] * 3), (4, 2, [2, 1] * 4)])
def test_every_row_goes_to_one_process_in_order(processes, size, lengths):
    rows = torch.arange(12)[:, None].expand(12, 3)
    step = rows, rows + 100, rows + 200
    parts = [split_rows(step, 50, size, Ranks(rank, processes)) for rank in range(processes)]
    micro_batches = list(chain(*parts))
    assert [len(micro.ids) for micro in micro_batches] == lengths
    for micro in micro_batches:
        assert micro.first_row == 50 + int(micro.ids[0, 0])
        assert torch.equal(micro.targets, micro.ids + 100) and torch.equal(micro.documents, micro.ids + 200)
    assert torch.equal(torch.cat([micro.ids for micro in micro_batches]), rows)


def test_dropout_is_a_function_of_seed_and_row():
    draws = {}
    for seed in (0, 1, 2**40):
        for row in (0, 1, 2**33):
            seed_dropout(seed, row)
            draws[seed, row] = F.dropout(torch.ones(64), 0.5).tolist()
            seed_dropout(seed, row)
            assert F.dropout(torch.ones(64), 0.5).tolist() == draws[seed, row]
    assert len({tuple(draw) for draw in draws.values()}) == 9


def test_any_dropout_is_resumed_bit_by_bit(world, tmp_path, monkeypatch):
    """Also of layers that know nothing of the run, recomputed in the backward pass."""
    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x: F.dropout(forward(self, x), 0.2, self.training))
    whole = world.config(tmp_path, name="whole", max_steps=4, accumulation=2, recompute="blocks")
    train(whole)
    stopped = replace(whole, name="stopped", save_every=1)
    assert not train(stopped, listen=lambda: ["a signal"])
    torch.manual_seed(99)
    assert train(stopped, resume=True)
    first, second = (load_file(run.folder / "model" / "model.safetensors") for run in (whole, stopped))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_rows(whole.folder / "train.csv", TIMING) == read_rows(stopped.folder / "train.csv", TIMING)
    plain = replace(whole, name="plain", recompute="none")
    train(plain)
    assert read_rows(plain.folder / "train.csv", TIMING) == read_rows(whole.folder / "train.csv", TIMING)
