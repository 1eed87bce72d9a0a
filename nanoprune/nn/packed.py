"""Matrices laid out for products with few rows: a CPU writes text in bf16 from them twice as fast."""

from __future__ import annotations

from collections.abc import Iterator
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


@contextmanager
def packed(model: Decoder) -> Iterator[None]:
    """Within it the model computes without gradients from packed copies of its matrices, if its products are
    in bf16 on a CPU with units for it. Layers of other kinds (adapters, four bits) stay as they are.
    """
    norm, config = model.model.norm.weight, model.config
    if matmul_dtype(norm) != torch.bfloat16 or not fast_bfloat16(norm.device):
        yield
        return
    layers = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
              if type(child) is nn.Linear and parent is not model]
    head = getattr(model, "lm_head", None)
    model.lm_head = PackedLinear(model.head_weight)
    model.config = replace(config, tie_word_embeddings=False)  # the embedding is looked up in rows, as ever
    try:
        for parent, name, child in layers:
            setattr(parent, name, PackedLinear(child.weight, child.bias))
        yield
    finally:
        for parent, name, child in layers:
            setattr(parent, name, child)
        model.config = config
        if head is None:
            del model.lm_head
        else:
            model.lm_head = head
