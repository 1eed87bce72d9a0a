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
from itertools import product, starmap
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from nanoprune.config import IGNORE
from nanoprune.data.token_file import Example
from nanoprune.device import synchronize, to_device
from nanoprune.distributed import ALONE, Ranks
from nanoprune.evaluation.perplexity import WindowBatch, sum_by_document, windows
from nanoprune.nn.model_config import Part, part_name, read_parts
from nanoprune.statistics import average_ranks, bootstrap_rows, spearman, spearman_interval

if TYPE_CHECKING:
    from model import Decoder

ROOM = 2**28  # bytes of hidden states that are held at once
TOGETHER = 1024  # tokens that a block takes in at once, of several removals where the windows are fewer
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
        batches = tuple(windows(split, context, min(8192, fitting), only=only))
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
def influence(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """Block influence: 1 - cosine of what enters and what leaves a removal, a mean over all positions."""
    return score_in_one_pass(model, removals, calibration)["influence"]


def angular(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """Angle between what enters and what leaves a removal, over pi: a mean over last positions."""
    return score_in_one_pass(model, removals, calibration)["angular"]


@torch.no_grad()
def score_in_one_pass(
    model: Decoder, removals: Removals, calibration: Calibration
) -> dict[str, np.ndarray]:
    """Influence, angular distance and this rank's seconds of each removal, all of one forward pass."""
    sums, seconds, ranks = np.zeros((2, len(removals))), np.zeros(len(removals)), calibration.ranks
    for batch in ranks.shard(calibration.windows, "states"):
        x, rope, visible = model.block_inputs(to_device(batch.ids, model.device))
        synchronize(model.device)
        states, times = [x], [time.perf_counter()]
        for layer, other in product(model.model.layers, ("mlp", "attn")):
            states.append(layer(states[-1], rope, visible[layer.window], skip=other))
            synchronize(model.device)
            times.append(time.perf_counter())
        scored = to_device(batch.targets != IGNORE, model.device)
        last_position = scored.sum(1, keepdim=True) - 1
        for k, removal in enumerate(removals):
            before = 2 * removal[0].block + (removal[0].half == "mlp")
            after = 2 * removal[-1].block + 2 - (removal[-1].half == "attn")
            cosines = F.cosine_similarity(states[before].double(), states[after].double(), dim=-1)
            angles = cosines.gather(1, last_position).clamp(-1, 1).arccos() / np.pi
            sums[:, k] += float((1 - cosines)[scored].sum()), float(angles.sum())
            seconds[k] += times[after] - times[before]
    changes, angles = ranks.sum(sums)
    rows = sum(len(batch.ids) for batch in calibration.windows)
    return {"influence": changes / calibration.tokens, "angular": angles / rows, "seconds": seconds}


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
    for gradient in gradients.values():
        calibration.ranks.sum_tensor(gradient)
    return sum_over_weights(model, removals, lambda name, weight: size_of(weight * gradients[name]))


def magnitude(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """Sum of |weight| over a removal's weights."""
    return sum_over_weights(model, removals, lambda _, weight: size_of(weight))


def size_of(values: torch.Tensor) -> float:
    return float(values.abs().double().sum())


@torch.no_grad()
def sum_over_weights(
    model: Decoder, removals: Removals, measure: Callable[[str, torch.Tensor], float]
) -> list[float]:
    """Sums, for each removal, of `measure` of its weights and their names below `layers`."""
    sums = []
    for removal in removals:
        by_part = [sum(starmap(measure, part_weights(model, part))) for part in removal]
        sums.append(sum(by_part))
    return sums


def part_weights(model: Decoder, part: Part) -> list[tuple[str, torch.Tensor]]:
    """Names below `layers` and weights of a part: each half takes the norm before it."""
    of_attention = ("self_attn", "input_layernorm")
    weights = model.model.layers[part.block].named_parameters()
    return [(f"{part.block}.{name}", weight) for name, weight in weights
            if not part.half or name.startswith(of_attention) == (part.half == "attn")]


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
        influence, "1 - cosine of a block's input and output, mean over positions (ShortGPT, "
                   "arXiv:2403.03853)"),
    "angular": Score(
        angular, "angle between a block's input and output, over pi, mean over the windows' last positions "
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
    parts = list_parts(model, halves)
    removals = [(part,) for part in parts]
    losses = losses_without(model, [(), *removals], calibration)
    seconds, began = dict(losses.seconds), time.perf_counter()
    scores = score_in_one_pass(model, removals, calibration)
    seconds["states"] = time.perf_counter() - began
    for name, score in estimates().items():
        if name not in scores:
            began = time.perf_counter()
            scores[name] = np.array(score.function(model, removals, calibration))
            seconds[name] = time.perf_counter() - began

    whole = [not part.half for part in parts]
    forward = scores["seconds"][whole].sum() + seconds["head"] / len(losses.nll)
    original = [Part(model.config.blocks[block], half) for block, half in parts]
    scored = losses.tokens > 0
    nll, tokens, documents = losses.nll[:, scored], losses.tokens[scored], np.flatnonzero(scored)
    means = nll.sum(1) / tokens.sum()
    nll_low, nll_high = bootstrap_rows(nll, tokens, documents)
    difference_low, difference_high = bootstrap_rows(nll - nll[0], tokens, documents)
    ranks, correlations = rank_parts(parts, means[1:], scores)
    columns = {
        "block": ["none", *map(part_name, parts)], "original": ["", *map(part_name, original)],
        "nll": means, "nll_low": nll_low, "nll_high": nll_high,
        "difference": means - means[0], "difference_low": difference_low, "difference_high": difference_high,
        "perplexity": np.exp(means), "rank": ["", *ranks["nll"]]}
    for name in estimates():
        columns |= {name: ["", *scores[name]], f"{name}_rank": ["", *ranks[name]]}
    parameters = sum_over_weights(model, removals, lambda _, weight: weight.numel())
    columns |= {
        "parameters": [0, *parameters], "time_saved": [0.0, *(scores["seconds"] / max(forward, 1e-9))],
        "tokens": [tokens.sum()] * len(means), "documents": [len(tokens)] * len(means)}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return BlockScores(rows, seconds, correlations)


def list_parts(model: Decoder, halves: bool) -> list[Part]:
    """Every block, with `halves` each followed by its attention and its MLP where it has both."""
    parts = []
    for block, lost in enumerate(model.config.without):
        parts.append(Part(block))
        if halves and not lost:
            parts += [Part(block, "attn"), Part(block, "mlp")]
    return parts


def rank_parts(
    parts: list[Part], nll: np.ndarray, scores: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """Ranks among the parts of one kind, by the loss and by each estimate; rank correlations of the two."""
    kinds, correlations = np.array([part.half for part in parts]), {}
    ranks = {name: np.empty(len(parts), object) for name in ("nll", *estimates())}
    for half in dict.fromkeys(kinds.tolist()):
        same = kinds == half
        for name, ranked in ranks.items():
            values = (scores | {"nll": nll})[name][same]
            ranked[same] = [f"{rank:g}" for rank in average_ranks(values)]
            if name != "nll":
                correlations[f"{name} {half}".strip()] = {
                    "spearman": float(spearman(nll[same], values)),
                    "interval": spearman_interval(nll[same], values), "of": len(values)}
    return ranks, correlations
