"""Conversations in the form that an instruct model was trained on: its tokenizer's own chat template.

A template says how turns are written, but not what is learned: what the assistant says, and the ends of its
turns. That is found by rendering a conversation with and without a turn. Models that can think (Qwen3) are
prompted for answers without thinking (enable_thinking=False).
"""

import json
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer

from nanoprune.data.token_file import Example
from nanoprune.io.files import read_json

CHAT_DATE = "2024-07-26"  # today for templates that write the date, so that every day gives the same bytes
LIMITS = (10, 2**30, 2**24)  # of a rendering: seconds, bytes of memory, characters
CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA3 = """<|begin_of_text|>{% for message in messages %}\
<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}\
<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
FALLBACKS = {  # of tokenizers without a template: the form's name, its tokens, its template
    "ChatML": ({"<|im_start|>", "<|im_end|>"}, CHATML),
    "Llama 3's form": ({"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, LLAMA3),
}
BREAK = "\ufdd0"  # no character of any text: parts spelled special tokens, so that they stay text
HOLE = "nanoprunehole"  # stands for a text, to see where a template writes it
CALL = {"name": HOLE, "arguments": {}}
PROBES = {  # keys that a template may leave out in silence, with a value that shows
    "reasoning_content": HOLE,
    "tool_calls": [{"id": "abcdefghi", "type": "function", "function": CALL}],
    "function_call": CALL,
    "tools": [{"type": "function", "function": {
        "name": HOLE, "description": HOLE, "parameters": {"type": "object", "properties": {}}}}],
}

Span = tuple[int, int]  # of a text: start and end, in characters
Messages = list[dict]  # the turns of a conversation
Tools = list[dict] | None  # the functions that the assistant may call


class Rendering(NamedTuple):
    """The text of a conversation and the spans of it that are learned, in order."""

    text: str
    learned: list[Span]


# ---------------------------------------------------------------- the template of a tokenizer
class ChatForm:
    """The form that a chat template gives to conversations. `source` names it in messages."""

    def __init__(self, source: str, template: str, tokenizer: Tokenizer, tokens: dict, date: str = CHAT_DATE):
        """`tokens`: the names and texts of special tokens that the template may write, such as bos_token."""
        self.source, self.template, self.tokens, self.date = source, template, tokens, date
        self.process, self.complete = None, set()  # kinds of conversations that are written in full
        self.renders = cache(self.renders)
        added = sorted(tokenizer.get_added_tokens_decoder().values(), key=lambda token: -len(token.content))
        special = any_of([token for token in added if token.special])
        self.special = re.compile(f"(?={special})(.)", re.DOTALL)
        question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": HOLE}
        _, hole, tail = self._render([question, answer]).rpartition(HOLE)
        if not hole:
            raise ValueError(f"{source} does not write what the assistant says; take another model's")
        end = re.match(rf"\s*({any_of(added)})", tail)
        self.end_of_turn = end[1] if end else None  # None: no token of its own ends the assistant's turn

    def _render(self, messages: Messages, tools: Tools = None, **variables) -> str:
        """The text by the template's process; ValueError if it gives none."""
        if not self.process or self.process.poll() is not None:
            command = [sys.executable, "-P", str(Path(__file__).with_name("template_process.py"))]
            self.process = subprocess.Popen(command + list(map(str, LIMITS)), stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        # As transformers does, keys without a value are left out.
        turns = [{key: value for key, value in turn.items() if (key, value) != ("content", "")}
                 for turn in messages]
        variables = self.tokens | {"messages": turns, "tools": tools, "documents": None,
                                   "enable_thinking": False, "add_generation_prompt": False} | variables
        request = {"template": self.template, "date": self.date, "variables": variables}
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        reply = json.loads(self.process.stdout.readline() or "null")
        if not reply:
            self.process.wait()
            raise ValueError(f"{self.source} ran for more than {LIMITS[0]} s or took more than "
                             f"{LIMITS[1] / 1e9:.1f} GB and was stopped; mend it or take another model's")
        if "error" in reply:
            raise ValueError(f"{self.source} cannot write this conversation: {reply['error']}")
        return reply["text"]

    def conversation(self, messages: Messages, tools: Tools = None) -> Rendering:
        """A conversation to learn from; ValueError if the template leaves out a part of it."""
        messages, tools = self._checked(messages, tools)
        answers = {i: turn for i, turn in enumerate(messages) if turn["role"] == "assistant"}
        thinks = any("reasoning_content" in turn or "</think>" in turn["content"]
                     for turn in answers.values())
        text = self._render(messages, tools, enable_thinking=thinks)
        return Rendering(text, [self._answer_span(text, messages, i, tools, thinks)
                                for i, turn in answers.items() if is_learned(turn)])

    def prompt(self, messages: Messages, tools: Tools = None) -> Rendering:
        """A conversation up to the beginning of the assistant's next turn."""
        messages, tools = self._checked(messages, tools)
        return Rendering(self._render(messages, tools, add_generation_prompt=True), [])

    def renders(self, key: str) -> bool:
        """The template writes this key of PROBES."""
        probe = {key: PROBES[key]}
        tools = probe.pop("tools", None)
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"} | probe]
        try:
            return HOLE in self._render(messages, tools, enable_thinking=True)
        except ValueError:
            return True  # it looks at the key; the conversation's own will show

    def _checked(self, messages: Messages, tools: Tools) -> tuple:
        """Both as text without special tokens; ValueError if the template leaves out a turn or a key."""
        for key in [key for turn in [*messages, {"tools": tools} if tools else {}] for key in turn]:
            if key in PROBES and not self.renders(key):
                raise ValueError(f"{self.source} does not write {key}: delete it from the data, or take a "
                                 "model whose template does")
        messages, tools = self._as_text(messages), self._as_text(tools)
        structure = tuple((turn["role"], bool(turn["content"]), *turn) for turn in messages)
        if structure not in self.complete:
            holes = [turn | {"content": turn["content"] and f"{HOLE}{i}{HOLE}"}
                     for i, turn in enumerate(messages)]
            text = self._render(holes, tools)
            for number, turn in enumerate(holes, start=1):
                if turn["content"] not in text:
                    raise ValueError(f"{self.source} leaves out turn {number}, the {turn['role']}'s: delete "
                                     "such turns from the data, or take another model's")
            self.complete.add(structure)
        return messages, tools

    def _as_text(self, value):
        """The same content, in which nothing spells a special token."""
        if isinstance(value, dict):
            return {key: self._as_text(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._as_text(item) for item in value]
        if not isinstance(value, str):
            return value
        if BREAK in value or HOLE in value:
            raise ValueError(f"a text may hold neither U+FDD0 nor {HOLE}: {value[:60]!r}")
        return self.special.sub(rf"\1{BREAK}", value)

    def _answer_span(self, text: str, messages: Messages, i: int, tools: Tools, thinks: bool) -> Span:
        """The part of the text that is the assistant's turn i, from what it says to the end of the turn."""
        until = text
        if i + 1 < len(messages):
            until = self._render(messages[: i + 1], tools, enable_thinking=thinks)
        unprompted = self._render(messages[:i], tools)
        for thinking in (False, True):
            start = self._render(messages[:i], tools, add_generation_prompt=True, enable_thinking=thinking)
            if start != unprompted and text.startswith(until) and until.startswith(start):
                end = len(until.rstrip())  # a line end after the turn is nothing that is said
                whole_turn = self.end_of_turn and until[:end].endswith(self.end_of_turn)
                return len(start), end if whole_turn else len(until)
        # The template writes earlier turns anew (Qwen3: without thoughts): put another text in its place.
        other = messages[:i] + [{"role": "assistant", "content": HOLE}] + messages[i + 1 :]
        before, _, after = self._render(other, tools, enable_thinking=thinks).partition(HOLE)
        if not (text.startswith(before) and text.endswith(after) and len(before) + len(after) < len(text)):
            raise ValueError(f"{self.source} writes turn {i + 1} so that it is not known which part to "
                             "learn: take another model's")
        end = len(text) - len(after)
        if self.end_of_turn and after.lstrip().startswith(self.end_of_turn):
            end += after.index(self.end_of_turn) + len(self.end_of_turn)
        return len(before), end


def any_of(tokens: list[AddedToken]) -> str:
    """A pattern that matches the text of any of these tokens."""
    return f"(?:{'|'.join(re.escape(token.content) for token in tokens) or '(?!)'})"


def chat_form(folder: str | Path, tokenizer: Tokenizer, date: str = CHAT_DATE) -> ChatForm:
    """The chat form of a tokenizer's folder; ValueError without one."""
    folder, config = Path(folder), {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config |= read_json(folder / name)
    texts = {name: token.get("content") if isinstance(token, dict) else token
             for name, token in config.items() if name.endswith("_token")}
    tokens = {name: text for name, text in texts.items() if isinstance(text, str)}
    template, path = config.get("chat_template"), folder / "chat_template.jinja"
    if path.is_file():
        template = path.read_text(encoding="utf-8")
    if isinstance(template, list):
        named = {str(entry.get("name")): entry.get("template") for entry in template
                 if isinstance(entry, dict)}
        if "default" not in named:
            raise ValueError(f"{folder} has chat templates named {', '.join(named)}, and none named default")
        template = named["default"]
    if template:
        return ChatForm(f"the chat template of {folder}", template, tokenizer, tokens, date)
    for name, (needed, fallback) in FALLBACKS.items():
        if needed <= tokenizer.get_vocab().keys():
            print(f"note: {folder} has no chat template: conversations are written in {name}")
            return ChatForm(name, fallback, tokenizer, tokens, date)
    raise ValueError(f"the tokenizer in {folder} has no chat template and knows neither ChatML "
                     "(<|im_start|>, <|im_end|>) nor Llama 3's form (<|start_header_id|>, <|end_header_id|>, "
                     "<|eot_id|>): take an instruct model's, or leave --chat out")


# ---------------------------------------------------------------- tokens
def encode(tokenizer: Tokenizer, rendering: Rendering) -> Example:
    """The tokens of a conversation in a chat form: special tokens are the template's, never a message's."""
    tokens, starts, length = [], [], 0
    tokenizer.encode_special_tokens = False
    for text in rendering.text.split(BREAK):
        encoding = tokenizer.encode(text, add_special_tokens=False)  # a begin token is in the template
        tokens += encoding.ids
        starts += [length + start for start, _ in encoding.offsets]
        length += len(text) + len(BREAK)
    tokenizer.encode_special_tokens = True
    return Example(np.array(tokens, np.int64), learned_tokens(starts, rendering.learned))


def learned_tokens(starts: list[int], learned: list[Span]) -> np.ndarray:
    """Mark the tokens that begin in a span that is learned."""
    return np.searchsorted(np.ravel(learned), starts, side="right") % 2 == 1


# ---------------------------------------------------------------- messages
ROLES = ("system", "user", "assistant", "tool")
ALIASES = {"developer": "system", "human": "user", "gpt": "assistant", "function": "tool"}
WEIGHTS = ("weight", "loss_weight", "train", "loss")  # 0 or false: the turn is read, not learned
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # the same under three names
ORDER = re.compile("s?(ua(t+a)*)+")  # of the roles, by their first letters
READ_KEYS = {"role", "content", "from", "value", *WEIGHTS, *THOUGHTS, *PROBES}


def is_learned(turn: dict) -> bool:
    return turn.get("weight") != 0


def are_objects(value) -> bool:
    """The value is a list of JSON objects."""
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def check_messages(messages, where: str) -> Messages:
    """The messages, each with `role` and `content`, perhaps `weight` (0: not learned) and what templates may
    write; ValueError if they are no conversation to learn from.
    """
    turns = [_check_turn(turn, where) for turn in messages] if are_objects(messages) else []
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if turns and not any(map(is_learned, answers)):
        raise ValueError(f"{where}: messages has no turn of the assistant with a weight other than 0: there "
                         "is nothing to learn from it")
    if not ORDER.fullmatch("".join(turn["role"][0] for turn in turns)):
        given = ", ".join(turn["role"] for turn in turns) or repr(messages)[:60]
        raise ValueError(f"{where}: messages must be a system's turn perhaps, then the user's and the "
                         f"assistant's by turns (tools between two of the assistant), the assistant's last; "
                         f"given {given}")
    return turns


def _check_turn(turn: dict, where: str) -> dict:
    name = turn.get("role", turn.get("from"))
    role = ALIASES.get(str(name), name)
    if role not in ROLES:
        raise ValueError(f"{where}: messages has the unknown role {name!r}; roles are "
                         f"{', '.join([*ROLES, *ALIASES])}")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = "".join(_part_text(part, where) for part in content)
    others = {key: value for key, value in turn.items() if key not in READ_KEYS and value is not None}
    others |= {key: turn[key] for key in PROBES if turn.get(key)}
    for key in filter(turn.get, THOUGHTS[::-1]):
        if not isinstance(turn[key], str):
            raise ValueError(f"{where}: {key} must be text, given {turn[key]!r:.60}")
        others["reasoning_content"] = turn[key]
    has_text = isinstance(content, str) and content.strip()
    if not has_text and (content or not turn.get("tool_calls")):
        raise ValueError(f"{where}: messages has a turn of the {role} without text")
    weights = {key: turn[key] for key in WEIGHTS if turn.get(key) is not None}
    for key, weight in weights.items():
        if weight not in (0, 1) or weight and role != "assistant":
            raise ValueError(f"{where}: a turn of the {role} has {key} {weight!r}; a turn of the assistant "
                             "is learned (1, true) or not (0, false), other turns never are")
    if not all(weights.values()):
        others["weight"] = 0
    return {"role": role, "content": content or ""} | others


def _part_text(part, where: str) -> str:
    """The text of a part of a message."""
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else part
    raise ValueError(f"{where}: messages has a part of the type {kind!r}; text alone is learned")


def question_prompt(question: str, context: str | None = None) -> str:
    """The plain form of a question, in training and in evaluation; the answer follows after a space."""
    return (f"{context}\n\n" if context else "") + f"Question: {question}\nAnswer:"
