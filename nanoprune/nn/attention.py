"""Attention: causal, windowed, over packed documents, under a mask; on each device in its fastest form.

Shapes: B batch, T time, H query heads, K key/value heads, F head_dim.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from nanoprune.device import has_flash, matmul_dtype, to_device
from nanoprune.nn.pointwise import apply

if TYPE_CHECKING:
    from model import Decoder

QUERIES = 128  # that attend together in bf16 on a CPU: their scores stay in its cache
SHORT_DOCUMENT = 64  # tokens: packed documents shorter than this on average share one attention under a mask


# ---------------------------------------------------------------- what attention may see
@dataclass(frozen=True)
class Visible:
    """The keys that each query may attend to: by default all keys up to its own position."""

    mask: Tensor | None = None  # bool (queries, keys) or (B, 1, queries, keys)
    # Packed documents, row after row, each of which sees itself alone, causally.
    lengths: list[int] | None = None
    window: int | None = None  # keys that a query sees, its own included
    starts: Tensor | None = None  # sums of `lengths` from 0 on, int32, on the device: for one kernel over all
    longest: int = 0  # of `lengths`: a number, because compiled blocks are compiled again for other lists

    @classmethod
    def causal(cls, queries: int, keys: int, window: int | None, device) -> "Visible":
        """Each of the last `queries` of `keys` positions sees itself and those before it, inside a window."""
        if (window is None or keys <= window) and queries in (1, keys):
            return cls()  # the kernels are faster without a mask
        return cls(_causal_mask(queries, keys, window, device))


class Layout(NamedTuple):
    """Where the tokens of a batch stand, and what they may attend to."""

    positions: Tensor  # (B or 1, T) int64
    visible: dict[int | None, Visible]  # by the window of a block


def causal_layout(
    count: int, windows: Iterable[int | None], device, start: int = 0, padding: Tensor | None = None
) -> Layout:
    """Rows of `count` tokens from place `start` on, each seeing all before it.

    `padding` (B,): the places at the left of each row that hold no text, and that text does not see.
    """
    places = torch.arange(start + count, device=device)
    if padding is None:
        return Layout(places[None, start:], {window: Visible.causal(count, len(places), window, device)
                                             for window in windows})
    is_text = places >= padding[:, None]
    same = is_text[:, None, start:, None] == is_text[:, None, None]  # a token that saw none would be NaN
    masks = {window: Visible(same & _causal_mask(count, len(places), window, device)) for window in windows}
    return Layout((places[start:] - padding[:, None]).clamp(min=0), masks)


def packed_layout(documents: Tensor, windows: Iterable[int | None], x: Tensor) -> Layout:
    """Rows packed with documents, numbered by `documents` (B, T), in each of which positions restart.

    The device and type of the hidden states x decide on the form of attention.
    """
    documents = documents.cpu()  # they decide on shapes
    lengths = document_lengths(documents)
    if len(lengths) == len(documents):  # a document fills each row
        return causal_layout(documents.shape[1], windows, x.device)
    positions = torch.cat([torch.arange(length) for length in lengths]).view_as(documents)
    positions = to_device(positions, x.device)
    if has_flash(x):
        starts = to_device(torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32), x.device)
        return Layout(positions, {window: Visible(None, lengths, window, starts, max(lengths))
                                  for window in windows})
    if len(lengths) * SHORT_DOCUMENT <= documents.numel():
        return Layout(positions, {window: Visible(None, lengths, window) for window in windows})
    T, same = documents.shape[1], documents[:, None, :, None] == documents[:, None, None]  # (B, 1, T, T)
    return Layout(positions, {window: Visible(to_device(same & _causal_mask(T, T, window, "cpu"), x.device))
                              for window in windows})


def document_lengths(documents: Tensor) -> list[int]:
    """Lengths of the documents in rows (B, T) of their numbers; a row's end ends its last document."""
    return [length for row in documents for length in row.unique_consecutive(return_counts=True)[1].tolist()]


def _causal_mask(queries: int, keys: int, window: int | None, device) -> Tensor:
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (distance >= 0) & (distance < (window or keys))


# ---------------------------------------------------------------- attention
def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
    """Attention of q (B, H, T, F) to k and v (B, K, keys, F), all of one type: (B, H, T, F)."""
    if visible.starts is not None and q.shape[-1] % 8 == 0:  # the kernel takes no other size of heads
        return _attend_in_one_call(q, k, v, visible)
    if visible.lengths is not None:
        return _attend_by_document(q, k, v, visible)
    causal = visible.mask is None and q.shape[2] > 1  # a single query sees all
    if causal and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return apply(BlockedAttention, q, k, v)
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.shape[2] == 1:  # the heads that share keys, as queries of one head: keys are read once
        rows = q.view(len(q), k.shape[1], -1, q.shape[3])
        return F.scaled_dot_product_attention(rows, k, v, visible.mask).view_as(q)
    if grouped and q.is_cuda and (visible.mask is not None or not has_flash(q)):
        # Without flash attention, all kernels but the one that holds every score need as many key heads as
        # query heads.
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, visible.mask, is_causal=causal, enable_gqa=grouped)


def _attend_by_document(q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
    """Attention inside each packed document, one after another.

    Plain form: one attention under a block-diagonal mask, which computes every pair of a row and discards
    most.
    """
    B, H, T, size = q.shape
    rows = [part.transpose(0, 1).reshape(1, -1, B * T, size) for part in (q, k, v)]  # (1, heads, B T, F)
    documents = zip(visible.lengths, *(part.split(visible.lengths, dim=2) for part in rows), strict=True)
    outputs = [attend(*parts, Visible.causal(n, n, visible.window, q.device)) for n, *parts in documents]
    return torch.cat(outputs, dim=2).view(H, B, T, size).transpose(0, 1)


def _attend_in_one_call(q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
    """Attention inside all packed documents by one flash kernel, where the chip `has_flash`."""
    from torch.nn.attention.varlen import varlen_attn  # not above: it imports torch's compiler, for seconds

    B, H, T, size = q.shape
    rows = [part.transpose(1, 2).reshape(B * T, -1, size) for part in (q, k, v)]  # (B T, heads, F)
    longest, starts = visible.longest, visible.starts
    sides = (-1 if visible.window is None else visible.window - 1, 0)  # keys before and after a query
    y = varlen_attn(*rows, starts, starts, longest, longest, window_size=sides, enable_gqa=H != k.shape[1])
    return y.view(B, T, H, size).transpose(1, 2)


class BlockedAttention(Function):
    """Causal attention of q (B, H, T, F) to k and v (B, K, T, F) by blocks of queries; only these three are
    kept.

    Plain matrix products, each of a block with all the keys that it sees, and one softmax, which the backward
    pass makes again. In bf16 they run at a CPU's full rate, which torch's own kernel does not reach. The
    heads that share keys are one matrix. Softmax is called below autocast, which would have it in fp32. Plain
    form: `F.scaled_dot_product_attention`.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        y = torch.empty_like(q, memory_format=torch.contiguous_format)
        values, out = _by_keys(v, v), _by_keys(y, v)
        for chunk, _, p in _probabilities(q, k):
            out[:, :, chunk] = torch.bmm(p, values[:, 0, : chunk.stop]).view_as(out[:, :, chunk])
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v = ctx.saved_tensors
        grads, keys, values = _by_keys(grad, k), _by_keys(k, k)[:, 0], _by_keys(v, v)[:, 0]
        grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        grad_k, grad_v = (torch.zeros(keys.shape, device=k.device) for _ in range(2))  # sums of many: in fp32
        out = _by_keys(grad_q, k)
        for chunk, queries, p in _probabilities(q, k):
            seen = slice(chunk.stop)
            grad_y = grads[:, :, chunk].flatten(1, 2)
            grad_v[:, seen] += torch.bmm(p.mT, grad_y)
            grad_p = torch.bmm(grad_y, values[:, seen].mT)
            grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(q.shape[-1] ** -0.5)
            out[:, :, chunk] = torch.bmm(grad_s, keys[:, seen]).view_as(out[:, :, chunk])
            grad_k[:, seen] += torch.bmm(grad_s.mT, queries)
        return grad_q, grad_k.to(k.dtype).view(k.shape), grad_v.to(v.dtype).view(v.shape)


def _by_keys(x: Tensor, k: Tensor) -> Tensor:
    """x (B, heads, T, F) grouped by the keys k (B, K, T, F) that heads share: (B K, heads / K, T, F).

    Contiguous: batched products copy whatever is not, chunk by chunk.
    """
    return x.contiguous().view(k.shape[0] * k.shape[1], -1, *x.shape[2:])


def _probabilities(q: Tensor, k: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(a chunk of positions, their queries (B K, n, F), the softmax of their scores (B K, n, chunk.stop))."""
    T, size = q.shape[2:]
    queries, keys = _by_keys(q, k), _by_keys(k, k)[:, 0]
    later = torch.ones(QUERIES, QUERIES, dtype=torch.bool, device=q.device).triu(1)
    for start in range(0, T, QUERIES):
        chunk = slice(start, min(T, start + QUERIES))
        part = queries[:, :, chunk]
        rows, n = part.flatten(1, 2), part.shape[2]
        scores = torch.baddbmm(rows.new_empty(()), rows, keys[:, : chunk.stop].mT, beta=0, alpha=size**-0.5)
        scores.view(*part.shape[:3], -1)[..., start:].masked_fill_(later[:n, :n], -math.inf)
        yield chunk, rows, torch._softmax(scores, -1, False)


class KeyValueCache:
    """Keys and values of every block for up to `length` positions of a batch; `used` of them are filled.

    They have the type of the model's products, which autocast decides on.
    """

    def __init__(self, model: "Decoder", batch: int, length: int):
        config, norm = model.config, model.model.norm.weight
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, length, config.head_dim)
        self.store = torch.zeros(shape, device=norm.device, dtype=matmul_dtype(norm))
        self.used = 0  # the model advances it after its last block
        self.padding = None  # (B,) places at the left of each row that hold no text
        self.tokens = []  # of a single row, those that are not read yet, too

    def rewind(self, prompt: Sequence[int], length: int) -> None:
        """Keep what the prompt begins with; make room for `length` positions.

        The last token of a prompt is always read: the next is drawn from its logits.
        """
        pairs = zip(prompt[:-1], self.tokens[: self.used], strict=False)
        self.used = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.tokens = list(prompt)
        if length > self.store.shape[-2]:
            self.store = F.pad(self.store, (0, 0, 0, length - self.store.shape[-2]))

    def extend(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Add a block's new keys and values (B, K, T, F) and return all of them."""
        stored = self.store[block, ..., : self.used + k.shape[2], :]
        stored[0, :, :, self.used :], stored[1, :, :, self.used :] = k, v
        return stored.unbind()
