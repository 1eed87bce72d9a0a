"""Operations between the matrix products: norm, rotary positions, gated SiLU.

Where gradients are on they run as autograd functions of their own, which save little for the backward pass.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from nanoprune.nn.model_config import ModelConfig


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x (..., D) over its root mean square, computed in fp32 and cast back."""
    return apply(Normalize, x, eps)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, heads, T, F) turned by the angles of its positions, with `rope_table`'s two (B or 1, 1, T, F)."""
    return apply(Rotate, x, cos, sin)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) x up, both (..., inner)."""
    return apply(GatedSilu, gate, up)


def rope_table(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary embedding in fp32, (..., T, F), for positions (..., T).

    The first half of the sines is negative, so that `apply_rope` adds both halves.
    RoFormer (arXiv:2104.09864) in the half-split form; Llama 3.1's scaling stretches the long wavelengths.
    """
    even = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = config.rope_theta ** -(even / config.head_dim)
    if scaling := config.rope_scaling:
        wavelengths = 2 * math.pi / frequencies
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        blend = (scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low)
        # 0: wavelength over original/low, fully stretched; 1: below original/high, as it is
        blend = blend.clamp(0, 1)
        frequencies = (1 - blend) * frequencies / scaling["factor"] + blend * frequencies
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([-angles, angles], dim=-1)
    return angles.cos(), angles.sin()


# ---------------------------------------------------------------- with and without gradients
class NoContext:
    """A stand-in for autograd's context where there is no backward pass."""

    needs_input_grad = (False, False)

    def save_for_backward(self, *tensors: Tensor) -> None:
        pass


def apply(function: type[Function], *inputs):
    """`function.apply(*inputs)`, or without gradients its forward pass alone: half as costly to call."""
    return function.apply(*inputs) if torch.is_grad_enabled() else function.forward(NoContext(), *inputs)


class Normalize(Function):
    """The function behind `rms_norm`. Plain form: `F.rms_norm(x.float(), (D,), eps=eps)`."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = (squares / x.shape[-1]).add_(eps).rsqrt_()
        y = (wide * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        y, scale = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1).mul_(scale).to(y.dtype), None


class Rotate(Function):
    """The function behind `apply_rope`; its gradient is turned back by the same angles."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate_halves(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _rotate_halves(grad, *ctx.saved_tensors, -1), None, None


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin, value=sign)


class GatedSilu(Function):
    """The function behind `silu_mul`, which saves its two inputs alone. Plain form: `F.silu(gate) * up`."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: Tensor):
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)
