"""Near-duplicates by MinHash, confirmed by what their shingles have in common."""

import zlib
from collections.abc import Callable

import numpy as np

from nanoprune.data.language import words_of


def signature(words: list[str]) -> np.ndarray:
    """(64,) uint32: the MinHash of a text's words (Broder 1997): of all permutations the least shingle.

    The share of equal numbers in two signatures estimates the Jaccard similarity of the texts.
    """
    hashes = (shingles(words) >> np.uint64(32)).astype(np.uint32)
    pieces = np.split(hashes, range(CHUNK, len(hashes), CHUNK))
    return np.min([(PERMUTATIONS * piece).min(1) for piece in pieces], axis=0)  # wraps modulo 2^32


CHUNK = 2**16  # shingles of a text at a time
PERMUTATIONS = np.random.default_rng(1).integers(1, 2**32, (64, 1), dtype=np.uint32) | np.uint32(1)
SIMILARITY = 0.8  # of texts that are nearly equal
LEAST_SIMILARITY = 0.2  # estimated, of texts worth an exact comparison: one may be a quarter of the other


def near_duplicates(
    signatures: np.ndarray, text: Callable[[int], str], containment: float = 0.95
) -> list[tuple[int, int]]:
    """Pairs (i < j) of texts that are nearly equal, or of which one is nearly contained in the other.

    Nearly equal: the Jaccard similarity of their five-word shingles is at least SIMILARITY. Contained: one
    has at least the share `containment` of the other's. Texts of a similarity s agree in one of 32 bands of
    two permutations with probability 1 - (1 - s^2)^32, 99.6 % for 0.4. Of the texts that agree in a band,
    each is compared with the first and with the one before, so time and memory grow linearly. `signatures`:
    (texts, 64); `text(i)`: the i-th.
    """
    candidates, n = [np.empty(0, np.int64)], len(signatures)
    for column in np.ascontiguousarray(signatures.view(np.uint64).T):
        order = np.argsort(column, kind="stable")
        same = column[order[1:]] == column[order[:-1]]
        starts = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(n), 0))
        later = order[1:][same]
        for earlier in (order[:-1][same], order[starts][1:][same]):
            estimate = (signatures[earlier] == signatures[later]).mean(1)
            candidates.append((earlier * n + later)[estimate >= LEAST_SIMILARITY])

    def alike(i: int, j: int) -> bool:
        first, second = np.unique(shingles(words_of(text(i)))), np.unique(shingles(words_of(text(j))))
        common = len(np.intersect1d(first, second, assume_unique=True))
        is_contained = common >= containment * min(len(first), len(second))
        return is_contained or common >= SIMILARITY * (len(first) + len(second) - common)

    pairs = (divmod(pair, n) for pair in np.unique(np.concatenate(candidates)).tolist())
    return [(i, j) for i, j in pairs if alike(i, j)]


def shingles(words: list[str], size: int = 5) -> np.ndarray:
    """Hashes of the runs of `size` words (of all the words, if they are fewer), in order."""
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words or [""]), np.uint64)
    weights = np.cumprod(np.full(min(size, len(hashes)), 0x9E3779B97F4A7C15, np.uint64))
    return np.convolve(hashes, weights, "valid")  # wraps modulo 2^64
