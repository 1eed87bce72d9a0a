"""evaluation/agreement.py: agreement and divergence of two whole models' logits, in fp64."""

import json

import numpy as np
import pytest
import torch
from small import make_model, read_rows

from model import Decoder
from nanoprune.data.dataset import Dataset
from nanoprune.data.token_file import Example
from nanoprune.evaluation import agreement
from nanoprune.evaluation.agreement import TOKENS, compare_predictions, final_states
from nanoprune.evaluation.items import Items
from nanoprune.evaluation.perplexity import Protocol, Text


def test_numbers_are_those_of_all_logits(world, tmp_path, evaluate, monkeypatch):
    monkeypatch.setattr(agreement, "HEAD_CHUNK", 40_000)  # several chunks
    near = Decoder.from_pretrained(world.model)
    near.model.layers[1].mlp.down_proj.weight.data *= 0.9
    near.save_pretrained(tmp_path / "near")
    models = [world.model, tmp_path / "near", make_model(tmp_path / "other", world.data, seed=1)]
    assert evaluate(*models, "--data", world.data, "--out", tmp_path / "out")[0] == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["agreement"]
    assert [pair["models"] for pair in found] == [["base", "near"], ["base", "other"], ["near", "other"]]
    rows, split = read_rows(tmp_path / "out" / "agreement.csv"), Dataset(world.data).split("test")
    logs = [[Decoder.from_pretrained(folder, dtype=torch.float64)(
        torch.from_numpy(split[i].tokens[None, :-1])).log_softmax(-1)[0].detach() for i in range(len(split))]
        for folder in models]
    for pair, (a, b) in zip(found, ((0, 1), (0, 2), (1, 2)), strict=True):
        same = [int((p.argmax(-1) == q.argmax(-1)).sum()) for p, q in zip(logs[a], logs[b], strict=True)]
        kl = [float((p.exp() * (p - q)).sum()) for p, q in zip(logs[a], logs[b], strict=True)]
        own = [row for row in rows if [row["first"], row["second"]] == pair["models"]]
        assert [int(row["same"]) for row in own] == same
        assert [float(row["kl"]) for row in own] == pytest.approx(kl, rel=1e-4)
        tokens = sum(len(split[i].tokens) - 1 for i in range(len(split)))
        assert (pair["tokens"], pair["documents"]) == (tokens, len(split))
        assert pair["top1"] == pytest.approx(sum(same) / tokens) and 0 < pair["top1"] < 1
        assert pair["kl"] == pytest.approx(sum(kl) / tokens, rel=1e-4)
        assert pair["kl_interval"][0] < pair["kl"] < pair["kl_interval"][1]
    page = (tmp_path / "out" / "results.md").read_text()
    assert "## Agreement" in page and "| near | other |" in page


def test_a_model_is_like_itself_and_a_broken_one_like_none(world):
    items = Items(Dataset(world.data), world.model, Protocol(context=128), 128)
    items.add_test()
    models = {}
    for name in ("one", "two", "broken", "broken, too"):
        model = Decoder.from_pretrained(world.model).eval()
        if "broken" in name:
            model.model.norm.weight.data[0] = float("nan")
        models[name] = final_states(model, items.test, items.protocol)
    rows = compare_predictions(models, torch.device("cpu"))
    own = [row for row in rows if (row["first"], row["second"]) == ("one", "two")]
    assert all(row["same"] == row["tokens"] and row["kl"] == 0 for row in own)
    assert all(row["same"] == 0 for row in rows if "broken" in row["second"])


def test_at_most_so_many_tokens_evenly_spaced(world):
    items = Items(Dataset(world.data), world.model, Protocol(context=128), 128)
    items.add_test()
    learned = np.arange(2000) >= 500  # an answer after a long prompt
    pieces = agreement.beginnings([Text(Example(np.arange(2000), learned), {"id": i}) for i in range(100)])
    assert len(pieces) == 32 and {piece.example.learned.sum() for piece in pieces} == {TOKENS // 32 - 1}
    assert [pieces[i].about["id"] for i in (0, 1, 31)] == [0, 3, 99]
    few = agreement.beginnings(items.test)
    assert [len(piece.example) for piece in few] == [len(text.example) for text in items.test]
