"""ops.py, attention.py and lean.py: every fast path against its plain form."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from small import TIMING, read_rows
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import model as model_module
from model import Decoder
from nanoprune.data.dataset import Dataset
from nanoprune.data.packing import TrainingRows
from nanoprune.nn import attention, losses
from nanoprune.nn.attention import BlockedAttention, attend, attend_documents, document_lengths, document_mask
from nanoprune.nn.losses import head_loss
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.pointwise import GatedSilu, Normalize, Rotate
from nanoprune.nn.scratch import SPARES, return_buffer, take_buffer
from nanoprune.nn.tied_embedding import tie
from nanoprune.training.lean_adamw import LeanAdamW, round_to_bfloat16, round_to_code
from train import train


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
        torch.testing.assert_close(head_loss(x, weight, targets, "none").double(), plain.detach(), rtol=1e-5, atol=1e-6)


def test_the_heads_gradients_in_bf16_are_those_in_fp32(chunk, targets):
    """Within the rounding of products in bf16; the weight's are summed over the chunks in fp32."""
    x, weight = drawn(2, 7, 8, dtype=torch.float32), drawn(11, 8, seed=1, dtype=torch.float32)
    expected = torch.autograd.grad(head_loss(x, weight, targets), (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(x, weight, targets)
    for found, wanted in zip(torch.autograd.grad(loss, (x, weight)), expected, strict=True):
        assert found.dtype == torch.float32 and (found - wanted).norm() < 0.02 * wanted.norm()


def test_large_tensors_given_back_are_written_to_again():
    """Those large enough, of the same type; and what is in use is never handed out."""
    SPARES.clear()
    first = take_buffer("logits", (3, 4), torch.float32, torch.device("cpu"))
    assert take_buffer("logits", (3, 4), torch.float32, torch.device("cpu")).data_ptr() != first.data_ptr()
    for shape, dtype, again in (((2, 5), torch.float32, True), ((3, 5), torch.float32, False), ((2, 2), torch.float64, False)):
        return_buffer("logits", first)
        found = take_buffer("logits", shape, dtype, torch.device("cpu"))
        assert (found.shape, found.dtype, found.data_ptr() == first.data_ptr()) == (shape, dtype, again)
        assert take_buffer("logits", shape, dtype, torch.device("cpu")).data_ptr() != found.data_ptr()


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
    expected = torch.autograd.grad(F.cross_entropy(F.linear(x, weight).flatten(0, 1), targets.flatten()), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-10, atol=1e-12)


def test_the_heads_loss_under_autocast(chunk, targets):
    """bf16 products, an fp32 loss and fp32 gradients, as close as bf16 is."""
    x, weight = drawn(2, 7, 8, dtype=torch.float32), drawn(11, 8, seed=1, dtype=torch.float32)
    expected = torch.autograd.grad(F.cross_entropy(F.linear(x, weight).flatten(0, 1), targets.flatten()), (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(x, weight, targets)
    found = torch.autograd.grad(loss, (x, weight))
    assert loss.dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_over_documents_is_that_under_a_mask(window, kv_heads):
    documents = torch.tensor([[0] * 9 + [1] + [2] * 6, [7] * 16])
    lengths = document_lengths(documents)
    assert lengths == [9, 1, 6, 16]
    q, k, v = drawn(2, 4, 16, 8), drawn(2, kv_heads, 16, 8, seed=1), drawn(2, kv_heads, 16, 8, seed=2)
    plain = attend(q, k, v, document_mask(documents, window, "cpu"))
    found = attend_documents(q, k, v, lengths, window)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
    weights = drawn(*plain.shape, seed=3).detach()
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), (q, k, v)) for y in (found, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [2, 5, 8, 13])
def test_attention_by_blocks_of_queries(kv_heads, length, monkeypatch):
    """In fp64 it is the plain form, with every gradient; heads before time in memory or behind it, as the model has them."""
    monkeypatch.setattr(attention, "QUERIES", 4)
    inputs = [drawn(2, length, heads, 8, seed=heads).transpose(1, 2) for heads in (4, kv_heads, kv_heads)]
    found = BlockedAttention.apply(*inputs)
    plain = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
    weights = drawn(*plain.shape, seed=3).detach()
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (found, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # keys' and values' gradients are summed in fp32


def test_attention_in_bfloat16_is_by_blocks_where_that_is_fast(monkeypatch):
    """It is no farther from exact attention than torch's kernel by more than half."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    exact = [drawn(1, heads, 200, 32, seed=heads) for heads in (4, 2, 2)]
    small = [part.detach().bfloat16().requires_grad_() for part in exact]
    weights = drawn(1, 4, 200, 32, seed=3).detach()

    def errors(y: torch.Tensor, inputs: list[torch.Tensor], true: list[torch.Tensor]) -> list[float]:
        found = [y, *torch.autograd.grad((y * weights.to(y.dtype)).sum(), inputs)]
        return found if not true else [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, true, strict=True)]

    true = errors(F.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True), exact, [])
    theirs = errors(F.scaled_dot_product_attention(*small, is_causal=True, enable_gqa=True), small, true)
    y = attend(*small)
    assert type(y.grad_fn).__name__ == "BlockedAttentionBackward"
    assert all(a <= 1.5 * b for a, b in zip(errors(y, small, true), theirs, strict=True))
    with torch.no_grad():
        assert torch.equal(attend(*small), y)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert type(attend(*small).grad_fn).__name__ != "BlockedAttentionBackward"


def shape(**changes) -> ModelConfig:
    return ModelConfig.from_dict(dict(
        model_type="qwen3", vocab_size=50, num_hidden_layers=2, hidden_size=16, intermediate_size=24, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True) | changes)


def plain_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size, enable_gqa):
    """What torch.nn.attention.varlen.varlen_attn gives on a GPU: query (tokens, heads, F), starts in int32."""
    before, after = window_size
    assert cu_seq_q.dtype == torch.int32 and cu_seq_q is cu_seq_k and after == 0
    assert enable_gqa == (query.shape[1] != key.shape[1]) and max_q == max_k == int(cu_seq_q.diff().max())
    outs = []
    for start, end in pairwise(cu_seq_q.tolist()):
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (distance >= 0) & ((distance <= before) | (before < 0))
        outs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=enable_gqa).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False},
                                     {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}])
def test_packed_rows_are_their_documents_by_themselves(changes, monkeypatch):
    """Loss and every gradient, whichever way attention is computed, with and without keeping activations; in fp64."""
    torch.manual_seed(0)
    decoder = Decoder(shape(**changes)).double()
    lengths, ids = [[9, 1, 14], [24]], torch.randint(0, 50, (2, 24))
    targets, documents = torch.randint(0, 50, (2, 24)), torch.tensor([[0] * 9 + [1] + [2] * 14, [0] * 24])
    targets[0, :4] = -100
    single = 0
    for row, sizes in enumerate(lengths):
        for one_ids, one_targets in zip(ids[row].split(sizes), targets[row].split(sizes), strict=True):
            single = single + decoder(one_ids[None], one_targets[None], reduction="sum")
    single.backward()
    expected = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    for short, recompute in ((0, "none"), (10**9, "none"), (0, "pointwise"), (0, "blocks"), ("in one call", "none")):
        if short == "in one call":  # as on GPUs with flash attention, whose kernel a plain form stands in for
            monkeypatch.setattr(model_module, "has_flash", lambda *_: True)
            monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen)
        else:
            monkeypatch.setattr(model_module, "SHORT_DOCUMENT", short)
        decoder.model.recompute = recompute
        decoder.zero_grad()
        loss = decoder(ids, targets, documents, reduction="sum")
        loss.backward()
        assert loss.item() == pytest.approx(single.item(), rel=1e-12)
        for name, p in decoder.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_recomputing_keeps_little():
    """Of the blocks only their inputs wait for the backward pass."""
    decoder, ids = Decoder(shape(num_hidden_layers=6)), torch.zeros(1, 32, dtype=torch.int64)

    def kept() -> int:
        sizes = {}
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            decoder(ids, ids)
        return sum(sizes.values())

    whole = kept()
    decoder.model.recompute = "blocks"
    assert kept() < 0.3 * whole


def test_recomputing_what_is_pointwise_multiplies_nothing_again():
    decoder, ids, counts = Decoder(shape(num_hidden_layers=2)), torch.zeros(1, 32, dtype=torch.int64), {}

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts[choice][func.overloadpacket] += 1
            return func(*args, **(kwargs or {}))

    for choice in ("none", "pointwise", "blocks"):
        decoder.model.recompute, counts[choice] = choice, Counter()
        with Counted():
            decoder(ids, ids).backward()
    for heavy in (torch.ops.aten.mm, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu):
        assert counts["none"][heavy] == counts["pointwise"][heavy] < counts["blocks"][heavy]
    assert counts["none"][torch.ops.aten.silu] < counts["pointwise"][torch.ops.aten.silu]


def test_a_shared_weights_gradient_is_that_of_its_two_uses():
    weight, ids = drawn(11, 8), torch.tensor([[3, 3, 10], [0, 3, 1]])
    plain = (F.embedding(ids, weight).square().sum() + F.linear(F.embedding(ids, weight), weight).sin().sum())
    expected = torch.autograd.grad(plain, weight)[0]
    shared, embed = tie(weight)
    loss = embed(ids).square().sum() + F.linear(embed(ids), shared).sin().sum()
    assert loss.item() == pytest.approx(plain.item())
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], expected, rtol=1e-10, atol=1e-12)


def plainly_rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


@pytest.mark.parametrize("fast, plain, shapes", [
    (lambda x: Normalize.apply(x, 1e-3), lambda x: F.rms_norm(x, (6,), eps=1e-3), [(2, 3, 6)]),
    (GatedSilu.apply, lambda gate, up: F.silu(gate) * up, [(2, 3, 6), (2, 3, 6)]),
    (lambda x: Rotate.apply(x, *angles()), lambda x: plainly_rotated(x, *angles()), [(2, 4, 3, 6)]),
], ids=["norm", "gated silu", "rotary positions"])
def test_what_lies_between_the_products_equals_its_plain_form(fast, plain, shapes):
    """In fp64: values and gradients."""
    inputs = [drawn(*one, seed=i) for i, one in enumerate(shapes)]
    found, expected = fast(*inputs), plain(*inputs)
    weights = drawn(*found.shape, seed=9).detach()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad((found * weights).sum(), inputs),
                          torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def angles() -> tuple[torch.Tensor, torch.Tensor]:
    turns = drawn(2, 1, 3, 3).detach().repeat(1, 1, 1, 2)
    return turns.cos(), turns.sin()


def test_the_norm_is_taken_in_fp32():
    x = drawn(4, 64, dtype=torch.float32).detach().bfloat16()
    expected = F.rms_norm(x.float(), (64,), eps=1e-6).bfloat16()
    assert torch.equal(Normalize.apply(x, 1e-6), expected)


# ---------------------------------------------------------------- the lean optimizer


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
    lean, net = regression(lambda net: LeanAdamW([{"params": list(net.parameters()), "weight_decay": 0.1}], **settings))
    assert lean[0] == plain[0] and lean[1] == pytest.approx(plain[1], rel=1e-6)  # a first step needs no moments
    assert plain[-1] < 0.3 * plain[0]
    for a, b in zip(lean, plain, strict=True):
        assert a == pytest.approx(b, abs=0.002 * plain[0])


def test_rounding_is_right_on_average():
    """And never further than to the next value there is."""
    x = torch.cat([torch.linspace(-1, 1, 41), torch.tensor([1e-5, -3e-3, 0.0, 0.4999])])
    noise = torch.randint(0, 2**16, (20_000, len(x)), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
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
    """The same updates, and no gradient is left; one that is not finite is told."""
    settings = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8)

    def during(net):
        optimizer = LeanAdamW([{"params": list(net.parameters())}], **settings)
        optimizer.during_backward()
        return optimizer

    after, one = regression(lambda net: LeanAdamW([{"params": list(net.parameters())}], **settings))
    within, two = regression(during)
    assert after == within and all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(p.grad is None for p in two.parameters())
    weight = torch.ones(300, requires_grad=True)
    optimizer = LeanAdamW([{"params": [weight]}], **settings)
    optimizer.during_backward()
    (weight * 2).sum().backward()
    assert optimizer.grad_norm() == pytest.approx(2 * 300**0.5) and not optimizer.norms
    (weight * float("inf")).sum().backward()
    assert not optimizer.grad_norm() < float("inf")


def test_a_lean_run_learns_and_resumes(world, tmp_path):
    config = world.config(tmp_path / "whole", optimizer="lean", recompute="blocks", clip=0.0, max_steps=6, save_every=2)
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
    a, b = ((run.folder / "state" / "step-00000006" / "training.safetensors").read_bytes() for run in (config, stopped))
    assert a == b


def test_compiled_blocks_learn_the_same(world, tmp_path):
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler: torch.compile cannot be tried")
    plain, fast = world.config(tmp_path), world.config(tmp_path, name="fast", compile=True)
    train(plain)
    train(fast)
    for a, b in zip(read_rows(plain.folder / "train.csv"), read_rows(fast.folder / "train.csv"), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)


def test_rows_of_the_dataset_take_the_path_of_documents(world, monkeypatch):
    """A whole batch of the real reader, once each way."""
    rows = TrainingRows(Dataset(world.data).split("train"), 32, 0)
    batch = rows.batch(0, 4)
    decoder, losses = Decoder.from_pretrained(world.model), []
    for short in (0, 10**9):
        monkeypatch.setattr(model_module, "SHORT_DOCUMENT", short)
        losses.append(decoder(*batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
