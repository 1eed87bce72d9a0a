"""Conversations: read from files, checked, held out, balanced, and turned into tokens.

A row is chat (`messages`, or `conversations` as ShareGPT has them: perhaps a system turn, then user and
assistant in turn), `prompt` and `response`, or `instruction`, perhaps `input`, and `output` (Alpaca). An
optional `task` names its kind; so does a `[TASK] ` in front of the question.
"""

import json
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
    BREAK,
    PROBES,
    ChatForm,
    Messages,
    Rendering,
    Tools,
    are_objects,
    check_messages,
    encode,
    is_learned,
    learned_tokens,
    question_prompt,
)
from nanoprune.data.dataset import SPLITS
from nanoprune.data.duplicates import near_duplicates, signature
from nanoprune.data.instruction_files import read_rows
from nanoprune.data.language import words_of
from nanoprune.data.token_file import Example

TAG = re.compile(r"\[([A-Z][A-Z_ -]*)\] ")  # a task in front of a question
NUMBER = re.compile(r"\d+")
MAX_REPEATS = 10  # of one pair by balancing: more of the same is learned by heart
CHATS = ("messages", "conversations")
QUESTIONS, ANSWERS = ("prompt", "instruction", "question"), ("response", "output", "completion", "answer")


def read_pairs(path: Path) -> list[dict]:
    """Conversations in chat form; ValueError names the row that is none."""
    pairs = []
    for where, row in read_rows(path):
        row = {key: value for key, value in row.items() if value is not None}
        messages, task = check_messages(take_messages(row, where), where), row.get("task")
        if not (task is None or isinstance(task, str) and task.strip()):
            raise ValueError(f"{where}: task must be a text, given {task!r}")
        tag = TAG.match(next(turn["content"] for turn in messages if turn["role"] == "user"))
        if task is None and tag:
            row["task"] = tag[1]
        tools = parsed(row.pop("tools", None))
        if tools:
            if not are_objects(tools):
                raise ValueError(f"{where}: tools must be a list of JSON objects, given {tools!r:.60}")
            row["tools"] = tools
        pairs.append({"messages": messages} | row)
    return pairs


def take_messages(row: dict, where: str) -> list:
    """Take a row's conversation out of the row, whatever its form."""
    chat, asked, said = (next(filter(row.__contains__, names), None) for names in (CHATS, QUESTIONS, ANSWERS))
    if chat:
        messages = parsed(row.pop(chat))
    elif asked and said:
        question, answer = row.pop(asked), row.pop(said)
        more = row.pop("input", None) if asked == "instruction" else None
        question = f"{question}\n\n{more}" if more else question
        messages = as_turns("user", question) + as_turns("assistant", answer)
    else:
        raise ValueError(f"{where}: lacks messages, or prompt and response; it has "
                         f"{', '.join(row) or 'nothing'}. Read are also conversations, instruction and "
                         "output, question and answer")
    system = row.pop("system", None)
    return as_turns("system", system) + messages if system and isinstance(messages, list) else messages


def as_turns(role: str, content) -> list:
    """A turn of this role; messages where they are given."""
    is_chat = are_objects(content) and all("role" in turn for turn in content)
    return content if is_chat else [{"role": role, "content": content}]


def parsed(value):
    """The value of a cell of a table, which may hold JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


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
    """The pairs that ask no prompt of the test's, nor nearly one."""
    groups = prompt_groups(test_pairs + pairs) if test_pairs else range(len(pairs))
    asked_in_test = set(groups[: len(test_pairs)])
    others = [pair for pair, group in zip(pairs, groups[len(test_pairs) :], strict=True)
              if group not in asked_in_test]
    if len(others) < len(pairs):
        print(f"{len(pairs) - len(others)} pairs left out of training: they stand among the test's")
    return others


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
        return len("".join(learned_answers(self.row["messages"])).encode())

    def as_document(self, name: str) -> "Conversation":
        """The same with the `id` and `text` that a line of val.jsonl and test.jsonl has."""
        text = "\n\n".join(said(turn) for turn in self.row["messages"])
        row = {"id": name, "text": ""} | self.row | {"text": text}
        return Conversation(row | {"id": str(row["id"])}, self.example)


def learned_answers(messages: Messages) -> list[str]:
    return [said(turn) for turn in messages if turn["role"] == "assistant" and is_learned(turn)]


def said(turn: dict) -> str:
    """All that a turn says, as text."""
    calls = [json.dumps(call, ensure_ascii=False) for call in turn.get("tool_calls", [])]
    return "\n".join(filter(None, [turn.get("reasoning_content"), turn["content"], *calls]))


def prompt_groups(pairs: list[dict]) -> list[int]:
    """The number of each pair's group.

    In a group the users' turns are equal but for case and punctuation, or nearly so: their runs of five
    letters have a Jaccard similarity of 0.8. Other numbers make another prompt.
    """
    prompts = []
    for pair in pairs:
        asked = [turn["content"] for turn in pair["messages"] if turn["role"] == "user"]
        prompts.append("_".join(words_of("\n".join(asked))))
    distinct = list(dict.fromkeys(prompts))
    if not distinct:
        return []
    groups = np.arange(len(distinct))
    signatures = np.stack([signature(list(prompt)) for prompt in distinct])
    for i, j in near_duplicates(signatures, lambda i: " ".join(distinct[i]), containment=math.inf):
        if sorted(NUMBER.findall(distinct[i])) == sorted(NUMBER.findall(distinct[j])):
            groups[groups == groups[j]] = groups[i]
    group_of = dict(zip(distinct, groups.tolist(), strict=True))
    return [group_of[prompt] for prompt in prompts]


def hold_out(
    pairs: list[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held out) by a draw of its own seed, both in their order; a prompt is on one side alone."""
    groups = prompt_groups([pair.row for pair in pairs])
    sizes, most, held_out = Counter(groups), round(share * len(pairs)), set()
    for group in random.Random(seed).sample(list(sizes), len(sizes)):
        if sizes[group] <= most:
            held_out.add(group)
            most -= sizes[group]
    training = [pair for pair, group in zip(pairs, groups, strict=True) if group not in held_out]
    return training, [pair for pair, group in zip(pairs, groups, strict=True) if group in held_out]


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
    """Train, val and test by a draw; pairs with the same or nearly the same prompt go to the same side."""
    groups = prompt_groups(pairs)
    if len(set(groups)) < len(SPLITS) <= len(pairs):
        print(f"warning: {len(pairs)} conversations have prompts so much alike that each is drawn by itself: "
              "the test's stand in training too")
        groups = list(range(len(pairs)))
    order = list(dict.fromkeys(groups))
    random.Random(seed).shuffle(order)
    ends = [round(shares[0] * len(order)), round((shares[0] + shares[1]) * len(order))]
    sides = {group: SPLITS[bisect_right(ends, i)] for i, group in enumerate(order)}
    divided = {name: [] for name in SPLITS}
    for pair, group in zip(pairs, groups, strict=True):
        divided[sides[group]].append(pair)
    return divided


class Prompt(NamedTuple):
    """The text that stands before an answer, and its tokens."""

    text: str
    tokens: list[int]


def encode_prompt(
    messages: Messages, tokenizer: Tokenizer, form: ChatForm | None = None, tools: Tools = None
) -> Prompt:
    """The prompt for the assistant's next turn, exactly as `encode_pairs` writes it in training."""
    if form:
        rendering = form.prompt(messages, tools)
        return Prompt(rendering.text.replace(BREAK, ""), encode(tokenizer, rendering).tokens.tolist())
    text = render_plain(messages, tools).text
    return Prompt(text, tokenizer.encode(text).ids)


def encode_pairs(
    pairs: list[dict], tokenizer: Tokenizer, end: int, form: ChatForm | None = None
) -> list[Example]:
    """The tokens of each conversation; the assistant's answers and their ends are learned.

    In a chat form, or else in the plain one of questions and answers, with the end-of-text token `end` after
    the last. ValueError names a conversation of which the form would leave out a part.
    """
    renderings, render = [], form.conversation if form else render_plain
    for pair in pairs:
        try:
            renderings.append(render(pair["messages"], pair.get("tools")))
        except ValueError as error:
            question = next(turn["content"] for turn in pair["messages"] if turn["role"] == "user")
            raise ValueError(f"the conversation “{question[:60]}”: {error}") from error
    if form:
        return [encode(tokenizer, rendering) for rendering in renderings]
    encodings = tokenizer.encode_batch([rendering.text for rendering in renderings])
    examples = []
    for pair, rendering, encoding in zip(pairs, renderings, encodings, strict=True):
        learned = learned_tokens([start for start, _ in encoding.offsets], rendering.learned)
        ended = is_learned(pair["messages"][-1])
        examples.append(Example(np.array([*encoding.ids, end], np.int64), np.append(learned, ended)))
    return examples


def render_plain(messages: Messages, tools: Tools = None) -> Rendering:
    """A conversation in the plain form of questions and answers."""
    text, learned = "", []
    parts = ["tools"] if tools else [part for turn in messages for part in (*turn, turn["role"])]
    if unwritten := {"tool", *PROBES}.intersection(parts):
        raise ValueError("the plain form of questions and answers has no place for "
                         f"{', '.join(sorted(unwritten))}: take --chat with a model whose template has, or "
                         "delete it")
    for turn in messages:
        start = len(text)
        if turn["role"] == "assistant":
            text += " " + turn["content"]
            if is_learned(turn):
                learned.append((start, len(text)))
        else:
            content = turn["content"] if turn["role"] == "system" else question_prompt(turn["content"])
            text += f"\n\n{content}" if text else content
    return Rendering(text, learned)
