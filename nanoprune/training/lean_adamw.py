"""AdamW that fits: three bytes for both moments, and every parameter updated in the backward pass, when its
gradient is there.

What it gives up: clipping by the global norm (it is known only when all updates are made), accumulation,
fp16's scaled loss, and precision of the moments. Gradients of all the parameters never exist together.
"""

import math
import random
from collections.abc import Iterable

import torch
import torch.nn.functional as F

BLOCK = 256  # values of the first moment that share a scale
PART = 2**20  # values updated at a time, so that what lies between stays in the cache


class LeanAdamW(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) with the first moment in 8 bits by blocks (as arXiv:2110.02861) and the second
    in bf16.

    The first moment is sign(c) (c / 127)^2 s, where s is the largest of its block and c goes from -127 to
    127. Both are rounded up or down at random, so that what is lost is 0 on average: an average over many
    steps changes by less than a rounding each time, and would stand still. The randomness is a function of
    step and parameter alone.

    `step()` updates all that has a gradient; after `during_backward()` that happens as the gradients come,
    and frees them.
    """

    def __init__(self, groups: Iterable[dict], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        assert all(p.dtype == torch.float32 for group in self.param_groups for p in group["params"])
        self.norms = []  # of the gradients since they were last asked for
        self.order = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        self.noise = torch.randint(0, 2**16, (2 * PART,), generator=torch.Generator().manual_seed(0),
                                   dtype=torch.int32)
        self.noise = self.noise.to(next(iter(self.order)).device)

    def during_backward(self) -> None:
        for group in self.param_groups:
            def update(parameter: torch.Tensor, group: dict = group) -> None:
                self._update(parameter, group)
                parameter.grad = None
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(update)

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def grad_norm(self) -> float:
        """Norm of all gradients since the last call."""
        norms, self.norms = self.norms, []
        return math.sqrt(sum(norm**2 for norm in torch.stack(norms).tolist()))

    @torch.no_grad()
    def _update(self, parameter: torch.Tensor, group: dict) -> None:
        flat, grad = parameter.view(-1), parameter.grad.reshape(-1)
        self.norms.append(torch.linalg.vector_norm(grad, dtype=torch.float32))
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            blocks = -(-len(flat) // BLOCK)
            state["step"] = torch.zeros(())
            state["m"] = torch.zeros(blocks, BLOCK, dtype=torch.int8, device=flat.device)
            state["m_scale"] = torch.zeros(blocks, 1, device=flat.device)
            state["v"] = torch.zeros(len(flat), dtype=torch.bfloat16, device=flat.device)
        state["step"] += 1
        t = int(state["step"])  # on a CPU, or it would be waited for
        draw = random.Random(t * len(self.order) + self.order[parameter])
        for start in range(0, len(flat), PART):
            part = slice(start, min(start + PART, len(flat)))
            rows, size = slice(start // BLOCK, -(-part.stop // BLOCK)), part.stop - start
            g, m = grad[part].float(), state["m"][rows].float().div_(127)
            m = m.mul_(m.abs()).mul_(state["m_scale"][rows]).view(-1)[:size].lerp_(g, 1 - beta1)
            v = state["v"][part].float().lerp_(g.square(), 1 - beta2)
            flat[part].mul_(1 - group["lr"] * group["weight_decay"])
            flat[part].addcdiv_(m, (v / (1 - beta2**t)).sqrt_().add_(group["eps"]),
                                value=-group["lr"] / (1 - beta1**t))

            offset = draw.randrange(PART)
            state["v"][part] = round_to_bfloat16(v, self.noise[offset : offset + size])
            noise = self.noise[offset : offset + -(-size // BLOCK) * BLOCK].view(-1, BLOCK)
            m = F.pad(m, (0, -size % BLOCK)).view(-1, BLOCK)
            state["m_scale"][rows] = scale = m.abs().amax(1, keepdim=True)
            state["m"][rows] = round_to_code(m / scale.clamp(min=1e-30), noise)


def round_to_bfloat16(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """fp32 to bf16, up or down at random so that the mean is right; noise int32 from 0 to 65,535."""
    return ((x.view(torch.int32) + noise) & -65536).view(torch.float32).bfloat16()


def round_to_code(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The code c of sign(c) (c / 127)^2 for x from -1 to 1, up or down with the probability that makes the
    mean right.
    """
    size = x.abs() * 127**2
    low = size.sqrt().floor_()
    up = (size - low.square()) * 2**16 > noise * (2 * low + 1)  # the next code's square is larger by 2 c + 1
    return (low + up).clamp_(max=127).mul_(x.sign()).to(torch.int8)
