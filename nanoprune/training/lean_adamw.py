"""AdamW in less memory: three bytes for both moments, and updates during the backward pass.

Gradients of all the parameters never exist together. It gives up clipping (the global norm is known only
after all updates), accumulation, float16's scaled loss, and precision of the moments.
"""

import math
import random
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKET = 256  # values of the first moment that share a scale
CHUNK = 2**20  # values updated at a time, so that intermediate results stay in the cache


class LeanAdamW(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) with the first moment in 8 bits (as arXiv:2110.02861) and the second in bf16.

    The first moment is sign(c) (c / 127)^2 s, with s the largest of its bucket and c from -127 to 127. Both
    moments are rounded up or down at random, so the mean error is 0. To the nearest they would stand still: a
    step changes them by less than a rounding. The random numbers are a function of step and parameter.
    """

    def __init__(self, groups: Iterable[dict], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.norms = []  # of the gradients since the last `take_norms`
        self.groups = {parameter: group for group in self.param_groups for parameter in group["params"]}
        self.order = {parameter: number for number, parameter in enumerate(self.groups)}
        self.noise = torch.randint(0, 2**16, (2 * CHUNK,), generator=torch.Generator().manual_seed(0),
                                   dtype=torch.int32).to(next(iter(self.order)).device)
        for parameter in self.groups:
            assert parameter.dtype == torch.float32
            count, device = parameter.numel(), parameter.device
            buckets = math.ceil(count / BUCKET)
            self.state[parameter] = {
                "step": torch.zeros(()),  # on the CPU: reading it does not wait for a GPU
                "m": torch.zeros(buckets, BUCKET, dtype=torch.int8, device=device),
                "m_scale": torch.zeros(buckets, 1, device=device),
                "v": torch.zeros(count, dtype=torch.bfloat16, device=device)}
            parameter.register_post_accumulate_grad_hook(self._update)

    def step(self, closure=None) -> None:
        """Do nothing: each parameter was updated as soon as its gradient was complete."""

    def take_norms(self) -> list[Tensor]:
        """The norm of every gradient since the last call."""
        norms, self.norms = self.norms, []
        return norms

    @torch.no_grad()
    def _update(self, parameter: Tensor) -> None:
        """Update a parameter, and free its gradient."""
        group, flat, grad = self.groups[parameter], parameter.view(-1), parameter.grad.reshape(-1)
        self.norms.append(torch.linalg.vector_norm(grad, dtype=torch.float32))
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        state["step"] += 1
        t = int(state["step"])
        draw = random.Random(t * len(self.order) + self.order[parameter])
        for start in range(0, len(flat), CHUNK):
            chunk = slice(start, min(start + CHUNK, len(flat)))
            rows, size = slice(start // BUCKET, -(-chunk.stop // BUCKET)), chunk.stop - start
            g, m = grad[chunk].float(), state["m"][rows].float().div_(127)
            m = m.mul_(m.abs()).mul_(state["m_scale"][rows]).view(-1)[:size].lerp_(g, 1 - beta1)
            v = state["v"][chunk].float().lerp_(g.square(), 1 - beta2)
            flat[chunk].mul_(1 - group["lr"] * group["weight_decay"])
            flat[chunk].addcdiv_(m, (v / (1 - beta2**t)).sqrt_().add_(group["eps"]),
                                value=-group["lr"] / (1 - beta1**t))

            offset = draw.randrange(CHUNK)
            state["v"][chunk] = round_to_bfloat16(v, self.noise[offset : offset + size])
            noise = self.noise[offset : offset + -(-size // BUCKET) * BUCKET].view(-1, BUCKET)
            m = F.pad(m, (0, -size % BUCKET)).view(-1, BUCKET)
            state["m_scale"][rows] = scale = m.abs().amax(1, keepdim=True)
            state["m"][rows] = round_to_code(m / scale.clamp(min=1e-30), noise)
        parameter.grad = None


def round_to_bfloat16(x: Tensor, noise: Tensor) -> Tensor:
    """fp32 to bf16, up or down at random so that the mean is right; noise int32 from 0 to 65,535."""
    return ((x.view(torch.int32) + noise) & -65536).view(torch.float32).bfloat16()


def round_to_code(x: Tensor, noise: Tensor) -> Tensor:
    """The code c of sign(c) (c / 127)^2 for x from -1 to 1, rounded so that the mean is right."""
    size = x.abs() * 127**2
    low = size.sqrt().floor_()
    up = (size - low.square()) * 2**16 > noise * (2 * low + 1)  # the next code's square is larger by 2 c + 1
    return (low + up).clamp_(max=127).mul_(x.sign()).to(torch.int8)
