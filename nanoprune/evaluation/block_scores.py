"""Scores of blocks, or of their attention or MLP alone: the loss without them, and cheaper estimates of it.

A removal is a tuple of parts. A score gives a number for each removal of parts that follow each other; the
lowest is removed first. To add one, write a function with the signature of the others and enter it in SCORES:
prune.py then chooses by it, and the table of scores and the figure show it. Under torchrun each rank takes a
shard of the windows, and all get the same numbers as one process alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from nanoprune.config import IGNORE
from nanoprune.data.token_file import Example
from nanoprune.device import synchronize, to_device
from nanoprune.distributed import ALONE, Ranks
from nanoprune.evaluation.perplexity import Protocol, WindowBatch, sum_by_document
from nanoprune.nn.model_config import Part, part_name, read_parts
from nanoprune.statistics import average_ranks, bootstrap_rows, spearman, spearman_interval

if TYPE_CHECKING:
    from model import Decoder

ROOM = 2**28  # bytes of hidden states that are held at once
TOGETHER = 1024  # tokens that a block takes in at once, of several removals where the windows are fewer
# The modules of a block, its attention and its MLP: each half has the norm before it.
MODULES = {"": ("",), "attn": ("self_attn", "input_layernorm"), "mlp": ("mlp", "post_attention_layernorm")}
Removal = tuple[Part, ...]
Removals = list[Removal]


@dataclass(frozen=True)
class Calibration:
    """Text that blocks are scored on."""

    windows: tuple[WindowBatch, ...] = ()
    documents: int = 0  # of the split that the windows are cut from
    ranks: Ranks = ALONE
    seed: int = 0  # of the random score

    @classmethod
    def of_split(
        cls, model: Decoder, split: Sequence[Example], context: int, *, only: Collection[int] | None = None,
        halves: bool = False, ranks: Ranks = ALONE, seed: int = 0,
    ) -> Calibration:
        """Windows of a split, or of `only` some of its documents, in batches that fit into ROOM."""
        states = (3 if halves else 2) * model.config.num_hidden_layers + 1
        fitting = ROOM // (states * model.config.hidden_size * 4)
        batches = tuple(Protocol(context=context).windows(split, None, min(8192, fitting), only))
        if not batches:
            raise ValueError("the split holds no text to score on; prepare the dataset from more articles")
        return cls(batches, len(split), ranks, seed)

    @property
    def tokens(self) -> int:
        return sum(int((batch.targets != IGNORE).sum()) for batch in self.windows)


@contextmanager
def without(model: Decoder, blocks: Collection[int]) -> Iterator[None]:
    """The model lacks these blocks inside the `with` block, and is whole again after it."""
    layers, config = model.model.layers, model.config
    model.drop_blocks(read_parts(blocks, config))
    try:
        yield
    finally:
        model.model.layers, model.config = layers, config


# ---------------------------------------------------------------- the loss without blocks
@dataclass(frozen=True)
class RemovalLosses:
    """Losses of a model without each of several removals, by document."""

    nll: np.ndarray  # (removals, documents): summed, in nats
    tokens: np.ndarray  # (documents,) int64: the tokens that these are sums over
    seconds: dict[str, float]  # spent in blocks and in the head


@torch.no_grad()
def losses_without(model: Decoder, removals: Removals, calibration: Calibration) -> RemovalLosses:
    """The losses without each removal; plain form: `score_text` of the model less each removal.

    Equal to the plain form bit by bit for batches of TOGETHER tokens or more.
    """
    removals = [tuple(sorted(removal)) for removal in removals]
    seconds = {"blocks": 0.0, "head": 0.0}

    def measure(batch: WindowBatch) -> np.ndarray:
        began = time.perf_counter()
        states = states_without(model, to_device(batch.ids, model.device), removals)
        synchronize(model.device)
        seconds["blocks"] += time.perf_counter() - began
        began = time.perf_counter()
        sums = []
        for removal in removals:
            losses = model.loss(model.model.norm(states[removal]), batch.targets, "none")
            sums.append(losses.cpu().double().sum(1).numpy())
        seconds["head"] += time.perf_counter() - began
        return np.stack([*sums, (batch.targets != IGNORE).sum(1).numpy()], axis=1)

    *nll, tokens = sum_by_document(measure, len(removals) + 1, calibration.windows, calibration.documents,
                                   calibration.ranks, "without").T
    return RemovalLosses(np.stack(nll), tokens.astype(np.int64), seconds)


def states_without(model: Decoder, ids: torch.Tensor, removals: Removals) -> dict[Removal, torch.Tensor]:
    """Hidden states (B, T, D) that leave the last block, before the final norm, without each removal.

    Removals that are equal up to a block share its input: each block takes in the states of all removals that
    differ before it. Without each of L blocks, that is half of L forward passes.
    """
    x, rope, visible = model.block_inputs(ids)
    states = {(): x}  # by the parts removed so far
    for i, layer in enumerate(model.model.layers):
        run = partial(layer, rope=rope, visible=visible[layer.window])
        after, whole = {}, []
        removed_up_to_here = (tuple(part for part in removal if part.block <= i) for removal in removals)
        for removed in dict.fromkeys(removed_up_to_here):
            before = tuple(part for part in removed if part.block < i)
            if removed == before:
                whole.append(removed)
            elif half := removed[-1].half:
                after[removed] = run(states[before], skip=half)
            else:
                after[removed] = states[before]
        together = max(1, TOGETHER // ids.numel())
        for start in range(0, len(whole), together):
            group = whole[start : start + together]
            outputs = run(torch.cat([states[removed] for removed in group]))
            after |= zip(group, outputs.split(len(ids)), strict=True)
        states = after
    return states


def mean_loss(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """The loss without each removal, in nats per token: the reference that the other scores estimate."""
    losses = losses_without(model, removals, calibration)
    return (losses.nll.sum(1) / losses.tokens.sum()).tolist()


# ---------------------------------------------------------------- estimates
@torch.no_grad()
def score_in_one_pass(
    model: Decoder, removals: Removals, calibration: Calibration
) -> dict[str, np.ndarray]:
    """Scores that compare what enters a removal with what leaves it, and its seconds, from one forward pass.

    influence: 1 - cosine of the two, a mean over all positions. angular: the angle between the two over pi, a
    mean over the last scored positions of the windows that have one.
    """
    sums, ranks = np.zeros((3, len(removals))), calibration.ranks
    for batch in ranks.shard(calibration.windows, "states"):
        x, rope, visible = model.block_inputs(to_device(batch.ids, model.device))
        synchronize(model.device)
        states, times = [x], [time.perf_counter()]
        for layer, other in product(model.model.layers, ("mlp", "attn")):
            states.append(layer(states[-1], rope, visible[layer.window], skip=other))
            synchronize(model.device)
            times.append(time.perf_counter())
        scored = to_device(batch.targets != IGNORE, model.device)
        last_position = scored.int().cumsum(1).argmax(1, keepdim=True)
        some_scored = scored.any(1)
        for k, removal in enumerate(removals):
            before = 2 * removal[0].block + (removal[0].half == "mlp")
            after = 2 * removal[-1].block + 2 - (removal[-1].half == "attn")
            cosines = F.cosine_similarity(states[before].double(), states[after].double(), dim=-1)
            angles = cosines.gather(1, last_position)[some_scored].clamp(-1, 1).arccos() / np.pi
            changes = (1 - cosines)[scored]
            sums[:, k] += float(changes.sum()), float(angles.sum()), times[after] - times[before]
    changes, angles, seconds = ranks.sum(sums)
    rows = sum(int((batch.targets != IGNORE).any(1).sum()) for batch in calibration.windows)
    return {"influence": changes / calibration.tokens, "angular": angles / rows,
            "seconds": seconds / ranks.size}


def taylor(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """Sum of |weight x gradient of the mean loss| over a removal's weights; one backward pass."""
    weights, tokens = dict(model.model.layers.named_parameters()), calibration.tokens
    gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in calibration.ranks.shard(calibration.windows, "gradient"):
        with torch.no_grad():
            inputs = model.block_inputs(to_device(batch.ids, model.device))
        x = model.model(*inputs, cache=None, recompute="blocks")
        loss = model.loss(x, batch.targets, "sum", head=model.head_weight.detach()) / tokens
        addends = torch.autograd.grad(loss, weights.values())
        for gradient, addend in zip(gradients.values(), addends, strict=True):
            gradient += addend
    products = {}
    for name, weight in weights.items():
        calibration.ranks.sum_tensor(gradients[name])
        products[name] = float((weight.detach() * gradients[name]).abs().double().sum())
    return sum_over_weights(removals, products)


def magnitude(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """Sum of |weight| over a removal's weights."""
    weights = model.model.layers.named_parameters()
    sizes = {name: float(weight.detach().abs().double().sum()) for name, weight in weights}
    return sum_over_weights(removals, sizes)


def sum_over_weights(removals: Removals, values: dict[str, float]) -> list[float]:
    """Sums of the values of each removal's weights, which are given by the weights' names below `layers`."""
    sums = []
    for removal in removals:
        total = 0
        for block, half in removal:
            names = tuple(f"{block}.{module}" for module in MODULES[half])
            total += sum(value for name, value in values.items() if name.startswith(names))
        sums.append(total)
    return sums


# ---------------------------------------------------------------- baselines
def last(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """The deepest blocks first."""
    return [-removal[-1].block for removal in removals]


def random(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """An order drawn from the calibration's seed."""
    return np.random.default_rng(calibration.seed).permutation(len(removals)).tolist()


@dataclass(frozen=True)
class Score:
    """A way to choose what to remove: `function(model, removals, calibration)`, the lowest first."""

    function: Callable[[Decoder, Removals, Calibration], list[float]]
    source: str  # formula and paper
    reads_text: bool = True  # else it depends on the part alone, whatever else is removed
    estimate: bool = True  # has columns in the table of scores, beside the loss


SCORES = {
    "loss": Score(mean_loss, "nats per token without the block (SLEB, arXiv:2402.09025)", estimate=False),
    "influence": Score(
        lambda *removed: score_in_one_pass(*removed)["influence"],
        "1 - cosine of a block's input and output, mean over positions (ShortGPT, arXiv:2403.03853)"),
    "angular": Score(
        lambda *removed: score_in_one_pass(*removed)["angular"],
        "angle between a block's input and output, over pi, mean over the windows' last positions "
        "(Gromov et al., arXiv:2403.17887); the last block's output is taken before the final norm"),
    "taylor": Score(
        taylor, "sum of |weight x gradient of the mean loss| over the part's weights (shortened-llm, "
                "arXiv:2402.02834)"),
    "magnitude": Score(
        magnitude, "sum of |weight| over the part's weights (arXiv:2402.02834)", reads_text=False),
    "last": Score(last, "the deepest block first", reads_text=False, estimate=False),
    "random": Score(random, "at random", reads_text=False, estimate=False),
}


def estimates() -> dict[str, Score]:
    """The scores that stand beside the loss in the table."""
    return {name: score for name, score in SCORES.items() if score.estimate}


def protocol() -> dict[str, str]:
    """The meaning of the table's columns, by column."""
    return {
        "nll": "mean over tokens, each document in windows of its own, no prefix token; 95 % interval and "
               "paired difference from unpruned by bootstrap over documents, 10,000 resamples, percentile",
        **{name: score.source for name, score in estimates().items()},
        "rank": "among the rows of one kind (block, attn, mlp), 1 costs least",
        "time_saved": "share of a forward pass with its loss, measured while scoring",
    }


# ---------------------------------------------------------------- the table of scores
@dataclass(frozen=True)
class BlockScores:
    """The loss without each block, or half of one, beside its estimates."""

    rows: list[dict]  # of blocks.csv: the unpruned model, then each part
    seconds: dict[str, float]  # by what they were spent on
    correlations: dict[str, dict]  # with the loss, of ranks: by estimate and kind of part


def score_blocks(model: Decoder, calibration: Calibration, halves: bool = False) -> BlockScores:
    """Score every block of a model, with `halves` its attention and its MLP, too.

    The model is left as it was. A loss that is not finite ranks last.
    """
    # ---- measure
    parts = list_parts(model, halves)
    removals = [(part,) for part in parts]
    losses = losses_without(model, [(), *removals], calibration)
    seconds, began = dict(losses.seconds), time.perf_counter()
    scores = score_in_one_pass(model, removals, calibration)  # several estimates for the price of one
    time_saved, seconds["states"] = scores.pop("seconds"), time.perf_counter() - began
    for name, score in estimates().items():
        if name not in scores:
            began = time.perf_counter()
            scores[name] = score.function(model, removals, calibration)
            seconds[name] = time.perf_counter() - began
    whole_blocks = [not part.half for part in parts]
    time_saved /= time_saved[whole_blocks].sum() + seconds["head"] / len(losses.nll)

    # ---- columns: a value for the unpruned model, then one for each part
    scored = losses.tokens > 0
    nll, tokens = losses.nll[:, scored], losses.tokens[scored]
    means, empty = nll.sum(1) / tokens.sum(), [""] * len(nll)
    original = [Part(model.config.blocks[block], half) for block, half in parts]
    columns = {"block": ["none", *map(part_name, parts)], "original": ["", *map(part_name, original)]}
    for name, rows, mean in (("nll", nll, means), ("difference", nll - nll[0], means - means[0])):
        low, high = bootstrap_rows(rows, tokens, range(len(tokens)))
        columns |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    columns |= {"perplexity": np.exp(means), "rank": empty}
    for name, values in scores.items():
        columns |= {name: ["", *values], f"{name}_rank": empty}
    sizes = {name: weight.numel() for name, weight in model.model.layers.named_parameters()}
    columns |= {"parameters": [0, *sum_over_weights(removals, sizes)], "time_saved": [0.0, *time_saved]}

    # ---- rows, ranked among those of their kind
    text = {"tokens": tokens.sum(), "documents": len(tokens)}
    rows = [dict(zip(columns, row, strict=True)) | text for row in zip(*columns.values(), strict=True)]
    correlations = {}
    for half in dict.fromkeys(part.half for part in parts):
        same = [row for part, row in zip(parts, rows[1:], strict=True) if part.half == half]
        enter_ranks(same, "nll", "rank")
        for name in scores:
            enter_ranks(same, name, f"{name}_rank")
            pairs = [row["nll"] for row in same], [row[name] for row in same]
            correlations[f"{name} {half}".strip()] = {
                "spearman": float(spearman(*pairs)), "interval": spearman_interval(*pairs), "of": len(same)}
    return BlockScores(rows, seconds, correlations)


def list_parts(model: Decoder, halves: bool) -> list[Part]:
    """Every block, with `halves` each followed by its attention and its MLP where it has both."""
    parts = []
    for block, lost in enumerate(model.config.without):
        kinds = ("", "attn", "mlp") if halves and not lost else ("",)
        parts += [Part(block, half) for half in kinds]
    return parts


def enter_ranks(rows: list[dict], score: str, column: str) -> None:
    for row, rank in zip(rows, average_ranks([row[score] for row in rows]), strict=True):
        row[column] = f"{rank:g}"
