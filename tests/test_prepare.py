"""prepare.py: articles and conversations to a dataset folder, and what it refuses."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small import CHATML, ROOT, article, byte_tokenizer, run_main, text

from nanoprune.data.cleaning import paragraphs_of
from nanoprune.data.dataset import Dataset
from nanoprune.io.folders import LIST
from nanoprune.io.jsonl import read_jsonl, write_jsonl


def test_a_dataset_folder(prepare):
    code, out, _, folder = prepare([article(i) for i in range(40)])
    assert code == 0 and "40 articles, 40 kept" in out and f"wrote {folder}" in out
    assert {p.name for p in folder.iterdir()} == {
        "meta.json", "train.jsonl", "val.jsonl", "test.jsonl", "train.safetensors", "val.safetensors",
        "test.safetensors",
        "pairs.jsonl", "pairs.safetensors", "qa", "tokenizer.json", "tokenizer_config.json",
        LIST}
    data = Dataset(folder)
    sizes = {name: len(data.documents(name)) for name in ("train", "val", "test")}
    assert sizes == {"train": 32, "val": 4, "test": 4}
    end = data.tokenizer.token_to_id("<|endoftext|>")
    for name in sizes:
        for i, document in enumerate(data.documents(name)):
            tokens = data.split(name)[i].tokens.tolist()
            assert tokens[-1] == end == data.meta["end_token"]
            assert data.tokenizer.decode(tokens[:-1]) == document["text"]
            first = data.tokenizer.decode(tokens[:1])
            assert data.split(name).bytes[i] == len(document["text"].encode()) - len(first.encode())
        assert data.meta["splits"][name]["tokens"] == len(data.split(name).tokens)
    pairs, tasks = data.split("pairs"), set()
    for i, pair in enumerate(read_jsonl(folder / "pairs.jsonl")):
        question, answer = (m["content"] for m in pair["messages"])
        learned = [t for t in pairs[i].targets.tolist() if t != -100]
        assert learned[-1] == end and data.tokenizer.decode(learned[:-1]) == f" {answer}"
        prompt = pairs[i].tokens.tolist()[: -len(learned)]
        assert data.tokenizer.decode(prompt) == f"Question: {question}\nAnswer:"
        tasks.add(pair["task"])
    assert tasks == {"date", "figure", "day"}


def test_half_a_character_is_no_text(prepare, tmp_path):
    """JSON lets the half of a surrogate pair pass; no file can hold it."""
    for name, row in (("p.jsonl", {"prompt": "q\ud800", "response": "x"}),
                      ("q.jsonl", {"question": "\ud800"})):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    for options, place in ((("--pairs", tmp_path / "p.jsonl"), "p.jsonl, line 1"),
                           (("--questions", tmp_path / "q.jsonl"), "q.jsonl, line 1")):
        code, _, err, _ = prepare(GOOD, "--train-tokenizer", "400", *options)
        assert code == 2 and place in err and "surrogates not allowed" in err
    (tmp_path / "p.jsonl").write_text('{"prompt": "a pair: \\ud83d\\ude97", "response": "yes"}\n')
    assert prepare(GOOD, "--train-tokenizer", "400", "--pairs", tmp_path / "p.jsonl")[0] == 0


def test_a_vocabulary_with_holes(prepare, tmp_path, monkeypatch, capsys):
    folder = prepare(GOOD)[3]
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 70_000
    (tmp_path / "holes").mkdir()
    (tmp_path / "holes" / "tokenizer.json").write_text(json.dumps(content))
    code, _, err, folder = prepare(GOOD, "--tokenizer", tmp_path / "holes")
    assert code == 0, err
    data = Dataset(folder)
    assert data.meta["vocab_size"] == 70_001 and data.split("train").tokens.dtype == np.uint32
    tokens = data.split("train")[0].tokens.tolist()
    assert data.tokenizer.decode(tokens[:-1]) == data.documents("train")[0]["text"]


def test_a_model_without_a_tokenizer_is_named(prepare, world, tmp_path):
    """The folder that the user gave, before the articles are read."""
    without = tmp_path / "without"
    shutil.copytree(world.model, without)
    (without / "tokenizer.json").unlink()
    code, out, err, _ = prepare(GOOD, "--tokenizer", without)
    assert code == 2 and f"no tokenizer.json in {without}; give a folder" in err and "articles" not in out


def test_pairs_and_questions_of_some_documents(prepare):
    folder = prepare([article(i) for i in range(60)], "--train-tokenizer", "400", "--generated-documents",
                     "5")[3]
    data = Dataset(folder)
    ids = [d["id"] for d in data.documents("train")]
    used = {ids[round(i * (len(ids) - 1) / 4)] for i in range(5)}  # evenly, from the first to the last
    assert {pair["source"] for pair in read_jsonl(folder / "pairs.jsonl")} == used
    assert {q["source"] for q in data.questions()["closed_book"]} <= used
    code, _, err, _ = prepare(GOOD, "--train-tokenizer", "400", "--generated-documents", "0")
    assert code == 2 and "must be at least 1" in err


def test_what_is_dropped_and_why(prepare):
    good = [article(i) for i in range(40)]
    german = "Das ist der Text für die Presse und er ist nicht auf Englisch, das Werk ist mit dem Zug. " * 8
    bad = [
        article(50, id="T0000050DE", site="bmw"), article(51, id="T0000051EN_US", site="bmw"),
        article(52, text=german),
        article(53, text="Short."),
        article(0, id="T0000054EN", date=article(3)["date"]), article(0, date="2023-12-30"),
        article(57, text="宝马集团在慕尼黑发布了新款车型。" * 50),
        article(58, text="Новый завод БМВ открыт в Мюнхене. " * 30),
        article(55, text=text(1).replace("steel", "iron", 1), date=article(2)["date"]),
        article(56, text=text(39) + " And that is all.", date="2024-01-02"),
    ]
    code, out, _, folder = prepare(good + bad)
    assert code == 0
    assert json.loads((folder / "meta.json").read_text())["dropped"] == {
        "other language (id)": 1, "other market (id)": 1, "other language (text)": 3, "shorter than 450 "
                                                                                      "characters": 1,
        "same text": 1, "same id, older": 1, "near-duplicate": 1, "near-duplicate across the split": 1}
    assert "T0000051EN_US" in out and "T0000053EN" in out
    kept = {d["id"] for name in ("train", "val", "test") for d in Dataset(folder).documents(name)}
    assert kept == {a["id"] for a in good}  # the copy of the last test article left the training side


def test_own_pairs_and_questions_come_in(prepare, tmp_path):
    pair = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}],
            "task": "x"}
    write_jsonl(tmp_path / "pairs.jsonl", [pair])
    write_jsonl(tmp_path / "mine.jsonl", [{"question": "?", "choices": ["a", "b"], "answer": 1}])
    folder = prepare([article(i) for i in range(40)], "--train-tokenizer", "400", "--no-generated", "--pairs",
                     tmp_path / "pairs.jsonl", "--questions", tmp_path / "mine.jsonl")[3]
    assert read_jsonl(folder / "pairs.jsonl") == [pair] and list(Dataset(folder).questions()) == ["mine"]


GOOD = [article(i) for i in range(40)]


BAD = [
    (["", json.dumps(GOOD[0])], "line 1: empty line"),
    ([json.dumps(GOOD[0]), json.dumps(GOOD[1])[:50]], "line 2: not valid JSON"),
    ([json.dumps({k: v for k, v in GOOD[0].items() if k != "text"})], "line 1: lacks text"),
    ([json.dumps(GOOD[0] | {"date": "5 May 2024"})], "line 1: date '5 May 2024' is not of the form"),
    ([json.dumps(GOOD[0] | {"date": "20240105"})], "line 1: date '20240105' is not of the form"),
    ([json.dumps(GOOD[0] | {"text": "a " * 5_000_001})], "line 1: text has 10,000,002 characters, at most"),
    ([json.dumps(GOOD[0] | {"text": None})], "line 1: text must be text, given None"),
    ([], "holds no articles"),
    ([json.dumps(a) for a in GOOD[:2]], "too few for three splits"),
    ([json.dumps(a | {"text": "Short."}) for a in GOOD], "nothing is left of 40 articles"),
]


def test_bad_articles_leave_the_old_dataset(prepare, tmp_path, monkeypatch, capsys):
    folder = prepare(GOOD)[3]
    before = (folder / "meta.json").read_bytes()
    for lines, message in BAD:
        (tmp_path / "bad.jsonl").write_text("".join(line + "\n" for line in lines))
        options = ["--out", folder, "--train-tokenizer", "400"]
        code, _, err = run_main(monkeypatch, capsys, "prepare.py", tmp_path / "bad.jsonl", *options)
        assert code == 2 and message in err and "Traceback" not in err
        assert (folder / "meta.json").read_bytes() == before and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("options, message", [
    (["--tokenizer", "{tmp}/nowhere"], "no folder"), (["--tokenizer", "{tmp}"], "holds no config.json"),
    ([], "give --tokenizer"),
    (["--train-tokenizer", "5"], "--train-tokenizer 5 is too small"),
    (["--train-tokenizer", "400", "--questions", "{tmp}/q.jsonl"], "q.jsonl, line 1"),
    (["--train-tokenizer", "400", "--pairs", "{tmp}/p.jsonl"], "p.jsonl, line 1: messages has no turn of the "
                                                               "assistant"),
    (["--train-tokenizer", "400", "--since", "2030-01-01"], "nothing is left of 40 articles (40 outside the "
                                                            "period); see --since"),
    (["--train-tokenizer", "400", "--since", "yesterday"], "'yesterday' is no date"),
    (["--train-tokenizer", "400", "--split", "1,1,1"], "three shares above 0"),
    (["--train-tokenizer", "400", "--min-chars", "-1"], "--min-chars must be at least 0, given -1"),
    (["--train-tokenizer", "400", "--questions", "{tmp}/open_book.jsonl"], "two question sets would be named "
                                                                           "open_book"),
    (["--train-tokenizer", "400", "--out", "/dev/null/x"], "choose another place to write to"),
    (["--train-tokenizer", "400", "--replay", "{tmp}/general.jsonl"], "general.jsonl, line 2: this text "
                                                                      "stands in"),
    (["--train-tokenizer", "400", "--replay", "{tmp}/q.jsonl"], "q.jsonl, line 1: lacks text"),
    (["--train-tokenizer", "400", "--chat"], "--chat needs --tokenizer, that of a model with a chat form"),
    (["--train-tokenizer", "400", "--max-pair-tokens", "0"], "--max-pair-tokens must be at least 1, given 0"),
    (["--train-tokenizer", "400", "--balance", "0"], "--balance must be at least 1, given 0.0"),
    (["--train-tokenizer", "400", "--balance", "nan"], "--balance must be at least 1, given nan"),
    (["--train-tokenizer", "400", "--conversations", "--hold-out", "0.1"], "--hold-out (conversations are "
                                                                           "divided by --split)"),
    (["--train-tokenizer", "400", "--conversations", "--no-generated"], "--no-generated (rules make the"),
    (["--train-tokenizer", "400", "--questions", "{tmp}/test.jsonl"], "sets would be named test; rename"),
    (["--train-tokenizer", "400", "--test-pairs", "{tmp}/p.jsonl"], "p.jsonl, line 1: messages has no turn"),
])
def test_bad_options(prepare, tmp_path, options, message):
    (tmp_path / "q.jsonl").write_text('{"question": "?"}\n')
    (tmp_path / "p.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}]}\n')
    measured = (ROOT / "qa" / "general.jsonl").read_text().splitlines()[0]
    (tmp_path / "general.jsonl").write_text(f'{{"text": "Other words."}}\n{measured}\n')
    code, _, err, folder = prepare(GOOD, *([o.format(tmp=tmp_path) for o in options] or ["--seed", "1"]))
    assert code == 2 and message in err and "Traceback" not in err and not folder.exists()


def test_pairs_with_their_articles_and_pairs_that_are_asked(prepare, tmp_path):
    """By rule from each side's own articles; what is asked in the test is never trained on."""
    known = {"prompt": "Who knows?", "response": "Nobody.", "category": "people", "difficulty": "hard"}
    write_jsonl(tmp_path / "p.jsonl", [known, {"prompt": "Else?", "response": "Yes."}])
    code, out, err, folder = prepare([article(i) for i in range(40)], "--train-tokenizer", "400",
                                     "--conversations")
    assert code == 0, err
    sources = {name: {row["source"] for row in read_jsonl(folder / f"{name}.jsonl")}
               for name in ("pairs", "val", "test")}
    assert len(sources["pairs"]) == 32 and len(sources["test"]) == 4
    assert not sources["pairs"] & sources["test"]
    first = read_jsonl(folder / "pairs.jsonl")[0]["messages"][0]["content"]
    assert first.endswith("published?") and "The plant in town number" in first
    write_jsonl(tmp_path / "t.jsonl", [known])
    options = ["--pairs", tmp_path / "p.jsonl", "--test-pairs", tmp_path / "t.jsonl", "--no-generated"]
    code, out, err, folder = prepare([article(i) for i in range(40)], "--train-tokenizer", "400", *options)
    assert code == 0 and "1 pairs left out of training: they stand among the test's" in out, err
    assert [row["messages"][0]["content"] for row in read_jsonl(folder / "pairs.jsonl")] == ["Else?"]
    [held] = read_jsonl(folder / "pairs_test.jsonl")
    assert (held["messages"][0]["content"], held["category"], held["difficulty"]) == ("Who knows?", "people",
                                                                                      "hard")


def test_general_text_comes_in(prepare, tmp_path):
    write_jsonl(tmp_path / "g.jsonl", [{"text": f"Plain words, number {i}."} for i in range(5)])
    code, out, err, folder = prepare(GOOD, "--train-tokenizer", "400", "--replay", tmp_path / "g.jsonl")
    assert code == 0 and "5 general documents to mix in" in out, err
    data, split = Dataset(folder), Dataset(folder).split("replay")
    assert data.tokenizer.decode(split[3].tokens.tolist()[:-1]) == "Plain words, number 3."
    assert split[3].tokens[-1] == data.meta["end_token"]
    assert prepare(GOOD)[0] == 0 and not (folder / "replay.safetensors").exists()


def test_a_users_own_files_are_not_swept_away(prepare):
    folder = prepare(GOOD)[3]
    for name in ("notes.txt", "articles.jsonl", "qa/mine.jsonl"):
        (folder / name).write_text("{}")
        code, _, err, _ = prepare(GOOD)
        assert code == 2 and f"({name})" in err and "not written there as a dataset" in err
        assert (folder / name).read_text() == "{}"
        (folder / name).unlink()


@pytest.mark.parametrize("ours", [False, True])
def test_inputs_are_not_swept_away(prepare, tmp_path, monkeypatch, capsys, ours):
    """A folder of a user's own files, and a dataset that the command reads."""
    source = prepare(GOOD)[3] if ours else tmp_path / "X"
    if not ours:
        source.mkdir()
        write_jsonl(source / "train.jsonl", GOOD)
        write_jsonl(source / "pairs.jsonl", [{"prompt": "q", "response": "r"}])
    (tmp_path / "link").symlink_to(source)
    before = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    for read in ([source / "train.jsonl", "--pairs", source / "pairs.jsonl", "--train-tokenizer", "400"],
                 [tmp_path / "articles.jsonl", "--tokenizer", source]):
        for out in (source, tmp_path / "link"):
            code, _, err = run_main(monkeypatch, capsys, "prepare.py", *read, "--out", out)
            message = "lies in it; write to another folder"
            assert code == 2 and message in err and "Traceback" not in err, err
    assert before == {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}


def test_folders_beside_the_dataset_are_left_alone(prepare, tmp_path):
    for name in ("data.old", "data.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    folder = prepare(GOOD)[3]
    assert prepare(GOOD)[0] == 0 and folder.parent == tmp_path
    assert all((folder.with_name(f"{folder.name}.{end}") / "mine.txt").is_file() for end in ("old", "tmp"))


def test_the_real_releases(real, prepare, tmp_path, monkeypatch, capsys):
    """What is known of them: other markets, stubs, duplicates and boilerplate go, the lead paragraphs stay.
    """
    code, out, err = run_main(monkeypatch, capsys, "prepare.py", real / "bmw" / "articles.jsonl", "--out",
                              tmp_path / "data",
                              "--tokenizer", real / "checkpoints" / "press-qwen3-4m")
    assert code == 0, err
    data = Dataset(tmp_path / "data")
    assert "512 articles" in out and sum(data.meta["dropped"].values()) + sum(
        data.meta["splits"][name]["documents"] for name in ("train", "val", "test")) == 512
    assert data.meta["paragraphs_removed"]["contact"] > 300 and data.meta["dropped"]["other market (id)"] > 30
    tasks = data.meta["tasks"]
    assert set(tasks) == {"date", "summary", "title", "figure", "day"}
    assert min(tasks["title"], tasks["date"]) > 200
    articles = {a["id"]: a for a in read_jsonl(real / "bmw" / "articles.jsonl")}
    leads = removed = 0
    for name in ("train", "val", "test"):
        for document in data.documents(name):
            lead = paragraphs_of(articles[document["id"]]["text"])[0]
            leads, removed = leads + 1, removed + (lead not in document["text"])
            assert not re.search("(?m)^.{0,60}please contact:$", document["text"])
    assert removed <= 0.01 * leads, f"{removed} of {leads} lead paragraphs are gone"


def test_the_service_manual_recipe(tmp_path, monkeypatch, capsys):
    """Five tasks with prefixes, a fifth held out before any is repeated, no task over twice another, nothing
    cut.
    """
    sizes = dict(SPEC=60, PROCEDURE=40, EXPLANATION=30, WIRING=12, TROUBLESHOOTING=20)
    rows = [{"prompt": f"What about part {i} of {task.lower()}?", "response": f"Turn it {i} times.",
             "task": task}
            for task, n in sizes.items() for i in range(n)]
    rows.append({"prompt": "Long?", "response": "word " * 300, "task": "SPEC"})
    write_jsonl(tmp_path / "manual.jsonl", rows)
    write_jsonl(tmp_path / "a.jsonl", [
        {"id": f"a{i}", "title": f"T{i}", "date": f"2024-01-{i + 1:02}", "text": f"The text {i} is of part "
                                                                                 f"{i * i}. " * 25}
        for i in range(20)])
    options = ["--train-tokenizer", "400", "--no-generated", "--pairs", tmp_path / "manual.jsonl",
               "--task-prefix",
               "--hold-out", "0.2", "--seed", "42", "--balance", "2", "--max-pair-tokens", "200"]
    code, out, err = run_main(monkeypatch, capsys, "prepare.py", tmp_path / "a.jsonl", "--out",
                              tmp_path / "d", *options)
    assert code == 0, err
    data, training = Dataset(tmp_path / "d"), read_jsonl(tmp_path / "d" / "pairs.jsonl")
    held = read_jsonl(tmp_path / "d" / "pairs_test.jsonl")
    counts = Counter(p["task"] for p in training)
    assert set(counts) == set(sizes) and max(counts.values()) <= 2 * min(counts.values())
    assert all(p["messages"][0]["content"].startswith(f"[{p['task']}] ") for p in training + held)
    texts = [{p["messages"][0]["content"] for p in part} for part in (training, held)]
    assert not texts[0] & texts[1] and len(texts[0] | texts[1]) == 162
    assert "1 dropped as too long" in out
    assert len(data.split("pairs_test")) == len(held) == data.meta["pairs_held_out"] == 32
    assert data.meta["pairs_too_long"] == 1 and data.meta["tasks"] == counts


def conversations(path: Path, count: int) -> Path:
    """As many questions, of which the last has a long context and the one before it an answer as long."""
    rows = [{"prompt": f"Question {i}?", "response": f"Answer {i * 7}.", "task": "AB"[i % 3 == 0]}
            for i in range(count)]
    rows[-1]["prompt"], rows[-2]["response"] = "word " * 60, "word " * 60
    write_jsonl(path, rows)
    return path


def test_conversations_alone(tmp_path, monkeypatch, capsys):
    """Divided, of the chat form, whole or left out and counted, and named where the answer alone is too long.
    """
    pairs = conversations(tmp_path / "p.jsonl", 42)
    folder = byte_tokenizer(tmp_path / "t", CHATML)
    options = ["--out", tmp_path / "d", "--tokenizer", folder, "--chat", "--max-pair-tokens", "100",
               "--balance", "1.2"]
    code, out, err = run_main(monkeypatch, capsys, "prepare.py", "--pairs", pairs, *options)
    assert code == 0, err
    data = Dataset(tmp_path / "d")
    assert data.conversations and data.chat and data.meta["pairs_too_long"] == 2
    assert data.meta["pairs_answer_too_long"] == 1
    assert "the answers to “Question 40?” alone have" in out and "2 dropped as too long" in out
    asked = {name: [row["messages"][0]["content"] for row in read_jsonl(tmp_path / "d" / f"{name}.jsonl")]
             for name in ("pairs", "val", "test", "pairs_test")}
    assert asked["test"] == asked["pairs_test"]
    assert len(set(asked["pairs"] + asked["val"] + asked["test"])) == 40
    assert not set(asked["pairs"]) & set(asked["val"] + asked["test"])
    assert not set(asked["val"]) & set(asked["test"])
    assert len(asked["pairs"]) > len(set(asked["pairs"])) and len(asked["test"]) == len(set(asked["test"]))
    tasks = data.meta["tasks"]
    assert max(tasks.values()) <= 1.2 * min(tasks.values())
    for name in ("pairs", "val", "test"):
        split, lines = data.split(name), read_jsonl(tmp_path / "d" / f"{name}.jsonl")
        for i, line in enumerate(lines):
            question, answer = (turn["content"] for turn in line["messages"])
            whole = data.tokenizer.decode(split[i].tokens.tolist(), skip_special_tokens=False)
            turns = f"user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
            assert whole == f"<|im_start|>{turns}"
            learned = [t for t in split[i].targets.tolist() if t != -100]
            assert data.tokenizer.decode(learned, skip_special_tokens=False) == f"{answer}<|im_end|>"
            assert split.bytes[i] == len(answer)
    code, _, err = run_main(monkeypatch, capsys, "prepare.py", "--out", tmp_path / "e", "--tokenizer", folder)
    assert code == 2 and "give ARTICLES" in err
    code, _, err = run_main(monkeypatch, capsys, "prepare.py", "--pairs", pairs, "--split-by", "hash",
                            "--min-chars", "9", *options)
    assert code == 2 and "--split-by, --min-chars: not for a dataset of conversations alone" in err
    write_jsonl(pairs, read_jsonl(pairs)[:2])
    code, _, err = run_main(monkeypatch, capsys, "prepare.py", "--pairs", pairs, "--out", tmp_path / "e",
                            "--tokenizer", folder)
    assert code == 2 and re.search("no conversation is left for (train|val|test): its share of 2 is 0", err)
