"""From articles to documents: several processes, versions, recurring paragraphs, and the split."""

import json
import os
import shutil
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import article, text

from nanoprune.data import corpus as corpus_module
from nanoprune.data.corpus import Document, over_processes, split_by_date, split_by_hash
from nanoprune.data.dataset import Dataset
from nanoprune.io.jsonl import read_jsonl

GOOD = [article(i) for i in range(40)]


def test_several_processes_make_the_same_bytes(prepare, tmp_path, monkeypatch):
    """And name the line that is wrong."""
    articles = [article(i, text=text(i) + "\n\nPress contact:\n\nA. Person") for i in range(40)]
    folder = prepare(articles)[3]
    shutil.move(folder, tmp_path / "first")
    made = []
    monkeypatch.setattr(corpus_module, "CHUNK", 1)
    pool = corpus_module.ProcessPoolExecutor
    monkeypatch.setattr(corpus_module, "ProcessPoolExecutor",
                        lambda **options: made.append(options) or pool(2, **options))
    folder = prepare(articles)[3]
    first = {p.relative_to(tmp_path / "first"): p.read_bytes() for p in (tmp_path / "first").rglob("*")
             if p.is_file()}
    assert made and first == {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code, _, err, _ = prepare([*articles[:30], article(30, date="soon"), *articles[31:]])
    assert code == 2 and "line 31: date 'soon' is not of the form" in err
    code, _, err, _ = prepare([*articles[:30], {"id": "x"}, *articles[31:]])
    assert code == 2 and "line 31: lacks title, date, text" in err


def test_a_worker_that_is_killed_is_told(prepare, monkeypatch):
    """Rather than waited for."""
    monkeypatch.setattr(corpus_module, "CHUNK", 1)
    monkeypatch.setattr(corpus_module, "clean_chunk", killed)
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


def test_the_newest_of_two_with_one_id_stays(prepare):
    """The later day, and of one day the later line."""
    changes = [article(0, date="2024-12-30", text="New words. " + text(0)),
               article(1, text="Also new. " + text(1))]
    folder = prepare([article(i) for i in range(40)] + changes)[3]
    found = {d["id"]: d["text"] for name in ("train", "val", "test") for d in Dataset(folder).documents(name)}
    assert "New words." in found["T0000000EN"] and "Also new." in found["T0000001EN"] and len(found) == 40


def test_paragraphs_that_recur_go(prepare):
    closing = "Example Motors is a maker of cars with nine plants in four countries and thousands of people."
    articles = [article(i, text=text(i) + "\n\n" + closing * (i % 4 == 0)) for i in range(40)]
    folder = prepare(articles)[3]
    assert json.loads((folder / "meta.json").read_text())["paragraphs_removed"] == {"recurring": 10}
    assert not any(closing in d["text"] for d in Dataset(folder).documents("train"))
    folder = prepare(articles, "--train-tokenizer", "400", "--keep-boilerplate")[3]
    assert any(closing in d["text"] for d in Dataset(folder).documents("train"))


def test_no_date_is_on_both_sides(prepare):
    """Several articles a day, and a day is never divided."""
    folder = prepare([article(i, date=f"2024-01-{i // 6 + 1:02d}") for i in range(100)])[3]
    spans = [json.loads((folder / "meta.json").read_text())["splits"][name]
             for name in ("train", "val", "test")]
    for before, after in zip(spans, spans[1:], strict=False):
        assert before["first"] <= before["last"] < after["first"]


@given(st.lists(st.integers(0, 40), min_size=3, max_size=120))
@settings(max_examples=100, deadline=None)
def test_splits_never_overlap(days):
    documents = [Document(i, str(i), "", f"{2000 + day}-01-01") for i, day in enumerate(sorted(days))]
    splits = split_by_date(documents, (0.8, 0.1, 0.1))
    assert [d for found in splits.values() for d in found] == documents
    train, val, test = ([d.date for d in found] for found in splits.values())
    assert max(train) < min(val + test, default="9")
    assert max(train + val) < min(test, default="9")


def test_a_split_by_hash_stays_when_articles_come(prepare):
    documents = [Document(i, article(i)["id"], "", "") for i in range(2000)]
    few = {d.id: name for name,
           found in split_by_hash(documents[::2], (0.8, 0.1, 0.1)).items() for d in found}
    many = split_by_hash(documents, (0.8, 0.1, 0.1))
    assert all(few.get(d.id, name) == name for name, found in many.items() for d in found)
    assert len(few) == 1000
    assert [len(many[name]) / 2000 for name in ("train", "val", "test")] == pytest.approx([0.8, 0.1, 0.1],
                                                                                          abs=0.03)
    folder = prepare([article(i) for i in range(60)], "--train-tokenizer", "400", "--split-by", "hash")[3]
    assert all(few.get(d["id"], name) == name for name in many for d in Dataset(folder).documents(name))
    code, _, err, _ = prepare([article(0)], "--train-tokenizer", "400", "--split-by", "hash")
    assert code == 2 and "1 documents of 1 days, less near-duplicates, are too few for three splits" in err


def guessed(count: int, **changes) -> list[dict]:
    return [article(i, dated_by="file", **changes) for i in range(count)]


def asked_days(folder) -> list[str]:
    pairs = [row["messages"][0]["content"] for row in read_jsonl(folder / "pairs.jsonl")]
    questions = [q["question"] for rows in Dataset(folder).questions().values() for q in rows]
    return [text for text in pairs + questions if "published?" in text or "come out?" in text]


def test_guessed_days_are_no_facts(prepare):
    """Neither asked for nor a place in time: all of them guessed, the split is by hash."""
    code, out, _, folder = prepare(guessed(60))
    meta = Dataset(folder).meta
    assert code == 0 and "60 documents have no known day" in out and "--split-by hash takes them" in out
    assert meta["options"]["split_by"] == "hash" and asked_days(folder) == []
    assert {entry[key] for entry in meta["splits"].values() for key in ("first", "last")} == {"unknown"}
    one_day = [article(i, date="2025-12-18") for i in range(60)]
    code, _, err, _ = prepare(one_day)
    assert code == 2 and "or take --split-by hash" in err
    assert prepare(one_day, "--train-tokenizer", "400", "--split-by", "hash")[0] == 0
    assert prepare(guessed(60, date="2025-12-18"))[0] == 0


def test_documents_with_guessed_days_among_others_are_for_training_alone(prepare):
    articles = [article(i, dated_by="file" if i % 4 == 3 else "name") for i in range(60)]
    code, out, _, folder = prepare(articles)
    data = Dataset(folder)
    held_out = {document["id"] for name in ("val", "test") for document in data.documents(name)}
    assert code == 0 and "15 documents have no known day" in out and "only training takes them" in out
    assert not held_out & {row["id"] for row in articles if row["dated_by"] == "file"} and len(held_out) > 8
    assert data.meta["splits"]["train"]["last"] < data.meta["splits"]["val"]["first"]
    assert asked_days(folder) and not any(f"number {i} " in text for text in asked_days(folder)
                                          for i in range(3, 60, 4))


def test_titles(prepare):
    """A rule is none, one that several documents share is not asked about, one in the text is there once."""
    articles = [article(i) for i in range(60)]
    for i in range(0, 15, 3):
        articles[i]["title"] = "=" * (40 + i)
    for i in range(1, 15, 3):
        articles[i]["title"] = "Weekly news"
    articles[2]["text"] = f"{articles[2]['title'].upper()}!\n\n{articles[2]['text']}"
    folder = prepare(articles)[3]
    data = Dataset(folder)
    documents = {document["id"]: document for document in data.documents("train")}
    assert documents[articles[0]["id"]]["title"] == ""
    assert documents[articles[2]["id"]]["text"].lower().count(articles[2]["title"].lower()) == 1
    asked = {row["source"] for row in [*read_jsonl(folder / "pairs.jsonl"), *data.questions()["closed_book"]]}
    assert not asked & {articles[i]["id"] for i in range(15) if i % 3 < 2} and articles[2]["id"] in asked
    assert "===" not in (folder / "pairs.jsonl").read_text()
