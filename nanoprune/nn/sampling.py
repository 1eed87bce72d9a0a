"""Sampling from a model with a key/value cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanoprune.device import matmul_dtype
from nanoprune.nn.attention import KeyValueCache

if TYPE_CHECKING:
    from model import Decoder


def empty_cache(model: Decoder, batch: int, length: int) -> KeyValueCache:
    """A cache in the type of the model's products, which autocast decides on."""
    return KeyValueCache(model.config, batch, length, model.device, matmul_dtype(model.model.norm.weight))


@torch.no_grad()
def generate(
    model: Decoder,
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: set[int] = frozenset(),
) -> list[list[int]]:
    """Continuations of prompts ids (B, T) of equal length: new tokens per row, without the stop token that
    ends it.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave the distribution whole. Draws come from a CPU
    generator with its own seed: they are the same on every device and disturb no other random state.
    """
    B, T = ids.shape
    cache = empty_cache(model, B, T + max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    continuations, finished = [[] for _ in range(B)], [False] * B
    new_ids = ids.to(model.device)
    for _ in range(max_new_tokens):
        logits = model.last_logits(new_ids, cache).float().cpu()
        if not logits.isfinite().all():
            raise ValueError("the model's logits are not finite: its weights are broken, or its numbers too "
                             "large for the dtype; try float32 or an earlier checkpoint")
        if temperature == 0:
            drawn = logits.argmax(-1)
        else:
            drawn = draw(logits / temperature, top_k, top_p, generator)
        for row, token in enumerate(drawn.tolist()):
            finished[row] = finished[row] or token in stop
            if not finished[row]:
                continuations[row].append(token)
        if all(finished):
            break
        new_ids = drawn[:, None].to(model.device)
    return continuations


def draw(logits: Tensor, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    """One token a row (B,) from logits (B, V): of the k likeliest, and of the fewest that hold `top_p`.

    The latter is nucleus sampling (arXiv:1904.09751).
    """
    logits, order = logits.sort(dim=-1, descending=True)
    probabilities = logits.softmax(-1)
    if top_k:
        probabilities[:, top_k:] = 0
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p * probabilities.sum(-1, keepdim=True)] = 0  # never the likeliest
    return order.gather(1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]
