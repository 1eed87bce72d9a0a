"""Instruction data from elsewhere: read as it comes, checked, held out, balanced, and turned into tokens.

A line of JSONL is chat (`messages`: perhaps a system turn, then user and assistant in turn) or `prompt` and `response`;
`task`, where there is one, names its kind; so does a `[TASK] ` in front of the question.
"""

import math
import random
import re
from bisect import bisect_left
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

from nanoprune.data.chat_format import ChatForm, check_messages, encode_chat, question_prompt
from nanoprune.data.dataset import SPLITS
from nanoprune.io.jsonl import json_line, read_jsonl


TAG = re.compile(r"\[([A-Z][A-Z_ -]*)\] ")  # a task that stands in front of the question already
MAX_REPEATS = 10  # of one example by balancing: more of the same teaches the same words by heart


def read_pairs(path: Path) -> list[dict]:
    """Training examples in chat form; ValueError names the line that is none."""
    pairs = []
    for number, row in enumerate(read_jsonl(path), start=1):
        where = f"{path}, line {number}"
        if "messages" not in row and not {"prompt", "response"} <= row.keys():
            raise ValueError(f"{where}: lacks messages, or prompt and response; it has {', '.join(row) or 'nothing'}")
        turns = check_messages(row["messages"] if "messages" in row else [
            {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}], where)
        task = row.get("task")
        if not (task is None or isinstance(task, str) and task.strip()):
            raise ValueError(f"{where}: task must be a text, given {task!r}")
        tag = TAG.match(next(turn["content"] for turn in turns if turn["role"] == "user"))
        if task is None and tag:
            row = row | {"task": tag[1]}
        kept = {key: value for key, value in row.items() if key not in ("messages", "prompt", "response")}
        pairs.append({"messages": turns} | kept)
    return pairs


def with_task(pair: dict) -> dict:
    """The example with its task in front of what the user says first: `[SPEC] What is ...`."""
    first = next(i for i, turn in enumerate(pair["messages"]) if turn["role"] == "user")
    if not pair.get("task") or pair["messages"][first]["content"].startswith(f"[{pair['task']}]"):
        return pair
    messages = [turn | {"content": f"[{pair['task']}] {turn['content']}"} if i == first else turn
                for i, turn in enumerate(pair["messages"])]
    return pair | {"messages": messages}


def hold_out(pairs: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """(training, held out) by a draw of its own seed; both in the order they came."""
    chosen = set(random.Random(seed).sample(range(len(pairs)), round(share * len(pairs))))
    return [p for i, p in enumerate(pairs) if i not in chosen], [p for i, p in enumerate(pairs) if i in chosen]


def balance(pairs: list[dict], ratio: float) -> list[dict]:
    """Examples of the rarer tasks again, until none has more than `ratio` times those of another, or MAX_REPEATS of each."""
    counts, seen, found = Counter(pair.get("task") for pair in pairs), Counter(), []
    least = math.ceil(max(counts.values(), default=0) / ratio)
    for pair in pairs:
        n = counts[task := pair.get("task")]
        wanted = min(max(n, least), MAX_REPEATS * n)
        found += [pair] * (wanted // n + (seen[task] < wanted % n))  # the first of a task once more, where it does not divide
        seen[task] += 1
    return found


def divide(pairs: list[dict], shares: tuple[float, float, float], seed: int) -> dict[str, list[dict]]:
    """Training, validation and test by a draw; examples that ask the same of the same go to the same side."""
    said = [json_line([turn for turn in pair["messages"] if turn["role"] != "assistant"]) for pair in pairs]
    groups = list(dict.fromkeys(said))
    random.Random(seed).shuffle(groups)
    ends = [round(shares[0] * len(groups)), round((shares[0] + shares[1]) * len(groups))]
    side = {text: name for name, part in zip(("train", "val", "test"), (
        groups[: ends[0]], groups[ends[0] : ends[1]], groups[ends[1] :]), strict=True) for text in part}
    return {name: [pair for pair, text in zip(pairs, said, strict=True) if side[text] == name] for name in SPLITS}


def encode_pairs(
    pairs: list[dict], tokenizer: Tokenizer, end: int, form: ChatForm | None = None
) -> list[tuple[list[int], list[int]]]:
    """(tokens, which of them are learned) of each example: the assistant's answers, and their ends.

    In a chat form, or else in the plain one of questions and answers, with the end-of-text token after the last.
    """
    if form:
        return [encode_chat(tokenizer, form, pair["messages"]) for pair in pairs]
    texts, answers = [], []
    for pair in pairs:
        text, spans = "", []
        for turn in pair["messages"]:
            if turn["role"] == "assistant":
                spans.append((len(text), len(text) + 1 + len(turn["content"])))
                text += " " + turn["content"]
            else:
                text += ("\n\n" if text else "") + (turn["content"] if turn["role"] == "system" else question_prompt(turn["content"]))
        texts.append(text)
        answers.append(spans)
    found = []
    for encoded, spans in zip(tokenizer.encode_batch(texts), answers, strict=True):
        begins, learned = [first for first, _ in encoded.offsets], [0] * len(encoded.ids) + [1]
        for start, stop in spans:
            first, last = bisect_left(begins, start), bisect_left(begins, stop)
            learned[first:last] = [1] * (last - first)
        found.append(([*encoded.ids, end], learned))
    return found
