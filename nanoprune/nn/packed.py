"""Matrices laid out for products with few rows, with which a CPU writes text in bf16 faster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nanoprune.device import fast_bfloat16, matmul_dtype

if TYPE_CHECKING:
    from model import Decoder


# The layers that `project` of attention and MLP calls on one input
PROJECT = {"self_attn": ("q_proj", "k_proj", "v_proj"), "mlp": ("gate_proj", "up_proj")}


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


def side_by_side(layers: list[nn.Linear]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function of x that gives the output of each layer, by one product."""
    weight, bias = (None if parts[0] is None else torch.cat(parts)
                    for parts in zip(*((layer.weight, layer.bias) for layer in layers), strict=True))
    packed_layer, sizes = PackedLinear(weight, bias), [layer.out_features for layer in layers]
    return lambda x: packed_layer(x).split(sizes, dim=-1)


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., D) times a packed weight (V, D), plus bias (V,), in bf16."""
    return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), weight, bias, "none", [], "")


def pack(model: "Decoder") -> Callable[[], None]:
    """Lay out a model's matrices for text, if its products are in bf16 on a CPU with units for it; it has no
    gradients then and cannot be saved. Layers of other kinds (adapters, four bits) stay as they are.

    Returns the function that puts the matrices back; without it their memory is free.
    """
    norm, config, head = model.model.norm.weight, model.config, getattr(model, "lm_head", None)
    if (isinstance(head, PackedLinear) or matmul_dtype(norm) != torch.bfloat16
            or not fast_bfloat16(norm.device)):
        return lambda: None
    model.lm_head = PackedLinear(model.head_weight)
    model.config = replace(config, tie_word_embeddings=False)  # the embedding is looked up in rows, as ever
    layers = []
    for block, (half, names) in product(model.model.layers, PROJECT.items()):
        if (parent := getattr(block, half)) is None:
            continue
        plain = {name: layer for name, layer in parent.named_children() if type(layer) is nn.Linear}
        layers += [(parent, name, layer) for name, layer in plain.items()]
        if plain.keys() >= set(names):
            parent.project = side_by_side([plain.pop(name) for name in names])
            for name in names:
                setattr(parent, name, None)
        for name, layer in plain.items():
            setattr(parent, name, PackedLinear(layer.weight, layer.bias))

    def put_back() -> None:
        for parent, name, layer in layers:
            setattr(parent, name, layer)
            vars(parent).pop("project", None)
        model.config = config
        if head is None:
            del model.lm_head
        else:
            model.lm_head = head

    return put_back


@contextmanager
def packed(model: "Decoder") -> Iterator[None]:
    """Within it, and not behind it, the model's matrices are packed."""
    put_back = pack(model)
    try:
        yield
    finally:
        put_back()
