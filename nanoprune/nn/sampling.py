"""Sampling from a model with a key/value cache."""

import torch

from model import Decoder
from nanoprune.nn.attention import KeyValueCache


@torch.no_grad()
def generate(
    model: Decoder,
    ids: torch.Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: set[int] = frozenset(),
) -> list[list[int]]:
    """Continue prompts ids (B, T) of equal length; per row the new tokens, without the stop token that ended it.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave the distribution whole. Draws come from a CPU generator with
    its own seed, so they are the same on every device and disturb no other random state.
    """
    B, T = ids.shape
    weight = model.head_weight
    cache = KeyValueCache(model.config, B, T + max_new_tokens, weight.device, model.dtype)
    generator = torch.Generator().manual_seed(seed)
    rows, done, feed = [[] for _ in range(B)], [False] * B, ids.to(weight.device)
    for _ in range(max_new_tokens):
        logits = model.last_logits(feed, cache).float().cpu()
        if not logits.isfinite().all():
            raise ValueError("the model's logits are not finite: its weights are broken, or its numbers too large for the "
                             "dtype; try float32 or an earlier checkpoint")
        chosen = logits.argmax(-1) if temperature == 0 else draw(logits / temperature, top_k, top_p, generator)
        for row, token in enumerate(chosen.tolist()):
            done[row] = done[row] or token in stop
            if not done[row]:
                rows[row].append(token)
        if all(done):
            break
        feed = chosen[:, None].to(weight.device)
    return rows


def draw(logits: torch.Tensor, top_k: int, top_p: float, generator: torch.Generator) -> torch.Tensor:
    """One token a row (B,) from logits (B, V): of the k likeliest, and of the fewest that hold `top_p` (nucleus sampling,
    arXiv:1904.09751)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    if top_k:
        probabilities[:, top_k:] = 0
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p * probabilities.sum(-1, keepdim=True)] = 0  # the likeliest token always stays
    return order.gather(1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]
