"""Negative log-likelihoods of text, by document and by position, under a named protocol.

The one way to score text: a Protocol cuts examples into batches of windows, `score_text` sums the losses of
each document.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from nanoprune.config import IGNORE, Config
from nanoprune.data.dataset import Dataset
from nanoprune.data.token_file import Example
from nanoprune.device import to_device
from nanoprune.distributed import ALONE, Ranks
from nanoprune.statistics import evenly_spaced

if TYPE_CHECKING:
    from model import Decoder

VERSION = 1  # of the losses of text: raise it when they or the columns of their rows change
EDGES = (0, 16, 64, 256, 1024)  # first positions of the slices of a document
PROTOCOLS = ("documents", "stream", "rolling")


# ---------------------------------------------------------------- windows
class Window(NamedTuple):
    """A piece of a document."""

    document: int
    position: int  # of its first token in the document
    ids: torch.Tensor  # (time,) int64
    targets: torch.Tensor  # (time,) int64: the token after each, IGNORE where it is not scored here


@dataclass(frozen=True)
class WindowBatch:
    """Windows of like length that are scored together."""

    ids: torch.Tensor  # (windows, time) int64, 0 where padded
    targets: torch.Tensor  # (windows, time) int64, IGNORE where padded
    documents: np.ndarray  # (windows,)
    positions: np.ndarray  # (windows,)


@dataclass(frozen=True)
class Protocol:
    """The rule that says which tokens are predicted from which.

    documents: each document by itself, in windows of `context` tokens that begin every `stride` (0: without
    overlap). stream: all documents joined and cut every `context` tokens, each cut by itself and the rest
    left out, as GPTQ's evaluation of WikiText does. rolling: as lm-evaluation-harness does, without the
    end-of-text token; the last window of a document reaches back to be a whole one. `prefix`: a token before
    each document, so that its first is scored.
    """

    name: str = "documents"
    context: int = 1024
    stride: int = 0
    prefix: int | None = None

    def describe(self) -> str:
        overlap = f"a new one every {self.stride}" if self.stride else "which do not overlap"
        cutting = {
            "documents": f"whole documents in windows of {self.context} tokens, {overlap}",
            "stream": f"documents joined, end-of-text tokens between, cut every {self.context} tokens, the "
                      "rest left out",
            "rolling": f"whole documents without end-of-text token in windows of {self.context} tokens, as "
                       "lm-evaluation-harness rolls them",
        }
        prefix = "no prefix token" if self.prefix is None else f"prefix token {self.prefix}"
        return f"{cutting[self.name]}; {prefix}"

    def units(self, documents: list[Example]) -> list[Example]:
        """The examples that get a row of results each: the documents, or the cuts of the stream."""
        if self.name == "rolling":  # without the end-of-text token
            return [Example(document.tokens[:-1], document.learned[:-1]) for document in documents]
        if self.name != "stream":
            return documents
        joined = np.concatenate([np.empty(0, np.int64), *(document.tokens for document in documents)])
        cuts = joined[: len(joined) // self.context * self.context].reshape(-1, self.context)
        return [Example(tokens, np.ones(self.context, bool)) for tokens in cuts]

    def windows(self, units: Sequence[Example], batch_tokens: int = 8192) -> Iterator[WindowBatch]:
        """Batches of windows in which every prediction is scored once; the same units give the same batches.

        Windows of like length share a batch of about `batch_tokens`, so little is padding.
        """
        windows = []
        for document, unit in enumerate(units):
            tokens, targets, start, scored = unit.tokens, unit.targets, 0, 0
            if self.prefix is not None:
                tokens, targets = np.insert(tokens, 0, self.prefix), np.insert(targets, 0, IGNORE)
            while scored < len(tokens) - 1:
                stop = min(start + self.context, len(tokens) - 1)
                first = max(0, stop - self.context) if self.name == "rolling" else start
                predicted = np.where(np.arange(first, stop) < scored, IGNORE, targets[first + 1 : stop + 1])
                pieces = torch.from_numpy(tokens[first:stop]), torch.from_numpy(predicted)
                windows.append(Window(document, first - (self.prefix is not None), *pieces))
                scored, start = stop, start + (self.stride or self.context)
        windows.sort(key=lambda window: -len(window.ids))
        while windows:
            rows = max(1, batch_tokens // len(windows[0].ids))
            documents, positions, ids, targets = zip(*windows[:rows], strict=True)
            yield WindowBatch(pad_sequence(ids, True), pad_sequence(targets, True, IGNORE),
                              np.array(documents), np.array(positions))
            windows = windows[rows:]


# ---------------------------------------------------------------- losses
@dataclass(frozen=True)
class DocumentLosses:
    """Sums of negative log-likelihood in nats, and the tokens they are of, by document.

    A slice is the positions from one of EDGES to the next.
    """

    nll: np.ndarray  # (documents,) float64; to rounding the sum of its slices
    tokens: np.ndarray  # (documents,) int64
    nll_by_position: np.ndarray  # (documents, slices) float64
    tokens_by_position: np.ndarray  # (documents, slices) int64


@torch.no_grad()
def score_text(
    model: "Decoder", batches: Iterable[WindowBatch], documents: int, *, autocast=contextlib.nullcontext,
    ranks: Ranks = ALONE, label: str = "text",
) -> DocumentLosses:
    """The losses of `documents` examples from the batches of their windows; `autocast` opens a context.

    Each rank takes its share of the batches.
    """
    batches = list(batches)
    for _ in range(-len(batches) % ranks.size):  # FSDP needs as many forward passes of every rank
        batches.append(replace(batches[-1], targets=torch.full_like(batches[-1].targets, IGNORE)))
    values = [np.zeros((len(batch.documents), 1 + 2 * len(EDGES))) for batch in batches]
    with autocast():  # around all batches: it casts the weights once
        for i in ranks.shard(range(len(batches)), label):
            values[i] = sum_by_window(model, batches[i])
    nll, nll_by_position, tokens = np.split(
        add_by_document(values, batches, documents, ranks), [1, 1 + len(EDGES)], axis=1)
    tokens = tokens.astype(np.int64)
    return DocumentLosses(nll[:, 0], tokens.sum(1), nll_by_position, tokens)


def sum_by_window(model: "Decoder", batch: WindowBatch) -> np.ndarray:
    """For each window its nll, and by slice nll and tokens (windows, 1 + 2 slices)."""
    losses = model(to_device(batch.ids, model.device), batch.targets, reduction="none").cpu().double()
    predicted = batch.positions[:, None] + 1 + np.arange(losses.shape[1])
    slices = np.searchsorted(EDGES, predicted, side="right") - 1
    scored = batch.targets.numpy() != IGNORE
    inside = scored & (slices == np.arange(len(EDGES))[:, None, None])  # (slices, windows, time)
    by_slice = (losses.numpy() * inside).sum(-1)
    return np.stack([losses.sum(1).numpy(), *by_slice, *inside.sum(-1)], axis=1)


def add_by_document(
    values: list[np.ndarray], batches: Sequence[WindowBatch], documents: int, ranks: Ranks
) -> np.ndarray:
    """Sums by document of the values (windows, ...) of each batch, zero where another rank measured it.

    They go from window to document in one order, so any number of ranks gives the same.
    """
    sums = np.zeros((documents, *values[0].shape[1:]))
    for batch, rows in zip(batches, values, strict=True):
        np.add.at(sums, batch.documents, ranks.sum(rows))
    return sums


class Text(NamedTuple):
    """A unit of a protocol, and the columns of its row that depend on no model."""

    example: Example
    about: dict


def text_rows(
    model: "Decoder", texts: list[Text], protocol: Protocol, ranks: Ranks, label: str
) -> list[dict]:
    """A row per text: nll in nats and tokens, in all and from each position of EDGES on."""
    batches = protocol.windows([text.example for text in texts])
    losses = score_text(model, batches, len(texts), ranks=ranks, label=label)
    rows, columns = [], [f"{name}_{edge}" for name in ("nll", "tokens") for edge in EDGES]
    for text, nll, tokens in zip(texts, losses.nll_by_position, losses.tokens_by_position, strict=True):
        totals = {"nll": nll.sum(), "tokens": int(tokens.sum())}  # to the last bit the slices' sum
        rows.append(text.about | totals | dict(zip(columns, [*nll, *tokens.tolist()], strict=True)))
    return rows


class ValidationLoss(NamedTuple):
    nll: float  # mean over tokens, in nats
    perplexity: float
    bits_per_byte: float


class Validation:
    """The same documents in the same windows every time; draws nothing from the training's random state."""

    def __init__(self, dataset: Dataset, config: Config):
        split = dataset.split("val")
        self.chosen = evenly_spaced(range(len(split)), config.eval_documents or len(split))
        context = config.context
        if dataset.conversations:  # none is ever cut
            context = max(context, int(np.diff(split.offsets).max(initial=0)))
        self.windows = list(Protocol(context=context).windows([split[i] for i in self.chosen]))
        self.bytes = int(split.bytes[self.chosen].sum())
        if not self.windows:
            raise ValueError(f"{dataset.folder} has an empty validation split; prepare it from more articles")

    def measure(self, model: "Decoder", autocast, ranks: Ranks = ALONE) -> tuple[ValidationLoss, list[dict]]:
        """The loss, and a row for each document: sum of nll, and tokens predicted."""
        model.eval()
        losses = score_text(
            model, self.windows, len(self.chosen), autocast=autocast, ranks=ranks, label="validation")
        model.train()
        total = float(losses.nll.sum())
        mean = total / int(losses.tokens.sum())
        rows = [{"document": i, "nll": float(nll), "predicted": int(tokens)}
                for i, nll, tokens in zip(self.chosen, losses.nll, losses.tokens, strict=True)]
        return ValidationLoss(mean, float(np.exp(mean)), total / math.log(2) / self.bytes), rows
