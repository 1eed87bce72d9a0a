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
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from nanoprune.config import IGNORE
from nanoprune.data.token_file import Example
from nanoprune.device import synchronize, to_device
from nanoprune.distributed import ALONE, Ranks
from nanoprune.evaluation.perplexity import WindowBatch, windows
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
        batches = tuple(windows(split, context, batch_tokens(model, states), only=only))
        if not batches:
            raise ValueError("the split holds no text to score on; prepare the dataset from more articles")
        return cls(batches, len(split), ranks, seed)

    @property
    def tokens(self) -> int:
        return sum(int((batch.targets != IGNORE).sum()) for batch in self.windows)


def batch_tokens(model: Decoder, states: int, most: int = 8192) -> int:
    """Tokens of a batch of which so many hidden states fill ROOM."""
    return max(1, min(most, ROOM // (states * model.config.hidden_size * 4)))


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
    batches, ranks = calibration.windows, calibration.ranks
    nll = [np.zeros((len(removals), len(batch.documents))) for batch in batches]
    seconds = {"blocks": 0.0, "head": 0.0}
    for number in ranks.shard(range(len(batches)), "without"):
        began = time.perf_counter()
        states = states_without(model, to_device(batches[number].ids, model.device), removals)
        synchronize(model.device)
        seconds["blocks"] += time.perf_counter() - began
        began = time.perf_counter()
        for k, removal in enumerate(removals):
            losses = model.loss(model.model.norm(states[removal]), batches[number].targets, "none")
            nll[number][k] = losses.cpu().double().sum(1).numpy()
        seconds["head"] += time.perf_counter() - began
    by_window = np.concatenate(nll, axis=1)
    by_window = np.array(ranks.sum(by_window.ravel().tolist())).reshape(by_window.shape)
    documents = np.concatenate([batch.documents for batch in batches])
    by_document = np.zeros((len(removals), calibration.documents))
    np.add.at(by_document, (slice(None), documents), by_window)
    tokens = np.zeros(calibration.documents, np.int64)
    for batch in batches:
        np.add.at(tokens, batch.documents, (batch.targets != IGNORE).sum(1).numpy())
    return RemovalLosses(by_document, tokens, seconds)


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
    return mean_change(model, removals, calibration, lambda cosines, scored: (1 - cosines)[scored])


def angular(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """Angle between what enters and what leaves a removal, over pi: a mean over last positions."""
    def angles(cosines: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        last = scored.sum(1, keepdim=True) - 1
        return cosines.gather(1, last).clamp(-1, 1).arccos() / np.pi

    return mean_change(model, removals, calibration, angles)


@torch.no_grad()
def mean_change(
    model: Decoder, removals: Removals, calibration: Calibration, measure: Callable
) -> list[float]:
    """Mean of `measure(cosines, scored)` for each removal; both are (B, T), `scored` a mask."""
    sums, count = np.zeros(len(removals)), 0
    for batch in calibration.ranks.shard(calibration.windows, "states"):
        states = list(half_outputs(model, to_device(batch.ids, model.device)))
        scored = to_device(batch.targets != IGNORE, model.device)
        for k, removal in enumerate(removals):
            first, last = removal[0], removal[-1]
            before = states[2 * first.block + (first.half == "mlp")]
            after = states[2 * last.block + 2 - (last.half == "attn")]
            values = measure(F.cosine_similarity(before.double(), after.double(), dim=-1), scored)
            sums[k] += float(values.sum())
        count += values.numel()
    *sums, count = calibration.ranks.sum([*sums.tolist(), count])
    return [total / max(1, count) for total in sums]


def half_outputs(model: Decoder, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """Hidden states (B, T, D): the first block's input, then the output of each attention and each MLP."""
    x, rope, visible = model.block_inputs(ids)
    yield x
    for layer in model.model.layers:
        for other in ("mlp", "attn"):
            x = layer(x, rope, visible[layer.window], skip=other)
            yield x


def taylor(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """Sum of |weight x gradient of the mean loss| over a removal's weights; one backward pass."""
    weights = dict(model.model.layers.named_parameters())
    gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in calibration.ranks.shard(calibration.windows, "gradient"):
        with torch.no_grad():
            inputs = model.block_inputs(to_device(batch.ids, model.device))
        x = model.model(*inputs, cache=None, recompute="blocks")
        loss = model.loss(x, batch.targets, "sum", head=model.head_weight.detach()) / calibration.tokens
        addends = torch.autograd.grad(loss, weights.values())
        for gradient, addend in zip(gradients.values(), addends, strict=True):
            gradient += addend
    products = {}
    for name, weight in weights.items():
        calibration.ranks.sum_tensor(gradients[name])
        products[name] = float((weight.detach() * gradients[name]).abs().double().sum())
    return sum_over_weights(model, removals, products)


def magnitude(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """Sum of |weight| over a removal's weights."""
    weights = model.model.layers.named_parameters()
    sizes = {name: float(weight.detach().abs().double().sum()) for name, weight in weights}
    return sum_over_weights(model, removals, sizes)


def sum_over_weights(model: Decoder, removals: Removals, values: dict[str, float]) -> list[float]:
    """Sums, for each removal, of values by parameter's name below `layers`."""
    sums = []
    for removal in removals:
        total = 0.0
        for block, half in removal:
            total += sum(values[f"{block}.{name}"] for name in weight_names(model, Part(block, half)))
        sums.append(total)
    return sums


def weight_names(model: Decoder, part: Part) -> list[str]:
    """Names, inside its block, of a part's parameters: each half takes the norm before it."""
    names = [name for name, _ in model.model.layers[part.block].named_parameters()]
    of_attention = ("self_attn", "input_layernorm")
    return [name for name in names if not part.half or name.startswith(of_attention) == (part.half == "attn")]


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
    seconds, scores = dict(losses.seconds), {}
    for name, score in estimates().items():
        began = time.perf_counter()
        scores[name] = score.function(model, removals, calibration)
        seconds[name] = time.perf_counter() - began
    shares = time_shares(model, parts, calibration, seconds["head"] / len(losses.nll))
    rows = loss_rows(losses)
    for k, (part, row) in enumerate(zip(parts, rows[1:], strict=True)):
        original = Part(model.config.blocks[part.block], part.half)
        layer = model.model.layers[part.block]
        row |= {"block": part_name(part), "original": part_name(original), "time_saved": shares[k],
                "parameters": sum(layer.get_parameter(name).numel() for name in weight_names(model, part))}
        row |= {name: values[k] for name, values in scores.items()}
    correlations = {}
    for half in dict.fromkeys(part.half for part in parts):
        correlations |= rank_rows([rows[1 + k] for k, part in enumerate(parts) if part.half == half], half)
    return BlockScores(rows, seconds, correlations)


def list_parts(model: Decoder, halves: bool) -> list[Part]:
    """Every block, with `halves` each followed by its attention and its MLP where it has both."""
    parts = []
    for block, lost in enumerate(model.config.without):
        parts.append(Part(block))
        if halves and not lost:
            parts += [Part(block, "attn"), Part(block, "mlp")]
    return parts


def time_shares(
    model: Decoder, parts: list[Part], calibration: Calibration, head_seconds: float
) -> list[float]:
    """The share that each part has of the time of a forward pass with its loss."""
    blocks = range(model.config.num_hidden_layers)
    seconds = {Part(block, half): 0.0 for block in blocks for half in ("attn", "mlp")}
    with torch.no_grad():
        for batch in calibration.ranks.shard(calibration.windows, "time"):
            steps = half_outputs(model, to_device(batch.ids, model.device))
            next(steps)
            for part in seconds:
                synchronize(model.device)
                began = time.perf_counter()
                next(steps)
                synchronize(model.device)
                seconds[part] += time.perf_counter() - began
    forward = sum(seconds.values()) + head_seconds
    seconds |= {Part(block): seconds[block, "attn"] + seconds[block, "mlp"] for block in blocks}
    return [seconds[part] / max(forward, 1e-9) for part in parts]


def loss_rows(losses: RemovalLosses) -> list[dict]:
    """Rows of the table for the unpruned model and each removal, filled in with their losses alone."""
    scored = losses.tokens > 0
    nll, tokens, documents = losses.nll[:, scored], losses.tokens[scored], np.flatnonzero(scored)
    low, high = bootstrap_rows(nll, tokens, documents)
    difference_low, difference_high = bootstrap_rows(nll - nll[0], tokens, documents)
    means = [float(total / max(tokens.sum(), 1)) for total in nll.sum(1)]
    empty = {f"{name}{end}": "" for name in estimates() for end in ("", "_rank")}
    return [
        {"block": "none", "original": "", "nll": mean, "nll_low": low[k], "nll_high": high[k],
         "difference": mean - means[0], "difference_low": difference_low[k],
         "difference_high": difference_high[k],
         "perplexity": float(np.exp(mean)), "rank": "", **empty, "parameters": 0, "time_saved": 0.0,
         "tokens": int(tokens.sum()), "documents": len(tokens)}
        for k, mean in enumerate(means)
    ]


def rank_rows(rows: list[dict], half: str) -> dict[str, dict]:
    """Enter ranks into the rows of one kind; return each estimate's rank correlation with the loss."""
    correlations, losses = {}, [row["nll"] for row in rows]
    for row, rank in zip(rows, average_ranks(losses), strict=True):
        row["rank"] = f"{rank:g}"
    for name in estimates():
        values = [row[name] for row in rows]
        for row, rank in zip(rows, average_ranks(values), strict=True):
            row[f"{name}_rank"] = f"{rank:g}"
        correlations[f"{name} {half}".strip()] = {
            "spearman": float(spearman(losses, values)), "interval": spearman_interval(losses, values),
            "of": len(rows)}
    return correlations
