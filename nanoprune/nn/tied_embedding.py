"""One weight for embedding and head, with one gradient."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def tie(weight: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """(the weight as the head's, a function from ids to its rows as embeddings).

    The gradient of the rows is added in place to the head's, which is dense anyway. Plain form: `F.embedding` with the
    same weight, whose gradient is another of the weight's size.
    """
    if not torch.is_grad_enabled() or not weight.requires_grad:
        return weight, lambda ids: F.embedding(ids, weight)
    rows = []  # ids and their gradients, left by the embedding's backward pass for the weight's, which waits for it
    shared, link = TiedWeight.apply(weight, rows)
    return shared, lambda ids: EmbeddingRows.apply(ids, weight.detach(), link, rows)


class TiedWeight(torch.autograd.Function):
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


class EmbeddingRows(torch.autograd.Function):
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
