"""Near-duplicates by MinHash, confirmed by the Jaccard similarity of their shingles."""

import zlib
from collections.abc import Callable

import numpy as np

from nanoprune.data.language import words_of


def signature(words: list[str]) -> np.ndarray:
    """(16,) uint64: bands of the MinHash of a text's words (Broder 1997), 64 permutations in bands of 4.

    Texts whose shingles have a Jaccard similarity of s share a band with probability 1 - (1 - s^4)^16.
    """
    minima = (PERMUTATIONS * (shingles(words) >> np.uint64(32)).astype(np.uint32)).min(1)  # wraps modulo 2^32
    return (minima.reshape(16, 4) * BAND_MIX).sum(1)


_RNG = np.random.default_rng(1)
PERMUTATIONS = _RNG.integers(1, 2**32, (64, 1), dtype=np.uint32) | np.uint32(1)
BAND_MIX = _RNG.integers(1, 2**61, 4, dtype=np.uint64) | np.uint64(1)


def near_duplicates(
    signatures: np.ndarray, text: Callable[[int], str], threshold: float = 0.8
) -> list[tuple[int, int]]:
    """Pairs (i < j) of texts whose five-word shingles have a Jaccard similarity of at least `threshold`.

    Of the texts that share a band, each is compared exactly with the first and with the one before. So time
    and memory grow linearly. `signatures`: (texts, 16); `text(i)`: the i-th.
    """
    candidates, n = [np.empty(0, np.int64)], len(signatures)
    for column in np.ascontiguousarray(signatures.T):
        order = np.argsort(column, kind="stable")
        same = column[order[1:]] == column[order[:-1]]
        starts = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(n), 0))
        for other in (order[:-1], order[starts][1:]):
            candidates.append(other[same] * n + order[1:][same])

    def jaccard(i: int, j: int) -> float:
        first, second = np.unique(shingles(words_of(text(i)))), np.unique(shingles(words_of(text(j))))
        common = len(np.intersect1d(first, second, assume_unique=True))
        return common / (len(first) + len(second) - common)

    pairs = (divmod(pair, n) for pair in np.unique(np.concatenate(candidates)).tolist())
    return [(i, j) for i, j in pairs if jaccard(i, j) >= threshold]


def shingles(words: list[str], size: int = 5) -> np.ndarray:
    """Hashes of the runs of `size` words (of all the words, if they are fewer), in order."""
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words or [""]), np.uint64)
    weights = np.cumprod(np.full(min(size, len(hashes)), 0x9E3779B97F4A7C15, np.uint64))
    return np.convolve(hashes, weights, "valid")  # wraps modulo 2^64
