"""Scores of blocks, or of their attention or MLP alone: the loss without them, and cheaper estimates of it.

A removal is a tuple of parts. A score gives a number for each removal of parts that follow each other; the
lowest is removed first. To add one, write a function with the signature of the others and enter it in SCORES:
prune.py then chooses by it, and the table of scores and the figure show it. Under torchrun each rank takes a
shard of the windows, and all get the same numbers as one process alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from nanoprune.config import IGNORE
from nanoprune.data.token_file import Example
from nanoprune.device import matmul_dtype, synchronize, to_device
from nanoprune.distributed import ALONE, Ranks
from nanoprune.evaluation.perplexity import Protocol, WindowBatch, add_by_document
from nanoprune.io.files import json_hash, read_json, write_text
from nanoprune.nn.model_config import Part, part_name, read_parts
from nanoprune.statistics import average_ranks, bootstrap_rows, spearman, spearman_interval

if TYPE_CHECKING:
    from model import Decoder

VERSION = 1  # of the losses without blocks: raise it when they change, or older ones are taken for the same
ROOM = 2**28  # bytes of hidden states that are held of one batch of windows
# The modules of a block, its attention and its MLP: each half has the norm before it.
MODULES = {"": ("",), "attn": ("self_attn", "input_layernorm"), "mlp": ("mlp", "post_attention_layernorm")}
Removal = tuple[Part, ...]
Removals = list[Removal]


class KeptLosses:
    """A JSON file of losses by document, found again by a hash of everything that decides them."""

    def __init__(self, path: Path, about: dict, writes: bool = True):
        """`about`: the weights and the type of the products. Rank 0 alone `writes`."""
        self.path, self.about, self.writes = path, about, writes
        self.sections = read_json(path) if path.is_file() else {}

    def section(self, **about) -> dict[str, list[float]]:
        """The sums of nll by document, by name of what is removed; empty where nothing is known."""
        about = self.about | about | {"version": VERSION}
        return self.sections.setdefault(json_hash(about), {"about": about, "nll": {}})["nll"]

    def save(self) -> None:
        if self.writes:
            write_text(self.path, json.dumps(self.sections) + "\n")


@dataclass(frozen=True)
class Calibration:
    """Text that blocks are scored on, and how."""

    windows: tuple[WindowBatch, ...] = ()
    documents: int = 0  # of the split that the windows are cut from
    ranks: Ranks = ALONE
    seed: int = 0  # of the random score
    autocast: Callable = nullcontext  # opens the context of the products' type
    kept: KeptLosses | None = None

    @classmethod
    def of_split(
        cls, model: Decoder, split: Sequence[Example], context: int, only: Collection[int] | None = None,
        **how,
    ) -> Calibration:
        """Windows of a split, or of `only` some of its documents, in batches that fit into ROOM."""
        states = 2 * model.config.num_hidden_layers + 1
        fitting = ROOM // (states * model.config.hidden_size * 4)
        batches = tuple(Protocol(context=context).windows(split, None, min(8192, fitting), only))
        if not batches:
            raise ValueError("the split holds no text to score on; prepare the dataset from more articles")
        return cls(batches, len(split), **how)

    @property
    def tokens(self) -> int:
        return int(self.tokens_by_document().sum())

    def tokens_by_document(self) -> np.ndarray:
        """Tokens (documents,) int64 that the losses are sums over."""
        counts = [(batch.targets != IGNORE).sum(1).numpy() for batch in self.windows]
        return add_by_document(counts, self.windows, self.documents, ALONE).astype(np.int64)

    def text_hash(self) -> str:
        digest = hashlib.sha256()
        for batch in self.windows:
            for values in (batch.ids.numpy(), batch.targets.numpy(), batch.documents):
                digest.update(values.tobytes())
        return digest.hexdigest()


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
    """The losses without each removal; plain form: `score_text` of the model less each removal, bit by bit.

    The windows' states move on from block to block, and each removal starts at its first block: without each
    of L blocks, that is half of L forward passes. A line tells of each removal as it is known; those that the
    calibration's file holds are not measured again.
    """
    removals = [tuple(sorted(removal)) for removal in removals]
    names = {removal: "+".join(map(part_name, removal)) or "none" for removal in removals}
    tokens, known = calibration.tokens_by_document(), {}
    if calibration.kept:
        known = calibration.kept.section(model=model.config.fingerprint(), text=calibration.text_hash())
    missing = sorted({removal for removal in removals if names[removal] not in known})
    began = time.perf_counter()
    with calibration.autocast():
        states = WindowStates(model, calibration)
        for done, removal in enumerate(missing, start=1):
            known[names[removal]] = states.losses(removal).tolist()
            if calibration.kept:
                calibration.kept.save()
            loss = sum(known[names[removal]]) / tokens.sum()
            difference = f"  {loss - sum(known['none']) / tokens.sum():+9.4f}" if "none" in known else ""
            left = (len(missing) - done) * (time.perf_counter() - began) / done
            print(f"without {names[removal]:>8}  nll {loss:9.4f}{difference}  {done} of {len(missing)}, "
                  f"{left:,.0f} s left", flush=True)
    nll = np.array([known[names[removal]] for removal in removals])
    return RemovalLosses(nll, tokens, states.seconds)


class WindowStates:
    """The hidden states of this rank's windows that enter a block, and move on from block to block."""

    def __init__(self, model: Decoder, calibration: Calibration):
        ranks, windows = calibration.ranks, calibration.windows
        self.model, self.calibration, self.block = model, calibration, 0
        self.mine = range(ranks.rank, len(windows), ranks.size)
        self.inputs = [model.block_inputs(to_device(windows[i].ids, model.device)) for i in self.mine]
        self.head = model.head_weight.to(matmul_dtype(model.head_weight))  # cast once for all
        self.seconds = {"blocks": 0.0, "head": 0.0}

    def losses(self, removal: Removal) -> np.ndarray:
        """Sums of nll (documents,) in nats without a removal, which begins at the present block or later."""
        model, first = self.model, removal[0].block if removal else self.block
        windows, ends = self.calibration.windows, [time.perf_counter()]
        sums = [np.zeros(len(batch.documents)) for batch in windows]
        for k, i in enumerate(self.mine):
            x, *others = self.inputs[k]
            x = self.run(range(self.block, first), (), x, *others)
            self.inputs[k] = (x, *others)
            x = self.run(range(first, len(model.model.layers)), removal, x, *others)
            synchronize(model.device)
            ends.append(time.perf_counter())
            losses = model.loss(model.model.norm(x), windows[i].targets, "none", head=self.head)
            sums[i] = losses.cpu().double().sum(1).numpy()
            ends.append(time.perf_counter())
        self.block = first
        spent = np.diff(ends)
        self.seconds["blocks"] += spent[::2].sum()
        self.seconds["head"] += spent[1::2].sum()
        return add_by_document(sums, windows, self.calibration.documents, self.calibration.ranks)

    def run(self, blocks: range, removal: Removal, x: torch.Tensor, rope: tuple, visible: dict):
        """The states x that leave these blocks without a removal."""
        halves = dict(removal)
        for block in blocks:
            layer, half = self.model.model.layers[block], halves.get(block)
            if half != "":  # the whole block
                x = layer(x, rope, visible[layer.window], skip=half or "")
        return x


def mean_loss(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
    """The loss without each removal, in nats per token: the reference that the other scores estimate."""
    losses = losses_without(model, removals, calibration)
    return (losses.nll.sum(1) / losses.tokens.sum()).tolist()


# ---------------------------------------------------------------- estimates
@torch.no_grad()
def score_in_one_pass(
    model: Decoder, removals: Removals, calibration: Calibration
) -> dict[str, np.ndarray]:
    """Scores that compare what enters a removal with what leaves it, from one forward pass.

    influence: 1 - cosine of the two, a mean over all positions. angular: the angle between the two over pi, a
    mean over the last scored positions of the windows that have one. time_saved: the share of the pass with
    its loss.
    """
    sums, total, ranks = np.zeros((3, len(removals))), 0.0, calibration.ranks
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
            total += time.perf_counter() - times[0]
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
    total = ranks.sum([total])[0]
    rows = sum(int((batch.targets != IGNORE).any(1).sum()) for batch in calibration.windows)
    return {"influence": changes / calibration.tokens, "angular": angles / rows,
            "time_saved": seconds / total}


def taylor(model: Decoder, removals: Removals, calibration: Calibration) -> list[float]:
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
    time_saved, seconds["states"] = scores.pop("time_saved"), time.perf_counter() - began
    for name, score in estimates().items():
        if name not in scores:
            began = time.perf_counter()
            scores[name] = score.function(model, removals, calibration)
            seconds[name] = time.perf_counter() - began
    # ---- rows: the unpruned model, then each part
    sizes = {name: weight.numel() for name, weight in model.model.layers.named_parameters()}
    columns = {"rank": [""] * len(parts)}
    for name, values in scores.items():
        columns |= {name: values, f"{name}_rank": [""] * len(parts)}
    columns |= {"parameters": sum_over_weights(removals, sizes), "time_saved": time_saved}
    unpruned = dict.fromkeys(columns, "") | {"parameters": 0, "time_saved": 0.0}
    original = [Part(model.config.blocks[block], half) for block, half in parts]
    names = [("none", ""), *zip(map(part_name, parts), map(part_name, original), strict=True)]
    others = [unpruned]
    others += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    text = {"tokens": losses.tokens.sum(), "documents": np.count_nonzero(losses.tokens)}
    rows = [{"block": name, "original": before} | loss | other | text
            for (name, before), loss, other in zip(names, loss_rows(losses), others, strict=True)]

    # ---- ranks among the parts of one kind
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


def loss_rows(losses: RemovalLosses) -> list[dict]:
    """For each removal, nats per token, the paired difference from the first, with 95 % intervals."""
    scored = losses.tokens > 0
    nll, tokens = losses.nll[:, scored], losses.tokens[scored]
    means, columns = nll.sum(1) / tokens.sum(), {}
    for name, rows, mean in (("nll", nll, means), ("difference", nll - nll[0], means - means[0])):
        low, high = bootstrap_rows(rows, tokens, range(len(tokens)))
        columns |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    columns["perplexity"] = np.exp(means)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


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
