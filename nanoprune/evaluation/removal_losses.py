"""The loss of a model without blocks, or parts of them: measured, and kept in a file.

A removal is a tuple of parts. Under torchrun each rank takes a shard of the windows, and all get the same
numbers as one process alone.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nanoprune.config import IGNORE
from nanoprune.data.token_file import Example
from nanoprune.device import matmul_dtype, synchronize, to_device
from nanoprune.distributed import ALONE, Ranks
from nanoprune.evaluation.perplexity import Protocol, WindowBatch, add_by_document
from nanoprune.io.files import json_hash, read_json, write_text
from nanoprune.nn.model_config import Part, part_name, read_parts
from nanoprune.statistics import Ratio

if TYPE_CHECKING:
    from model import Decoder

VERSION = 1  # of the losses without blocks: raise it when they change, or older ones are taken for the same
ROOM = 2**28  # bytes of hidden states that are held of one batch of windows
Removal = tuple[Part, ...]
Removals = list[Removal]


def is_block(removal: Removal) -> bool:
    """True of one whole block."""
    return len(removal) == 1 and not removal[0].half


class KeptLosses:
    """A JSON file of losses by document and of estimates, found by a hash of everything that decides them."""

    def __init__(self, path: Path, about: dict, writes: bool = True):
        """`about`: the model's identity and the type of the products. Rank 0 alone `writes`."""
        self.path, self.about, self.writes = path, about, writes
        self.sections = read_json(path) if path.is_file() else {}

    def section(self, **about) -> dict[str, list[float]]:
        """Sums of nll by document, by name of what is removed, or estimates; empty where nothing is known."""
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
    def of_split(cls, model: "Decoder", split: Sequence[Example], context: int, **how) -> "Calibration":
        """Windows of a split, or of some documents, in batches that fit into ROOM."""
        states = 2 * model.config.num_hidden_layers + 1
        fitting = ROOM // (states * model.config.hidden_size * 4)
        batches = tuple(Protocol(context=context).windows(split, min(8192, fitting)))
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
def without(model: "Decoder", blocks: Collection[int]) -> Iterator[None]:
    """The model lacks these blocks inside the `with` block, and is whole again after it."""
    layers, config = model.model.layers, model.config
    model.drop_blocks(read_parts(blocks, config))
    try:
        yield
    finally:
        model.model.layers, model.config = layers, config


@dataclass(frozen=True)
class RemovalLosses:
    """Losses of a model without each of several removals, by document."""

    nll: np.ndarray  # (removals, documents): summed, in nats
    tokens: np.ndarray  # (documents,) int64: the tokens that these are sums over
    seconds: dict[str, float]  # spent in blocks and in the head


@torch.no_grad()
def losses_without(model: "Decoder", removals: Removals, calibration: Calibration) -> RemovalLosses:
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

    def __init__(self, model: "Decoder", calibration: Calibration):
        ranks, windows = calibration.ranks, calibration.windows
        self.model, self.calibration, self.block = model, calibration, 0
        self.mine = range(ranks.rank, len(windows), ranks.size)
        self.inputs = [model.block_inputs(to_device(windows[i].ids, model.device)) for i in self.mine]
        self.head = model.head_weight.to(matmul_dtype(model.head_weight))  # cast once for all
        self.seconds = {"blocks": 0.0, "head": 0.0}

    def losses(self, removal: Removal) -> np.ndarray:
        """Sums of nll (documents,) in nats without a removal, which begins at the present block or later."""
        model, windows = self.model, self.calibration.windows
        first = removal[0].block if removal else self.block
        sums = [np.zeros(len(batch.documents)) for batch in windows]
        for k, i in enumerate(self.mine):
            began = time.perf_counter()
            x, *others = self.inputs[k]
            x = self.run(range(self.block, first), (), x, *others)
            self.inputs[k] = (x, *others)
            x = self.run(range(first, len(model.model.layers)), removal, x, *others)
            synchronize(model.device)
            left_blocks = time.perf_counter()
            losses = model.loss(model.model.norm(x), windows[i].targets, "none", head=self.head)
            sums[i] = losses.cpu().double().sum(1).numpy()
            self.seconds["blocks"] += left_blocks - began
            self.seconds["head"] += time.perf_counter() - left_blocks
        self.block = first
        return add_by_document(sums, windows, self.calibration.documents, self.calibration.ranks)

    def run(self, blocks: range, removal: Removal, x: torch.Tensor, rope: tuple, visible: dict):
        """The states x that leave these blocks without a removal."""
        halves = dict(removal)
        for block in blocks:
            layer, half = self.model.model.layers[block], halves.get(block)
            if half != "":  # the whole block
                x = layer(x, rope, visible[layer.window], skip=half or "")
        return x


def loss_rows(losses: RemovalLosses) -> list[dict]:
    """For each removal, nats per token, the paired difference from the first, with 95 % intervals."""
    rows = []
    for sums in losses.nll:
        loss, difference = (Ratio(nll, losses.tokens) for nll in (sums, sums - losses.nll[0]))
        rows.append(loss.columns("nll") | difference.columns("difference")
                    | {"perplexity": np.exp(loss.value)})
    return rows
