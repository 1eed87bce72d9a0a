"""The token file of a split: one flat array of tokens with document offsets."""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from nanoprune.config import IGNORE
from nanoprune.io.files import replace_file
from nanoprune.io.tensors import map_tensors, safetensors_header, write_tensors


HEADER_SIZE = 512  # bytes kept free for the header of a token file, whose length is known last


def write_documents(path: str | Path, documents: Iterable[tuple[list[int], int]], count: int, vocab_size: int) -> None:
    """`count` documents' (tokens, bytes they predict) as one flat array with offsets, written as they come."""
    code = "H" if vocab_size <= 2**16 else "I"
    offsets, nbytes = np.zeros(count + 1, np.int64), np.zeros(count, np.int64)

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:  # what has the known size comes first, and is filled in at the end
            file.seek(HEADER_SIZE + offsets.nbytes + nbytes.nbytes)
            for i, (tokens, predicted) in enumerate(documents):
                file.write(array(code, tokens))
                offsets[i + 1], nbytes[i] = offsets[i] + len(tokens), predicted
            total, kind = int(offsets[-1]), "U16" if code == "H" else "U32"
            file.seek(0)
            file.write(safetensors_header({
                "bytes": ("I64", nbytes.shape, nbytes.nbytes), "offsets": ("I64", offsets.shape, offsets.nbytes),
                "tokens": (kind, (total,), total * array(code).itemsize)}, HEADER_SIZE))
            file.write(nbytes)
            file.write(offsets)

    replace_file(path, write)


def write_examples(
    path: str | Path, examples: list[tuple[list[int], list[int]]], vocab_size: int, nbytes: list[int] | None = None
) -> None:
    """Examples as (tokens, which of them count in the loss), in the same form; `nbytes`: bytes that these stand for."""
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    tensors = {
        "tokens": np.fromiter((token for tokens, _ in examples for token in tokens), dtype),
        "offsets": np.cumsum([0, *(len(tokens) for tokens, _ in examples)], dtype=np.int64),
        "mask": np.fromiter((learned for _, mask in examples for learned in mask), np.uint8),
    } | ({} if nbytes is None else {"bytes": np.array(nbytes, np.int64)})
    write_tensors(path, {name: torch.from_numpy(values) for name, values in tensors.items()})


class TokenFile:
    """Tokenized documents of one split: `split[i]` is document i's tokens, `split.bytes[i]` the bytes they predict."""

    def __init__(self, path: Path):
        tensors = map_tensors(path)
        if missing := {"tokens", "offsets"} - tensors.keys():
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; run prepare.py again")
        self.path = path
        self.tokens, self.offsets = tensors["tokens"], tensors["offsets"]
        self.mask, self.bytes = tensors.get("mask"), tensors.get("bytes")
        if np.any(np.diff(self.offsets) < 0) or (self.offsets[0], self.offsets[-1]) != (0, len(self.tokens)):
            raise ValueError(f"{path}: document offsets do not fit the tokens; run prepare.py again")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]].astype(np.int64)

    def targets(self, i: int) -> np.ndarray:
        """Document i's tokens, IGNORE where they are not learned."""
        span = slice(self.offsets[i], self.offsets[i + 1])
        tokens = self.tokens[span].astype(np.int64)
        return tokens if self.mask is None else np.where(self.mask[span], tokens, IGNORE)

    def windows(
        self, context: int, batch_tokens: int = 8192, only: set[int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, np.ndarray]]:
        """Every prediction once, always the same way: (ids, targets, document), shapes (rows, time) twice and (rows,).

        A document longer than `context` is cut into windows of that many inputs that do not overlap. Windows of like
        length share a batch, so little is padding; padded targets are IGNORE. `only` picks documents by number.
        """
        lengths = np.diff(self.offsets).tolist()
        chosen = range(len(self)) if only is None else sorted(only)
        cuts = [(i, s, min(s + context, lengths[i] - 1)) for i in chosen for s in range(0, lengths[i] - 1, context)]
        cuts.sort(key=lambda cut: cut[1] - cut[2])
        while cuts:
            longest = cuts[0][2] - cuts[0][1]
            batch, cuts = cuts[: max(1, batch_tokens // longest)], cuts[max(1, batch_tokens // longest) :]
            ids = np.zeros((len(batch), longest), np.int64)
            targets = np.full((len(batch), longest), IGNORE, np.int64)
            for row, (i, start, end) in enumerate(batch):
                ids[row, : end - start] = self[i][start:end]
                targets[row, : end - start] = self.targets(i)[start + 1 : end + 1]
            yield torch.from_numpy(ids), torch.from_numpy(targets), np.array([i for i, _, _ in batch])


def prediction_counts(split: TokenFile) -> np.ndarray:
    return np.maximum(np.diff(split.offsets) - 1, 0)
