"""Conversations: read from JSONL, checked, held out, balanced, and turned into tokens.

A line of JSONL is chat (`messages`: perhaps a system turn, then user and assistant in turn) or `prompt` and
`response`. An optional `task` names its kind; so does a `[TASK] ` in front of the question.
"""

import math
import random
import re
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from nanoprune.data.chat_format import (
    ChatForm,
    Piece,
    check_messages,
    encode_chat,
    learned_tokens,
    question_prompt,
    render,
)
from nanoprune.data.dataset import SPLITS
from nanoprune.data.token_file import Example
from nanoprune.io.jsonl import read_jsonl

TAG = re.compile(r"\[([A-Z][A-Z_ -]*)\] ")  # a task in front of a question
MAX_REPEATS = 10  # of one pair by balancing: more of the same is learned by heart


def read_pairs(path: Path) -> list[dict]:
    """Conversations in chat form; ValueError names the line that is none."""
    pairs = []
    for number, row in enumerate(read_jsonl(path), start=1):
        where = f"{path}, line {number}"
        if "messages" in row:
            messages = row["messages"]
        elif {"prompt", "response"} <= row.keys():
            messages = [{"role": "user", "content": row["prompt"]},
                        {"role": "assistant", "content": row["response"]}]
        else:
            raise ValueError(f"{where}: lacks messages, or prompt and response; it has "
                             f"{', '.join(row) or 'nothing'}")
        messages, task = check_messages(messages, where), row.get("task")
        if not (task is None or isinstance(task, str) and task.strip()):
            raise ValueError(f"{where}: task must be a text, given {task!r}")
        tag = TAG.match(next(turn["content"] for turn in messages if turn["role"] == "user"))
        if task is None and tag:
            row["task"] = tag[1]
        others = {key: value for key, value in row.items() if key not in ("messages", "prompt", "response")}
        pairs.append({"messages": messages} | others)
    return pairs


def with_task(pair: dict) -> dict:
    """The pair with its task in front of the first question: `[SPEC] What is ...`."""
    messages, task = list(pair["messages"]), pair.get("task")
    first = next(i for i, turn in enumerate(messages) if turn["role"] == "user")
    question = messages[first]["content"]
    if not task or question.startswith(f"[{task}]"):
        return pair
    messages[first] = messages[first] | {"content": f"[{task}] {question}"}
    return pair | {"messages": messages}


def drop_questions_of(test_pairs: list[dict], pairs: list[dict]) -> list[dict]:
    """The pairs that do not ask a question of the test's."""
    asked_in_test = {question_of(pair) for pair in test_pairs}
    others = [pair for pair in pairs if question_of(pair) not in asked_in_test]
    if len(others) < len(pairs):
        print(f"{len(pairs) - len(others)} pairs left out of training: they stand among the test's")
    return others


def question_of(pair: dict) -> tuple[tuple[str, str], ...]:
    """All turns but the last answer."""
    return tuple((turn["role"], turn["content"]) for turn in pair["messages"][:-1])


class Conversation(NamedTuple):
    """A line of JSONL (`messages`, perhaps `task`, ...) and its tokens."""

    row: dict
    example: Example

    @property
    def task(self) -> str | None:
        return self.row.get("task")

    @property
    def answer_bytes(self) -> int:
        """The bytes that the assistant says, which the learned tokens stand for."""
        answers = [turn["content"] for turn in self.row["messages"] if turn["role"] == "assistant"]
        return len("".join(answers).encode())

    def as_document(self, name: str) -> "Conversation":
        """The same with the `id` and `text` that a line of val.jsonl and test.jsonl has."""
        text = "\n\n".join(turn["content"] for turn in self.row["messages"])
        return Conversation({"id": name, "text": text} | self.row, self.example)


def hold_out(
    pairs: list[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held out) by a draw of its own seed; both in their order."""
    held_out = set(random.Random(seed).sample(range(len(pairs)), round(share * len(pairs))))
    training = [pair for i, pair in enumerate(pairs) if i not in held_out]
    return training, [pair for i, pair in enumerate(pairs) if i in held_out]


def balance(pairs: list[Conversation], ratio: float) -> list[Conversation]:
    """Repeat the pairs of rare tasks until no task has more than `ratio` times another's pairs.

    None is repeated more than MAX_REPEATS times.
    """
    counts, seen, balanced = Counter(pair.task for pair in pairs), Counter(), []
    least = math.ceil(max(counts.values(), default=0) / ratio)
    for pair in pairs:
        count = counts[pair.task]
        target = min(max(count, least), MAX_REPEATS * count)
        repeats = target // count
        if seen[pair.task] < target % count:  # the first of a task once more, if it does not divide
            repeats += 1
        seen[pair.task] += 1
        balanced += [pair] * repeats
    return balanced


def divide(pairs: list[dict], shares: tuple[float, float, float], seed: int) -> dict[str, list[dict]]:
    """Train, val and test by a draw; pairs with the same questions go to the same side."""
    questions = []
    for pair in pairs:
        turns = [(turn["role"], turn["content"]) for turn in pair["messages"] if turn["role"] != "assistant"]
        questions.append(tuple(turns))
    groups = list(dict.fromkeys(questions))
    random.Random(seed).shuffle(groups)
    ends = [round(shares[0] * len(groups)), round((shares[0] + shares[1]) * len(groups))]
    sides = {question: SPLITS[bisect_right(ends, i)] for i, question in enumerate(groups)}
    divided = {name: [] for name in SPLITS}
    for pair, question in zip(pairs, questions, strict=True):
        divided[sides[question]].append(pair)
    return divided


class Prompt(NamedTuple):
    """The text that stands before an answer, and its tokens."""

    text: str
    tokens: list[int]


def encode_prompt(messages: list[dict], tokenizer: Tokenizer, form: ChatForm | None = None) -> Prompt:
    """The prompt for the assistant's next turn, exactly as `encode_pairs` writes it in training."""
    if form:
        text = "".join(piece.text for piece in render(form, messages, answer=True))
        return Prompt(text, encode_chat(tokenizer, form, messages, answer=True).tokens.tolist())
    text = "".join(piece.text for piece in render_plain(messages))
    return Prompt(text, tokenizer.encode(text).ids)


def encode_pairs(
    pairs: list[dict], tokenizer: Tokenizer, end: int, form: ChatForm | None = None
) -> list[Example]:
    """The tokens of each conversation; the assistant's answers and their ends are learned.

    In a chat form, or else in the plain one of questions and answers, with the end-of-text token `end` after
    the last.
    """
    if form:
        return [encode_chat(tokenizer, form, pair["messages"]) for pair in pairs]
    rendered = [render_plain(pair["messages"]) for pair in pairs]
    encodings = tokenizer.encode_batch(["".join(piece.text for piece in pieces) for pieces in rendered])
    return [
        Example(np.array([*encoding.ids, end], np.int64), np.array([*learned_tokens(encoding, pieces), True]))
        for encoding, pieces in zip(encodings, rendered, strict=True)
    ]


def render_plain(messages: list[dict]) -> list[Piece]:
    """The text of a conversation in the plain form of questions and answers."""
    pieces = []
    for turn in messages:
        if turn["role"] == "assistant":
            pieces.append(Piece(" " + turn["content"], learned=True))
        else:
            text = turn["content"] if turn["role"] == "system" else question_prompt(turn["content"])
            pieces.append(Piece("\n\n" + text if pieces else text))
    return pieces
