"""Instruction data from elsewhere: read as it comes, checked, held out, balanced, and turned into tokens.

A line of JSONL is chat (`messages`: perhaps a system turn, then user and assistant in turn) or `prompt` and `response`;
`task`, where there is one, names its kind.
"""

import random
from bisect import bisect_left
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

from dataset import prompt_of, read_jsonl

MAX_REPEATS = 10  # of one example by balancing: more of the same teaches the same words by heart


def read_pairs(path: Path) -> list[dict]:
    """Training examples in chat form; ValueError names the line that is none."""
    pairs = []
    for number, row in enumerate(read_jsonl(path), start=1):
        where = f"{path}, line {number}"
        if "messages" not in row and not {"prompt", "response"} <= row.keys():
            raise ValueError(f"{where}: lacks messages, or prompt and response; it has {', '.join(row) or 'nothing'}")
        turns = row["messages"] if "messages" in row else [
            {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        turns = turns if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns) else []
        spoken = [turn.get("role") for turn in turns if turn.get("role") != "system"]
        texts = [turn.get("content") for turn in turns]
        if (not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2) or "system" in [t.get("role") for t in turns[1:]]
                or not all(isinstance(text, str) and text.strip() for text in texts)):
            raise ValueError(f"{where}: messages must be turns of the user and the assistant by turns, with text; a system's "
                             "may come first")
        task = row.get("task")
        if not (task is None or isinstance(task, str) and task.strip()):
            raise ValueError(f"{where}: task must be a text, given {task!r}")
        kept = {key: value for key, value in row.items() if key not in ("messages", "prompt", "response")}
        pairs.append({"messages": [{"role": turn["role"], "content": turn["content"]} for turn in turns]} | kept)
    return pairs


def with_task(pair: dict) -> dict:
    """The example with its task in front of what the user says first: `[SPEC] What is ...`."""
    if not pair.get("task"):
        return pair
    first = next(i for i, turn in enumerate(pair["messages"]) if turn["role"] == "user")
    messages = [turn | {"content": f"[{pair['task']}] {turn['content']}"} if i == first else turn
                for i, turn in enumerate(pair["messages"])]
    return pair | {"messages": messages}


def hold_out(pairs: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """(training, held out) by a draw of its own seed; both in the order they came."""
    chosen = set(random.Random(seed).sample(range(len(pairs)), round(share * len(pairs))))
    return [p for i, p in enumerate(pairs) if i not in chosen], [p for i, p in enumerate(pairs) if i in chosen]


def balance(pairs: list[dict], ratio: float) -> list[dict]:
    """Rarer tasks repeated as a whole until none has more than `ratio` times the examples of another, or MAX_REPEATS."""
    counts = Counter(pair.get("task") for pair in pairs)
    most = max(counts.values(), default=0)
    repeats = {task: min(MAX_REPEATS, max(1, -int(-most // (ratio * n)))) for task, n in counts.items()}
    return [pair for pair in pairs for _ in range(repeats[pair.get("task")])]


def encode_pairs(pairs: list[dict], tokenizer: Tokenizer, end: int) -> list[tuple[list[int], list[int]]]:
    """(tokens, which of them are learned) of each example: the assistant's answers, and the end."""
    texts, answers = [], []
    for pair in pairs:
        text, spans = "", []
        for turn in pair["messages"]:
            if turn["role"] == "assistant":
                spans.append((len(text), len(text) + 1 + len(turn["content"])))
                text += " " + turn["content"]
            else:
                text += ("\n\n" if text else "") + (turn["content"] if turn["role"] == "system" else prompt_of(turn["content"]))
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
