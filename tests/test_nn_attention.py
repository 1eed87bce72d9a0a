"""nanoprune/nn/attention.py: every form of attention against the plain one."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoprune.nn import attention
from nanoprune.nn.attention import (
    BlockedAttention,
    Visible,
    attend,
    causal_layout,
    document_lengths,
    packed_layout,
)


def drawn(*shape, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_over_documents_is_that_under_a_mask(window, kv_heads):
    documents = torch.tensor([[0] * 9 + [1] + [2] * 6, [7] * 16])
    lengths = document_lengths(documents)
    assert lengths == [9, 1, 6, 16]
    q, k, v = drawn(2, 4, 16, 8), drawn(2, kv_heads, 16, 8, seed=1), drawn(2, kv_heads, 16, 8, seed=2)
    plain = attend(q, k, v, packed_layout(documents, {window}, q).visible[window])
    found = attend(q, k, v, Visible(lengths=lengths, window=window))
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
    weights = drawn(*plain.shape, seed=3).detach()
    grads, expected = (torch.autograd.grad((y * weights).sum(), (q, k, v)) for y in (found, plain))
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [2, 5, 8, 13])
def test_attention_by_blocks_of_queries(kv_heads, length, monkeypatch):
    """In fp64 it is the plain form, with every gradient; heads before time in memory or behind it, as the
    model has them.
    """
    monkeypatch.setattr(attention, "QUERIES", 4)
    inputs = [drawn(2, length, heads, 8, seed=heads).transpose(1, 2) for heads in (4, kv_heads, kv_heads)]
    found = BlockedAttention.apply(*inputs)
    plain = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
    weights = drawn(*plain.shape, seed=3).detach()
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (found, plain)), strict=True):
        # Gradients of keys and values are summed in fp32.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_attention_in_bfloat16_is_by_blocks():
    """It is no farther from exact attention than torch's kernel by more than half."""
    exact = [drawn(1, heads, 200, 32, seed=heads) for heads in (4, 2, 2)]
    small = [part.detach().bfloat16().requires_grad_() for part in exact]
    weights = drawn(1, 4, 200, 32, seed=3).detach()

    def errors(y: torch.Tensor, inputs: list[torch.Tensor], true: list[torch.Tensor]) -> list[float]:
        found = [y, *torch.autograd.grad((y * weights.to(y.dtype)).sum(), inputs)]
        if not true:
            return found
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, true, strict=True)]

    true = errors(F.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True), exact, [])
    theirs = errors(F.scaled_dot_product_attention(*small, is_causal=True, enable_gqa=True), small, true)
    y = attend(*small, Visible())
    assert type(y.grad_fn).__name__ == "BlockedAttentionBackward"
    assert all(a <= 1.5 * b for a, b in zip(errors(y, small, true), theirs, strict=True))
    with torch.no_grad():
        assert torch.equal(attend(*small, Visible()), y)
    assert type(attend(*exact, Visible()).grad_fn).__name__ != "BlockedAttentionBackward"


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_positions_restart_with_each_document(rows):
    width = max(map(len, rows))
    documents = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows])
    positions, _ = packed_layout(documents, {None}, torch.zeros(len(rows), width, 4))
    for row, found in zip(documents.tolist(), positions.expand_as(documents).tolist(), strict=True):
        expected = [0]
        for before, now in zip(row, row[1:], strict=False):
            expected.append(expected[-1] + 1 if now == before else 0)
        assert found == expected


def test_layouts_of_packed_rows(monkeypatch):
    """A form for each kind of row: one document in each, long ones, short ones."""
    x, whole = torch.zeros(2, 6, 4), torch.tensor([[0] * 6, [1] * 6])
    positions, visible = packed_layout(whole, {None, 3}, x)
    assert positions.tolist() == [list(range(6))] and visible[None] == Visible()
    assert visible[3].mask.sum().item() == 1 + 2 + 3 * 4
    packed = torch.tensor([[0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 2, 3]])
    assert packed_layout(packed, {None}, x).visible[None].mask.shape == (2, 1, 6, 6)
    monkeypatch.setattr(attention, "SHORT_DOCUMENT", 3)
    positions, visible = packed_layout(packed, {None, 3}, x)
    assert positions.tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0]]
    assert visible == {window: Visible(lengths=[2, 4, 5, 1], window=window) for window in (None, 3)}


def test_a_single_query_sees_everything_before_it():
    positions, visible = causal_layout(1, {None, 4}, "cpu", start=7)
    assert positions.tolist() == [[7]] and visible[None] == Visible()
    assert visible[4].mask.tolist() == [[False] * 4 + [True] * 4]
