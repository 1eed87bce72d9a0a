"""The dataset folder: its format, and reading it.

    meta.json                   source and tokenizer hashes, cleaning counts, split dates, token counts
    train|val|test.jsonl        clean documents, one a line: id, title, date, text, ...
    train|val|test.safetensors  tokens, document offsets, bytes a document's scored tokens stand for
    pairs.jsonl, .safetensors   question/answer training pairs (`messages`), with the mask of what is learned
    replay.safetensors          general text to mix in against forgetting
    pairs_test.jsonl, ...       examples held out, to be answered
    qa/*.jsonl                  multiple-choice questions: question, choices, answer (index), perhaps context
    tokenizer.json              what made the tokens

A document is its tokens as the tokenizer's own files make them (Qwen adds nothing at the start, Llama its
begin token) and then the end-of-text token. A document of n tokens gives n - 1 predictions: of each token but
the first. A dataset of conversations alone has no train.*, and its val.* and test.* are conversations, of
which the answers are predicted.
"""

from dataclasses import dataclass, field
from pathlib import Path

from nanoprune.config import Count, Positive, read_fields
from nanoprune.data.packing import ConversationRows, TrainingRows
from nanoprune.data.token_file import TokenFile
from nanoprune.data.tokenizer import load_tokenizer, tokenizer_hash
from nanoprune.io.files import read_json
from nanoprune.io.folders import recover
from nanoprune.io.jsonl import JsonLines, read_jsonl

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Meta:
    """The entries of meta.json that are read."""

    tokenizer_hash: str
    vocab_size: Positive
    end_token: Count
    conversations: bool = False  # and nothing else to learn from
    chat: bool = False  # pairs stand in the chat form of the tokenizer
    chat_date: str = ""
    questions: dict = field(default_factory=dict)
    splits: dict = field(default_factory=dict)


class Dataset:
    """A prepared folder: `meta`, `split(name)`, `documents(name)`, `questions()`, `tokenizer`."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        recover(folder)
        path = self.folder / "meta.json"
        if not path.is_file():
            raise ValueError(f"{folder} is not a dataset folder (no meta.json); "
                             f"make one: python prepare.py ARTICLES --out {folder}")
        self.meta = read_json(path)
        meta = read_fields(Meta, self.meta, path)
        if meta.end_token >= meta.vocab_size:
            raise ValueError(f"{path}: end_token {meta.end_token} is beyond the vocabulary of "
                             f"{meta.vocab_size}; run prepare.py again")
        self.tokenizer = load_tokenizer(self.folder)
        self.conversations, self.chat = meta.conversations, meta.chat

    def rows(self, context: int, seed: int, pair_repeats: int, replay: float) -> TrainingRows:
        """The rows to train on; ValueError if the dataset has none of a kind that the arguments ask for."""
        if self.conversations and (not pair_repeats or replay):
            raise ValueError(f"{self.folder} holds conversations alone: set pair_repeats to at least 1 "
                             f"(given {pair_repeats}) and replay to 0 (given {replay})")
        if replay and not (self.folder / "replay.safetensors").is_file():
            raise ValueError(f"replay: given {replay}, {self.folder} holds no general text; prepare with "
                             "--replay FILE.jsonl")
        pairs = self.split("pairs") if pair_repeats else None
        if self.conversations:
            return ConversationRows(pairs, context, seed, pair_repeats)
        general = self.split("replay") if replay else None
        return TrainingRows(self.split("train"), context, seed, pairs, pair_repeats, general, replay)

    def split(self, name: str) -> TokenFile:
        return TokenFile(self.folder / f"{name}.safetensors", self.meta["vocab_size"])

    def documents(self, name: str) -> JsonLines:
        return JsonLines(self.folder / f"{name}.jsonl", ("id", "text"))

    def questions(self) -> dict[str, list[dict]]:
        """Every question set by name, its lines checked."""
        return {path.stem: read_questions(path) for path in sorted((self.folder / "qa").glob("*.jsonl"))}

    def check_model(self, name: str, folder: Path, vocab_size: int) -> None:
        """ValueError if a model has another tokenizer or too small a vocabulary for this dataset."""
        theirs, ours = tokenizer_hash(folder), self.meta["tokenizer_hash"]
        if theirs not in (None, ours):
            raise ValueError(
                f"{self.folder} was tokenized with another tokenizer ({ours[:12]}) than that of {name} "
                f"({theirs[:12]}). Prepare the articles for this model: python prepare.py ARTICLES --out "
                f"NEW_FOLDER --tokenizer {name}"
            )
        if vocab_size < self.meta["vocab_size"]:
            raise ValueError(
                f"{name} knows {vocab_size} tokens, {self.folder} uses {self.meta['vocab_size']}: another "
                "tokenizer made it"
            )


def read_questions(path: str | Path) -> list[dict]:
    """Multiple-choice questions of a JSONL file; ValueError names the first line that is unusable."""
    rows = read_jsonl(path, ("question",), ("choices", "answer"))
    for number, row in enumerate(rows, start=1):
        question, choices, answer = row["question"], row["choices"], row["answer"]
        others = [row.get(key) or "" for key in ("context", "category")]
        if not question.strip() or not all(isinstance(other, str) for other in others):
            raise ValueError(f"{path}, line {number}: question (and context and category, where there are "
                             "some) must be a text")
        texts = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
        if not texts or not 2 <= len(choices) == len(set(choices)):
            raise ValueError(f"{path}, line {number}: choices must be two or more different texts, given "
                             f"{choices!r}")
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise ValueError(f"{path}, line {number}: answer must be an index from 0 to {len(choices) - 1}, "
                             f"given {answer!r}")
    return rows
