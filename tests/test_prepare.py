"""prepare.py and questions.py: what goes and what stays, the split, the tokens, the questions."""

import json
import os
import re
import shutil
import signal
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import ROOT, article, run_main, text

from nanoprune.data import corpus as corpus_module
from nanoprune.data.cleaning import paragraphs_of
from nanoprune.data.corpus import Document, over_processes, split_by_date, split_by_hash
from nanoprune.data.dataset import Dataset
from nanoprune.data.duplicates import near_duplicates, signature
from nanoprune.data.language import words_of
from nanoprune.data.rule_questions import open_and_closed_book, written
from nanoprune.data.tokenizer import first_token
from nanoprune.io.jsonl import read_jsonl, write_jsonl


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """prepare.py on a list of articles: (exit code, stdout, stderr, the dataset folder)."""
    def run(articles: list[dict], *options) -> tuple[int, str, str, Path]:
        write_jsonl(tmp_path / "articles.jsonl", articles)
        options = options or ("--train-tokenizer", "400")
        source, folder = tmp_path / "articles.jsonl", tmp_path / "data"
        return *run_main(monkeypatch, capsys, "prepare.py", source, "--out", folder, *options), folder
    return run


def test_a_dataset_folder(prepare):
    code, out, _, folder = prepare([article(i) for i in range(40)])
    assert code == 0 and "40 articles, 40 kept" in out and f"wrote {folder}" in out
    assert {p.name for p in folder.iterdir()} == {
        "meta.json", "train.jsonl", "val.jsonl", "test.jsonl", "train.safetensors", "val.safetensors", "test.safetensors",
        "pairs.jsonl", "pairs.safetensors", "qa", "tokenizer.json", "tokenizer_config.json"}
    data = Dataset(folder)
    sizes = {name: len(data.documents(name)) for name in ("train", "val", "test")}
    assert sizes == {"train": 32, "val": 4, "test": 4}
    end = data.tokenizer.token_to_id("<|endoftext|>")
    for name in sizes:
        for i, document in enumerate(data.documents(name)):
            tokens = data.split(name)[i].tolist()
            assert tokens[-1] == end == data.meta["end_token"] and data.tokenizer.decode(tokens[:-1]) == document["text"]
            first = data.tokenizer.decode(tokens[:1])
            assert data.split(name).bytes[i] == len(document["text"].encode()) - len(first.encode())
        assert data.meta["splits"][name]["tokens"] == len(data.split(name).tokens)
    pairs, tasks = data.split("pairs"), set()
    for i, pair in enumerate(read_jsonl(folder / "pairs.jsonl")):
        question, answer = (m["content"] for m in pair["messages"])
        learned = [t for t in pairs.targets(i).tolist() if t != -100]
        assert learned[-1] == end and data.tokenizer.decode(learned[:-1]) == f" {answer}"
        assert data.tokenizer.decode(pairs[i].tolist()[: -len(learned)]) == f"Question: {question}\nAnswer:"
        tasks.add(pair["task"])
    assert tasks == {"date", "figure", "day"}


def test_the_same_bytes_again(prepare, tmp_path):
    articles = [article(i) for i in range(40)]
    folder = prepare(articles)[3]
    shutil.move(folder, tmp_path / "first")
    folder = prepare(articles)[3]
    first = {p.relative_to(tmp_path / "first"): p.read_bytes() for p in (tmp_path / "first").rglob("*") if p.is_file()}
    assert first == {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_several_processes_make_the_same_bytes(prepare, tmp_path, monkeypatch):
    """And name the line that is wrong."""
    articles = [article(i, text=text(i) + "\n\nPress contact:\n\nA. Person") for i in range(40)]
    folder = prepare(articles)[3]
    shutil.move(folder, tmp_path / "first")
    made = []
    monkeypatch.setattr(corpus_module, "BLOCK", 1)
    pool = corpus_module.ProcessPoolExecutor
    monkeypatch.setattr(corpus_module, "ProcessPoolExecutor", lambda **options: made.append(options) or pool(2, **options))
    folder = prepare(articles)[3]
    first = {p.relative_to(tmp_path / "first"): p.read_bytes() for p in (tmp_path / "first").rglob("*") if p.is_file()}
    assert made and first == {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code, _, err, _ = prepare([*articles[:30], article(30, date="soon"), *articles[31:]])
    assert code == 2 and "line 31: date 'soon' is not of the form" in err
    code, _, err, _ = prepare([*articles[:30], {"id": "x"}, *articles[31:]])
    assert code == 2 and "line 31: lacks title, date, text" in err


def test_a_worker_that_is_killed_is_told(prepare, monkeypatch):
    """Rather than waited for."""
    monkeypatch.setattr(corpus_module, "BLOCK", 1)
    monkeypatch.setattr(corpus_module, "clean_block", killed)
    code, _, err, folder = prepare([article(i) for i in range(40)])
    assert code == 2 and "was killed, perhaps for want of memory" in err and not folder.exists()


def killed(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_articles_that_change_while_they_are_read(prepare, tmp_path, monkeypatch):
    original = over_processes
    def cut_short(function, tasks):
        (tmp_path / "articles.jsonl").write_text("")
        return original(function, tasks)
    monkeypatch.setattr(corpus_module, "over_processes", cut_short)
    code, _, err, folder = prepare([article(i) for i in range(40)])
    assert code == 2 and "changed while it was read" in err and not folder.exists()


def test_half_a_character_is_no_text(prepare, tmp_path):
    """JSON lets the half of a surrogate pair pass; no file can hold it."""
    for name, row in (("p.jsonl", {"prompt": "q\ud800", "response": "x"}), ("q.jsonl", {"question": "\ud800"})):
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
    assert data.tokenizer.decode(data.split("train")[0].tolist()[:-1]) == data.documents("train")[0]["text"]


def test_the_report_on_what_is_odd(prepare, tmp_path):
    """An empty question set, a source that is a list, and boilerplate of articles that are dropped."""
    (tmp_path / "none.jsonl").write_text("")
    write_jsonl(tmp_path / "own.jsonl", [{"question": "q", "choices": ["a", "b"], "answer": 0, "source": ["x"]}])
    company = "\n\nWith its four brands BMW, MINI and others the company is large. " + "It is very large. " * 200
    articles = [article(i) for i in range(30)] + [article(i, id=f"T9{i:06d}EN", text=text(i) + company) for i in range(30)]
    code, _, err, folder = prepare(articles, "--train-tokenizer", "400", "--report", "--questions", tmp_path / "none.jsonl",
                                   tmp_path / "own.jsonl")
    assert code == 0, err
    left, of = re.search("taken out, and (.*) of (.*) characters", (folder / "report.md").read_text()).groups()
    assert left == of  # the articles with the company's paragraph were the second of their text


def test_pairs_and_questions_of_some_documents(prepare):
    folder = prepare([article(i) for i in range(60)], "--train-tokenizer", "400", "--generated-documents", "5")[3]
    data = Dataset(folder)
    ids = [d["id"] for d in data.documents("train")]
    used = {ids[i * len(ids) // 5] for i in range(5)}  # evenly
    assert {pair["source"] for pair in read_jsonl(folder / "pairs.jsonl")} == used
    assert {q["source"] for q in data.questions()["closed_book"]} <= used
    code, _, err, _ = prepare(GOOD, "--train-tokenizer", "400", "--generated-documents", "0")
    assert code == 2 and "must be at least 1" in err


@pytest.mark.parametrize("text", ["Über uns", "U\u0308ber uns", "車 is new", "<|endoftext|> is text", " spaced"])
def test_the_first_tokens_part_of_the_text(prepare, text):
    """Also where it is part of a character, a text that normalisation changes, or one that spells a special token."""
    tokenizer = Dataset(prepare(GOOD)[3]).tokenizer
    encoded = tokenizer.encode(text)
    assert first_token(tokenizer, encoded.ids, text) == text[: encoded.offsets[0][1]]


def test_what_is_dropped_and_why(prepare):
    good = [article(i) for i in range(40)]
    german = "Das ist der Text für die Presse und er ist nicht auf Englisch, die Werke sind mit dem Zug zu erreichen. " * 8
    bad = [
        article(50, id="T0000050DE"), article(51, id="T0000051EN_US"), article(52, text=german), article(53, text="Short."),
        article(0, id="T0000054EN", date=article(3)["date"]), article(0, date="2023-12-30"),
        article(57, text="宝马集团在慕尼黑发布了新款车型。" * 50), article(58, text="Новый завод БМВ открыт в Мюнхене. " * 30),
        article(55, text=text(1).replace("steel", "iron", 1), date=article(2)["date"]),
        article(56, text=text(39) + " And that is all.", date="2024-01-02"),
    ]
    code, out, _, folder = prepare(good + bad)
    assert code == 0
    assert json.loads((folder / "meta.json").read_text())["dropped"] == {
        "other language (id)": 1, "other market (id)": 1, "other language (text)": 3, "shorter than 450 characters": 1,
        "same text": 1, "same id, older": 1, "near-duplicate": 1, "near-duplicate across the split": 1}
    assert "T0000051EN_US" in out and "T0000053EN" in out
    kept = {d["id"] for name in ("train", "val", "test") for d in Dataset(folder).documents(name)}
    assert kept == {a["id"] for a in good}  # the copy of the last test article left the training side


def test_no_date_is_on_both_sides(prepare):
    """Several articles a day, and a day is never divided."""
    folder = prepare([article(i, date=f"2024-01-{i // 6 + 1:02d}") for i in range(100)])[3]
    spans = [json.loads((folder / "meta.json").read_text())["splits"][name] for name in ("train", "val", "test")]
    for before, after in zip(spans, spans[1:], strict=False):
        assert before["first"] <= before["last"] < after["first"]


@given(st.lists(st.integers(0, 40), min_size=3, max_size=120))
@settings(max_examples=100, deadline=None)
def test_splits_never_overlap(days):
    documents = [Document(i, str(i), "", f"{2000 + day}-01-01", 0, 0, 0) for i, day in enumerate(sorted(days))]
    try:
        splits = split_by_date(documents, (0.8, 0.1, 0.1))
    except ValueError as error:
        assert "too few for three splits" in str(error)
        return
    assert [d for found in splits.values() for d in found] == documents
    assert max(d.date for d in splits["train"]) < min(d.date for d in splits["val"])
    assert max(d.date for d in splits["val"]) < min(d.date for d in splits["test"])


def test_a_split_by_hash_stays_when_articles_come(prepare):
    documents = [Document(i, article(i)["id"], "", "", 0, 0, 0) for i in range(2000)]
    few = {d.id: name for name, found in split_by_hash(documents[::2], (0.8, 0.1, 0.1)).items() for d in found}
    many = split_by_hash(documents, (0.8, 0.1, 0.1))
    assert all(few.get(d.id, name) == name for name, found in many.items() for d in found) and len(few) == 1000
    assert [len(many[name]) / 2000 for name in ("train", "val", "test")] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    folder = prepare([article(i) for i in range(60)], "--train-tokenizer", "400", "--split-by", "hash")[3]
    assert all(few.get(d["id"], name) == name for name in many for d in Dataset(folder).documents(name))
    with pytest.raises(ValueError, match="1 documents are too few"):
        split_by_hash(documents[:1], (0.8, 0.1, 0.1))


def test_the_newest_of_two_with_one_id_stays(prepare):
    """The later day, and of one day the later line."""
    changes = [article(0, date="2024-12-30", text="New words. " + text(0)), article(1, text="Also new. " + text(1))]
    folder = prepare([article(i) for i in range(40)] + changes)[3]
    found = {d["id"]: d["text"] for name in ("train", "val", "test") for d in Dataset(folder).documents(name)}
    assert "New words." in found["T0000000EN"] and "Also new." in found["T0000001EN"] and len(found) == 40


def test_the_report(prepare):
    copied = text(2).split("\n\n")[0]
    articles = [article(i) for i in range(38)] + [article(38, text=f"{copied}\n\n{text(38)}"), article(39, text="Short.")]
    articles = [a | {"text": a["text"] + "\n\nIn case of queries, please contact:\n\nPress office"} for a in articles]
    code, _, _, folder = prepare(articles, "--train-tokenizer", "400", "--report")
    page, meta = (folder / "report.md").read_text(), json.loads((folder / "meta.json").read_text())
    assert code == 0 and (folder / "lengths.png").stat().st_size > 5000
    for part in (f"| train | {meta['splits']['train']['documents']} | 2024-01-01 |", "**closed_book**: ",
                 "| shorter than 450 characters | 1 | T0000039EN", "**contact**: 80 paragraphs, 2 different ones",
                 "- 40 x In case of queries, please contact:"):
        assert part in page, part
    assert re.search(r"- \d\d\.\d% of T0000038EN", page)  # what it shares with a training document
    assert prepare(articles, "--train-tokenizer", "400", "--report")[0] == 0  # the page is its own file
    assert (folder / "report.md").read_text() == page
    left, of = re.search("They were taken out, and (.*) of (.*) characters are left", page).groups()
    assert prepare(articles, "--train-tokenizer", "400", "--report", "--keep-boilerplate")[0] == 0
    kept = (folder / "report.md").read_text()
    assert "**contact**: 80 paragraphs" in kept
    assert "They stand in the documents (--keep-boilerplate); without" in kept
    assert int(left.replace(",", "")) < int(of.replace(",", ""))
    assert any("please contact:" in d["text"] for d in Dataset(folder).documents("train"))


def test_paragraphs_that_recur_go(prepare):
    closing = "Example Motors is a maker of cars with nine plants in four countries and many thousands of people."
    articles = [article(i, text=text(i) + "\n\n" + closing * (i % 4 == 0)) for i in range(40)]
    folder = prepare(articles)[3]
    assert json.loads((folder / "meta.json").read_text())["paragraphs_removed"] == {"recurring": 10}
    assert not any(closing in d["text"] for d in Dataset(folder).documents("train"))
    folder = prepare(articles, "--train-tokenizer", "400", "--keep-boilerplate")[3]
    assert any(closing in d["text"] for d in Dataset(folder).documents("train"))


def test_many_versions_of_one_text_leave_one_at_linear_cost(prepare):
    versions = [text(3) + f" Version {i} of {i * i}." for i in range(200)]
    texts = versions + [text(i) for i in range(60, 100)]
    found = near_duplicates(np.stack([signature(words_of(t)) for t in texts]), texts.__getitem__)
    assert 199 <= len(found) <= 16 * 2 * 200 and {j for _, j in found} == set(range(1, 200))
    articles = [article(i, text=t, date="2024-01-01") for i, t in enumerate(versions)]
    folder = prepare(articles + [article(i) for i in range(200, 260)])[3]
    assert Dataset(folder).meta["dropped"] == {"near-duplicate": 199}


def test_questions_are_of_one_kind_and_not_given_away(prepare):
    """Four different choices of the same unit, none of the wrong ones in the source, the answer not in the question."""
    folder = prepare([article(i) for i in range(60)])[3]
    data = Dataset(folder)
    documents = {d["id"]: d for name in ("train", "val", "test") for d in data.documents(name)}
    sets = data.questions()
    assert set(sets) == {"closed_book", "open_book"} and len(sets["closed_book"]) > 50 and len(sets["open_book"]) > 5
    for name, found in sets.items():
        for q in found:
            source, answer = documents[q["source"]], q["choices"][q["answer"]]
            assert len(set(q["choices"])) == 4 and answer not in q["question"]
            units = {" ".join(c.split()[1:]) for c in q["choices"]}
            assert len(units) == 1 or q["category"] == "day", q
            if "come out" in q["question"]:
                assert answer == written(date.fromisoformat(source["date"]))
            else:
                assert answer in source["text"]
            assert not any(c in source["text"] for i, c in enumerate(q["choices"]) if i != q["answer"])
            assert (q.get("context", "") in source["text"]) and (("context" in q) == (name == "open_book"))
    positions = [q["answer"] for q in sets["closed_book"]]
    assert max(map(positions.count, range(4))) - min(map(positions.count, range(4))) <= 1
    train = {d["id"] for d in data.documents("train")}
    assert {q["source"] for q in sets["closed_book"]} <= train and not {q["source"] for q in sets["open_book"]} & train


def test_another_spelling_of_the_truth_is_no_wrong_choice():
    def document(i: int, figure: str) -> dict:
        body = f"On the long road of the test in the north the car of this year drove for {figure} and then came to a stop."
        return {"id": str(i), "title": "News", "date": f"2024-01-{i + 1:02d}", "text": f"News\n\n{body}"}
    documents = [document(i, figure) for i, figure in enumerate(["1,500 km", "1500 km", "1,400 km", "1,300 km", "1,200 km"])]
    found = open_and_closed_book({"train": documents, "val": [], "test": []}, seed=0)["closed_book"]
    figures = [q for q in found if q["category"] == "figure"]
    assert len(figures) == 5
    for q in figures:
        assert len({choice.replace(",", "") for choice in q["choices"]}) == 4


def test_own_pairs_and_questions_come_in(prepare, tmp_path):
    pair = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}], "task": "x"}
    write_jsonl(tmp_path / "pairs.jsonl", [pair])
    write_jsonl(tmp_path / "mine.jsonl", [{"question": "?", "choices": ["a", "b"], "answer": 1}])
    folder = prepare([article(i) for i in range(40)], "--train-tokenizer", "400", "--no-generated", "--pairs",
                     tmp_path / "pairs.jsonl", "--questions", tmp_path / "mine.jsonl")[3]
    assert read_jsonl(folder / "pairs.jsonl") == [pair] and list(Dataset(folder).questions()) == ["mine"]


def test_the_tokenizer_of_a_model(prepare, world):
    folder = prepare([article(i) for i in range(40)], "--tokenizer", str(world.model))[3]
    Dataset(folder).check_model("base", world.model, 1000)


GOOD = [article(i) for i in range(40)]


@pytest.mark.parametrize("lines, message", [
    (["", json.dumps(GOOD[0])], "line 1: empty line"),
    ([json.dumps(GOOD[0]), json.dumps(GOOD[1])[:50]], "line 2: not valid JSON"),
    ([json.dumps({k: v for k, v in GOOD[0].items() if k != "text"})], "line 1: lacks text"),
    ([json.dumps(GOOD[0] | {"date": "5 May 2024"})], "line 1: date '5 May 2024' is not of the form"),
    ([json.dumps(GOOD[0] | {"date": "20240105"})], "line 1: date '20240105' is not of the form"),
    ([json.dumps(GOOD[0] | {"text": None})], "line 1: id, title and text must be texts"),
    ([], "holds no articles"),
    ([json.dumps(a) for a in GOOD[:2]], "too few for three splits"),
    ([json.dumps(a | {"text": "Short."}) for a in GOOD], "nothing is left of 40 articles"),
])
def test_bad_articles_leave_the_old_dataset(prepare, tmp_path, monkeypatch, capsys, lines, message):
    folder = prepare(GOOD)[3]
    before = (folder / "meta.json").read_bytes()
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
    (["--train-tokenizer", "400", "--pairs", "{tmp}/p.jsonl"], "p.jsonl, line 1: messages has no turn of the assistant"),
    (["--train-tokenizer", "400", "--since", "2030-01-01"], "has no articles of that period"),
    (["--train-tokenizer", "400", "--since", "yesterday"], "'yesterday' is no date"),
    (["--train-tokenizer", "400", "--split", "1,1,1"], "three shares above 0"),
    (["--train-tokenizer", "400", "--min-chars", "-1"], "--min-chars must be 0 or more"),
    (["--train-tokenizer", "400", "--questions", "{tmp}/open_book.jsonl"], "two question sets would be named open_book"),
    (["--train-tokenizer", "400", "--out", "/dev/null/x"], "choose another place to write to"),
    (["--train-tokenizer", "400", "--replay", "{tmp}/general.jsonl"], "general.jsonl, line 2: this text stands in"),
    (["--train-tokenizer", "400", "--replay", "{tmp}/q.jsonl"], "q.jsonl, line 1: lacks text"),
    (["--train-tokenizer", "400", "--chat"], "--chat needs --tokenizer, that of a model with a chat form"),
    (["--train-tokenizer", "400", "--max-pair-tokens", "0"], "--max-pair-tokens must be at least 1, given 0"),
    (["--train-tokenizer", "400", "--balance", "0"], "--balance must be at least 1, given 0.0"),
    (["--train-tokenizer", "400", "--balance", "nan"], "--balance must be at least 1, given nan"),
    (["--train-tokenizer", "400", "--conversations", "--hold-out", "0.1"], "--hold-out (conversations are divided by --split)"),
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
    code, out, err, folder = prepare([article(i) for i in range(40)], "--train-tokenizer", "400", "--conversations")
    assert code == 0, err
    sources = {name: {row["source"] for row in read_jsonl(folder / f"{name}.jsonl")} for name in ("pairs", "val", "test")}
    assert len(sources["pairs"]) == 32 and len(sources["test"]) == 4 and not sources["pairs"] & sources["test"]
    first = read_jsonl(folder / "pairs.jsonl")[0]["messages"][0]["content"]
    assert first.endswith("published?") and "The plant in town number" in first
    write_jsonl(tmp_path / "t.jsonl", [known])
    options = ["--pairs", tmp_path / "p.jsonl", "--test-pairs", tmp_path / "t.jsonl", "--no-generated"]
    code, out, err, folder = prepare([article(i) for i in range(40)], "--train-tokenizer", "400", *options)
    assert code == 0 and "1 pairs left out of training: they stand among the test's" in out, err
    assert [row["messages"][0]["content"] for row in read_jsonl(folder / "pairs.jsonl")] == ["Else?"]
    [held] = read_jsonl(folder / "pairs_test.jsonl")
    assert (held["messages"][0]["content"], held["category"], held["difficulty"]) == ("Who knows?", "people", "hard")


def test_general_text_comes_in(prepare, tmp_path):
    write_jsonl(tmp_path / "g.jsonl", [{"text": f"Plain words, number {i}."} for i in range(5)])
    code, out, err, folder = prepare(GOOD, "--train-tokenizer", "400", "--replay", tmp_path / "g.jsonl")
    assert code == 0 and "5 general documents to mix in" in out, err
    data, split = Dataset(folder), Dataset(folder).split("replay")
    assert data.tokenizer.decode(split[3].tolist()[:-1]) == "Plain words, number 3." and split[3][-1] == data.meta["end_token"]
    assert prepare(GOOD)[0] == 0 and not (folder / "replay.safetensors").exists()


@pytest.mark.parametrize("name", ["notes.txt", "articles.jsonl", "qa/mine.jsonl"])
def test_a_users_own_files_are_not_swept_away(prepare, name):
    folder = prepare(GOOD)[3]
    (folder / name).write_text("{}")
    code, _, err, _ = prepare(GOOD)
    assert code == 2 and f"holds what prepare.py did not write ({name})" in err and (folder / name).read_text() == "{}"


def test_folders_beside_the_dataset_are_left_alone(prepare, tmp_path):
    for name in ("data.old", "data.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    folder = prepare(GOOD)[3]
    assert prepare(GOOD)[0] == 0 and folder.parent == tmp_path
    assert all((folder.with_name(f"{folder.name}.{end}") / "mine.txt").is_file() for end in ("old", "tmp"))


def test_the_real_releases(real, prepare, tmp_path, monkeypatch, capsys):
    """What is known of them: other markets, stubs, duplicates and boilerplate go, the lead paragraphs stay."""
    code, out, err = run_main(monkeypatch, capsys, "prepare.py", real / "bmw" / "articles.jsonl", "--out", tmp_path / "data",
                              "--tokenizer", real / "checkpoints" / "press-qwen3-4m")
    assert code == 0, err
    data = Dataset(tmp_path / "data")
    assert "512 articles" in out and sum(data.meta["dropped"].values()) + sum(
        data.meta["splits"][name]["documents"] for name in ("train", "val", "test")) == 512
    assert data.meta["paragraphs_removed"]["contact"] > 300 and data.meta["dropped"]["other market (id)"] > 30
    tasks = data.meta["tasks"]
    assert set(tasks) == {"date", "summary", "title", "figure", "day"} and min(tasks["title"], tasks["date"]) > 200
    articles = {a["id"]: a for a in read_jsonl(real / "bmw" / "articles.jsonl")}
    leads = removed = 0
    for name in ("train", "val", "test"):
        for document in data.documents(name):
            lead = paragraphs_of(articles[document["id"]]["text"])[0]
            leads, removed = leads + 1, removed + (lead not in document["text"])
            assert not re.search("(?m)^.{0,60}please contact:$", document["text"])
    assert removed <= 0.01 * leads, f"{removed} of {leads} lead paragraphs are gone"
