"""Attention: causal, windowed, over rows of packed documents; on each device in the way that is fastest there."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from nanoprune.device import fast_bfloat16, has_flash, to_device
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.pointwise import apply

QUERIES = 128  # that attend together in bf16 on a CPU: their scores stay in its cache


def document_lengths(documents: torch.Tensor) -> list[int]:
    """Lengths of the documents in rows (B, T) of their numbers, row after row; a row's end ends its last document."""
    B, T = documents.shape
    first = torch.ones(B, T, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = first.flatten().nonzero().squeeze(1)
    return torch.diff(starts, append=torch.tensor([B * T])).tolist()


def document_positions(documents: torch.Tensor) -> torch.Tensor:
    """Positions (B, T) that restart wherever the document number changes along a row."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def document_mask(documents: torch.Tensor, window: int | None, device) -> torch.Tensor:
    """What each position of packed rows may see, as bool (B, 1, T, T)."""
    same = documents[:, :, None] == documents[:, None, :]
    T = documents.shape[1]
    causal = causal_mask(T, T, window, "cpu")
    mask = same & (torch.ones(T, T, dtype=torch.bool).tril() if causal is None else causal)
    return to_device(mask[:, None], device)


def attend_documents(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], window: int | None,
    starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention within each document of packed rows: q (B, H, T, F), k and v (B, K, T, F), of one type.

    `lengths` are the documents' along the rows, as of `document_lengths`. With `starts` (their sums from 0 on, int32, on the
    device) all are attended to in one call, where the chip `has_flash`. Plain form: one attention under a mask that is
    block-diagonal, which computes every pair of a row and throws most away.
    """
    B, H, T, size = q.shape
    if starts is not None:
        from torch.nn.attention.varlen import varlen_attn  # not above: it imports torch's compiler, for seconds

        rows = [part.transpose(1, 2).reshape(B * T, -1, size) for part in (q, k, v)]  # (B T, heads, F)
        seen = (-1 if window is None else window - 1, 0)  # keys before and after a query
        y = varlen_attn(*rows, starts, starts, max(lengths), max(lengths), window_size=seen, enable_gqa=H != k.shape[1])
        return y.view(B, T, H, size).transpose(1, 2)
    rows = [part.transpose(0, 1).reshape(1, -1, B * T, size) for part in (q, k, v)]  # (1, heads, B T, F)
    masks = {n: causal_mask(n, n, window, q.device) for n in set(lengths)}
    parts = zip(*(part.split(lengths, dim=2) for part in rows), lengths, strict=True)
    outs = [attend(*one, masks[n]) for *one, n in parts]
    return torch.cat(outs, dim=2).view(H, B, T, size).transpose(0, 1)


def causal_mask(queries: int, keys: int, window: int | None, device) -> torch.Tensor | None:
    """What each of the last `queries` of `keys` positions may see, as bool (queries, keys).

    None stands for plain causal (or, for a single query, for everything): attention is then faster without a mask.
    """
    if (window is None or keys <= window) and queries in (1, keys):
        return None
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (distance >= 0) & (distance < (window or keys))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Attention under a mask, or causal without one (a single query then sees all)."""
    if mask is None and q.shape[2] > 1 and q.dtype == torch.bfloat16 and fast_bfloat16(q.device):
        return apply(BlockedAttention, q, k, v)
    if q.is_cuda and q.shape[1] != k.shape[1] and (mask is not None or not has_flash(q)):
        # Without flash attention, all kernels but the one that holds every score want as many key heads as query heads.
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1,
                                          enable_gqa=q.shape[1] != k.shape[1])


class BlockedAttention(torch.autograd.Function):
    """Causal attention of q (B, H, T, F) to k and v (B, K, T, F) by blocks of queries; only these three are kept.

    Plain matrix products, each of a block with all the keys that it sees, and one softmax, which the backward pass makes again.
    In bf16 they run at a CPU's full rate, which torch's own kernel does not reach. The heads that share keys are one matrix.
    Softmax is called below autocast, which would have it in fp32. Plain form: `F.scaled_dot_product_attention`.
    """

    @staticmethod
    def forward(ctx, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        y = torch.empty_like(q, memory_format=torch.contiguous_format)
        values, out = _by_keys(v, v), _by_keys(y, v)
        for block, seen, _, p in _probabilities(q, k):
            out[:, :, block] = torch.bmm(p, values[:, 0, seen]).view_as(out[:, :, block])
        return y

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        q, k, v = ctx.saved_tensors
        grads, keys, values = _by_keys(grad, k), _by_keys(k, k)[:, 0], _by_keys(v, v)[:, 0]
        grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        grad_k, grad_v = (torch.zeros(keys.shape, device=k.device) for _ in range(2))  # sums of many: in fp32
        out = _by_keys(grad_q, k)
        for block, seen, queries, p in _probabilities(q, k):
            g = grads[:, :, block].flatten(1, 2)
            grad_v[:, seen] += torch.bmm(p.mT, g)
            grad_s = torch._softmax_backward_data(torch.bmm(g, values[:, seen].mT), p, -1, p.dtype).mul_(q.shape[-1] ** -0.5)
            out[:, :, block] = torch.bmm(grad_s, keys[:, seen]).view_as(out[:, :, block])
            grad_k[:, seen] += torch.bmm(grad_s.mT, queries)
        return grad_q, grad_k.to(k.dtype).view(k.shape), grad_v.to(v.dtype).view(v.shape)


def _by_keys(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """x (B, heads, T, F) with the heads that share one of the keys k (B, K, T, F) together: (B K, heads / K, T, F).

    Contiguous: batched products copy whatever is not, block by block.
    """
    return x.contiguous().view(k.shape[0] * k.shape[1], -1, *x.shape[2:])


def _probabilities(q: torch.Tensor, k: torch.Tensor) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """(a block of queries, the keys it sees, these queries (B K, n, F), the softmax of their scores (B K, n, keys))."""
    T, size = q.shape[2:]
    queries, keys = _by_keys(q, k), _by_keys(k, k)[:, 0]
    later = torch.ones(QUERIES, QUERIES, dtype=torch.bool, device=q.device).triu(1)
    for start in range(0, T, QUERIES):
        block, seen = slice(start, min(T, start + QUERIES)), slice(0, min(T, start + QUERIES))
        part = queries[:, :, block]
        rows = part.flatten(1, 2)
        scores = torch.baddbmm(rows.new_empty(()), rows, keys[:, seen].mT, beta=0, alpha=size**-0.5)
        n = part.shape[2]
        scores.view(*part.shape[:3], -1)[..., start:].masked_fill_(later[:n, :n], -math.inf)
        yield block, seen, rows, torch._softmax(scores, -1, False)


class KeyValueCache:
    """Keys and values of every block for up to `length` positions of a batch; `used` of them are filled."""

    def __init__(self, config: ModelConfig, batch: int, length: int, device="cpu", dtype: torch.dtype = torch.float32):
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, length, config.head_dim)
        self.store = torch.zeros(shape, device=device, dtype=dtype)
        self.used = 0

    def extend(self, block: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a block's new k and v (B, K, T, F) and return all so far. The model moves `used` on after its last block."""
        end = self.used + k.shape[2]
        keys, values = self.store[block]
        keys[:, :, self.used : end], values[:, :, self.used : end] = k, v
        return keys[:, :, :end], values[:, :, :end]
