"""How well does a model predict text: negative log-likelihoods by document and by position, under a protocol that is named."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from model import Decoder
from nanoprune.config import IGNORE, Config
from nanoprune.data.dataset import Dataset
from nanoprune.device import to_device
from nanoprune.distributed import ALONE, Ranks

EDGES = (0, 16, 64, 256, 1024)  # positions in a document at which slices begin
PROTOCOLS = ("documents", "stream", "rolling")


@dataclass(frozen=True)
class Protocol:
    """Which tokens are predicted from what.

    documents: every document by itself, in windows of `context` that begin every `stride` tokens (0: they do not overlap) and
    score what no earlier one did. stream: all documents joined, cut every `context` tokens, each cut by itself and the rest
    left out, as GPTQ's evaluation of WikiText does. rolling: as lm-evaluation-harness does, without the end-of-text token; the
    last window of a document reaches back to be a whole one. `prefix`: a token put before each document, so that its first
    token is scored.
    """

    name: str = "documents"
    context: int = 1024
    stride: int = 0
    prefix: int | None = None

    def describe(self) -> str:
        kinds = {"documents": f"whole documents in windows of {self.context} tokens, "
                              + (f"a new one every {self.stride}" if self.stride else "which do not overlap"),
                 "stream": f"documents joined, end-of-text tokens between, cut every {self.context} tokens, the rest left out",
                 "rolling": f"whole documents without end-of-text token in windows of {self.context} tokens, as "
                            "lm-evaluation-harness rolls them"}
        return f"{kinds[self.name]}; " + ("no prefix token" if self.prefix is None else f"prefix token {self.prefix}")

    def units(self, documents: list[np.ndarray]) -> list[np.ndarray]:
        """What is scored as one: the documents, or the cuts of the stream."""
        if self.name != "stream":
            return documents
        joined = np.concatenate(documents) if documents else np.empty(0, np.int64)
        return list(joined[: len(joined) // self.context * self.context].reshape(-1, self.context))

    def cuts(self, documents: list[np.ndarray], end: int) -> Iterator[tuple[int, np.ndarray, int, int]]:
        """(document, tokens of a window with the one after, its first scored prediction, position of its first token)."""
        for number, tokens in enumerate(documents):
            tokens = tokens[:-1] if self.name == "rolling" and len(tokens) and tokens[-1] == end else tokens
            tokens = tokens if self.prefix is None else np.concatenate([[self.prefix], tokens])
            predictions, start, scored = len(tokens) - 1, 0, 0
            offset = 0 if self.prefix is None else -1
            while scored < predictions:
                until = min(start + self.context, predictions)
                first = max(0, until - self.context) if self.name == "rolling" else start
                yield number, tokens[first : until + 1], scored - first, first + offset
                scored, start = until, start + (self.stride or self.context)


@torch.no_grad()
def text_losses(
    model: Decoder, units: list[np.ndarray], protocol: Protocol, end: int, batch_tokens: int = 8192, ranks: Ranks = ALONE,
    label: str = "text",
) -> tuple[np.ndarray, np.ndarray]:
    """(nll in nats, tokens), each (units, len(EDGES)): by unit and by position in it of the token that is predicted.

    `units` (of the protocol) are token ids, a document's with its end-of-text token `end`; or of a conversation (2, tokens),
    the second row 1 where a token counts.
    """
    learned = [unit[1] if unit.ndim == 2 else None for unit in units]
    cuts = sorted(protocol.cuts([unit[0] if unit.ndim == 2 else unit for unit in units], end), key=lambda cut: -len(cut[1]))
    batches, at = [], 0
    while at < len(cuts):
        rows = max(1, batch_tokens // max(1, len(cuts[at][1]) - 1))
        batches.append(cuts[at : at + rows])
        at += rows
    found = np.zeros((2, len(cuts), len(EDGES)))
    starts = np.cumsum([0, *map(len, batches)])
    for k in ranks.turns(range(len(batches)), label):
        longest = len(batches[k][0][1]) - 1
        ids = torch.zeros(len(batches[k]), longest, dtype=torch.int64)
        targets, bins = torch.full_like(ids, IGNORE), np.zeros(ids.shape, np.int64)
        for row, (number, tokens, scored, first) in enumerate(batches[k]):
            aims = tokens[1:]
            if learned[number] is not None:
                aims = np.where(learned[number][first + 1 : first + len(tokens)], aims, IGNORE)
            ids[row, : len(aims)] = torch.from_numpy(tokens[:-1])
            targets[row, scored : len(aims)] = torch.from_numpy(aims[scored:])
            bins[row] = np.searchsorted(EDGES, first + 1 + np.arange(longest), side="right") - 1
        nll = model(to_device(ids, model.head_weight.device), targets, reduction="none").cpu().double().numpy()
        for b in range(len(EDGES)):
            inside = (bins == b) & (targets.numpy() != IGNORE)
            found[:, starts[k] : starts[k + 1], b] = (nll * inside).sum(1), inside.sum(1)
    found = np.array(ranks.sum(found.ravel().tolist())).reshape(found.shape)
    sums = np.zeros((2, len(units), len(EDGES)))
    for part, values in zip(sums, found, strict=True):
        np.add.at(part, [cut[0] for batch in batches for cut in batch], values)
    return sums[0], sums[1].astype(np.int64)


class Validation:
    """The same documents in the same windows every time; draws nothing from the training's random state."""

    def __init__(self, dataset: Dataset, config: Config):
        split = dataset.split("val")
        n = min(config.eval_documents or len(split), len(split))
        chosen = set(np.linspace(0, len(split) - 1, n).round().astype(int).tolist()) if n else set()
        longest = int(np.diff(split.offsets).max(initial=0)) if dataset.conversations else 0  # none is ever cut
        self.windows = list(split.windows(max(config.context, longest), only=chosen))
        self.size, self.documents, self.bytes = len(split), len(chosen), sum(int(split.bytes[i]) for i in chosen)
        if not self.windows:
            raise ValueError(f"{dataset.folder} has an empty validation split; prepare it from more articles")

    def measure(self, model: Decoder, autocast, ranks: Ranks = ALONE) -> tuple[float, float, float]:
        """Mean nll per token in nats, perplexity, bits per byte."""
        ids, targets, numbers = self.windows[-1]
        nothing = ids, torch.full_like(targets, IGNORE), numbers
        model.eval()
        nll, tokens = document_nll(model, ranks.share(self.windows, nothing), self.size, autocast)
        model.train()
        nll, tokens = ranks.sum([nll.sum(), tokens.sum()])
        return float(nll / tokens), float(np.exp(nll / tokens)), float(nll / math.log(2) / self.bytes)


@torch.no_grad()
def document_nll(model: Decoder, windows: Iterable, documents: int, autocast=contextlib.nullcontext
) -> tuple[np.ndarray, np.ndarray]:
    """Per document, the summed negative log-likelihood in nats and the tokens it is of.

    `windows` yields (ids, targets, document numbers), as `dataset.Split.windows` does; `autocast` opens a context.
    """
    nll, tokens = np.zeros(documents), np.zeros(documents, np.int64)
    device = next(model.parameters()).device
    with autocast():  # over all of them: it casts the weights once
        for ids, targets, rows in windows:
            losses = model(to_device(ids, device), targets, reduction="none")
            np.add.at(nll, rows, losses.cpu().double().sum(1).numpy())
            np.add.at(tokens, rows, (targets != IGNORE).sum(1).numpy())
    return nll, tokens
