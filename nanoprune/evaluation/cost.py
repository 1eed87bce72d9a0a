"""The size of a model, the speed of one sequence, and the text it continues."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nanoprune.figures.style import read_csv
from nanoprune.nn.sampling import empty_cache

if TYPE_CHECKING:
    from model import Decoder

PROMPT_TOKENS, NEW_TOKENS = 256, 32
ROUNDS, SECONDS = 4, 3  # limits of a measurement; two rounds at least, of which the first warms up


@torch.no_grad()
def measure_cost(model: Decoder, folder: Path) -> dict:
    """Size on disk, training time, and the speed of one sequence: medians over rounds."""
    prompt_tokens = min(PROMPT_TOKENS, max(1, model.config.max_position_embeddings - NEW_TOKENS - 1))
    rounds, began = [], time.perf_counter()
    while len(rounds) < 2 or (len(rounds) < ROUNDS and time.perf_counter() - began < SECONDS):
        rounds.append(time_tokens(model, prompt_tokens))
    seconds = np.array(rounds[1:])
    prefill, token = np.median(seconds[:, 0]), seconds[:, 1:].ravel()
    return {
        "prefill_tokens_per_s": prompt_tokens / float(prefill),
        "decode_tokens_per_s": 1 / float(np.median(token)),
        "token_p50_ms": 1000 * float(np.median(token)),
        "token_p95_ms": 1000 * float(np.quantile(token, 0.95)),
        "prompt_tokens": prompt_tokens,
        "new_tokens": NEW_TOKENS,
        "disk_mb": sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6,
    } | training_cost(folder)


def time_tokens(model: Decoder, prompt_tokens: int) -> np.ndarray:
    """Seconds of reading a prompt, and then of each new token."""
    cache = empty_cache(model, 1, prompt_tokens + NEW_TOKENS)
    ids = torch.arange(prompt_tokens, device=model.device)[None] % model.config.vocab_size
    ends = [time.perf_counter()]
    for _ in range(NEW_TOKENS + 1):
        ids = model.last_logits(ids, cache).argmax(-1, keepdim=True)
        ids.cpu()  # waits for the device
        ends.append(time.perf_counter())
    return np.diff(ends)


def training_cost(folder: Path) -> dict:
    """Seconds and tokens that the run of a model's folder took; None for a model that is no run's."""
    log = folder.parent / "train.csv"
    if folder.name != "model" or not log.is_file():
        return {"training_s": None, "training_tokens": None}
    last = read_csv(log, ("seconds", "tokens"))[-1]
    return {"training_s": float(last["seconds"]), "training_tokens": int(last["tokens"])}


@torch.no_grad()
def compare_speed(models: dict[str, Decoder], rounds: int = 5) -> dict[str, dict]:
    """Milliseconds of a new token, and of a prompt's token, of one sequence, by model; medians over rounds.

    The models are measured in turn, so that a slow moment of the machine meets all of them.
    """
    seconds = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            seconds[name].append(time_tokens(model, PROMPT_TOKENS))
    rows = {}
    for name, times in seconds.items():
        times = np.array(times[1:]) * 1000  # the first round warms up
        rows[name] = {"token_ms": float(np.median(times[:, 1:])),
                      "prompt_token_ms": float(np.median(times[:, 0]) / PROMPT_TOKENS)}
    return rows
