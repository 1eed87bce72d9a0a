"""Questions by rule: of one kind, not given away, and in linear time."""

import time

import pytest
from small import article

from nanoprune.data.cleaning import paragraphs_of, remove_boilerplate
from nanoprune.data.dataset import Dataset
from nanoprune.data.rule_questions import long_date, open_and_closed_book, training_pairs


def test_questions_are_of_one_kind_and_not_given_away(prepare):
    """Four different choices of the same unit, none of the wrong ones in the source, the answer not in the
    question.
    """
    folder = prepare([article(i) for i in range(60)])[3]
    data = Dataset(folder)
    documents = {d["id"]: d for name in ("train", "val", "test") for d in data.documents(name)}
    sets = data.questions()
    assert set(sets) == {"closed_book", "open_book"} and len(sets["closed_book"]) > 50
    assert len(sets["open_book"]) > 5
    for name, found in sets.items():
        for q in found:
            source, answer = documents[q["source"]], q["choices"][q["answer"]]
            assert len(set(q["choices"])) == 4 and answer not in q["question"]
            units = {" ".join(c.split()[1:]) for c in q["choices"]}
            assert len(units) == 1 or q["category"] == "day", q
            if "come out" in q["question"]:
                assert answer == long_date(source["date"])
            else:
                assert answer in source["text"]
            assert not any(c in source["text"] for i, c in enumerate(q["choices"]) if i != q["answer"])
            assert (q.get("context", "") in source["text"]) and (("context" in q) == (name == "open_book"))
    positions = [q["answer"] for q in sets["closed_book"]]
    assert max(map(positions.count, range(4))) - min(map(positions.count, range(4))) <= 1
    train = {d["id"] for d in data.documents("train")}
    assert {q["source"] for q in sets["closed_book"]} <= train
    assert not {q["source"] for q in sets["open_book"]} & train


def test_another_spelling_of_the_truth_is_no_wrong_choice():
    def document(i: int, figure: str) -> dict:
        body = (f"On the long road of the test in the north the car of this year drove for {figure} and then "
                "came to a stop.")
        return {"id": str(i), "title": f"News {i}", "date": f"2024-01-{i + 1:02d}", "text": f"News\n\n{body}"}
    documents = [document(i, figure) for i,
                 figure in enumerate(["1,600 km", "1600 km", "1,400 km", "1,300 km", "1,200 km"])]
    found = open_and_closed_book({"train": documents, "val": [], "test": []}, seed=0)[0]["closed_book"]
    figures = [q for q in found if q["category"] == "figure"]
    assert len(figures) == 5
    for q in figures:
        assert len({choice.replace(",", "") for choice in q["choices"]}) == 4


def test_articles_of_the_last_century():
    """Their day is asked for, if their title does not tell it; days of history in a text are not."""
    text = "Title\n\nThe plant in the north was opened on 14 June 1975 by many people of the town."
    documents = [{"id": str(i), "title": f"The {i} Series comes", "date": f"1999-05-0{i}", "text": text}
                 for i in range(2, 8)]
    found = open_and_closed_book({"train": documents, "val": [], "test": []}, seed=0)[0]["closed_book"]
    answers = {q["source"]: q["choices"][q["answer"]] for q in found}
    assert answers == {d["id"]: long_date(d["date"]) for d in documents}
    assert all(choice.endswith(" 1999") for q in found for choice in q["choices"])
    assert training_pairs(documents, seed=0)


@pytest.mark.parametrize("unit",
                         ["x@", "info@press.com,", "has 5 kW ", "+49 ", "km combined 5 ",
                          "Press contact: a "])
def test_cleaning_and_questions_take_linear_time(unit):
    def seconds(size: int) -> float:
        document = {"id": "a", "title": "T", "date": "2024-01-01", "text": "T\n\n" + (unit * size)[: size]}
        began = time.process_time()
        remove_boilerplate(paragraphs_of(document["text"]))
        training_pairs([document], 0)
        return time.process_time() - began

    assert seconds(64_000) < 80 * max(min(seconds(4000) for _ in range(3)), 1e-3)
