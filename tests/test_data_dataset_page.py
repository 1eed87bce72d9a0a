"""The page about a dataset."""

import json
import re

from small import article, text

from nanoprune.data.dataset import Dataset
from nanoprune.io.jsonl import write_jsonl


def test_the_report(prepare):
    copied = text(2).split("\n\n")[0]
    articles = [article(i) for i in range(38)] + [article(38, text=f"{copied}\n\n{text(38)}"),
                                                  article(39, text="Short.")]
    articles = [a | {"text": a["text"] + "\n\nIn case of queries, please contact:\n\nPress office"}
                for a in articles]
    code, _, _, folder = prepare(articles, "--train-tokenizer", "400", "--report")
    page, meta = (folder / "report.md").read_text(), json.loads((folder / "meta.json").read_text())
    assert code == 0 and (folder / "lengths.png").stat().st_size > 5000
    for part in (f"| train | {meta['splits']['train']['documents']} | 2024-01-01 |", "**closed_book**: ",
                 "| shorter than 450 characters | 1 | T0000039EN", "**contact**: 80 paragraphs, 2 different "
                                                                   "ones",
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


def test_the_report_on_what_is_odd(prepare, tmp_path):
    """An empty question set, a source that is a list, and boilerplate of articles that are dropped."""
    (tmp_path / "none.jsonl").write_text("")
    write_jsonl(tmp_path / "own.jsonl",
                [{"question": "q", "choices": ["a", "b"], "answer": 0, "source": ["x"]}])
    company = "\n\nWith its four brands BMW, MINI and others the company is large."
    company += " It is very large." * 200
    articles = [article(i) for i in range(30)]
    articles += [article(i, id=f"T9{i:06d}EN", text=text(i) + company, site="bmw") for i in range(30)]
    code, _, err, folder = prepare(articles, "--train-tokenizer", "400", "--report", "--questions",
                                   tmp_path / "none.jsonl",
                                   tmp_path / "own.jsonl")
    assert code == 0, err
    left, of = re.search("taken out, and (.*) of (.*) characters",
                         (folder / "report.md").read_text()).groups()
    assert left == of  # the articles with the company's paragraph were the second of their text
