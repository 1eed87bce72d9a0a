"""The operations worth writing by hand. Each has a plain form, which the tests hold it to."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from memory import give_back, spare

HEAD_CHUNK = 5 * 2**24  # logits held at a time: 320 MiB in fp32; with fewer, products with a large vocabulary are slower
SLICE = 4096  # rows of a vocabulary's weight that are cast at a time
CACHED = 2**20  # values that a CPU's cache holds
IGNORE = -100  # a target that is not counted, torch's convention

# ---------------------------------------------------------------- the head's loss


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
    counted = send((targets.flatten() != IGNORE).nonzero().squeeze(1), x.device)
    flat, aims = x.flatten(0, 1), send(targets.flatten(), x.device)
    if len(counted) < len(aims):
        flat, aims = flat.index_select(0, counted), aims.index_select(0, counted)
    frozen = not weight.requires_grad
    if reduction == "none":
        with torch.no_grad():
            if frozen and weight.dtype != multiplied_type(x):
                losses = sliced_loss(flat, weight, aims)[0]
            else:
                losses = torch.cat([nll for _, nll in _chunks(*_as_multiplied(flat, weight), aims)] or [flat.new_zeros(0)])
        return losses.new_zeros(targets.numel()).index_copy(0, counted, losses).view(targets.shape)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        if teacher is None:
            total = FrozenLoss.apply(flat, weight, aims) if frozen else SummedLoss.apply(flat, weight, aims)
        else:
            ids, log_p, share, temperature = teacher
            given = (send(part.flatten(0, 1), x.device).index_select(0, counted) for part in (ids, log_p))
            total = DistilledLoss.apply(flat, weight, aims, *given, share, temperature)
    else:
        total = sum((nll.sum() for _, nll in _chunks(*_as_multiplied(flat, weight), aims)), flat.new_zeros(()))
    return total if reduction == "sum" else total / max(1, len(counted))


def multiplied_type(x: torch.Tensor) -> torch.dtype:
    """The type that products of x have: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _as_multiplied(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.to(multiplied_type(t)) for t in tensors]


def _chunks(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, gradient: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits (n, V) or their gradient, negative log-likelihoods (n,)) of parts of equal size, as few as may be.

    The logits are good until the next are asked for: all are written to one place.
    """
    size = max(1, HEAD_CHUNK // len(weight))
    size = -(-len(x) // max(1, -(-len(x) // size))) or 1
    rows = max(1, CACHED // len(weight)) if x.device.type == "cpu" else size
    room = spare("logits", (size, len(weight)), x.dtype, x.device)
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
    give_back("logits", room)


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
        grad_weight = spare("gradient", weight.shape, weight.dtype, x.device).zero_() if want_weight else None
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
    given = x.to(multiplied_type(x))
    top = torch.full((len(x), 1), -math.inf, dtype=torch.promote_types(given.dtype, torch.float32), device=x.device)
    norm, at_target = torch.zeros_like(top), torch.zeros_like(top)
    pull = torch.zeros(x.shape, dtype=top.dtype, device=x.device) if gradient else None  # of the softmax, times norm
    size = min(SLICE, len(weight))
    room = spare("slice of logits", (len(x), size), given.dtype, x.device)
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
    give_back("slice of logits", room)
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
    room = spare("slice of a weight", rows.shape, dtype, rows.device)
    give_back("slice of a weight", room)
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
    if weight.dtype == multiplied_type(x) or weight.requires_grad:
        return F.linear(x, weight)
    given = x.to(multiplied_type(x))
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


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """On the device; to a GPU from pinned memory, so that nobody waits for what it is still computing."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# ---------------------------------------------------------------- a weight that head and embedding share


def tie(weight: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """(the weight as the head's, a function from ids to its rows as embeddings).

    The gradient of the rows is added in place to the head's, which is dense anyway. Plain form: `F.embedding` with the
    same weight, whose gradient is another of the weight's size.
    """
    if not torch.is_grad_enabled() or not weight.requires_grad:
        return weight, lambda ids: F.embedding(ids, weight)
    rows = []  # ids and their gradients, left by the embedding's backward pass for the weight's, which waits for it
    shared, link = Tie.apply(weight, rows)
    return shared, lambda ids: Rows.apply(ids, weight.detach(), link, rows)


class Tie(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: torch.Tensor, rows: list):
        ctx.rows, ctx.shape = rows, weight.shape
        return weight.view_as(weight), weight.new_zeros(())

    @staticmethod
    def backward(ctx, grad: torch.Tensor, link: torch.Tensor):
        for ids, values in ctx.rows:
            grad.index_add_(0, ids.flatten(), values.flatten(0, -2).to(grad.dtype))
        ctx.rows.clear()
        return grad, None


class Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids: torch.Tensor, weight: torch.Tensor, link: torch.Tensor, rows: list):
        ctx.rows = rows
        ctx.save_for_backward(ids, link)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        ids, link = ctx.saved_tensors
        ctx.rows.append((ids, grad))
        return None, None, torch.zeros_like(link), None


# ---------------------------------------------------------------- what lies between the products, keeping little


class Nobody:
    """Stands for autograd's context where there is no backward pass."""

    @staticmethod
    def save_for_backward(*tensors: torch.Tensor) -> None:
        pass


def run(function: type[torch.autograd.Function], *given):
    """`function.apply(*given)`, or without gradients its forward pass alone: that costs half as much to call."""
    return function.apply(*given) if torch.is_grad_enabled() else function.forward(Nobody(), *given)


class Normalize(torch.autograd.Function):
    """x (..., D) over its root mean square, in fp32 and cast back. Plain form: `F.rms_norm(x.float(), (D,), eps=eps)`."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = (torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1]).add_(eps).rsqrt_()
        y = (wide * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        y, scale = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1).mul_(scale).to(y.dtype), None


class Rotate(torch.autograd.Function):
    """Rotary positions on x (B, heads, T, F), in the half-split form; the gradient is turned back by the same angles."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return turn(grad, *ctx.saved_tensors, -1), None, None


class GatedSilu(torch.autograd.Function):
    """silu(gate) x up, which keeps the two alone. Plain form: `F.silu(gate) * up`."""

    @staticmethod
    def forward(ctx, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    half = x.shape[-1] // 2
    y, sin = x * cos, sin[..., :half]
    y[..., :half].addcmul_(x[..., half:], sin, value=-sign)
    y[..., half:].addcmul_(x[..., :half], sin, value=sign)
    return y
