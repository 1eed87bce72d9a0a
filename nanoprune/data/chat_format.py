"""Conversations in the form an instruct model was trained on: ChatML (Qwen) and Llama 3's, from messages to tokens.

For plain conversations (a system's message perhaps, then user and assistant) the text is that of the published templates,
written out here, so that what is learned of it is known: what the assistant says, and the end of its turn. Models that can
think (Qwen3) are asked for answers without thinking, as the templates do with enable_thinking=False.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

from tokenizers import Tokenizer

from nanoprune.io.files import read_json


ROLES = ("system", "user", "assistant")
NO_THOUGHTS = "<think>\n\n</think>\n\n"  # what Qwen3 puts before an answer that it does not think about
LLAMA_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"  # Llama 3.1's and later ones'


@dataclass(frozen=True)
class ChatForm:
    """Which of the forms a tokenizer's own template has."""

    kind: str  # chatml or llama3
    system: str | None = None  # what the system says where it is not told
    thinks: bool = False  # Qwen3: an empty thought before the last answers
    dated: bool = False  # Llama 3.1 and later: a system's turn with dates before all

    @property
    def end_of_turn(self) -> str:
        return "<|im_end|>" if self.kind == "chatml" else "<|eot_id|>"


def chat_form(folder: str | Path, tokenizer: Tokenizer) -> ChatForm:
    """The form of a tokenizer's folder, by its special tokens and its template; ValueError where it has none of ours."""
    folder = Path(folder)
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else ""
    if not text and (folder / "tokenizer_config.json").is_file():
        text = str(read_json(folder / "tokenizer_config.json").get("chat_template") or "")
    if all(tokenizer.token_to_id(token) is not None for token in ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")):
        return ChatForm("llama3", dated="Cutting Knowledge Date" in text)
    if all(tokenizer.token_to_id(token) is not None for token in ("<|im_start|>", "<|im_end|>")):
        default = re.search(r"<\|im_start\|>system\\n([^'{<]+)<\|im_end\|>", text)
        return ChatForm("chatml", default[1] if default else None, thinks="</think>" in text)
    raise ValueError(f"the tokenizer in {folder} knows neither ChatML (<|im_start|>, <|im_end|>) nor Llama 3's form "
                     "(<|start_header_id|>, <|end_header_id|>, <|eot_id|>): take an instruct model's, or leave --chat out")


def check_messages(messages, where: str) -> list[dict]:
    """The messages, role and content alone; ValueError where they are no conversation to learn from."""
    turns = messages if isinstance(messages, list) and all(isinstance(turn, dict) for turn in messages) else []
    for turn in turns:
        if turn.get("role") not in ROLES:
            raise ValueError(f"{where}: messages has the unknown role {turn.get('role')!r}; roles are {', '.join(ROLES)}")
    roles = [turn["role"] for turn in turns]
    if turns and "assistant" not in roles:
        raise ValueError(f"{where}: messages has no turn of the assistant: there is nothing to learn from it")
    if empty := [role for role, turn in zip(roles, turns, strict=True)
                 if not (isinstance(turn.get("content"), str) and turn["content"].strip())]:
        raise ValueError(f"{where}: messages has a turn of the {empty[0]} without text")
    spoken = roles[roles[:1] == ["system"] :]
    if not turns or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise ValueError(f"{where}: messages must be a system's turn perhaps, then the user's and the assistant's by turns, "
                         f"the assistant's last; given {', '.join(roles) or repr(messages)[:60]}")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def render(form: ChatForm, messages: list[dict], answer: bool = False) -> list[tuple[str, bool, bool]]:
    """The text in pieces (text, is it learned, is it a special token); with `answer`, up to where the assistant goes on."""
    last_user = max((i for i, turn in enumerate(messages) if turn["role"] == "user"), default=-1)
    told = messages[0]["role"] == "system"
    pieces = [("<|begin_of_text|>", False, True)] if form.kind == "llama3" else []
    if form.dated:
        pieces += _turn(form, "system", "", LLAMA_DATES + (messages[0]["content"].strip() if told else ""))
    elif form.system is not None and not told:
        pieces += _turn(form, "system", "", form.system)
    for i, turn in enumerate(messages[told and form.dated :], start=told and form.dated):
        before, text = "", turn["content"]
        if turn["role"] == "assistant" and form.thinks:
            thought, closed, text = text.rpartition("</think>")
            thought = thought.rstrip("\n").rpartition("<think>")[2].strip("\n")
            text = text.lstrip("\n") if closed or i > last_user else text
            if i > last_user and thought:
                text = f"<think>\n{thought}\n</think>\n\n{text}"
            elif i > last_user:
                before = NO_THOUGHTS
        pieces += _turn(form, turn["role"], before, text.strip() if form.kind == "llama3" else text)
    if answer:
        pieces += _head(form, "assistant", NO_THOUGHTS if form.thinks else "")
    return pieces


def _head(form: ChatForm, role: str, more: str) -> list[tuple[str, bool, bool]]:
    if form.kind == "chatml":
        return [("<|im_start|>", False, True), (f"{role}\n{more}", False, False)]
    return [("<|start_header_id|>", False, True), (role, False, False), ("<|end_header_id|>", False, True),
            (f"\n\n{more}", False, False)]


def _turn(form: ChatForm, role: str, before: str, text: str) -> list[tuple[str, bool, bool]]:
    learned = role == "assistant"
    after = [("\n", False, False)] if form.kind == "chatml" else []
    return [*_head(form, role, before), (text, learned, False), (form.end_of_turn, learned, True), *after]


def encode_chat(
    tokenizer: Tokenizer, form: ChatForm, messages: list[dict], answer: bool = False
) -> tuple[list[int], list[int]]:
    """(tokens, which of them are learned) of a conversation. What a message says is never taken for a special token.

    All text between two special tokens is encoded as one, as a tokenizer does that is given the whole; a token belongs to
    the piece in which it begins.
    """
    ids, learned = [], []
    for special, group in groupby(render(form, messages, answer), key=lambda piece: piece[2]):
        pieces = list(group)
        if special:
            ids += [tokenizer.token_to_id(text) for text, _, _ in pieces]
            learned += [int(counts) for _, counts, _ in pieces]
            continue
        ends = list(accumulate(len(text) for text, _, _ in pieces))
        encoded = tokenizer.encode("".join(text for text, _, _ in pieces), add_special_tokens=False)
        ids += encoded.ids
        learned += [int(pieces[bisect_right(ends, start)][1]) for start, _ in encoded.offsets]
    return ids, learned


def question_prompt(question: str, context: str | None = None) -> str:
    """The plain form in which questions are asked, in training and in evaluation; an answer follows after a space."""
    return (f"{context}\n\n" if context else "") + f"Question: {question}\nAnswer:"
