"""Sampling from a model: prompts of any lengths in one batch, a key/value cache, draws through filters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanoprune.config import Count, NonNegative, PositiveFloat, Seed, Share, ShareAbove0
from nanoprune.nn.attention import KeyValueCache
from nanoprune.nn.packed import packed

if TYPE_CHECKING:
    from model import Decoder


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. The filters apply in this order, which is transformers'."""

    repetition_penalty: PositiveFloat = 1.0  # above 1: what was read or written before is less likely
    temperature: NonNegative = 0.0  # 0 is greedy
    top_k: Count = 0  # draw from the k likeliest tokens (0: from all)
    top_p: ShareAbove0 = 1.0  # draw from the fewest tokens that hold this probability
    min_p: Share = 0.0  # draw from tokens that are at least this share as likely as the likeliest
    seed: Seed = 0


GREEDY = Sampling()


def generate(
    model: "Decoder",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop: set[int] = frozenset(),
) -> list[list[int]]:
    """The new tokens of each prompt, without the stop token that ends it."""
    written = [[] for _ in prompts]
    for tokens, _ in stream(model, prompts, max_new_tokens, sampling, stop):
        for row, token in zip(written, tokens, strict=True):
            row += [] if token is None else [token]
    return written


@torch.no_grad()
def stream(
    model: "Decoder",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    stop: set[int],
    cache: KeyValueCache | None = None,
) -> Iterator[tuple[list[int | None], Tensor]]:
    """By step: the next token of each prompt, None behind a stop token; the logits (B, V) before the filters.

    Each row has its own random numbers, so that its neighbours change nothing. They come from the CPU: they
    are the same on every device and disturb no other random state. `cache`: of the conversation that a single
    prompt continues.
    """
    rows = [torch.as_tensor(prompt) for prompt in prompts]
    new_ids = pad_sequence(rows, batch_first=True, padding_side="left")
    cache = cache or KeyValueCache(model, len(rows), 0)
    cache.rewind(prompts[0], new_ids.shape[1] + max_new_tokens)
    padding = new_ids.shape[1] - torch.tensor([len(row) for row in rows])
    cache.padding = padding.to(model.device) if padding.any() else None
    new_ids = new_ids[:, cache.used :]
    generators = [torch.Generator().manual_seed(sampling.seed) for _ in rows]
    seen = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.bool)
    for row, ids in enumerate(rows):
        seen[row, ids] = True
    finished = set()
    with packed(model):
        for _ in range(max_new_tokens):
            logits = model.last_logits(new_ids.to(model.device), cache).float().cpu()
            if not logits.isfinite().all():
                raise ValueError("the model's logits are not finite: its weights are broken, or its numbers "
                                 "too large for the dtype; try float32 or an earlier checkpoint")
            new_ids = draw(logits, sampling, seen, generators)[:, None]
            seen.scatter_(1, new_ids, True)
            tokens = new_ids[:, 0].tolist()
            cache.tokens.append(tokens[0])
            finished |= {row for row, token in enumerate(tokens) if token in stop}
            if len(finished) == len(rows):
                return
            yield [None if row in finished else token for row, token in enumerate(tokens)], logits


def draw(
    logits: Tensor, sampling: Sampling, seen: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """A token a row (B,) from logits (B, V); `seen` (B, V) marks the tokens of the text so far."""
    if sampling.repetition_penalty != 1:  # CTRL, arXiv:1909.05858
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    shares, order = filtered(logits / sampling.temperature, sampling)
    places = [torch.multinomial(row, 1, generator=generator)
              for row, generator in zip(shares, generators, strict=True)]
    return order.gather(1, torch.stack(places))[:, 0]


def filtered(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(shares (B, V) of the probability, falling, 0 for tokens that are not drawn; the tokens in this order).

    `top_p`, nucleus sampling (arXiv:1904.09751), is of what `top_k` left. min-p: arXiv:2407.01082.
    """
    logits, order = logits.sort(dim=-1, descending=True)
    shares = logits.softmax(-1)
    if sampling.top_k:
        shares[:, sampling.top_k :] = 0
    before = shares.cumsum(-1) - shares
    shares[before >= sampling.top_p * shares.sum(-1, keepdim=True)] = 0  # never the likeliest
    shares[shares < sampling.min_p * shares[:, :1]] = 0
    return shares, order
