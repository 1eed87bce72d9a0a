"""Training rows of a fixed length, packed from documents and pairs."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch

from nanoprune.config import IGNORE
from nanoprune.data.token_file import TokenFile, prediction_counts


class TrainingRows:
    """Training rows of a fixed length: row r is a pure function of the seed and r, and of nothing else.

    An epoch is every document once and every question/answer pair `pair_repeats` times, in an order drawn from the seed
    and the epoch's number. Rows cut the endless stream of epochs every `context` predictions, so that each prediction
    is learned exactly once (a pair's: `pair_repeats` times) an epoch; `documents` says which tokens may see each other.
    With `replay`, a share of an epoch's predictions is of general text: as many of its documents, in their order and again
    from the first, as come nearest to it.

    Without documents, of pairs alone, none is ever cut: a row takes the next that fit whole, and its rest is padding.
    """

    def __init__(
        self, documents: TokenFile | None, context: int, seed: int, pairs: TokenFile | None = None, pair_repeats: int = 0,
        replay: TokenFile | None = None, share: float = 0.0,
    ):
        self.context, self.seed, self.whole = context, seed, documents is None
        self.sources = []
        # One unit of an epoch is (source, document); it counts as many tokens as it has predictions.
        units, lengths = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]

        def add(split: TokenFile, numbers: np.ndarray) -> None:
            units.append(np.stack([np.full_like(numbers, len(self.sources)), numbers], axis=1))
            lengths.append(prediction_counts(split)[numbers])
            self.sources.append(split)

        if documents is not None:
            add(documents, np.arange(len(documents)))
        if pairs is not None and pair_repeats:
            add(pairs, np.tile(np.arange(len(pairs)), pair_repeats))
        if replay is not None and share:
            wanted, each = share / (1 - share) * sum(part.sum() for part in lengths), prediction_counts(replay)
            if not each.sum():
                raise ValueError(f"{replay.path} holds nothing to learn from; prepare with more general text")
            again = np.tile(np.arange(len(each)), int(wanted // each.sum()) + 1)
            sums = np.cumsum(each[again])
            add(replay, again[: int(np.abs(sums - wanted).argmin()) + 1])
        self.units, self.lengths = np.concatenate(units), np.concatenate(lengths)
        self.epoch_tokens = int(self.lengths.sum())
        if not self.epoch_tokens:
            where = (documents or pairs).path if documents or pairs else "the dataset"
            raise ValueError(f"{where} holds nothing to learn from; run prepare.py on more of it")
        self._epoch = cache(self._epoch)
        if self.whole:
            longest = int(self.lengths.argmax())
            if self.lengths[longest] > context:
                raise ValueError(f"{pairs.path.with_suffix('.jsonl')}, line {self.units[longest][1] + 1}, has "
                                 f"{self.lengths[longest] + 1} tokens, context is {context}, and conversations are never cut: "
                                 f"raise context, or prepare with --max-pair-tokens {context + 1}")
            self._whole_rows = cache(self._whole_rows)
            self._ends = []  # the number of rows after each epoch, as far as was asked for
            self.epoch_tokens = context * len(self._whole_rows(0))

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.units))
        return order, np.cumsum(self.lengths[order])

    def _whole_rows(self, epoch: int) -> np.ndarray:
        """Where each row of an epoch of whole pairs begins, as a place in the epoch's order."""
        order, _ = self._epoch(epoch)
        starts, room = [], 0
        for k, length in enumerate(self.lengths[order].tolist()):
            if length > room:
                starts.append(k)
                room = self.context
            room -= length
        return np.array(starts)

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, targets, documents) of row r, each (context,) int64."""
        ids, targets, documents = (np.zeros(self.context, np.int64) for _ in range(3))
        targets[:], documents[:] = IGNORE, self.context  # what is not filled below is padding
        filled = 0
        for count, (source, i, start, take) in enumerate(self._pieces(r)):
            piece = slice(filled, filled + take)
            ids[piece] = source[i][start : start + take]
            targets[piece] = source.targets(i)[start + 1 : start + take + 1]
            documents[piece] = count
            filled += take
        return ids, targets, documents

    def _pieces(self, r: int) -> Iterator[tuple[TokenFile, int, int, int]]:
        """What row r is made of, in order: (source, document, its first prediction here, how many)."""
        if self.whole:
            while not self._ends or self._ends[-1] <= r:
                self._ends.append(len(self._whole_rows(len(self._ends))) + (self._ends[-1] if self._ends else 0))
            epoch = bisect_right(self._ends, r)
            order, starts = self._epoch(epoch)[0], self._whole_rows(epoch)
            within = r - (self._ends[epoch - 1] if epoch else 0)
            for k in order[starts[within] : [*starts, len(order)][within + 1]]:
                source, i = self.units[k]
                yield self.sources[source], int(i), 0, int(self.lengths[k])
            return
        filled = 0
        while filled < self.context:
            epoch, within = divmod(r * self.context + filled, self.epoch_tokens)
            order, ends = self._epoch(epoch)
            k = int(np.searchsorted(ends, within, side="right"))
            source, i = self.units[order[k]]
            take = min(self.context - filled, int(ends[k]) - within)
            yield self.sources[source], int(i), within - int(ends[k] - self.lengths[order[k]]), take
            filled += take

    def names(self, first: int, rows: int) -> str:
        """Where to look up what is in rows first, first + 1, ...: "train.jsonl line 3, pairs.jsonl line 7"; at most 20."""
        found = dict.fromkeys((source.path.stem, i) for r in range(first, first + rows) for source, i, _, _ in self._pieces(r))
        named = [f"{stem}.jsonl line {i + 1}" for stem, i in found]
        return ", ".join(named[:20]) + (f" and {len(named) - 20} more" if len(named) > 20 else "")

    def batch(self, first: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows first, first + 1, ... as three (rows, context) tensors."""
        return tuple(torch.from_numpy(np.stack(part)) for part in zip(*map(self.row, range(first, first + rows)), strict=True))
