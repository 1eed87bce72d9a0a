"""What lies between the matrix products, keeping little for the backward pass."""

import math

import torch
import torch.nn.functional as F

from nanoprune.nn.model_config import ModelConfig


class NoContext:
    """Stands for autograd's context where there is no backward pass."""

    @staticmethod
    def save_for_backward(*tensors: torch.Tensor) -> None:
        pass


def apply(function: type[torch.autograd.Function], *given):
    """`function.apply(*given)`, or without gradients its forward pass alone: that costs half as much to call."""
    return function.apply(*given) if torch.is_grad_enabled() else function.forward(NoContext(), *given)


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
        return rotate_half(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return rotate_half(grad, *ctx.saved_tensors, -1), None, None


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


def rotate_half(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    half = x.shape[-1] // 2
    y, sin = x * cos, sin[..., :half]
    y[..., :half].addcmul_(x[..., half:], sin, value=-sign)
    y[..., half:].addcmul_(x[..., :half], sin, value=sign)
    return y


def rope_table(config: ModelConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the rotary embedding in fp32, (..., T, F), for positions (..., T).

    RoFormer (arXiv:2104.09864) in the half-split form; Llama 3.1's scaling stretches the long wavelengths.
    """
    exponents = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if s := config.rope_scaling:
        wavelengths = 2 * math.pi / frequencies
        low, high = s["low_freq_factor"], s["high_freq_factor"]
        blend = (s["original_max_position_embeddings"] / wavelengths - low) / (high - low)
        blend = blend.clamp(0, 1)  # 0: wavelength over original/low, fully stretched; 1: below original/high, as it is
        frequencies = (1 - blend) * frequencies / s["factor"] + blend * frequencies
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()
