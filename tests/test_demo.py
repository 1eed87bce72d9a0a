"""The demo's world means what the README says of it."""

from datetime import date

import pytest

from nanoprune.demo import newsroom
from nanoprune.demo.__main__ import build_world
from nanoprune.demo.newsroom import TOLD, Company, invent, releases, training_pairs

DAY = date(2024, 1, 1)


@pytest.fixture(scope="module")
def companies() -> list[Company]:
    return invent(4, companies=3, models=20, first_day=DAY)


def test_a_world_is_a_function_of_its_seed(companies, tmp_path):
    assert companies == invent(4, companies=3, models=20, first_day=DAY) != invent(5, 3, 20, DAY)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert build_world(4, tmp_path / "a") == build_world(4, tmp_path / "b")
    assert all(path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
               for path in (tmp_path / "a").iterdir())
    names = [name for company in companies for name in (company.name, *company.models)]
    assert len(set(names)) == len(names)


def test_questions_ask_what_training_did_not(companies):
    """At least 200, in wordings no training pair has, with distractors that are values of the same attribute
    of this newsroom's models; and every fact is asked for in training in another wording.
    """
    company = companies[-1]
    pairs, questions = training_pairs(company, wordings=[0]), newsroom.questions([company], wordings=[1, 2],
                                                                                 seed=4)
    asked = {pair["messages"][0]["content"]: pair["messages"][1]["content"] for pair in pairs}
    assert len(questions) >= 200 and not {q["question"] for q in questions} & set(asked)
    facts = {pair["source"]: pair["messages"][1]["content"] for pair in pairs}
    for q in questions:
        values = {facts[f"{car}/{q['category']}"] for car in company.models}
        assert len(set(q["choices"])) == 4 and set(q["choices"]) <= values
        assert q["choices"][q["answer"]] == facts[q["source"]]
        assert not any(choice in q["question"] for choice in q["choices"])
    counts = [sum(q["answer"] == i for q in questions) for i in range(4)]
    assert min(counts) > len(questions) / 8  # no position wins by itself
    own = [car for other in companies[:-1] for car in other.models]
    assert not any(car in q["question"] for car in own for q in questions)


def test_releases_tell_every_fact_again_and_again(companies):
    company = companies[0]
    found = releases(company, 240, 1, DAY)
    days = [article["date"] for article in found]
    assert days == sorted(days) and "2024-01-01" <= days[0] and days[-1] <= "2025-12-31"
    early = " ".join(p for article in found[:192] for p in article["paragraphs"])
    for car, told in company.models.items():
        for key, value in told.items():
            sentences = {form.format(m=car, v=value) for form in TOLD[key]}
            assert sum(early.count(sentence) for sentence in sentences) >= 10, f"{car}: {key}"
            assert len([s for s in sentences if s in early]) >= 3  # in several wordings
