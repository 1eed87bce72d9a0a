"""Scores of blocks, or of their attention or MLP alone: the loss without them, and cheaper estimates of it.

A removal is a tuple of parts. A score gives a number for each removal of parts that follow each other; the
lowest is removed first. To add one, write a function with the signature of the others and enter it in SCORES:
prune.py then chooses by it, and the table of scores and the figure show it. If one changes, raise VERSION, as
estimates are kept beside the losses. Under torchrun each rank takes a shard of the windows, and all get the
same numbers as one process alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from nanoprune.config import IGNORE
from nanoprune.device import synchronize, to_device
from nanoprune.evaluation.removal_losses import Calibration, Removals, loss_rows, losses_without
from nanoprune.nn.model_config import Part, part_name
from nanoprune.statistics import average_ranks, spearman, spearman_interval

if TYPE_CHECKING:
    from model import Decoder

VERSION = 1  # of the estimates: raise it when one changes, or older ones are taken for the same
# The modules of a block, its attention and its MLP: each half has the norm before it.
MODULES = {"": ("",), "attn": ("self_attn", "input_layernorm"), "mlp": ("mlp", "post_attention_layernorm")}


# ---------------------------------------------------------------- the reference
def mean_loss(model: "Decoder", removals: Removals, calibration: Calibration) -> list[float]:
    """The loss without each removal, in nats per token: the reference that the other scores estimate."""
    losses = losses_without(model, removals, calibration)
    return (losses.nll.sum(1) / losses.tokens.sum()).tolist()


# ---------------------------------------------------------------- estimates
@torch.no_grad()
def score_in_one_pass(
    model: "Decoder", removals: Removals, calibration: Calibration
) -> dict[str, np.ndarray]:
    """Scores that compare what enters a removal with what leaves it, from one forward pass.

    influence: 1 - cosine of the two, a mean over all positions. angular: the angle between the two over pi, a
    mean over the last scored positions of the windows that have one. time_saved: the share of the pass with
    its loss.
    """
    sums, ranks = np.zeros((4, len(removals))), calibration.ranks
    for batch in ranks.shard(calibration.windows, "states"):
        with calibration.autocast():
            x, rope, visible = model.block_inputs(to_device(batch.ids, model.device))
            synchronize(model.device)
            states, times = [x], [time.perf_counter()]
            for layer, other in product(model.model.layers, ("mlp", "attn")):
                states.append(layer(states[-1], rope, visible[layer.window], skip=other))
                synchronize(model.device)
                times.append(time.perf_counter())
            model.loss(model.model.norm(states[-1]), batch.targets, "none")
            synchronize(model.device)
            whole = time.perf_counter() - times[0]
        scored = to_device(batch.targets != IGNORE, model.device)
        last_position = scored.int().cumsum(1).argmax(1, keepdim=True)
        some_scored = scored.any(1)
        for k, removal in enumerate(removals):
            before = 2 * removal[0].block + (removal[0].half == "mlp")
            after = 2 * removal[-1].block + 2 - (removal[-1].half == "attn")
            cosines = F.cosine_similarity(states[before].double(), states[after].double(), dim=-1)
            angles = cosines.gather(1, last_position)[some_scored].clamp(-1, 1).arccos() / np.pi
            change = float((1 - cosines)[scored].sum())
            sums[:, k] += change, float(angles.sum()), times[after] - times[before], whole
    changes, angles, seconds, total = ranks.sum(sums)
    rows = sum(int((batch.targets != IGNORE).any(1).sum()) for batch in calibration.windows)
    return {"influence": changes / calibration.tokens, "angular": angles / rows,
            "time_saved": seconds / total}


def taylor(model: "Decoder", removals: Removals, calibration: Calibration) -> list[float]:
    """Sum of |weight x gradient of the mean loss| over a removal's weights; one backward pass."""
    weights, tokens = dict(model.model.layers.named_parameters()), calibration.tokens
    gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in calibration.ranks.shard(calibration.windows, "gradient"):
        with torch.no_grad():
            inputs = model.block_inputs(to_device(batch.ids, model.device))
        with calibration.autocast():
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


def magnitude(model: "Decoder", removals: Removals, calibration: Calibration) -> list[float]:
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


@dataclass(frozen=True)
class Score:
    """A way to choose what to remove: `function(model, removals, calibration)`, the lowest first."""

    function: Callable[["Decoder", Removals, Calibration], list[float]]
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
    "last": Score(lambda model, removals, calibration: [-removal[-1].block for removal in removals],
                  "the deepest block first", reads_text=False, estimate=False),
    "random": Score(lambda model, removals, calibration: np.random.default_rng(calibration.seed).permutation(
        len(removals)).tolist(), "at random, by the calibration's seed", reads_text=False, estimate=False),
}


def estimates() -> dict[str, Score]:
    """The scores that stand beside the loss in the table."""
    return {name: score for name, score in SCORES.items() if score.estimate}


def protocol() -> dict[str, str]:
    """The meaning of the table's columns, by column."""
    return {
        "nll": "mean over tokens, each document in windows of its own, no prefix token; 95 % interval and "
               "paired difference from unpruned: linearised t over documents",
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


def score_blocks(model: "Decoder", calibration: Calibration, halves: bool = False) -> BlockScores:
    """Score every block of a model, with `halves` its attention and its MLP, too.

    The model is left as it was. A loss that is not finite ranks last.
    """
    # ---- measure
    parts = list_parts(model, halves)
    removals = [(part,) for part in parts]
    losses = losses_without(model, [(), *removals], calibration)
    seconds, scores = dict(losses.seconds), {}
    if calibration.kept:
        scores = calibration.kept.section(model=model.config.fingerprint(), text=calibration.text_hash(),
                                          parts=list(map(part_name, parts)), estimates=VERSION)
    if scores.keys() != {*estimates(), "time_saved"}:
        began = time.perf_counter()
        found = score_in_one_pass(model, removals, calibration)  # several estimates for the price of one
        seconds["states"] = time.perf_counter() - began
        for name, score in estimates().items():
            if name not in found:
                began = time.perf_counter()
                found[name] = score.function(model, removals, calibration)
                seconds[name] = time.perf_counter() - began
        scores |= {name: list(map(float, values)) for name, values in found.items()}
        if calibration.kept:
            calibration.kept.save()
    # ---- rows: the unpruned model, then each part
    sizes = {name: weight.numel() for name, weight in model.model.layers.named_parameters()}
    scores = scores | {"parameters": sum_over_weights(removals, sizes)}
    blank = {"rank": ""} | {f"{name}{end}": "" for name in estimates() for end in ("", "_rank")}
    text = {"tokens": losses.tokens.sum(), "documents": np.count_nonzero(losses.tokens)}
    unpruned, *others = loss_rows(losses)
    rows = [{"block": "none", "original": ""} | unpruned | blank
            | {"parameters": 0, "time_saved": 0.0} | text]
    for k, (block, half) in enumerate(parts):
        original = part_name(Part(model.config.blocks[block], half))
        own = {name: values[k] for name, values in scores.items()}
        rows.append({"block": part_name(parts[k]), "original": original} | others[k] | blank | own | text)

    # ---- ranks among the parts of one kind
    correlations = {}
    for half in dict.fromkeys(part.half for part in parts):
        same = [row for part, row in zip(parts, rows[1:], strict=True) if part.half == half]
        nll = enter_ranks(same, "nll", "rank")
        for name in estimates():
            pairs = nll, enter_ranks(same, name, f"{name}_rank")
            correlations[f"{name} {half}".strip()] = {
                "spearman": float(spearman(*pairs)), "interval": spearman_interval(*pairs), "of": len(same)}
    return BlockScores(rows, seconds, correlations)


def list_parts(model: "Decoder", halves: bool) -> list[Part]:
    """Every block, with `halves` each followed by its attention and its MLP where it has both."""
    return [Part(block, half) for block, lost in enumerate(model.config.without)
            for half in (MODULES if halves and not lost else ("",))]


def enter_ranks(rows: list[dict], score: str, column: str) -> list[float]:
    """Rank the rows by a score, which is returned."""
    values = [row[score] for row in rows]
    for row, rank in zip(rows, average_ranks(values), strict=True):
        row[column] = f"{rank:g}"
    return values
