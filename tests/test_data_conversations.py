"""Conversations come in whole, checked and balanced; only the answers are learned."""

import json
from collections import Counter

import pytest
from small import CHATML, byte_tokenizer, make_data

from nanoprune.data.chat_format import ChatForm
from nanoprune.data.conversations import (
    MAX_REPEATS,
    Conversation,
    balance,
    encode_pairs,
    encode_prompt,
    hold_out,
    read_pairs,
    with_task,
)
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.io.jsonl import write_jsonl


def chat(*turns: str, **more) -> dict:
    """user, assistant, user, ... in turn."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i,
                         text in enumerate(turns)]} | more


def test_both_forms_come_in(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    write_jsonl(tmp_path / "p.jsonl", [
        chat("Q?", "A.", task="SPEC"), {"prompt": "Q2?", "response": "A2.", "task": "WIRING", "x": 1},
        {"messages": [system, *chat("a", "b", "c", "d")["messages"]]}])
    assert read_pairs(tmp_path / "p.jsonl") == [chat("Q?", "A.", task="SPEC"),
                                                chat("Q2?", "A2.", task="WIRING", x=1),
                                                {"messages": [system, *chat("a", "b", "c", "d")["messages"]]}]


@pytest.mark.parametrize("row, message", [
    ({"prompt": "?"}, "lacks messages, or prompt and response; it has prompt"),
    (chat("?"), "messages has no turn of the assistant"),
    (chat("?", " "), "messages has a turn of the assistant without text"),
    ({"messages": "?"}, "messages must be a system's turn perhaps"),
    ({"messages": []}, "messages must be"),
    ({"messages": chat("?", "!")["messages"][::-1]}, "messages must be"),
    ({"prompt": 5, "response": "x"}, "messages has a turn of the user without text"),
    ({"messages": chat("?", "!")["messages"] + [{"role": "system", "content": "late"}]}, "messages must be"),
    (chat("?", "!", task=3), "task must be a text"),
])
def test_bad_lines_are_named(tmp_path, row, message):
    write_jsonl(tmp_path / "p.jsonl", [chat("?", "!"), row])
    with pytest.raises(ValueError, match=f"p.jsonl, line 2: {message}"):
        read_pairs(tmp_path / "p.jsonl")


def test_only_what_the_assistant_says_is_learned(tmp_path):
    tokenizer = load_tokenizer(make_data(tmp_path / "data"))
    system = {"role": "system", "content": "Be brief."}
    pair = {"messages": [system, *chat("Why?", "So it is.", "When?", "Größer now.")["messages"]]}
    [example] = encode_pairs([pair], tokenizer, 0)
    tokens, learned = example.tokens.tolist(), example.learned.tolist()
    whole = "Be brief.\n\nQuestion: Why?\nAnswer: So it is.\n\nQuestion: When?\nAnswer: Größer now."
    assert tokenizer.decode(tokens[:-1]) == whole
    said = [t for t, mask in zip(tokens, learned, strict=True) if mask]
    assert said[-1] == tokens[-1] == 0 and tokenizer.decode(said[:-1]) == " So it is. Größer now."


def test_a_task_that_stands_in_front_of_the_question(tmp_path):
    """It is the example's task, and is not put there twice."""
    write_jsonl(tmp_path / "p.jsonl", [
        chat("[SPEC] How tight?", "8 Nm."), chat("[WIRING] Which pin?", "2", task="SPEC"),
        chat("[1] What?", "x"),
        {"messages": [{"role": "system", "content": "[WIRING] Be brief."},
                      *chat("[SPEC] Why?", "So.")["messages"]]}])
    found = read_pairs(tmp_path / "p.jsonl")
    assert [pair.get("task") for pair in found] == ["SPEC", "SPEC", None, "SPEC"]
    asked = [next(t["content"] for t in with_task(pair)["messages"] if t["role"] == "user") for pair in found]
    assert asked == ["[SPEC] How tight?", "[SPEC] [WIRING] Which pin?", "[1] What?", "[SPEC] Why?"]


def test_balance_and_hold_out():
    pairs = [chat(f"{task}{i}", "a", task=task) for task,
             n in (("SPEC", 100), ("WIRING", 30), ("RARE", 2)) for i in range(n)]
    pairs = [Conversation(pair, None) for pair in pairs]
    balanced = balance(pairs, 2)
    assert Counter(p.task for p in balanced) == {"SPEC": 100, "WIRING": 50, "RARE": 2 * MAX_REPEATS}
    repeats = Counter(json.dumps(pair.row) for pair in balanced)
    assert {n for row, n in repeats.items() if "WIRING" in row} == {1, 2}  # all as nearly as may be
    assert Counter(p.task for p in balance(pairs[:130], 1.2)) == {"SPEC": 100, "WIRING": 84}
    assert balance(pairs, 1000) == pairs and not balance([], 2)
    training, held = hold_out(pairs, 0.2, seed=42)
    assert (len(training), len(held)) == (106, 26)
    assert hold_out(pairs, 0.2, seed=42)[1] == held != hold_out(pairs, 0.2, 1)[1]
    assert sorted(json.dumps(p.row) for p in training + held) == sorted(json.dumps(p.row) for p in pairs)


@pytest.mark.parametrize("form", [None, ChatForm("chatml", "Be kind.", thinks=True)], ids=["plain", "chat"])
def test_a_prompt_is_the_beginning_of_its_training_example(tmp_path, form):
    """Token by token, and the answer is what is learned after it."""
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path / "t", CHATML))
    messages = chat("Why?", "So it is.", "When?", "Größer now.")["messages"]
    prompt = encode_prompt(messages[:-1], tokenizer, form)
    [example] = encode_pairs([{"messages": messages}], tokenizer, 0, form)
    length = len(prompt.tokens)
    assert tokenizer.decode(prompt.tokens, skip_special_tokens=False) == prompt.text
    assert example.tokens[:length].tolist() == prompt.tokens
    answer = example.tokens[length:][example.learned[length:]].tolist()
    assert tokenizer.decode(answer[:-1]).strip() == "Größer now."
    assert example.learned[length] and not example.learned[length - 1]
