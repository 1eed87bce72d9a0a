"""instructions.py and qa/: data from elsewhere comes in whole, checked and balanced."""

import json
import re
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
from small import ROOT, make_data, run_main
from test_chat import CHATML, byte_tokenizer

from nanoprune.data.conversations import MAX_REPEATS, balance, encode_pairs, hold_out, read_pairs, with_task
from nanoprune.data.dataset import Dataset, read_questions
from nanoprune.data.rule_questions import written
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.io.jsonl import read_jsonl, write_jsonl


def chat(*turns: str, **more) -> dict:
    """user, assistant, user, ... in turn."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]} | more


def test_both_forms_come_in(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    write_jsonl(tmp_path / "p.jsonl", [
        chat("Q?", "A.", task="SPEC"), {"prompt": "Q2?", "response": "A2.", "task": "WIRING", "x": 1},
        {"messages": [system, *chat("a", "b", "c", "d")["messages"]]}])
    assert read_pairs(tmp_path / "p.jsonl") == [chat("Q?", "A.", task="SPEC"), chat("Q2?", "A2.", task="WIRING", x=1),
                                                {"messages": [system, *chat("a", "b", "c", "d")["messages"]]}]


@pytest.mark.parametrize("row, message", [
    ({"prompt": "?"}, "lacks messages, or prompt and response; it has prompt"),
    (chat("?"), "messages has no turn of the assistant"),
    (chat("?", " "), "messages has a turn of the assistant without text"),
    ({"messages": "?"}, "messages must be a system's turn perhaps"),
    ({"messages": []}, "messages must be"), ({"messages": chat("?", "!")["messages"][::-1]}, "messages must be"),
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
    [(tokens, learned)] = encode_pairs([pair], tokenizer, 0)
    whole = "Be brief.\n\nQuestion: Why?\nAnswer: So it is.\n\nQuestion: When?\nAnswer: Größer now."
    assert tokenizer.decode(tokens[:-1]) == whole
    said = [t for t, mask in zip(tokens, learned, strict=True) if mask]
    assert said[-1] == tokens[-1] == 0 and tokenizer.decode(said[:-1]) == " So it is. Größer now."


def test_a_task_that_stands_in_front_of_the_question(tmp_path):
    """It is the example's task, and is not put there twice."""
    write_jsonl(tmp_path / "p.jsonl", [
        chat("[SPEC] How tight?", "8 Nm."), chat("[WIRING] Which pin?", "2", task="SPEC"), chat("[1] What?", "x"),
        {"messages": [{"role": "system", "content": "[WIRING] Be brief."}, *chat("[SPEC] Why?", "So.")["messages"]]}])
    found = read_pairs(tmp_path / "p.jsonl")
    assert [pair.get("task") for pair in found] == ["SPEC", "SPEC", None, "SPEC"]
    asked = [next(t["content"] for t in with_task(pair)["messages"] if t["role"] == "user") for pair in found]
    assert asked == ["[SPEC] How tight?", "[SPEC] [WIRING] Which pin?", "[1] What?", "[SPEC] Why?"]


def test_balance_and_hold_out():
    pairs = [chat(f"{task}{i}", "a", task=task) for task, n in (("SPEC", 100), ("WIRING", 30), ("RARE", 2)) for i in range(n)]
    balanced = balance(pairs, 2)
    assert Counter(p["task"] for p in balanced) == {"SPEC": 100, "WIRING": 50, "RARE": 2 * MAX_REPEATS}
    assert {n for p, n in Counter(map(json.dumps, balanced)).items() if "WIRING" in p} == {1, 2}  # all as nearly as may be
    assert Counter(p["task"] for p in balance(pairs[:130], 1.2)) == {"SPEC": 100, "WIRING": 84}
    assert balance(pairs, 1000) == pairs and not balance([], 2)
    training, held = hold_out(pairs, 0.2, seed=42)
    assert (len(training), len(held)) == (106, 26) and hold_out(pairs, 0.2, seed=42)[1] == held != hold_out(pairs, 0.2, 1)[1]
    assert sorted(map(json.dumps, training + held)) == sorted(map(json.dumps, pairs))


def test_the_service_manual_recipe(tmp_path, monkeypatch, capsys):
    """Five tasks with prefixes, a fifth held out before any is repeated, no task over twice another, nothing cut."""
    sizes = dict(SPEC=60, PROCEDURE=40, EXPLANATION=30, WIRING=12, TROUBLESHOOTING=20)
    rows = [{"prompt": f"What about part {i} of {task.lower()}?", "response": f"Turn it {i} times.", "task": task}
            for task, n in sizes.items() for i in range(n)]
    rows.append({"prompt": "Long?", "response": "word " * 300, "task": "SPEC"})
    write_jsonl(tmp_path / "manual.jsonl", rows)
    write_jsonl(tmp_path / "a.jsonl", [
        {"id": f"a{i}", "title": f"T{i}", "date": f"2024-01-{i + 1:02}", "text": f"The text {i} is of part {i * i}. " * 25}
        for i in range(20)])
    options = ["--train-tokenizer", "400", "--no-generated", "--pairs", tmp_path / "manual.jsonl", "--task-prefix",
               "--hold-out", "0.2", "--seed", "42", "--balance", "2", "--max-pair-tokens", "200"]
    code, out, err = run_main(monkeypatch, capsys, "prepare.py", tmp_path / "a.jsonl", "--out", tmp_path / "d", *options)
    assert code == 0, err
    data, training = Dataset(tmp_path / "d"), read_jsonl(tmp_path / "d" / "pairs.jsonl")
    held = read_jsonl(tmp_path / "d" / "pairs_test.jsonl")
    counts = Counter(p["task"] for p in training)
    assert set(counts) == set(sizes) and max(counts.values()) <= 2 * min(counts.values())
    assert all(p["messages"][0]["content"].startswith(f"[{p['task']}] ") for p in training + held)
    texts = [{p["messages"][0]["content"] for p in part} for part in (training, held)]
    assert not texts[0] & texts[1] and len(texts[0] | texts[1]) == 162
    assert "1 dropped as too long" in out and len(data.split("pairs_test")) == len(held) == data.meta["pairs_held_out"] == 32
    assert data.meta["pairs_too_long"] == 1 and data.meta["tasks"] == counts


def test_the_questions_written_by_hand():
    """66 in six kinds; the place of the right answer tells nothing, and no answer stands in its question."""
    questions = read_questions(ROOT / "qa" / "bmw_news.jsonl")
    kinds, places = Counter(q["category"] for q in questions), Counter(q["answer"] for q in questions)
    assert len(questions) >= 60 and {"who", "where", "when", "how many", "which model"} <= set(kinds)
    assert min(kinds.values()) >= 5
    assert all(len(q["choices"]) == 4 for q in questions) and max(places.values()) - min(places.values()) <= 3
    assert not any(choice.lower() in q["question"].lower() for q in questions for choice in q["choices"])
    longest = [max(range(4), key=lambda i, q=q: len(q["choices"][i])) == q["answer"] for q in questions]
    assert sum(longest) / len(questions) < 0.4


def test_the_questions_written_by_hand_rest_on_their_articles(real):
    articles = {a["id"]: a for a in read_jsonl(real / "bmw" / "articles.jsonl")}
    for q in read_questions(ROOT / "qa" / "bmw_news.jsonl"):
        article = articles[q["source"]]
        text = f"{written(date.fromisoformat(article['date']))} {article['title']} {article['text']}".lower()
        text = re.sub(r"(?<=\d)[.,](?=\d{3})", "", text)
        words = re.findall(r"\w+", q["choices"][q["answer"]].replace(",", "").lower())
        found = [word for word in words if word in text]
        assert len(found) >= max(1, len(words) / 2), f"{q['question']}: {q['choices'][q['answer']]} is not in {q['source']}"


def conversations(path: Path, count: int) -> Path:
    """As many questions, of which the last has a long context and the one before it an answer as long."""
    rows = [{"prompt": f"Question {i}?", "response": f"Answer {i * 7}.", "task": "AB"[i % 3 == 0]} for i in range(count)]
    rows[-1]["prompt"], rows[-2]["response"] = "word " * 60, "word " * 60
    write_jsonl(path, rows)
    return path


def test_conversations_alone(tmp_path, monkeypatch, capsys):
    """Divided, of the chat form, whole or left out and counted, and named where the answer alone is too long."""
    pairs = conversations(tmp_path / "p.jsonl", 42)
    folder = byte_tokenizer(tmp_path / "t", CHATML)
    options = ["--out", tmp_path / "d", "--tokenizer", folder, "--chat", "--max-pair-tokens", "100", "--balance", "1.2"]
    code, out, err = run_main(monkeypatch, capsys, "prepare.py", "--pairs", pairs, *options)
    assert code == 0, err
    data = Dataset(tmp_path / "d")
    assert data.conversations and data.chat and data.meta["pairs_too_long"] == 2 and data.meta["pairs_answer_too_long"] == 1
    assert "the answers to “Question 40?” alone have" in out and "2 dropped as too long" in out
    asked = {name: [row["messages"][0]["content"] for row in read_jsonl(tmp_path / "d" / f"{name}.jsonl")]
             for name in ("pairs", "val", "test", "pairs_test")}
    assert asked["test"] == asked["pairs_test"] and len(set(asked["pairs"] + asked["val"] + asked["test"])) == 40
    assert not set(asked["pairs"]) & set(asked["val"] + asked["test"]) and not set(asked["val"]) & set(asked["test"])
    assert len(asked["pairs"]) > len(set(asked["pairs"])) and len(asked["test"]) == len(set(asked["test"]))
    tasks = data.meta["tasks"]
    assert max(tasks.values()) <= 1.2 * min(tasks.values())
    for name in ("pairs", "val", "test"):
        split, lines = data.split(name), read_jsonl(tmp_path / "d" / f"{name}.jsonl")
        for i, line in enumerate(lines):
            question, answer = (turn["content"] for turn in line["messages"])
            whole = data.tokenizer.decode(split[i].tolist(), skip_special_tokens=False)
            assert whole == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
            learned = [t for t in split.targets(i).tolist() if t != -100]
            assert data.tokenizer.decode(learned, skip_special_tokens=False) == f"{answer}<|im_end|>"
            assert split.bytes[i] == len(answer)
    code, _, err = run_main(monkeypatch, capsys, "prepare.py", "--out", tmp_path / "e", "--tokenizer", folder)
    assert code == 2 and "give ARTICLES" in err
    write_jsonl(pairs, read_jsonl(pairs)[:2])
    code, _, err = run_main(monkeypatch, capsys, "prepare.py", "--pairs", pairs, "--out", tmp_path / "e", "--tokenizer", folder)
    assert code == 2 and re.search("no conversation is left for (train|val|test): its share of 2 is 0", err)
