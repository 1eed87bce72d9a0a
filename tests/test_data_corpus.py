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
    try:
        splits = split_by_date(documents, (0.8, 0.1, 0.1))
    except ValueError as error:
        assert "too few for three splits" in str(error)
        return
    assert [d for found in splits.values() for d in found] == documents
    assert max(d.date for d in splits["train"]) < min(d.date for d in splits["val"])
    assert max(d.date for d in splits["val"]) < min(d.date for d in splits["test"])


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
    with pytest.raises(ValueError, match="1 documents are too few"):
        split_by_hash(documents[:1], (0.8, 0.1, 0.1))
