"""Conversations in the form that an instruct model was trained on: ChatML (Qwen) or Llama 3's.

For plain conversations (perhaps a system turn, then user and assistant) the text is that of the published
templates. It is written out here, so that the learned part is known: the assistant's answers and the ends of
its turns. Models that can think (Qwen3) are prompted for answers without thinking, as the templates do with
enable_thinking=False.
"""

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from nanoprune.data.token_file import Example
from nanoprune.io.files import read_json

ROLES = ("system", "user", "assistant")
NO_THOUGHTS = "<think>\n\n</think>\n\n"  # Qwen3 puts this before an answer without thinking
LLAMA_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"  # from Llama 3.1 on


@dataclass(frozen=True)
class ChatForm:
    """The form that a tokenizer's own template has."""

    kind: str  # chatml or llama3
    system: str | None = None  # the system turn of conversations without one
    thinks: bool = False  # Qwen3: an empty thought before the last answers
    dated: bool = False  # Llama 3.1 and later: a system turn with dates before all others

    @property
    def end_of_turn(self) -> str:
        return "<|im_end|>" if self.kind == "chatml" else "<|eot_id|>"


def chat_form(folder: str | Path, tokenizer: Tokenizer) -> ChatForm:
    """The chat form of a tokenizer's folder, by its special tokens and template; ValueError without one."""
    folder = Path(folder)
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else ""
    if not text and (folder / "tokenizer_config.json").is_file():
        text = str(read_json(folder / "tokenizer_config.json").get("chat_template") or "")
    vocabulary = tokenizer.get_vocab()
    if {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"} <= vocabulary.keys():
        return ChatForm("llama3", dated="Cutting Knowledge Date" in text)
    if {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys():
        default = re.search(r"<\|im_start\|>system\\n([^'{<]+)<\|im_end\|>", text)
        return ChatForm("chatml", default[1] if default else None, thinks="</think>" in text)
    raise ValueError(f"the tokenizer in {folder} knows neither ChatML (<|im_start|>, <|im_end|>) nor "
                     "Llama 3's form (<|start_header_id|>, <|end_header_id|>, <|eot_id|>): take an instruct "
                     "model's, or leave --chat out")


def check_messages(messages, where: str) -> list[dict]:
    """The messages, with role and content alone; ValueError if they are no conversation to learn from."""
    is_list = isinstance(messages, list) and all(isinstance(turn, dict) for turn in messages)
    turns = messages if is_list else []
    for turn in turns:
        if turn.get("role") not in ROLES:
            raise ValueError(f"{where}: messages has the unknown role {turn.get('role')!r}; roles are "
                             f"{', '.join(ROLES)}")
    roles = [turn["role"] for turn in turns]
    if turns and "assistant" not in roles:
        raise ValueError(f"{where}: messages has no turn of the assistant: there is nothing to learn from it")
    for turn in turns:
        if not (isinstance(turn.get("content"), str) and turn["content"].strip()):
            raise ValueError(f"{where}: messages has a turn of the {turn['role']} without text")
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or spoken != ["user", "assistant"] * (len(spoken) // 2):
        given = ", ".join(roles) or repr(messages)[:60]
        raise ValueError(f"{where}: messages must be a system's turn perhaps, then the user's and the "
                         f"assistant's by turns, the assistant's last; given {given}")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


class Piece(NamedTuple):
    """A part of a conversation's text."""

    text: str
    learned: bool = False
    special: bool = False  # one token, which the text names


def render(form: ChatForm, messages: list[dict], answer: bool = False) -> list[Piece]:
    """The text of a conversation; with `answer`, up to the beginning of the assistant's next turn."""
    turns = [(turn["role"], turn["content"]) for turn in messages]
    if form.kind == "llama3":
        turns = [(role, text.strip()) for role, text in turns]
    has_system = turns[0][0] == "system"
    if form.dated:
        system = turns.pop(0)[1] if has_system else ""
        turns.insert(0, ("system", LLAMA_DATES + system))
    elif form.system is not None and not has_system:
        turns.insert(0, ("system", form.system))
    last_user = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=-1)
    pieces = [Piece("<|begin_of_text|>", special=True)] if form.kind == "llama3" else []
    for i, (role, text) in enumerate(turns):
        prefix = ""
        if role == "assistant" and form.thinks:
            thought, text = _split_thought(text)
            if i > last_user:
                text = text.lstrip("\n")
                prefix = "" if thought else NO_THOUGHTS
                text = f"<think>\n{thought}\n</think>\n\n{text}" if thought else text
        learned = role == "assistant"
        pieces += _turn_start(form, role, prefix)
        pieces += [Piece(text, learned), Piece(form.end_of_turn, learned, special=True)]
        if form.kind == "chatml":
            pieces.append(Piece("\n"))
    if answer:
        pieces += _turn_start(form, "assistant", NO_THOUGHTS if form.thinks else "")
    return pieces


def _turn_start(form: ChatForm, role: str, prefix: str) -> list[Piece]:
    if form.kind == "chatml":
        return [Piece("<|im_start|>", special=True), Piece(f"{role}\n{prefix}")]
    return [Piece("<|start_header_id|>", special=True), Piece(role), Piece("<|end_header_id|>", special=True),
            Piece(f"\n\n{prefix}")]


def _split_thought(content: str) -> tuple[str, str]:
    """The thought of a Qwen3 model ("" without one) and the answer after it."""
    thought, closed, answer = content.rpartition("</think>")
    if not closed:
        return "", content
    return thought.rstrip("\n").rpartition("<think>")[2].strip("\n"), answer.lstrip("\n")


def encode_chat(tokenizer: Tokenizer, form: ChatForm, messages: list[dict], answer: bool = False) -> Example:
    """The tokens of a conversation. A message's text is never taken for a special token.

    All text between two special tokens is encoded as one, as tokenizers encode the whole.
    """
    tokens, learned = [], []
    for special, group in groupby(render(form, messages, answer), key=lambda piece: piece.special):
        pieces = list(group)
        if special:
            tokens += [tokenizer.token_to_id(piece.text) for piece in pieces]
            learned += [piece.learned for piece in pieces]
        else:
            encoding = tokenizer.encode("".join(piece.text for piece in pieces), add_special_tokens=False)
            tokens += encoding.ids
            learned += learned_tokens(encoding, pieces)
    return Example(np.array(tokens, np.int64), np.array(learned, bool))


def learned_tokens(encoding: Encoding, pieces: list[Piece]) -> list[bool]:
    """Which tokens are learned: those that begin in a piece that is."""
    ends = np.cumsum([len(piece.text) for piece in pieces])
    starts = np.array([start for start, _ in encoding.offsets], np.int64)
    return np.array([piece.learned for piece in pieces])[np.searchsorted(ends, starts, side="right")].tolist()


def question_prompt(question: str, context: str | None = None) -> str:
    """The plain form of a question, in training and in evaluation; the answer follows after a space."""
    return (f"{context}\n\n" if context else "") + f"Question: {question}\nAnswer:"
