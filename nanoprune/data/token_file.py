"""The token file of a split: one flat array of tokens with document offsets."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nanoprune.config import IGNORE
from nanoprune.io.files import replace_file
from nanoprune.io.tensors import safetensors_header, stored_arrays, write_tensors

CHUNK = 2**22  # tokens checked at a time
HEADER_SIZE = 512  # bytes reserved for the header, which is complete only when the last document is written


@dataclass(frozen=True)
class Example:
    """A tokenized document or conversation."""

    tokens: np.ndarray  # (length,) int64
    learned: np.ndarray  # (length,) bool: the tokens that count in the loss; all of a document's

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def targets(self) -> np.ndarray:
        """(length,) int64: the tokens, IGNORE where they are not learned."""
        return np.where(self.learned, self.tokens, IGNORE)


class TokenFile:
    """The tokenized documents or conversations of a split, by number.

    `bytes` is the number of bytes that each one's scored tokens stand for, or None.
    """

    def __init__(self, path: Path, vocab_size: int = 2**32):
        """ValueError if the arrays do not fit each other or a token is beyond the vocabulary."""
        arrays = stored_arrays(path)
        if missing := {"tokens", "offsets"} - arrays.keys():
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; run prepare.py again")
        self.path, self.tokens, self.mask = path, arrays["tokens"], arrays.get("mask")
        self.offsets = offsets = arrays["offsets"][:].astype(np.int64)
        self.bytes = arrays["bytes"][:] if "bytes" in arrays else None
        lengths = {len(self.tokens), len(self.tokens if self.mask is None else self.mask), *offsets[-1:]}
        in_order = len(offsets) and offsets[0] == 0 and not np.any(offsets[1:] < offsets[:-1])
        if not in_order or len(lengths) > 1 or (self.bytes is not None and len(self.bytes) != len(self)):
            raise ValueError(f"{path}: document offsets do not fit the tokens; run prepare.py again")
        for first in range(0, len(self.tokens), CHUNK):
            part = self.tokens[first : first + CHUNK]
            if not 0 <= part.min() <= part.max() < vocab_size:
                raise ValueError(f"{path}: tokens from {part.min()} to {part.max()} are beyond the "
                                 f"vocabulary of {vocab_size}; run prepare.py again")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Example:
        span = slice(self.offsets[i], self.offsets[i + 1])
        tokens = self.tokens[span].astype(np.int64)
        learned = np.ones(len(tokens), bool) if self.mask is None else self.mask[span].astype(bool)
        return Example(tokens, learned)

    @property
    def prediction_counts(self) -> np.ndarray:
        """(documents,) int64: a document of n tokens gives n - 1 predictions."""
        return np.maximum(np.diff(self.offsets) - 1, 0)


def write_examples(
    path: str | Path, examples: list[Example], vocab_size: int, nbytes: list[int] | None = None
) -> None:
    """Write examples with the mask of what is learned; `nbytes`: the bytes that each one's learned tokens
    stand for.
    """
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    tokens = [example.tokens for example in examples] or [np.empty(0)]
    learned = [example.learned for example in examples] or [np.empty(0)]
    arrays = {
        "tokens": np.concatenate(tokens).astype(dtype),
        "offsets": np.cumsum([0, *map(len, examples)], dtype=np.int64),
        "mask": np.concatenate(learned).astype(np.uint8),
    }
    if nbytes is not None:
        arrays["bytes"] = np.array(nbytes, np.int64)
    write_tensors(path, {name: torch.from_numpy(values) for name, values in arrays.items()})


def write_documents(
    path: str | Path, documents: Iterable[tuple[list[int], int]], count: int, vocab_size: int
) -> dict[str, int]:
    """Write `count` documents, (tokens, bytes that their predictions stand for) each, without holding them in
    memory; return the sums of both.
    """
    code, dtype = ("H", "U16") if vocab_size <= 2**16 else ("I", "U32")
    offsets, nbytes = np.zeros(count + 1, np.int64), np.zeros(count, np.int64)

    # The arrays of known size stand before the tokens and are filled in at the end.
    with replace_file(path) as file:
        file.seek(HEADER_SIZE + offsets.nbytes + nbytes.nbytes)
        for i, (tokens, predicted) in enumerate(documents):
            file.write(array(code, tokens))
            offsets[i + 1], nbytes[i] = offsets[i] + len(tokens), predicted
        total = int(offsets[-1])
        header = safetensors_header({
            "bytes": ("I64", nbytes.shape, nbytes.nbytes),
            "offsets": ("I64", offsets.shape, offsets.nbytes),
            "tokens": (dtype, (total,), total * array(code).itemsize),
        }, HEADER_SIZE)
        file.seek(0)
        for part in (header, nbytes, offsets):
            file.write(part)
    return {"tokens": total, "bytes": int(nbytes.sum())}
