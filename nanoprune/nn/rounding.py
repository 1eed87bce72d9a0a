"""A model's matrices rounded to few bits and put back: what bits cost in quality, without their speed."""

from typing import TYPE_CHECKING

import torch

from nanoprune.nn.nf4 import dequantise, quantise

if TYPE_CHECKING:
    from model import Decoder

ROUNDED = ("nf4", "int8")
VERSIONS = {}  # of the rounding: {"rounding": 2} when it gives other numbers; the first is found without one
WHOLE = 2  # bytes of a value that is not rounded, in bf16


def stored_bytes(model: "Decoder") -> int:
    """The bytes of a model's file in bf16; what it has in four bits stays so."""
    return sum(WHOLE * parameter.numel() for parameter in model.parameters()) + sum(
        buffer.numel() * buffer.itemsize for buffer in model.buffers())


@torch.no_grad()
def round_matrices(model: "Decoder", how: str) -> int:
    """Round the matrices of all blocks in place; the bytes that the model would then take.

    nf4: four bits with double quantisation (arXiv:2305.14314). int8: a scale for each row, its largest
    magnitude over 127 (symmetric, round to nearest, as in arXiv:2208.07339 for its regular features). The
    embedding, the head, norms and biases stay.
    """
    size = stored_bytes(model)
    for parameter in model.model.layers.parameters():
        if parameter.dim() < 2:
            continue
        size -= WHOLE * parameter.numel()
        if how == "nf4":
            q = quantise(parameter)
            size += sum(part.numel() * part.itemsize for part in q)
            parameter.copy_(dequantise(q, parameter.shape))
        else:
            scale = (parameter.abs().amax(1, keepdim=True) / 127).clamp(min=1e-38)
            parameter.copy_((parameter / scale).round_() * scale)
            size += parameter.numel() + 4 * len(parameter)
    return size
