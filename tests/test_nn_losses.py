"""nanoprune/nn/losses.py: the head's fast paths against autograd over all logits."""

import pytest
import torch
import torch.nn.functional as F

from nanoprune.nn import losses
from nanoprune.nn.losses import SoftTargets, head_logits, head_loss, plain_loss
from nanoprune.nn.scratch import cast


def drawn(*shape, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


@pytest.fixture(params=[1, 3, 100])
def chunk(request, monkeypatch) -> int:
    """Tokens of a chunk of the head, whose vocabulary is 11 in these tests."""
    monkeypatch.setattr(losses, "HEAD_CHUNK", request.param * 11)
    return request.param


@pytest.fixture
def targets() -> torch.Tensor:
    found = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(2))
    found[0, 2:5] = -100
    return found


def test_the_heads_loss_equals_the_plain_one(chunk, targets, monkeypatch):
    """In fp64: value, per-token values and gradients."""
    x, weight = drawn(2, 7, 8), drawn(11, 8, seed=1)
    plain = F.cross_entropy(F.linear(x, weight).flatten(0, 1), targets.flatten(), reduction="none").view(2, 7)
    counted = (targets != -100).sum()
    for reduction, wanted in (("sum", plain.sum()), ("mean", plain.sum() / counted)):
        expected = torch.autograd.grad(3 * wanted, (x, weight), retain_graph=True)
        loss = head_loss(x, weight, targets, reduction)
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
        for found, wanted_grad in zip(torch.autograd.grad(3 * loss, (x, weight)), expected, strict=True):
            torch.testing.assert_close(found, wanted_grad, rtol=1e-10, atol=1e-12)
        with torch.no_grad():
            assert head_loss(x, weight, targets, reduction).item() == pytest.approx(wanted.item(), rel=1e-6)
    with torch.no_grad():
        each = head_loss(x, weight, targets, "none").double()
        torch.testing.assert_close(each, plain.detach(), rtol=1e-5, atol=1e-6)


def test_the_heads_gradients_in_bf16_are_those_in_fp32(chunk, targets):
    """Within the rounding of products in bf16; the weight's are summed over the chunks in fp32."""
    x, weight = drawn(2, 7, 8, dtype=torch.float32), drawn(11, 8, seed=1, dtype=torch.float32)
    expected = torch.autograd.grad(head_loss(x, weight, targets), (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(x, weight, targets)
    for found, wanted in zip(torch.autograd.grad(loss, (x, weight)), expected, strict=True):
        assert found.dtype == torch.float32 and (found - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("taught", [False, True])
def test_the_heads_gradients_in_fp16_are_finite(taught):
    """Summed over many tokens they pass fp16's largest number, 65,504, before the loss is divided or scaled.
    """
    x = (60 + drawn(1, 16_384, 8, dtype=torch.float32)).detach().requires_grad_()
    weight = (drawn(512, 8, seed=1, dtype=torch.float32) / 50).detach().requires_grad_()
    targets = torch.arange(16_384)[None] % 7
    teacher = None
    if taught:
        ids = torch.stack([targets, targets + 9], dim=-1)
        teacher = SoftTargets(ids, torch.full(ids.shape, 0.4).log(), 0.5, 2.0)
    expected = torch.autograd.grad(plain_loss(F.linear(x, weight), targets, "mean", teacher), (x, weight))
    with torch.autocast("cpu", torch.float16):
        loss = head_loss(x, weight, targets, teacher=teacher)
    for found, wanted in zip(torch.autograd.grad(loss, (x, weight)), expected, strict=True):
        assert found.isfinite().all() and (found - wanted).norm() < 0.01 * wanted.norm()


def test_what_is_not_counted_never_reaches_the_head(chunk, targets):
    """Nor does it leave anything in a gradient."""
    x, weight = drawn(2, 7, 8), drawn(11, 8, seed=1)
    with torch.no_grad():
        x[targets == -100] = float("nan")
    loss = head_loss(x, weight, targets, "mean")
    of_x, of_weight = torch.autograd.grad(loss, (x, weight))
    assert loss.isfinite() and of_weight.isfinite().all() and (of_x[targets == -100] == 0).all()


def test_a_frozen_head_costs_no_gradient(chunk, targets):
    x, weight = drawn(2, 7, 8), drawn(11, 8, seed=1).detach()
    head_loss(x, weight, targets).backward()
    plain = F.cross_entropy(F.linear(x, weight).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(plain, x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-10, atol=1e-12)


def test_the_heads_loss_under_autocast(chunk, targets):
    """bf16 products, an fp32 loss and fp32 gradients, as close as bf16 is."""
    x, weight = drawn(2, 7, 8, dtype=torch.float32), drawn(11, 8, seed=1, dtype=torch.float32)
    plain = F.cross_entropy(F.linear(x, weight).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(plain, (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(x, weight, targets)
    found = torch.autograd.grad(loss, (x, weight))
    assert loss.dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_teachers_share_equals_the_plain_form(chunk, targets, reduction):
    """In fp64: value and gradients."""
    x, weight = drawn(2, 7, 8), drawn(11, 8, seed=1)
    log_p, ids = F.log_softmax(drawn(2, 7, 11, seed=4).detach() / 2, -1).topk(3)
    teacher = SoftTargets(ids, log_p, 0.4, 2.0)
    fast = head_loss(x, weight, targets, reduction, teacher)
    plain = plain_loss(F.linear(x, weight), targets, reduction, teacher)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(3 * loss, (x, weight)) for loss in (fast, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_two_cast_slices_at_once_are_two_tensors():
    weight = torch.arange(32.0).view(8, 4)
    first, second = (cast("it", rows, torch.bfloat16) for rows in weight.split(4))
    assert torch.equal((second - first).float(), torch.full((4, 4), 16.0))


@torch.no_grad()
def test_logits_of_a_narrow_weight_are_those_of_a_wide_one(monkeypatch):
    monkeypatch.setattr(losses, "SLICE", 4)
    x, weight = drawn(2, 7, 8, dtype=torch.float32).detach(), drawn(11, 8, seed=1).detach().bfloat16()
    torch.testing.assert_close(head_logits(x, weight), F.linear(x, weight.float()), rtol=1e-5, atol=1e-6)
