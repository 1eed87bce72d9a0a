"""Embedding and head; where one weight is both, it has one gradient."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def embedding_and_head(embedding: Tensor, head: Tensor) -> tuple[Callable, Tensor]:
    """(a function from ids to their embeddings, the head's weight), of two weights (V, D) that may be one.

    Of a tied weight that learns, the embedding's gradient is added in place to the head's, which is dense
    anyway. Plain form: `F.embedding` with the same weight, whose gradient is another tensor of the weight's
    size.
    """
    if embedding is not head or not torch.is_grad_enabled() or not embedding.requires_grad:
        return partial(F.embedding, weight=embedding), head
    # (ids, gradients) of the embedding's backward pass, for that of the weight, which runs after it
    rows = []
    head, link = TiedWeight.apply(embedding, rows)
    return partial(EmbeddingRows.apply, embedding.detach(), link, rows), head


class TiedWeight(Function):
    """The head's weight, and a link: through it, backward passes of `EmbeddingRows` run before this one."""

    @staticmethod
    def forward(ctx, weight: Tensor, rows: list):
        ctx.rows = rows
        return weight.view_as(weight), weight.new_zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor, link: Tensor):
        for ids, values in ctx.rows:
            grad.index_add_(0, ids.flatten(), values.flatten(0, -2).to(grad.dtype))
        ctx.rows.clear()
        return grad, None


class EmbeddingRows(Function):
    """An embedding whose gradient is left in `rows`."""

    @staticmethod
    def forward(ctx, weight: Tensor, link: Tensor, rows: list, ids: Tensor):
        ctx.rows = rows
        ctx.save_for_backward(ids, link)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        ids, link = ctx.saved_tensors
        ctx.rows.append((ids, grad))
        return None, torch.zeros_like(link), None, None
