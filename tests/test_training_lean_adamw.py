"""nanoprune/training/lean_adamw.py: AdamW but for its precision, its rounding right on average."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small import TIMING, read_rows
from torch import nn

from model import Decoder
from nanoprune.training.lean_adamw import LeanAdamW, round_to_bfloat16, round_to_code
from train import train


def regression(make) -> tuple[list[float], nn.Module]:
    """Losses of 150 steps on a small regression with inputs of very different sizes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 7))
    x = torch.randn(64, 24) * torch.logspace(-2, 1, 24)
    y = torch.randn(64, 7) + x[:, :7]
    optimizer, losses = make(net), []
    for _ in range(150):
        loss = F.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, net


def test_the_lean_optimizer_is_adamw_but_for_its_precision():
    settings = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    plain, _ = regression(lambda net: torch.optim.AdamW(net.parameters(), weight_decay=0.1, **settings))
    lean, net = regression(lambda net: LeanAdamW([{"params": list(net.parameters()), "weight_decay": 0.1}],
                                                 **settings))
    # a first step needs no moments
    assert lean[0] == plain[0] and lean[1] == pytest.approx(plain[1], rel=1e-6)
    assert plain[-1] < 0.3 * plain[0]
    for a, b in zip(lean, plain, strict=True):
        assert a == pytest.approx(b, abs=0.002 * plain[0])


def test_rounding_is_right_on_average():
    """And never further than to the next value there is."""
    x = torch.cat([torch.linspace(-1, 1, 41), torch.tensor([1e-5, -3e-3, 0.0, 0.4999])])
    noise = torch.randint(0, 2**16, (20_000, len(x)), generator=torch.Generator().manual_seed(0),
                          dtype=torch.int32)
    codes = round_to_code(x.expand_as(noise), noise).double()
    values = codes.sign() * (codes / 127) ** 2
    step = 2 * x.abs().double().sqrt() / 127 + 1 / 127**2
    assert ((values - x).abs() <= step * 1.001).all() and (values.mean(0) - x).abs().max() < 2e-4
    x = x * 1.2345e-7
    rounded = round_to_bfloat16(x.expand_as(noise).contiguous(), noise)
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.double().mean(0), x.double(), rtol=2e-4, atol=0)
    assert ((rounded.double() - x).abs() <= x.abs().double() / 127).all()


def test_the_lean_optimizer_in_the_backward_pass():
    """No gradient is left; one that is not finite is told."""
    weight = torch.ones(300, requires_grad=True)
    optimizer = LeanAdamW([{"params": [weight]}], lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    (weight * 2).sum().backward()
    assert weight.grad is None and (weight < 1).all()
    assert [float(norm) for norm in optimizer.take_norms()] == [pytest.approx(2 * 300**0.5)]
    (weight * float("inf")).sum().backward()
    assert [float(norm) for norm in optimizer.take_norms()] == [math.inf]


def test_a_lean_run_learns_and_resumes(world, tmp_path):
    config = world.config(tmp_path / "whole", optimizer="lean", recompute="blocks", clip=0.0, max_steps=6,
                          save_every=2)
    train(config)
    rows = read_rows(config.folder / "train.csv")
    plain = world.config(tmp_path / "plain", clip=0.0, max_steps=6)
    train(plain)
    for a, b in zip(rows, read_rows(plain.folder / "train.csv"), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=0.02)
        assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=0.2)
    stopped = replace(config, runs=str(tmp_path / "stopped"))
    shutil.copytree(config.folder, stopped.folder)
    (stopped.folder / "config.json").write_text(json.dumps(stopped.to_dict()))
    shutil.rmtree(stopped.folder / "state" / "step-00000006")
    train(stopped, resume=True)
    assert read_rows(stopped.folder / "train.csv", TIMING) == read_rows(config.folder / "train.csv", TIMING)
    a, b = ((run.folder / "state" / "step-00000006" / "training.safetensors").read_bytes()
            for run in (config, stopped))
    assert a == b


def test_the_lean_optimizers_terms(world, tmp_path):
    """It cannot do these, and says so."""
    for changes in ({"clip": 1.0}, {"accumulation": 2}, {"dtype": "float16"}):
        given = {"clip": 0.0, "optimizer": "lean"} | changes
        assert any("optimizer: lean" in problem for problem in world.config(tmp_path, **given).problems())
    assert not world.config(tmp_path, clip=0.0, optimizer="lean").problems()


def test_a_lean_run_that_breaks_keeps_its_last_state(world, tmp_path, monkeypatch):
    """Some weights were updated already: nothing is saved over the state that is whole."""
    config = world.config(tmp_path, clip=0.0, optimizer="lean", save_every=1, max_steps=4)
    stop_at, original = 3, Decoder.forward
    calls = []

    def broken(self, ids, targets=None, *args, **options):
        loss = original(self, ids, targets, *args, **options)
        calls.append(torch.is_grad_enabled())
        if sum(calls) == stop_at and calls[-1]:
            self.model.layers[0].mlp.up_proj.weight.register_hook(lambda grad: grad * math.inf)
        return loss

    monkeypatch.setattr(Decoder, "forward", broken)
    with pytest.raises(ValueError, match="of the last save"):
        train(config)
    states = sorted(path.name for path in (config.folder / "state").iterdir())
    state = load_file(config.folder / "state" / states[-1] / "training.safetensors")
    assert states[-1] == "step-00000002" and {float(t) for name, t in state.items()
                                              if name.endswith("/step")} == {2.0}
