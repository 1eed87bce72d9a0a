"""Matrices laid out for products with few rows: a CPU writes text in bf16 from them twice as fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nanoprune.device import fast_bfloat16, matmul_dtype

if TYPE_CHECKING:
    from model import Decoder


class PackedLinear(nn.Module):
    """A linear layer without gradients, whose weight lies as oneDNN reads it, and as torch.compile packs it.

    Plain form: `F.linear` in bf16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16(), 1)
        self.bias = None if bias is None else bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return packed_product(x, self.weight, self.bias)


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., D) times a packed weight (V, D), plus bias (V,), in bf16."""
    return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), weight, bias, "none", [], "")


def pack(model: Decoder) -> Callable[[], None]:
    """Lay out a model's matrices for text, if its products are in bf16 on a CPU with units for it; it has no
    gradients then and cannot be saved. Layers of other kinds (adapters, four bits) stay as they are.

    Returns the function that puts the matrices back; without it their memory is free.
    """
    norm, config, head = model.model.norm.weight, model.config, getattr(model, "lm_head", None)
    if (isinstance(head, PackedLinear) or matmul_dtype(norm) != torch.bfloat16
            or not fast_bfloat16(norm.device)):
        return lambda: None
    layers = [(parent, name, child) for parent in model.model.modules()
              for name, child in parent.named_children() if type(child) is nn.Linear]
    model.lm_head = PackedLinear(model.head_weight)
    model.config = replace(config, tie_word_embeddings=False)  # the embedding is looked up in rows, as ever
    for parent, name, child in layers:
        setattr(parent, name, PackedLinear(child.weight, child.bias))

    def put_back() -> None:
        for parent, name, child in layers:
            setattr(parent, name, child)
        model.config = config
        if head is None:
            del model.lm_head
        else:
            model.lm_head = head

    return put_back


@contextmanager
def packed(model: Decoder) -> Iterator[None]:
    """Within it, and not behind it, the model's matrices are packed."""
    put_back = pack(model)
    try:
        yield
    finally:
        put_back()
