"""The vocabulary head and its cross entropy, without ever holding all logits; distillation."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from nanoprune.config import IGNORE
from nanoprune.device import matmul_dtype, to_device
from nanoprune.nn.scratch import return_buffer, take_buffer

HEAD_CHUNK = 5 * 2**24  # logits held at a time: 320 MiB in fp32; with fewer, products with a large vocabulary are slower
SLICE = 4096  # rows of a vocabulary's weight that are cast at a time
CACHED = 2**20  # values that a CPU's cache holds


def head_loss(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, reduction: str = "mean", teacher: tuple | None = None
) -> torch.Tensor:
    """Cross entropy in nats of the vocabulary head: x (B, T, D), weight (V, D), targets (B, T) int64, on any device.

    Never holds all the logits, and computes none where the target is IGNORE. `reduction` is "mean" over what counts,
    "sum", or "none" for (B, T), which gives no gradient. Plain form: `F.cross_entropy(F.linear(x, weight), targets)`.
    A weight that does not learn, or is kept in another type than its products have, is gone through in slices.
    With a `teacher` (what `DistilledLoss` takes, its tensors (B, T, k)) the loss is mixed with the divergence from it.
    """
    assert reduction in ("mean", "sum", "none"), reduction
    counted = to_device((targets.flatten() != IGNORE).nonzero().squeeze(1), x.device)
    flat, aims = x.flatten(0, 1), to_device(targets.flatten(), x.device)
    if len(counted) < len(aims):
        flat, aims = flat.index_select(0, counted), aims.index_select(0, counted)
    frozen = not weight.requires_grad
    if reduction == "none":
        with torch.no_grad():
            if frozen and weight.dtype != matmul_dtype(x):
                losses = sliced_loss(flat, weight, aims)[0]
            else:
                losses = torch.cat([nll for _, nll in _chunks(*_as_multiplied(flat, weight), aims)] or [flat.new_zeros(0)])
        return losses.new_zeros(targets.numel()).index_copy(0, counted, losses).view(targets.shape)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        if teacher is None:
            total = FrozenLoss.apply(flat, weight, aims) if frozen else SummedLoss.apply(flat, weight, aims)
        else:
            ids, log_p, share, temperature = teacher
            given = (to_device(part.flatten(0, 1), x.device).index_select(0, counted) for part in (ids, log_p))
            total = DistilledLoss.apply(flat, weight, aims, *given, share, temperature)
    else:
        total = sum((nll.sum() for _, nll in _chunks(*_as_multiplied(flat, weight), aims)), flat.new_zeros(()))
    return total if reduction == "sum" else total / max(1, len(counted))


def _as_multiplied(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.to(matmul_dtype(t)) for t in tensors]


def _chunks(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, gradient: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits (n, V) or their gradient, negative log-likelihoods (n,)) of parts of equal size, as few as may be.

    The logits are good until the next are asked for: all are written to one place.
    """
    size = max(1, HEAD_CHUNK // len(weight))
    size = -(-len(x) // max(1, -(-len(x) // size))) or 1
    rows = max(1, CACHED // len(weight)) if x.device.type == "cpu" else size
    room = take_buffer("logits", (size, len(weight)), x.dtype, x.device)
    for part, aims in zip(x.split(size), targets[:, None].split(size), strict=True):
        logits, losses = torch.mm(part, weight.t(), out=room[: len(part)]), []
        for few, aim in zip(logits.split(rows), aims.split(rows), strict=True):
            p = few.to(torch.promote_types(few.dtype, torch.float32))
            top, at_target = p.amax(1, keepdim=True), p.gather(1, aim)
            norm = p.sub_(top).exp_().sum(1, keepdim=True)
            losses.append(norm.log() + top - at_target)
            if gradient:
                p.div_(norm)
                few.copy_(p.scatter_(1, aim, p.gather(1, aim) - 1))
        yield logits, torch.cat(losses).squeeze(1)
    return_buffer("logits", room)


class SummedLoss(torch.autograd.Function):
    """The summed cross entropy, its gradients formed chunk by chunk on the way forward, while the logits are there.

    The gradient of a chunk's logits is softmax less one at the target; its products with the weight and with x are the
    gradients of x and of the weight. Nothing of a chunk is kept, and none is computed twice.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        want_x, want_weight, _ = ctx.needs_input_grad
        total = torch.zeros((), device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        grad_x = torch.empty_like(x) if want_x else None
        grad_weight = take_buffer("gradient", weight.shape, weight.dtype, x.device).zero_() if want_weight else None
        given, narrow = _as_multiplied(x, weight)
        start = 0
        for logits, nll in _chunks(given, narrow, targets, gradient=True):
            part, start = slice(start, start + len(nll)), start + len(nll)
            total += nll.sum()
            if want_x:
                grad_x[part] = logits @ narrow
            if want_weight and narrow is weight:
                grad_weight.addmm_(logits.t(), given[part])
            elif want_weight:
                grad_weight += logits.t() @ given[part]
        ctx.grads = grad_x, grad_weight
        return total

    @staticmethod
    def backward(ctx, scale: torch.Tensor):
        assert ctx.grads, "the gradients are handed on: there can be one backward pass"
        grad_x, grad_weight = ctx.grads
        ctx.grads = None
        return None if grad_x is None else grad_x.mul_(scale), None if grad_weight is None else grad_weight.mul_(scale), None


def sliced_loss(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(negative log-likelihoods (N,), the gradient of their sum for x (N, D) or None): one pass over the vocabulary.

    A slice of the weight (V, D) is cast once, for its logits and for their product with it; the softmax's largest value and
    norm go along, and what was summed before is scaled when a larger value comes (arXiv:1805.02867).
    """
    given = x.to(matmul_dtype(x))
    top = torch.full((len(x), 1), -math.inf, dtype=torch.promote_types(given.dtype, torch.float32), device=x.device)
    norm, at_target = torch.zeros_like(top), torch.zeros_like(top)
    pull = torch.zeros(x.shape, dtype=top.dtype, device=x.device) if gradient else None  # of the softmax, times norm
    size = min(SLICE, len(weight))
    room = take_buffer("slice of logits", (len(x), size), given.dtype, x.device)
    for start in range(0, len(weight), size):
        part = cast_slice(weight[start : start + size], given.dtype)
        logits = torch.mm(given, part.t(), out=room[:, : len(part)] if len(part) == size else None)
        aims = targets[:, None] - start
        inside = (aims >= 0) & (aims < len(part))
        at_target.add_(logits.gather(1, aims.clamp(0, len(part) - 1)) * inside)
        for few, high, total, sums in _in_cache(logits, top, norm, pull):
            p = few.to(top.dtype)
            higher = torch.maximum(high, p.amax(1, keepdim=True))
            p.sub_(higher).exp_()
            shrink = (high - higher).exp_()
            total.mul_(shrink).add_(p.sum(1, keepdim=True))
            high.copy_(higher)
            if gradient:
                few.copy_(p)
                sums.mul_(shrink)
        if gradient and given.dtype == pull.dtype:
            pull.addmm_(logits, part)
        elif gradient:
            pull += logits @ part
    return_buffer("slice of logits", room)
    grad = (pull / norm).sub_(weight.index_select(0, targets)).to(x.dtype) if gradient else None
    return (norm.log() + top - at_target).squeeze(1), grad


def _in_cache(logits: torch.Tensor, *others: torch.Tensor | None) -> Iterator[tuple]:
    """The same rows of each, as many as a CPU's cache holds of the first."""
    rows = max(1, CACHED // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
    for start in range(0, len(logits), rows):
        yield tuple(None if part is None else part[start : start + rows] for part in (logits, *others))


def cast_slice(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Some rows of a large weight in another type, good until the next are cast."""
    if rows.dtype == dtype:
        return rows
    room = take_buffer("slice of a weight", rows.shape, dtype, rows.device)
    return_buffer("slice of a weight", room)
    return room.copy_(rows)


class FrozenLoss(torch.autograd.Function):
    """The summed cross entropy of a head that does not learn: no gradient of the weight is formed, and no logits are kept."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses, ctx.grad = sliced_loss(x, weight, targets, gradient=True)
        return losses.sum()

    @staticmethod
    def backward(ctx, scale: torch.Tensor):
        assert ctx.grad is not None, "the gradient is handed on: there can be one backward pass"
        grad, ctx.grad = ctx.grad, None
        return grad.mul_(scale), None, None


def head_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of x (..., D); a weight (V, D) of another type is cast in slices. Plain form: `F.linear(x, weight)`."""
    if weight.dtype == matmul_dtype(x) or weight.requires_grad:
        return F.linear(x, weight)
    given = x.to(matmul_dtype(x))
    parts = [given @ cast_slice(rows, given.dtype).t() for rows in weight.split(SLICE)]
    return torch.cat(parts, dim=-1)


class DistilledLoss(torch.autograd.Function):
    """(1 - share) x cross entropy + share x temperature^2 x KL(teacher || student), summed; arXiv:1503.02531.

    The teacher is its k likeliest tokens, `ids` (N, k), with `log_p` (N, k), their log-probabilities at `temperature`; all
    other tokens count as one, whose probability is what is left. As in SummedLoss, gradients are formed on the way forward:
    that of the divergence is q - p on the k tokens, and q (1 - P / Q) elsewhere, with P and Q what is left of p and q.
    """

    @staticmethod
    def forward(ctx, x, weight, targets, ids, log_p, share: float, temperature: float) -> torch.Tensor:
        given, narrow = _as_multiplied(x, weight)
        total = torch.zeros((), device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        rows = max(1, HEAD_CHUNK // 3 // len(weight))  # logits, softmax and gradient
        for part in torch.arange(len(x), device=x.device).split(rows):
            logits = (given[part] @ narrow.t()).to(total.dtype)
            aims, top, p = targets[part, None], ids[part].long(), log_p[part].to(total.dtype).exp()
            log_q = torch.log_softmax(logits, 1)
            total -= (1 - share) * log_q.gather(1, aims).sum()
            grad = log_q.exp()
            grad.scatter_add_(1, aims, -torch.ones_like(grad[:, :1])).mul_(1 - share)
            log_q = torch.log_softmax(logits / temperature, 1) if temperature != 1 else log_q
            at_top, q = log_q.gather(1, top), log_q.exp()
            rest = q.scatter(1, top, 0.0).sum(1, keepdim=True).clamp_min(1e-30)
            left = (1 - p.sum(1, keepdim=True)).clamp_min(0)
            total += share * temperature**2 * ((p * (log_p[part] - at_top)).sum() + torch.xlogy(left, left / rest).sum())
            away = q * (1 - left / rest)
            away.scatter_(1, top, at_top.exp() - p)
            grad = grad.add_(away, alpha=share * temperature).to(narrow.dtype)
            if grad_x is not None:
                grad_x[part] = (grad @ narrow).to(x.dtype)
            if grad_weight is not None:
                grad_weight += grad.t() @ given[part]
        ctx.grads = grad_x, grad_weight
        return total

    @staticmethod
    def backward(ctx, scale: torch.Tensor):
        return *(None if grad is None else grad * scale for grad in ctx.grads), None, None, None, None, None


@torch.no_grad()
def likeliest(x: torch.Tensor, weight: torch.Tensor, k: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids (N, k), log-probabilities (N, k) at this temperature) of the k likeliest tokens after each of x (N, D)."""
    found = []
    for part in x.split(max(1, HEAD_CHUNK // 2 // len(weight))):
        logits = (part @ weight.t()).float() / temperature
        top = logits.topk(k, 1)
        found.append((top.indices, top.values - logits.logsumexp(1, keepdim=True)))
    return tuple(map(torch.cat, zip(*found, strict=True)))
