"""The vocabulary head and its cross entropy without ever holding all logits; distillation; a plain form.

Shapes: N counted tokens, D hidden size, V vocabulary, k tokens of a teacher.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from nanoprune.config import IGNORE
from nanoprune.device import matmul_dtype, to_device
from nanoprune.nn.packed import packed_product
from nanoprune.nn.pointwise import apply
from nanoprune.nn.scratch import buffer, cast

if TYPE_CHECKING:
    from model import Decoder

HEAD_CHUNK = 5 * 2**24  # logits held at a time: 320 MiB in fp32; products of fewer are slower
SLICE = 4096  # rows of a vocabulary's weight that are cast, or their gradients added, at a time
CACHED = 2**20  # values that a CPU's cache holds


class SoftTargets(NamedTuple):
    """A teacher's likeliest tokens after each position, to learn beside the text."""

    ids: Tensor  # (B, T, k)
    log_p: Tensor  # (B, T, k): their log-probabilities at `temperature`
    share: float  # of the loss
    temperature: float


def head_logits(x: Tensor, weight: Tensor) -> Tensor:
    """Logits (..., V) of x (..., D); a frozen weight (V, D) of another type is cast in slices.

    Plain form: `F.linear(x, weight)`.
    """
    if weight.is_mkldnn:
        return packed_product(x, weight)
    if weight.dtype == matmul_dtype(x) or weight.requires_grad:
        return F.linear(x, weight)
    x, slices = x.to(matmul_dtype(x)), weight.split(SLICE)
    return torch.cat([x @ cast("slice of a weight", rows, x.dtype).t() for rows in slices], dim=-1)


def head_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    reduction: str = "mean",
    teacher: SoftTargets | None = None,
) -> Tensor:
    """Cross entropy in nats of the vocabulary head: x (B, T, D), weight (V, D), targets (B, T) int64, on any
    device.

    It never holds all the logits, and computes none where the target is IGNORE. `reduction` is "mean" over
    what counts, "sum", or "none" for (B, T), which gives no gradient. With a `teacher` the loss is mixed with
    the divergence from it. A weight that does not learn, or is kept in another type than its products have,
    is processed in slices. Plain form: `plain_loss`.
    """
    assert reduction in ("mean", "sum", "none"), reduction
    counted = to_device((targets.flatten() != IGNORE).nonzero().squeeze(1), x.device)
    hidden, labels = _pick(x, counted), _pick(targets, counted)
    if reduction == "none":
        with torch.no_grad():
            dtype = matmul_dtype(hidden)
            if weight.requires_grad or weight.dtype == dtype:
                chunks = _chunks(hidden.to(dtype), cast("head", weight, dtype), labels)
                losses = torch.cat([part for _, part in chunks])
            else:
                losses, _ = sliced_loss(hidden, weight, labels)
        return losses.new_zeros(targets.numel()).index_copy(0, counted, losses).view(targets.shape)
    if teacher is not None:
        teacher = teacher._replace(ids=_pick(teacher.ids, counted), log_p=_pick(teacher.log_p, counted))
    total = apply(HeadLoss, hidden, weight, labels, teacher)
    return total if reduction == "sum" else total / max(1, len(counted))


def _pick(tensor: Tensor, counted: Tensor) -> Tensor:
    """The counted positions (N, ...) of a tensor (B, T, ...), on their device."""
    rows = to_device(tensor.flatten(0, 1), counted.device)
    return rows if len(rows) == len(counted) else rows.index_select(0, counted)


def _wide(x: Tensor) -> torch.dtype:
    """The type of losses and sums: fp32, or fp64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)


# ---------------------------------------------------------------- a head that learns: chunks of tokens
def _chunks(
    x: Tensor, weight: Tensor, targets: Tensor, gradient: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits (n, V) or their gradient, negative log-likelihoods (n,)) of chunks of equal size, as few as
    possible.

    The logits are valid until the next chunk: all are written to one buffer.
    """
    most = max(1, HEAD_CHUNK // len(weight))
    size = math.ceil(len(x) / max(1, math.ceil(len(x) / most))) or 1
    rows = min(size, max(1, CACHED // len(weight))) if x.device.type == "cpu" else size
    room = buffer("logits", (size, len(weight)), x.dtype, x.device)
    softmax = buffer("softmax", (rows, len(weight)), _wide(x), x.device)
    for part, labels in zip(x.split(size), targets[:, None].split(size), strict=True):
        logits = torch.mm(part, weight.t(), out=room[: len(part)])
        losses = []
        for cached, label in zip(logits.split(rows), labels.split(rows), strict=True):
            p = softmax[: len(cached)].copy_(cached)
            top, at_target = p.amax(1, keepdim=True), p.gather(1, label)
            norm = p.sub_(top).exp_().sum(1, keepdim=True)
            losses.append(norm.log() + top - at_target)
            if gradient:  # softmax less one at the target
                p.div_(norm)
                cached.copy_(p.scatter_(1, label, p.gather(1, label) - 1))
        yield logits, torch.cat(losses).squeeze(1)


def _taught_chunks(
    x: Tensor, weight: Tensor, targets: Tensor, teacher: SoftTargets
) -> Iterator[tuple[Tensor, Tensor]]:
    """(gradients of logits (n, V), summed loss) of chunks, as `plain_loss` has them; arXiv:1503.02531."""
    rows = max(1, HEAD_CHUNK // 6 // len(weight))  # logits, and what autograd keeps of them
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        soft = teacher._replace(ids=teacher.ids[None, part], log_p=teacher.log_p[None, part])
        with torch.enable_grad():
            logits = (x[part] @ weight.t()).to(_wide(x)).detach().requires_grad_()
            loss = plain_loss(logits[None], targets[None, part], "sum", soft)
        yield torch.autograd.grad(loss, logits)[0].to(x.dtype), loss.detach()


class HeadLoss(Function):
    """The summed loss, its gradients formed chunk by chunk in the forward pass, while the logits are there.

    The products of a chunk's gradient with the weight and with x are the gradients of x and of the weight.
    Nothing of a chunk is kept, and none is computed twice. A head that does not learn is processed in slices
    of the vocabulary instead.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, teacher: SoftTargets | None) -> Tensor:
        need_x, need_weight = ctx.needs_input_grad[:2]
        if teacher is None and not weight.requires_grad:
            losses, grad_x = sliced_loss(x, weight, targets, gradient=need_x)
            ctx.grads = grad_x, None
            return losses.sum()
        total = torch.zeros((), device=x.device, dtype=_wide(x))
        grad_x = torch.empty_like(x) if need_x else None
        grad_weight = None
        if need_weight:
            grad_weight = buffer("gradient", weight.shape, weight.dtype, x.device).zero_()
        dtype = matmul_dtype(x)
        hidden, narrow = x.to(dtype), cast("head", weight, dtype)
        if teacher is None:
            chunks = _chunks(hidden, narrow, targets, gradient=need_x or need_weight)
        else:
            chunks = _taught_chunks(hidden, narrow, targets, teacher)
        start = 0
        for grad_logits, losses in chunks:
            part = slice(start, start + len(grad_logits))
            start = part.stop
            total += losses.sum()
            if need_x:
                grad_x[part] = grad_logits @ narrow
            if need_weight:
                _add_product(grad_weight, grad_logits.t(), hidden[part], fused=teacher is None)
        ctx.grads = grad_x, grad_weight
        return total

    @staticmethod
    def backward(ctx, scale: Tensor):
        assert ctx.grads, "the gradients are handed on: there can be one backward pass"
        grads, ctx.grads = ctx.grads, None
        return *(None if grad is None else grad.mul_(scale) for grad in grads), None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor, fused: bool = True) -> None:
    """Add a @ b to a total in place; `fused`, where the types allow it, without another tensor of its size.

    In fp16 the sum over many tokens may overflow before the loss is scaled: it is formed in the total's type.
    """
    if fused and a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.dtype != torch.float16:
        size = 2 * SLICE if a.device.type == "cpu" else len(a)  # a CPU widens a product before it adds it
        for rows, part in zip(total.split(size), a.split(size), strict=True):
            rows += part @ b
    elif a.is_cuda:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))  # in place, so that autocast leaves it alone


# ---------------------------------------------------------------- a frozen head: slices of the vocabulary
def sliced_loss(
    x: Tensor, weight: Tensor, targets: Tensor, gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(negative log-likelihoods (N,), the gradient of their sum for x (N, D) or None): one pass over the
    vocabulary.

    A slice of the weight (V, D) is cast once, for its logits and for their product with it. The largest logit
    and the norm of the softmax are updated from slice to slice, and sums are rescaled when the largest grows
    (arXiv:1805.02867).
    """
    hidden = x.to(matmul_dtype(x))
    top = torch.full((len(x), 1), -math.inf, dtype=_wide(x), device=x.device)
    norm, at_target = torch.zeros_like(top), torch.zeros_like(top)
    # The expected row of the weight, times norm.
    expected = torch.zeros(x.shape, dtype=top.dtype, device=x.device) if gradient else None
    size = min(SLICE, len(weight))
    room = buffer("slice of logits", (len(x), size), hidden.dtype, x.device)
    for start in range(0, len(weight), size):
        rows = cast("slice of a weight", weight[start : start + size], hidden.dtype)
        logits = torch.mm(hidden, rows.t(), out=room if len(rows) == size else None)
        labels = targets[:, None] - start
        inside = (labels >= 0) & (labels < len(rows))
        at_target.add_(logits.gather(1, labels.clamp(0, len(rows) - 1)) * inside)
        _add_to_softmax(logits, top, norm, expected)
        if gradient:
            _add_product(expected, logits, rows)
    grad = (expected / norm).sub_(weight.index_select(0, targets)).to(x.dtype) if gradient else None
    return (norm.log() + top - at_target).squeeze(1), grad


def _add_to_softmax(
    logits: Tensor, top: Tensor, norm: Tensor, expected: Tensor | None
) -> None:
    """Update top and norm (N, 1) and expected (N, D) in place for a slice of logits (N, n).

    The logits become exp(logits - top), except in half precision without `expected`.
    """
    rows = max(1, CACHED // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        p = logits[part].to(top.dtype)
        higher = torch.maximum(top[part], p.amax(1, keepdim=True))
        p.sub_(higher).exp_()
        shrink = (top[part] - higher).exp_()
        norm[part].mul_(shrink).add_(p.sum(1, keepdim=True))
        top[part].copy_(higher)
        if expected is not None:
            logits[part].copy_(p)  # which in fp32 they are already
            expected[part].mul_(shrink)


# ---------------------------------------------------------------- a teacher
@torch.no_grad()
def likeliest(
    model: "Decoder", x: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """(ids (..., k), log-probabilities (..., k) at a temperature) of the likeliest tokens after x."""
    tops = []
    for part in x.flatten(0, -2).split(max(1, HEAD_CHUNK // 2 // model.config.vocab_size)):
        logits = model.logits(part).float() / temperature
        top = logits.topk(k, 1)
        tops.append((top.indices, top.values - logits.logsumexp(1, keepdim=True)))
    ids, log_p = (torch.cat(parts).view(*x.shape[:-1], k) for parts in zip(*tops, strict=True))
    return ids, log_p


# ---------------------------------------------------------------- the plain form
def plain_loss(
    logits: Tensor, targets: Tensor, reduction: str = "mean", teacher: SoftTargets | None = None
) -> Tensor:
    """The loss of `head_loss` by autograd over logits (B, T, V), all of which are held."""
    targets = to_device(targets, logits.device)
    wide = logits.to(_wide(logits))
    flat = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    losses, counted = flat.view(targets.shape), targets != IGNORE
    if teacher is not None and reduction != "none":
        top, log_p = to_device(teacher.ids, wide.device).long(), to_device(teacher.log_p, wide.device)
        p = log_p.to(wide.dtype).exp()
        log_q = torch.log_softmax(wide / teacher.temperature, -1)
        rest = log_q.exp().scatter(-1, top, 0.0).sum(-1).clamp_min(1e-30)
        left = (1 - p.sum(-1)).clamp_min(0)
        divergence = (p * (log_p - log_q.gather(-1, top))).sum(-1) + torch.xlogy(left, left / rest)
        losses = (1 - teacher.share) * losses + teacher.share * teacher.temperature**2 * divergence * counted
    if reduction == "none":
        return losses.detach()
    return losses.sum() if reduction == "sum" else losses.sum() / counted.sum().clamp_min(1)
