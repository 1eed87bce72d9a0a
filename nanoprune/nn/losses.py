"""The vocabulary head and its cross entropy without ever holding all logits; distillation; a plain form.

Shapes: N counted tokens, D hidden size, V vocabulary, k tokens of a teacher.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from nanoprune.config import IGNORE
from nanoprune.device import matmul_dtype, to_device
from nanoprune.nn.pointwise import apply
from nanoprune.nn.scratch import buffer, take_buffer

if TYPE_CHECKING:
    from model import Decoder

HEAD_CHUNK = 5 * 2**24  # logits held at a time: 320 MiB in fp32; products of fewer are slower
SLICE = 4096  # rows of a vocabulary's weight that are cast at a time
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
    if weight.dtype == matmul_dtype(x) or weight.requires_grad:
        return F.linear(x, weight)
    x, slices = x.to(matmul_dtype(x)), []
    for rows in weight.split(SLICE):
        with cast(rows, x.dtype) as narrow:
            slices.append(x @ narrow.t())
    return torch.cat(slices, dim=-1)


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
        losses = _token_losses(hidden, weight, labels)
        return losses.new_zeros(targets.numel()).index_copy(0, counted, losses).view(targets.shape)
    if teacher is not None:
        soft = _pick(teacher.ids, counted), _pick(teacher.log_p, counted)
        total = DistilledLoss.apply(hidden, weight, labels, *soft, teacher.share, teacher.temperature)
    elif weight.requires_grad:
        total = apply(SummedLoss, hidden, weight, labels)
    else:
        total = apply(FrozenLoss, hidden, weight, labels)
    return total if reduction == "sum" else total / max(1, len(counted))


def _pick(tensor: Tensor, counted: Tensor) -> Tensor:
    """The counted positions (N, ...) of a tensor (B, T, ...), on their device."""
    rows = to_device(tensor.flatten(0, 1), counted.device)
    return rows if len(rows) == len(counted) else rows.index_select(0, counted)


@torch.no_grad()
def _token_losses(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    if not weight.requires_grad and weight.dtype != matmul_dtype(x):
        return sliced_loss(x, weight, targets)[0]
    chunks = [losses for _, losses in _chunks(*_as_multiplied(x, weight), targets)]
    return torch.cat(chunks) if chunks else x.new_zeros(0)


def _as_multiplied(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(matmul_dtype(tensor)) for tensor in tensors]


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
    wide = torch.promote_types(x.dtype, torch.float32)
    with (buffer("logits", (size, len(weight)), x.dtype, x.device) as room,
          buffer("softmax", (rows, len(weight)), wide, x.device) as softmax):
        for part, labels in zip(x.split(size), targets[:, None].split(size), strict=True):
            logits = torch.mm(part, weight.t(), out=room[: len(part)])
            losses = []
            for cached, label in zip(logits.split(rows), labels.split(rows), strict=True):
                losses.append(_cross_entropy(cached, label, softmax[: len(cached)], gradient))
            yield logits, torch.cat(losses).squeeze(1)


def _cross_entropy(
    logits: Tensor, targets: Tensor, softmax: Tensor, gradient: bool
) -> Tensor:
    """Negative log-likelihoods (n, 1) of logits (n, V); `softmax` (n, V) is space to write to.

    With `gradient` the logits become their own gradient: softmax less one at the target.
    """
    p = softmax.copy_(logits)
    top, at_target = p.amax(1, keepdim=True), p.gather(1, targets)
    norm = p.sub_(top).exp_().sum(1, keepdim=True)
    if gradient:
        p.div_(norm)
        logits.copy_(p.scatter_(1, targets, p.gather(1, targets) - 1))
    return norm.log() + top - at_target


class SummedLoss(Function):
    """The summed cross entropy, its gradients formed chunk by chunk in the forward pass, while the logits are
    there.

    The products of a chunk's gradient with the weight and with x are the gradients of x and of the weight.
    Nothing of a chunk is kept, and none is computed twice.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        need_x, need_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        grad_x = torch.empty_like(x) if need_x else None
        grad_weight = None
        if need_weight:
            grad_weight = take_buffer("gradient", weight.shape, weight.dtype, x.device).zero_()
        hidden, narrow = _as_multiplied(x, weight)
        start = 0
        for grad_logits, losses in _chunks(hidden, narrow, targets, gradient=need_x or need_weight):
            part = slice(start, start + len(losses))
            start = part.stop
            total += losses.sum()
            if need_x:
                grad_x[part] = grad_logits @ narrow
            if need_weight and narrow is weight:
                grad_weight.addmm_(grad_logits.t(), hidden[part])
            elif need_weight:
                grad_weight += grad_logits.t() @ hidden[part]
        ctx.grads = grad_x, grad_weight
        return total

    @staticmethod
    def backward(ctx, scale: Tensor):
        assert ctx.grads, "the gradients are handed on: there can be one backward pass"
        grads, ctx.grads = ctx.grads, None
        return *(None if grad is None else grad.mul_(scale) for grad in grads), None


# ---------------------------------------------------------------- a frozen head: slices of the vocabulary
class FrozenLoss(Function):
    """The summed cross entropy of a head that does not learn; no logits are kept for the gradient of x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        losses, ctx.grad = sliced_loss(x, weight, targets, gradient=ctx.needs_input_grad[0])
        return losses.sum()

    @staticmethod
    def backward(ctx, scale: Tensor):
        assert ctx.grad is not None, "the gradient is handed on: there can be one backward pass"
        grad, ctx.grad = ctx.grad, None
        return grad.mul_(scale), None, None


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
    wide = torch.promote_types(hidden.dtype, torch.float32)
    top = torch.full((len(x), 1), -math.inf, dtype=wide, device=x.device)
    norm, at_target = torch.zeros_like(top), torch.zeros_like(top)
    # The expected row of the weight, times norm.
    expected = torch.zeros(x.shape, dtype=wide, device=x.device) if gradient else None
    size = min(SLICE, len(weight))
    with buffer("slice of logits", (len(x), size), hidden.dtype, x.device) as room:
        for start in range(0, len(weight), size):
            with cast(weight[start : start + size], hidden.dtype) as rows:
                logits = torch.mm(hidden, rows.t(), out=room[:, : len(rows)] if len(rows) == size else None)
                labels = targets[:, None] - start
                inside = (labels >= 0) & (labels < len(rows))
                at_target.add_(logits.gather(1, labels.clamp(0, len(rows) - 1)) * inside)
                _add_to_softmax(logits, top, norm, expected)
                if gradient and hidden.dtype == wide:
                    expected.addmm_(logits, rows)
                elif gradient:
                    expected += logits @ rows
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


@contextmanager
def cast(rows: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Rows of a large weight in another type."""
    if rows.dtype == dtype:
        yield rows
        return
    with buffer("slice of a weight", rows.shape, dtype, rows.device) as room:
        yield room.copy_(rows)


# ---------------------------------------------------------------- distillation
class DistilledLoss(torch.autograd.Function):
    """(1 - share) x cross entropy + share x temperature^2 x KL(teacher || student), summed; arXiv:1503.02531.

    This is `plain_loss` chunk by chunk. Autograd gives the gradient of a chunk's logits in the forward pass;
    the products that follow are those of SummedLoss.
    """

    @staticmethod
    def forward(ctx, x, weight, targets, ids, log_p, share: float, temperature: float) -> torch.Tensor:
        hidden, narrow = _as_multiplied(x, weight)
        total = torch.zeros((), device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        rows = max(1, HEAD_CHUNK // 6 // len(weight))  # logits, and what autograd keeps of them
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            teacher = SoftTargets(ids[None, part], log_p[None, part], share, temperature)
            with torch.enable_grad():
                logits = (hidden[part] @ narrow.t()).to(total.dtype).detach().requires_grad_()
                loss = plain_loss(logits[None], targets[None, part], "sum", teacher)
            grad = torch.autograd.grad(loss, logits)[0].to(narrow.dtype)
            total += loss.detach()
            if grad_x is not None:
                grad_x[part] = (grad @ narrow).to(x.dtype)
            if grad_weight is not None:
                grad_weight += grad.t() @ hidden[part]
        ctx.grads = grad_x, grad_weight
        return total

    @staticmethod
    def backward(ctx, scale: torch.Tensor):
        return *(None if grad is None else grad * scale for grad in ctx.grads), None, None, None, None, None


@torch.no_grad()
def likeliest(
    model: "Decoder", x: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """(ids (..., k), log-probabilities (..., k) at a temperature) of the likeliest tokens after x."""
    ids, log_p = [], []
    for part in x.flatten(0, -2).split(max(1, HEAD_CHUNK // 2 // model.config.vocab_size)):
        logits = model.logits(part).float() / temperature
        top = logits.topk(k, 1)
        ids.append(top.indices)
        log_p.append(top.values - logits.logsumexp(1, keepdim=True))
    return torch.cat(ids).view(*x.shape[:-1], k), torch.cat(log_p).view(*x.shape[:-1], k)


# ---------------------------------------------------------------- the plain form
def plain_loss(
    logits: Tensor, targets: Tensor, reduction: str = "mean", teacher: SoftTargets | None = None
) -> Tensor:
    """The loss of `head_loss` by autograd over logits (B, T, V), all of which are held."""
    targets = to_device(targets, logits.device)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
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
