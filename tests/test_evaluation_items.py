"""evaluation/items.py: which instructions and questions are asked, and how long ones are cut."""

import json
import shutil
from collections import Counter

from nanoprune.data.chat_format import question_prompt
from nanoprune.data.dataset import Dataset
from nanoprune.data.tokenizer import first_token
from nanoprune.evaluation.items import Items, spread
from nanoprune.evaluation.multiple_choice import encode_questions
from nanoprune.evaluation.perplexity import Protocol
from nanoprune.io.jsonl import write_jsonl


def test_as_many_spread_over_tasks_are_asked_as_may_be():
    tasks = ["SPEC"] * 50 + ["WIRING"] * 3 + ["PROCEDURE"] * 20
    assert Counter(tasks[i] for i in spread(tasks, 12)) == {"SPEC": 5, "WIRING": 3, "PROCEDURE": 4}
    assert sorted(spread(tasks, 100)) == list(range(len(tasks))) and not spread(tasks, 0)


def test_bytes_are_of_what_is_predicted(world, tmp_path):
    """The first token is not, unless a prefix stands before it; it may be part of a character."""
    texts = ["車 is new", "U\u0308ber uns", "Munich opens.", ""]
    write_jsonl(tmp_path / "g.jsonl", [{"text": text} for text in texts])
    data = Dataset(world.data)

    def sizes(protocol: Protocol) -> list[int]:
        items = Items(data, world.model, protocol, 128)
        items.add_general(str(tmp_path / "g.jsonl"))
        return [text.about["bytes"] for text in items.general]

    assert sizes(Protocol(context=128, prefix=0)) == [len(text.encode()) for text in texts[:3]]
    assert sizes(Protocol(context=128)) == [len(text.removeprefix(first_token(
        data.tokenizer, data.tokenizer.encode(text).ids, text)).encode()) for text in texts[:3]]
    write_jsonl(tmp_path / "g.jsonl", [{"text": "Munich opens a plant for cars."}])
    whole, rest = sizes(Protocol("stream", 8, prefix=0)), sizes(Protocol("stream", 8))
    assert len(whole) == len(rest) > 1 and all(a > b for a, b in zip(whole, rest, strict=True))


def test_long_questions_are_counted_and_left_out(world, tmp_path, evaluate):
    data = shutil.copytree(world.data, tmp_path / "data")
    questions = [json.loads(line) for line in (data / "qa" / "places.jsonl").read_text().splitlines()]
    questions[3]["context"] = "word " * 300
    (data / "qa" / "places.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    code, out, _ = evaluate(world.model, "--data", data, "--out", tmp_path / "out")
    assert code == 0 and "1 of places are longer than 128 tokens and left out" in out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["models"][0]["qa"]["places"]["n"] == 7


def test_long_prompts_are_cut_at_the_left_if_told_to(world, tmp_path, evaluate):
    data = shutil.copytree(world.data, tmp_path / "data")
    questions = [json.loads(line) for line in (data / "qa" / "places.jsonl").read_text().splitlines()]
    questions[3]["context"] = "word " * 300
    (data / "qa" / "places.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    code, out, _ = evaluate(world.model, "--data", data, "--out", tmp_path / "out", "--cut")
    assert code == 0 and "1 of places were cut at the left" in out
    tokenizer = Dataset(data).tokenizer
    (encoded,), _ = encode_questions(tokenizer, questions[3:4], 128, cut=True)
    for (tokens, n), choice in zip(encoded.choices, questions[3]["choices"], strict=True):
        whole = tokenizer.encode(question_prompt(questions[3]["question"], "word " * 300) + " " + choice).ids
        assert whole[-len(tokens):] == tokens and len(tokens) <= 128
        assert tokenizer.decode(tokens[n:]) == " " + choice
