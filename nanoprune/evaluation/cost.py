"""The cost of a model: its size, its work for a token, and the speed of one sequence."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nanoprune.device import make_autocast, peak_memory
from nanoprune.figures.style import read_csv
from nanoprune.io.tensors import stored_tensors
from nanoprune.nn.attention import KeyValueCache
from nanoprune.nn.lora import count_parameters
from nanoprune.nn.packed import pack
from nanoprune.statistics import Interval, columns

if TYPE_CHECKING:
    from model import Decoder

VERSION = 3  # of the speeds: raise it when they are measured in another way
PROMPT_TOKENS, NEW_TOKENS = 256, 32
ROUNDS, SECONDS = 3, 10  # a process per model and round, and what each measures behind its warm-up
BUSY = 0.2  # rounds of a model that differ by more than this share were disturbed


# ---------------------------------------------------------------- exact numbers
def model_cost(model: "Decoder", folder: Path, dtype: str) -> dict:
    """Size, operations and bytes of a token, and what training took: numbers that no clock decides.

    A decoded token multiplies every matrix once, and attends to PROMPT_TOKENS tokens before it; its bytes are
    those of the weights that it reads, in the type of the products.
    """
    config, total = model.config, count_parameters(model).total
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() < 2)
    lookup = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size  # one row is read
    seen = sum(min(PROMPT_TOKENS, layer.window or PROMPT_TOKENS) for layer in model.model.layers
               if layer.self_attn is not None)
    attention = 4 * config.num_attention_heads * config.head_dim * seen  # queries by keys, weights by values
    files = list(folder.glob("*.safetensors"))
    types = {tensor.dtype for tensor in stored_tensors(folder, files).values()}
    return {
        "token_mflop": (2 * (total - vectors - lookup) + attention) / 1e6,
        "token_mb": (total - lookup) * getattr(torch, dtype).itemsize / 1e6,
        "token_context": PROMPT_TOKENS,
        "bf16_mb": 2 * total / 1e6,
        "disk_mb": sum(path.stat().st_size for path in files) / 1e6,
        "disk_dtype": " ".join(sorted(types)),
    } | training_cost(folder)


def training_cost(folder: Path) -> dict:
    """Seconds and tokens that the run of a model's folder took; None for a model that is no run's."""
    log = folder.parent / "train.csv"
    if folder.name != "model" or not log.is_file():
        return {"training_s": None, "training_tokens": None}
    last = read_csv(log, ("seconds", "tokens"))[-1]
    return {"training_s": float(last["seconds"]), "training_tokens": int(last["tokens"])}


# ---------------------------------------------------------------- measured in processes of their own
def measure_speed(
    open_model: Callable[..., "Decoder"], sources: dict[str, Any], device: str, dtype: str
) -> dict[str, dict]:
    """Speed and peak memory of each model, by name: ROUNDS processes for each, one alive at a time.

    Each process calls `open_model(source, device=device)`.
    Each round begins with another model, so that a slow moment of the machine, or its heat, meets none alone.
    """
    torch.cuda.empty_cache()  # what this process has freed is theirs
    names, rounds, notes = list(sources), [], {}
    for number in range(ROUNDS):
        first = number % len(names)
        rounds.append({})
        for name in names[first:] + names[:first]:
            try:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    row = pool.submit(time_model, open_model, sources[name], device, dtype, SECONDS).result()
                rounds[-1][name] = row
                told = (f"reading {row['prefill_tokens_per_s']:,.0f} tokens/s, writing "
                        f"{row['decode_tokens_per_s']:,.1f}")
            except Exception as error:  # of loading, of memory, or the process was killed
                told = notes[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"cost, round {number + 1} of {ROUNDS}: {name}  {told}", flush=True)
    return {name: {"note": notes[name]} if name in notes else summarize_speed(name, names[0], rounds)
            for name in names}


def time_model(
    open_model: Callable[..., "Decoder"], source: Any, device: str, dtype: str, seconds: float
) -> dict[str, float]:
    """Medians over so many seconds behind a warm-up, and this process's peak of memory."""
    model, times = open_model(source, device=device).eval(), []
    prompt_tokens = min(PROMPT_TOKENS, max(1, model.config.max_position_embeddings - NEW_TOKENS - 1))
    with torch.no_grad(), make_autocast(dtype, model.device)():
        pack(model)  # as sample.py does
        time_tokens(model, prompt_tokens)
        began = time.perf_counter()
        while not times or time.perf_counter() - began < seconds:
            times.append(time_tokens(model, prompt_tokens))
    times = np.array(times)
    return {"prefill_tokens_per_s": float(prompt_tokens / np.median(times[:, 0])),
            "decode_tokens_per_s": float(1 / np.median(times[:, 1:])),
            "peak_mb": 1000 * peak_memory(model.device)}


def summarize_speed(name: str, first: str, rounds: list[dict[str, dict]]) -> dict:
    """Medians over rounds with the lowest and highest, and the same of the ratios to the first model."""
    cost, busy = {}, False
    for speed in ("prefill", "decode"):
        key = f"{speed}_tokens_per_s"
        values = [row[name][key] for row in rounds]
        busy |= max(values) / min(values) - 1 > BUSY
        ratios = [row[name][key] / row[first][key] for row in rounds if first in row]
        for column, found in ((key, values), (f"{speed}_ratio", ratios)):
            if found:
                cost |= columns(column, float(np.median(found)), Interval(min(found), max(found)))
    cost["peak_mb"] = max(row[name]["peak_mb"] for row in rounds)
    return cost | {"note": "machine busy" if busy else ""}


def time_tokens(model: "Decoder", prompt_tokens: int) -> np.ndarray:
    """Seconds of reading a prompt, and then of each new token."""
    cache = KeyValueCache(model, 1, prompt_tokens + NEW_TOKENS)
    ids = torch.arange(prompt_tokens, device=model.device)[None] % model.config.vocab_size
    ends = [time.perf_counter()]
    for _ in range(NEW_TOKENS + 1):
        ids = model.last_logits(ids, cache).argmax(-1, keepdim=True)
        ids.cpu()  # waits for the device
        ends.append(time.perf_counter())
    return np.diff(ends)
