"""The dataset folder: the one place that knows its format, for writing and for reading.

    meta.json                   source and tokenizer hashes, cleaning counts, split dates, token counts
    train|val|test.jsonl        clean documents, one a line: id, title, date, text, ...
    train|val|test.safetensors  tokens, document offsets, bytes a document's scored tokens stand for
    pairs.jsonl, .safetensors   question/answer training examples (`messages`), with the mask of what is learned
    replay.safetensors          general text to mix in against forgetting
    pairs_test.jsonl, ...       examples held out, to be answered
    qa/*.jsonl                  multiple-choice questions: question, choices, answer (index), optional context, ...
    tokenizer.json              what made the tokens

A document is its tokens as the tokenizer's own files make them (Qwen adds nothing at the start, Llama its begin token)
and then the end-of-text token. A document of n tokens gives n - 1 predictions: of each token but the first. A dataset of
conversations alone has no train.*, and its val.* and test.* are conversations, of which the answers are predicted.
"""

import hashlib
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from files import map_tensors, read_json, replace_file, safetensors_header, write_tensors, write_text
from ops import IGNORE

HEADER_SIZE = 512  # bytes kept free for the header of a token file, whose length is known last
SPLITS = ("train", "val", "test")
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>")  # how Qwen and Llama 3 end a document, also in their instruct models


# ---------------------------------------------------------------- lines of JSON


HALF_CHARACTER = re.compile(rb"\\u[dD]|\xed")  # may be half of a pair, which is no text: JSON lets it pass


def parse_lines(data: bytes, path: str | Path, first: int = 1, required: tuple[str, ...] = ()) -> list[dict]:
    """The objects of some lines of a JSONL file; a ValueError names file and line (the first is number `first`) of the one
    that is empty, broken or incomplete."""
    rows = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else [], start=first):
        where = f"{path}, line {number}"
        if not line.strip():
            raise ValueError(f"{where}: empty line; every line must be one JSON object. Delete the line and run again")
        try:
            row = json.loads(line)
            if HALF_CHARACTER.search(line):
                line_of(row).encode()
        except (ValueError, RecursionError) as error:  # broken JSON or broken UTF-8
            raise ValueError(f"{where}: not valid JSON ({error}). Mend or delete the line and run again") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}")
        if missing := [key for key in required if key not in row]:
            raise ValueError(f"{where}: lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}")
        rows.append(row)
    return rows


def read_jsonl(path: str | Path, required: tuple[str, ...] = ()) -> list[dict]:
    """The objects of a JSONL file; ValueError as by `parse_lines`."""
    try:
        return parse_lines(Path(path).read_bytes(), path, required=required)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


class Lines(Sequence):
    """A JSONL file whose objects are read when they are asked for: only where each line begins is held, 8 bytes."""

    def __init__(self, path: str | Path):
        self.path = path
        ends, size = [], 0
        try:
            self.file = open(path, "rb")  # noqa: SIM115 (open as long as the object is)
            while block := self.file.read(2**20):
                ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (size + 1))
                size += len(block)
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error
        self.starts = np.unique(np.concatenate([[0], *ends, [size]])).astype(np.int64)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> dict:
        i = range(len(self))[i]  # from the end, or an IndexError, as in a list
        self.file.seek(self.starts[i])
        return parse_lines(self.file.read(self.starts[i + 1] - self.starts[i]), self.path, i + 1)[0]


def line_of(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(map(line_of, rows)))


# ---------------------------------------------------------------- tokenizers


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model's or dataset's folder. Text that spells a special token is encoded as plain text."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"no tokenizer.json in {folder}; give a folder or hub name of a model that has one")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{path} is not a tokenizer file: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenizer_hash(folder: str | Path) -> str | None:
    """A hash of what decides the tokens (vocabulary, merges, rules), whatever the file's layout; None without a file."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return None
    content = read_json(path)
    rules = {key: content.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor")}
    model = content.get("model") or {}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    specials = sorted((token["id"], token["content"]) for token in content.get("added_tokens") or [])
    decisive = [rules, model.get("vocab"), merges, specials]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def end_token(tokenizer: Tokenizer, folder: str | Path) -> int:
    """The id of the token that ends a document: the family's end of text, else the `eos_token` of the folder's files."""
    names = list(END_TOKENS)
    try:
        eos = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8")).get("eos_token")
        names.append(eos["content"] if isinstance(eos, dict) else eos)
    except (OSError, ValueError, KeyError):
        pass
    for name in filter(None, names):
        if (token := tokenizer.token_to_id(name)) is not None:
            return token
    raise ValueError(f"the tokenizer in {folder} has no end-of-text token; looked for {', '.join(filter(None, names))}")


def prompt_of(question: str, context: str | None = None) -> str:
    """The plain form in which questions are asked, in training and in evaluation; an answer follows after a space."""
    return (f"{context}\n\n" if context else "") + f"Question: {question}\nAnswer:"


def split_tokens(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], int]:
    """Tokens of prompt + answer encoded as one text, and how many of them are the prompt's.

    The boundary is that of lm-evaluation-harness: the prompt's length when it is encoded alone.
    """
    whole = tokenizer.encode(prompt + answer).ids
    return whole, min(len(tokenizer.encode(prompt).ids), len(whole))


# ---------------------------------------------------------------- writing


def write_tokens(path: str | Path, documents: Iterable[tuple[list[int], int]], count: int, vocab_size: int) -> None:
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


# ---------------------------------------------------------------- reading


class Split:
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


def predictions_of(split: Split) -> np.ndarray:
    return np.maximum(np.diff(split.offsets) - 1, 0)


class Rows:
    """Training rows of a fixed length: row r is a pure function of the seed and r, and of nothing else.

    An epoch is every document once and every question/answer pair `pair_repeats` times, in an order drawn from the seed
    and the epoch's number. Rows cut the endless stream of epochs every `context` predictions, so that each prediction
    is learned exactly once (a pair's: `pair_repeats` times) an epoch; `documents` says which tokens may see each other.
    With `replay`, a share of an epoch's predictions is of general text: as many of its documents, in their order and again
    from the first, as come nearest to it.

    Without documents, of pairs alone, none is ever cut: a row takes the next that fit whole, and its rest is padding.
    """

    def __init__(
        self, documents: Split | None, context: int, seed: int, pairs: Split | None = None, pair_repeats: int = 0,
        replay: Split | None = None, share: float = 0.0,
    ):
        self.context, self.seed, self.whole = context, seed, documents is None
        self.sources = []
        # One unit of an epoch is (source, document); it counts as many tokens as it has predictions.
        units, lengths = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]

        def add(split: Split, numbers: np.ndarray) -> None:
            units.append(np.stack([np.full_like(numbers, len(self.sources)), numbers], axis=1))
            lengths.append(predictions_of(split)[numbers])
            self.sources.append(split)

        if documents is not None:
            add(documents, np.arange(len(documents)))
        if pairs is not None and pair_repeats:
            add(pairs, np.tile(np.arange(len(pairs)), pair_repeats))
        if replay is not None and share:
            wanted, each = share / (1 - share) * sum(part.sum() for part in lengths), predictions_of(replay)
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

    def _pieces(self, r: int) -> Iterator[tuple[Split, int, int, int]]:
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


class Dataset:
    """A prepared folder: `meta`, `split(name)`, `documents(name)`, `questions()`, `tokenizer`."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / "meta.json"
        if not path.is_file():
            raise ValueError(f"{folder} is not a dataset folder (no meta.json); "
                             f"make one: python prepare.py ARTICLES --out {folder}")
        self.meta = read_json(path)
        if missing := {"tokenizer_hash", "vocab_size", "end_token"} - self.meta.keys():
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; run prepare.py again")
        self.tokenizer = load_tokenizer(self.folder)
        self.conversations = bool(self.meta.get("conversations"))  # and nothing else to learn from
        self.chat = bool(self.meta.get("chat"))  # pairs stand in the chat form of the tokenizer

    def rows(self, context: int, seed: int, pair_repeats: int, replay: float) -> "Rows":
        """What is trained on; ValueError where the dataset has none of what is asked for."""
        if self.conversations and (not pair_repeats or replay):
            raise ValueError(f"{self.folder} holds conversations alone: set pair_repeats to at least 1 (given {pair_repeats}) "
                             f"and replay to 0 (given {replay})")
        if replay and not (self.folder / "replay.safetensors").is_file():
            raise ValueError(f"replay: given {replay}, {self.folder} holds no general text; prepare with --replay FILE.jsonl")
        documents, pairs, general = (self.split(name) if wanted else None for name, wanted in (
            ("train", not self.conversations), ("pairs", pair_repeats), ("replay", replay)))
        return Rows(documents, context, seed, pairs, pair_repeats, general, replay)

    def split(self, name: str) -> Split:
        return Split(self.folder / f"{name}.safetensors")

    def documents(self, name: str) -> list[dict]:
        return read_jsonl(self.folder / f"{name}.jsonl", ("id", "text"))

    def questions(self) -> dict[str, list[dict]]:
        """Every question set by name, its lines checked."""
        return {path.stem: read_questions(path) for path in sorted((self.folder / "qa").glob("*.jsonl"))}

    def check_model(self, name: str, folder: Path, vocab_size: int) -> None:
        """ValueError unless a model's tokenizer made this dataset (where it has one) and its vocabulary holds it."""
        theirs, ours = tokenizer_hash(folder), self.meta["tokenizer_hash"]
        if theirs not in (None, ours):
            raise ValueError(
                f"{self.folder} was tokenized with another tokenizer ({ours[:12]}) than that of {name} ({theirs[:12]}). "
                f"Prepare the articles for this model: python prepare.py ARTICLES --out NEW_FOLDER --tokenizer {name}"
            )
        if vocab_size < self.meta["vocab_size"]:
            raise ValueError(
                f"{name} knows {vocab_size} tokens, {self.folder} uses {self.meta['vocab_size']}: another tokenizer made it"
            )


def read_questions(path: str | Path) -> list[dict]:
    """Multiple-choice questions of a JSONL file; a ValueError names the file and line of the first that is unusable."""
    rows = read_jsonl(path, ("question", "choices", "answer"))
    for number, row in enumerate(rows, start=1):
        question, choices, answer = row["question"], row["choices"], row["answer"]
        if not isinstance(question, str) or not question.strip() or not isinstance(row.get("context") or "", str):
            raise ValueError(f"{path}, line {number}: question (and context, where there is one) must be a text")
        texts = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
        if not texts or not 2 <= len(choices) == len(set(choices)):
            raise ValueError(f"{path}, line {number}: choices must be two or more different texts, given {choices!r}")
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise ValueError(f"{path}, line {number}: answer must be an index from 0 to {len(choices) - 1}, given {answer!r}")
    return rows
