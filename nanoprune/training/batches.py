"""The rows of a step, divided among processes and passes."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanoprune.config import Config
from nanoprune.distributed import Ranks


class MicroBatch(NamedTuple):
    """The rows of one forward and backward pass, each tensor (rows, context) int64."""

    first_row: int  # number of the first one in the run
    ids: Tensor
    targets: Tensor
    documents: Tensor


def check_step(config: Config, ranks: Ranks) -> None:
    """ValueError if the optimizer or the processes cannot make the steps of a config, its dtype decided."""
    if config.optimizer == "lean" and config.dtype == "float16":
        raise ValueError("optimizer: lean cannot scale the loss, as float16 needs; set another dtype or "
                         "take adamw")
    if config.rows_per_step % ranks.size:
        raise ValueError(f"{ranks.size} processes cannot share the {config.rows_per_step} rows of a step "
                         f"(batch_size {config.batch_size} x accumulation {config.accumulation}): start as "
                         "many as divide them, or change accumulation")
    if ranks.size > 1 and config.parallel == "fsdp" and (config.lora or config.dtype == "float16"):
        raise ValueError(f"{ranks.size} processes: fsdp neither trains adapters nor scales float16's loss; "
                         "take parallel=ddp, where each process has the whole model")
    if ranks.size > 1 and config.optimizer == "lean":
        raise ValueError(f"{ranks.size} processes: optimizer=lean updates before the gradients are "
                         "exchanged; take adamw")


def count_steps(config: Config, epoch_tokens: int) -> Config:
    """The config with the steps that its epochs come to; ValueError if the warm-up would take longer."""
    if not config.epochs:
        return config
    steps = math.ceil(config.epochs * epoch_tokens / config.tokens_per_step)
    if config.warmup_steps >= steps:
        raise ValueError(f"warmup_steps: given {config.warmup_steps}, must be below the {steps} steps that "
                         f"epochs={config.epochs} comes to: {epoch_tokens:,} tokens an epoch, "
                         f"{config.tokens_per_step:,} a step")
    return replace(config, max_steps=steps)


def split_rows(rows: tuple[Tensor, ...], first_row: int, size: int, ranks: Ranks) -> list[MicroBatch]:
    """This rank's part of a step's rows (ids, targets, documents), `size` at a time."""
    per_rank = len(rows[0]) // ranks.size
    start = ranks.rank * per_rank
    parts = (tensor[start : start + per_rank].split(size) for tensor in rows)
    return [MicroBatch(first_row + start + i * size, *micro)
            for i, micro in enumerate(zip(*parts, strict=True))]


def seed_dropout(seed: int, first_row: int) -> None:
    """Make the random draws of a micro-batch a function of the run's seed and the batch's first row.

    A resumed run then draws the same, and so do several processes whose micro-batches hold the same rows.
    """
    # A CPU's generator takes 32 bits of its seed, so the two numbers are mixed into these.
    torch.manual_seed(int(np.random.SeedSequence((seed, first_row)).generate_state(1)[0]))
