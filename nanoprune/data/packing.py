"""Training rows of a fixed length, packed from documents and conversations."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

from nanoprune.config import IGNORE
from nanoprune.data.token_file import TokenFile
from nanoprune.io.files import file_hash, json_hash

MOST_DOCUMENTS = 2**26  # of an epoch: 24 bytes each


class Piece(NamedTuple):
    """A run of one document's predictions."""

    source: TokenFile
    document: int
    start: int  # the first prediction
    length: int


class TrainingRows:
    """Training rows of a fixed length: row r is a pure function of the seed and r, and of nothing else.

    An epoch is every document once and every conversation `pair_repeats` times, in an order drawn from the
    seed and the epoch's number. Rows cut the endless stream of epochs every `context` predictions. So each
    prediction is learned exactly once (a conversation's: `pair_repeats` times) an epoch. `documents` says
    which tokens may see each other. With `replay`, the share `share` of an epoch's predictions is general
    text: its documents in their order, and again from the first, as many as come nearest to the share.
    """

    def __init__(
        self, documents: TokenFile, context: int, seed: int,
        pairs: TokenFile | None = None, pair_repeats: int = 0,
        replay: TokenFile | None = None, share: float = 0.0,
    ):
        epoch = [(documents, np.arange(len(documents)))]
        if pair_repeats:
            epoch.append((pairs, repeated(pairs, pair_repeats)))
        if share:
            predictions = sum(source.prediction_counts[numbers].sum() for source, numbers in epoch)
            epoch.append((replay, documents_of_length(replay, share / (1 - share) * predictions)))
        self._set_epoch(epoch, context, seed)

    def _set_epoch(self, epoch: list[tuple[TokenFile, np.ndarray]], context: int, seed: int) -> None:
        """Take the sources of an epoch, each with the numbers of its documents."""
        self.context, self.seed = context, seed
        self.sources = [source for source, _ in epoch]
        self.units = np.concatenate(  # (units, 2): source and document
            [np.stack([np.full_like(numbers, i), numbers], axis=1) for i, (_, numbers) in enumerate(epoch)])
        self.lengths = np.concatenate([source.prediction_counts[numbers] for source, numbers in epoch])
        self.epoch_tokens = int(self.lengths.sum())
        if not self.epoch_tokens:
            raise ValueError(f"{self.sources[0].path} holds nothing to learn from; run prepare.py on more of "
                             "it")
        self._order = cache(self._order)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(the units in the order of an epoch, the predictions up to the end of each)."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.units))
        return order, np.cumsum(self.lengths[order])

    def identity(self) -> dict:
        """Everything that the rows follow from; any setting that changes them changes the units or the rest.
        """
        return {"rows": type(self).__name__, "files": [file_hash(source.path) for source in self.sources],
                "units": json_hash(self.units.tolist()), "context": self.context, "seed": self.seed}

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, targets, documents) of row r, each (context,) int64; the documents' numbers are those in the
        row.
        """
        ids = np.zeros(self.context, np.int64)
        targets, documents = np.full_like(ids, IGNORE), np.full_like(ids, self.context)  # of padding
        filled = 0
        for number, (source, document, start, length) in enumerate(self._pieces(r)):
            example, span = source[document], slice(filled, filled + length)
            ids[span] = example.tokens[start : start + length]
            targets[span] = example.targets[start + 1 : start + length + 1]
            documents[span] = number
            filled += length
        return ids, targets, documents

    def batch(self, first: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows first, first + 1, ... as three (rows, context) tensors."""
        return tuple(default_collate([self.row(r) for r in range(first, first + rows)]))

    def names(self, first: int, rows: int) -> str:
        """The lines in rows first, first + 1, ...: "train.jsonl line 3, pairs.jsonl line 7"; 20 at most."""
        lines = list(dict.fromkeys(f"{piece.source.path.stem}.jsonl line {piece.document + 1}"
                                   for r in range(first, first + rows) for piece in self._pieces(r)))
        return ", ".join(lines[:20]) + (f" and {len(lines) - 20} more" if len(lines) > 20 else "")

    def _pieces(self, r: int) -> Iterator[Piece]:
        """The content of row r, in order."""
        filled = 0
        while filled < self.context:
            epoch, place = divmod(r * self.context + filled, self.epoch_tokens)
            order, ends = self._order(epoch)
            k = int(np.searchsorted(ends, place, side="right"))
            start = place - int(ends[k] - self.lengths[order[k]])
            length = min(self.context - filled, int(ends[k]) - place)
            yield self._piece(order[k], start, length)
            filled += length

    def _piece(self, unit: int, start: int, length: int) -> Piece:
        source, document = self.units[unit]
        return Piece(self.sources[source], int(document), start, length)


class ConversationRows(TrainingRows):
    """Rows of conversations alone, none of which is ever cut: a row takes the next that fit, and the rest is
    padding.
    """

    def __init__(self, pairs: TokenFile, context: int, seed: int, pair_repeats: int):
        self._set_epoch([(pairs, repeated(pairs, pair_repeats))], context, seed)
        longest = int(self.lengths.argmax())
        if self.lengths[longest] > context:
            raise ValueError(f"{pairs.path.with_suffix('.jsonl')}, line {self.units[longest][1] + 1}, has "
                             f"{self.lengths[longest] + 1} tokens, context is {context}, and conversations "
                             f"are never cut: raise context, or prepare with --max-pair-tokens {context + 1}")
        self._starts = cache(self._starts)
        self._row_ends = [len(self._starts(0))]  # rows up to the end of each known epoch
        self.epoch_tokens = context * self._row_ends[0]

    def _starts(self, epoch: int) -> list[int]:
        """The places in an epoch's order at which rows begin."""
        order, _ = self._order(epoch)
        starts, room = [], 0
        for k, length in enumerate(self.lengths[order].tolist()):
            if length > room:
                starts.append(k)
                room = self.context
            room -= length
        return starts

    def _pieces(self, r: int) -> Iterator[Piece]:
        while self._row_ends[-1] <= r:
            self._row_ends.append(self._row_ends[-1] + len(self._starts(len(self._row_ends))))
        epoch = bisect_right(self._row_ends, r)
        (order, _), starts = self._order(epoch), self._starts(epoch)
        row = r - (self._row_ends[epoch - 1] if epoch else 0)
        end = starts[row + 1] if row + 1 < len(starts) else len(order)
        for unit in order[starts[row] : end]:
            yield self._piece(unit, 0, int(self.lengths[unit]))


def documents_of_length(split: TokenFile, predictions: float) -> np.ndarray:
    """The numbers of documents, in order and again from the first, that come nearest to so many predictions.
    """
    counts = split.prediction_counts
    if not counts.sum():
        raise ValueError(f"{split.path} holds nothing to learn from; prepare with more general text")
    numbers = repeated(split, int(predictions // counts.sum()) + 1)
    sums = np.cumsum(counts[numbers])
    return numbers[: int(np.abs(sums - predictions).argmin()) + 1]


def repeated(split: TokenFile, times: int) -> np.ndarray:
    """The numbers of all its documents, so many times; ValueError if memory may not hold them."""
    if times * len(split) > MOST_DOCUMENTS:
        raise ValueError(f"an epoch would hold {split.path} {times:,} times, {times * len(split):,} "
                         f"documents or pairs, at most {MOST_DOCUMENTS:,} are allowed; lower pair_repeats or "
                         "replay")
    return np.tile(np.arange(len(split)), times)
