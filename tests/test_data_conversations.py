"""Conversations come in whole, checked and balanced; only the answers are learned."""

import json
from collections import Counter

import pytest
from small import CHATML, byte_tokenizer, make_data

from nanoprune.data.chat_format import CHATML as TEMPLATE
from nanoprune.data.chat_format import ChatForm
from nanoprune.data.conversations import (
    MAX_REPEATS,
    Conversation,
    balance,
    divide,
    drop_questions_of,
    encode_pairs,
    encode_prompt,
    hold_out,
    prompt_groups,
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


@pytest.mark.parametrize("template", [None, TEMPLATE, "Be kind. <think> {{ tools }}" + TEMPLATE],
                         ids=["plain", "chat", "with more"])
def test_a_prompt_is_the_beginning_of_its_training_example(tmp_path, template):
    """Token by token, and the answer is what is learned after it."""
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path / "t", CHATML))
    form = template and ChatForm("this", template, tokenizer, {})
    messages = chat("Why?", "So it is.", "When?", "Größer now.")["messages"]
    prompt = encode_prompt(messages[:-1], tokenizer, form)
    [example] = encode_pairs([{"messages": messages}], tokenizer, 0, form)
    length = len(prompt.tokens)
    assert tokenizer.decode(prompt.tokens, skip_special_tokens=False) == prompt.text
    assert example.tokens[:length].tolist() == prompt.tokens
    answer = example.tokens[length:][example.learned[length:]].tolist()
    assert tokenizer.decode(answer[:-1]).strip() == "Größer now."
    assert example.learned[length] and not example.learned[length - 1]


def rows_of(path, *rows) -> list[dict]:
    write_jsonl(path / "p.jsonl", rows)
    return read_pairs(path / "p.jsonl")


def test_forms_that_everybody_has(tmp_path):
    """ShareGPT, Alpaca, lists of parts, completions, a null beside; other columns stay."""
    system = {"role": "system", "content": "Be brief."}
    parts = [{"type": "text", "text": "Q?"}]
    shared = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
    assert rows_of(
        tmp_path, {"conversations": shared, "id": 7}, {"conversations": shared, "system": "Be brief."},
        {"instruction": "Q?", "input": "", "output": "A."}, {"instruction": "Q?", "input": "It.",
                                                             "output": "A."},
        {"messages": None, "prompt": "Q?", "response": "A.", "task": None},
        {"prompt": parts, "completion": "A."}, {"question": "Q?", "answer": "A."},
        {"prompt": chat("Q?")["messages"], "completion": [{"role": "assistant", "content": "A."}]},
        {"messages": json.dumps(chat("Q?", "A.")["messages"])}, {"system": "", "prompt": "Q?",
                                                                 "response": "A."},
    ) == [chat("Q?", "A.", id=7), {"messages": [system, *chat("Q?", "A.")["messages"]]},
          chat("Q?", "A."), chat("Q?\n\nIt.", "A."), *[chat("Q?", "A.")] * 6]


def test_a_masked_turn_is_not_learned(tmp_path):
    """Nor does it count in bytes; where it is the last, the end of the text is not learned."""
    tokenizer = load_tokenizer(make_data(tmp_path / "data"))
    turns = chat("Why?", "wrong", "No.", "So it is.")["messages"]
    masked = [{"messages": turns[:1] + [turns[1] | {"weight": 0}] + turns[2:]},
              {"messages": turns[:3] + [turns[3] | {"weight": 0}]}]
    examples = encode_pairs(masked, tokenizer, 0)
    for pair, example, answer in zip(masked, examples, ("So it is.", "wrong"), strict=True):
        learned = example.tokens[example.learned].tolist()
        assert tokenizer.decode([token for token in learned if token]) == f" {answer}"
        assert (learned[-1] == 0) == (answer == "So it is.")
        assert Conversation(pair, example).answer_bytes == len(answer)


@pytest.mark.parametrize("more, name", [
    ({"reasoning_content": "2 + 2"}, "reasoning_content"), ({"tool_calls": [{"name": "f"}]}, "tool_calls"),
    ({"tools": [{"name": "f"}]}, "tools"), ({"role": "tool"}, "tool")])
def test_what_the_plain_form_has_no_place_for_is_refused(tmp_path, more, name):
    tokenizer = load_tokenizer(make_data(tmp_path / "data"))
    pair = chat("Why?", "So.", "x", "y")
    if name == "tools":
        pair |= more
    else:
        pair["messages"][2 if name == "tool" else 1] |= more
    [pair] = rows_of(tmp_path, pair)
    with pytest.raises(ValueError, match=f"the conversation “Why.”: the plain form .* has no place for "
                                         f"{name}: take"):
        encode_pairs([pair], tokenizer, 0)


def test_a_test_document_holds_the_conversation(tmp_path):
    """Not a column of the row's own; thoughts and calls are part of what is said."""
    pair = chat("Q?", "A.", text="<s>not this", id="mine")
    document = Conversation(pair, None).as_document("test0").row
    assert document == pair | {"text": "Q?\n\nA."}
    assert Conversation(chat("Q?", "A.", text=None), None).as_document("test0").row["text"] == "Q?\n\nA."
    turn = {"role": "assistant", "content": "A.", "reasoning_content": "So", "tool_calls": [{"name": "f"}]}
    row = {"messages": [*chat("Q?")["messages"], turn]}
    assert Conversation(row, None).as_document("x").row["text"] == 'Q?\n\nSo\nA.\n{"name": "f"}'


LIKE = [("What is the torque of bolt 3?", "what is the torque of bolt 3 ??"),
        ("Please tell me how the water pump of this engine is changed.",
         "Please, tell me how the water pump of the engine is changed"),
        ("新しい工場はどこにありますか、いつ開きますか", "新しい工場はどこにありますか、いつ開きますか。")]
UNLIKE = [("What is the torque of bolt 3 of the water pump of this engine?",
           "What is the torque of bolt 4 of the water pump of this engine?"),
          ("Where is the plant?", "When is the plant?"), ("Why?", "How?")]


def test_a_test_documents_id_is_text(tmp_path):
    folder = byte_tokenizer(tmp_path / "t", CHATML)
    tokenizer = load_tokenizer(folder)
    (example,) = encode_pairs([chat("Q?", "A.", id=7)], tokenizer, 256)
    assert Conversation(chat("Q?", "A.", id=7), example).as_document("name").row["id"] == "7"
    assert Conversation(chat("Q?", "A."), example).as_document("name").row["id"] == "name"


def test_prompts_that_are_nearly_equal_are_one_group():
    for first, second in LIKE:
        groups = prompt_groups([chat(first, "1"), chat("Quite another question?", "2"), chat(second, "3")])
        assert groups == [0, 1, 0], first
    for first, second in UNLIKE:
        assert prompt_groups([chat(first, "1"), chat(second, "1")]) == [0, 1], first
    system = {"role": "system", "content": "Be brief."}
    assert prompt_groups([chat("Q?", "1"), {"messages": [system, *chat("Q?", "2")["messages"]]}]) == [0, 0]
    assert prompt_groups([chat("Q?", "1", "R?", "2"), chat("Q?", "1", "S?", "2")]) == [0, 1]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_no_prompt_is_on_both_sides(share):
    """Of a file with repeated and with nearly equal prompts; as many are held out as may be."""
    pairs = [chat(f"Question {i % 20}{'?' * (i % 3)}", f"Answer {i}") for i in range(60)]
    pairs += [chat(text, f"Answer {i}") for i, both in enumerate(LIKE) for text in both]
    held = [pair.row for pair in hold_out([Conversation(pair, None) for pair in pairs], share, 1)[1]]
    sides = [divide(pairs, (1 - share, share / 2, share / 2), 1)[name] for name in ("train", "val", "test")]
    for parts in ([held, [pair for pair in pairs if pair not in held]], sides):
        asked = [{"".join(filter(str.isalnum, pair["messages"][0]["content"].lower())) for pair in part}
                 for part in parts]
        assert sum(map(len, asked)) == len(set.union(*asked)) and sum(map(len, parts)) == len(pairs)
        assert "".join(pair["messages"][0]["content"] for pair in parts[0]).count("Please") in (0, 2)
    assert round(share * 66) - 2 <= len(held) <= round(share * 66)


def test_prompts_that_are_all_alike(capsys):
    """None can be held out; to be divided, each is drawn by itself, and this is said."""
    alike = [chat("Why?", str(i)) for i in range(10)]
    pairs = [Conversation(pair, None) for pair in alike]
    assert hold_out(pairs, 0.2, 1) == (pairs, []) and hold_out([], 0.2, 1) == ([], [])
    assert [len(divide(alike, (0.8, 0.1, 0.1), 1)[name]) for name in ("train", "val", "test")] == [8, 1, 1]
    assert "warning: 10 conversations have prompts so much alike that each is" in capsys.readouterr().out


def test_what_the_test_asks_is_not_trained_on(capsys):
    """Nor nearly the same: in other case, or under another system text."""
    system = {"role": "system", "content": "Be brief."}
    same = [{"messages": [system, *chat("what is a bolt", "x")["messages"]]}, chat("What is a bolt?", "y")]
    others = [chat("What is a nut?", "x"), chat("What is a bolt?", "y", "And a nut?", "z")]
    assert drop_questions_of([chat("What is a bolt?", "x")], [*same, *others]) == others
    assert "2 pairs left out of training" in capsys.readouterr().out
    assert drop_questions_of([], same) == same
