"""Bad candidates, and what choices give away."""

import pytest
from small import article

from nanoprune.data.dataset import Dataset
from nanoprune.data.question_check import accuracies_by_choices, flaw_of
from nanoprune.data.rule_questions import facts_of, open_and_closed_book, training_pairs

GOOD = [
    "The new model of the plant in Elbach has an output of 250 kW and room for a family.",
    "The hall in Holm was finished on 5 May 2025 with the help of the town and its people.",
    "A. Berg has led the works team of the company in Elbach for 17 years and wants to stay.",
]
BAD = {
    "a figure beside it tells the answer": [
        "Both of the models have an electronically limited top speed of 200 km/h (124 mph).",
        "The motor of the new model from Elbach delivers 390 kW (530 hp) in its sporty mode.",
        "The margin stood at 6.9%, which is in the upper part of the range of 5-7% for the year.",
        "The new model of the plant has a range of 400 km, which is 249 miles on the open road."],
    "part of a range": [
        "The fair in Holm is open to all of the visitors from 5 – 8 February 2026 in the old hall.",
        "The batteries enable between one and 3.5 hours of riding time on the lake near Elbach."],
    "an open bound has several answers": [
        "The plant in Elbach has built cars of the brand for more than 50 years without a break.",
        "The share of the electric models grew to well over 40% in all of the markets of the year."],
    "no whole sentence": [
        "Drop in the production figures of the plant in Elbach to 70,000 vehicles per year, says Holm.",
        "Air temperature: 16 degrees, track temperature: 24 degrees, humidity: 54%, conditions dry.",
        "The model is fast.It needs 4.9 seconds for the sprint to the top of the hill in Elbach."],
    "part of a name": [
        "The team from Elbach won the race at Sebring 12 hours after the start of the long night."],
    "known without the document": [
        "The new model reaches 100 km/h on the short road to the plant in Elbach.",
        "The white shirt of the collection is made of 100% organic cotton by a firm in Holm.",
        "On a motorway the assistant of the new model takes over up to a speed of 130 km/h by itself."],
    "a span beside it tells the answer": [
        "The series that began in 1975 has been built in the plant in Elbach for 50 years by now."],
    "a comparison tells the answer": [
        "The brand sold 2,400 vehicles in Holm, compared with some 2,300 in the year that ended.",
        "The seat of the new motorcycle from Elbach has a friendly height of only 780 mm above ground."],
    "figures beside it add up to the answer": [
        "On the first day 22 teams of the world, of which 16 were men and 6 were women, had started."],
}


def document(i: int, sentence: str, title: str = "") -> dict:
    title = title or f"News of the {'abcdefghij'[i % 10]} plant"
    return {"id": str(i), "title": title, "date": "2025-05-09", "text": f"{title}\n\n{sentence}"}


def flaws(sentence: str, title: str = "") -> list[str | None]:
    facts = facts_of(document(0, sentence))
    return [flaw_of(fact.with_gap, fact.mention.kind, fact.mention.answer, title) for fact in facts]


def first_question(sentence: str, seed: int) -> dict:
    splits = {"train": [document(0, sentence)], "val": [], "test": []}
    return open_and_closed_book(splits, seed)[0]["closed_book"][0]


@pytest.mark.parametrize("sentence", GOOD)
def test_good_candidates(sentence):
    assert flaws(sentence) == [None]
    question = first_question(sentence, 0)
    assert len(set(question["choices"])) == 4 and "____" in question["question"]


@pytest.mark.parametrize("reason, sentence", [(reason, s) for reason, bad in BAD.items() for s in bad])
def test_bad_candidates_are_refused(reason, sentence):
    found = flaws(sentence)
    assert None not in found and (not found or reason in found)


@pytest.mark.parametrize("sentence", [
    "The decrease of the year was 17 percent in all of the markets that the company looks at.",
    "Segment earnings came to 1,250 million euros and grew for the second time in a row by then.",
    "By the end of the month 17,400 units of the first tranche were bought by the bank in Holm.",
])
def test_a_figure_without_its_subject_comes_with_the_sentence_before_or_not_at_all(sentence):
    alone = {"train": [document(0, sentence)], "val": [], "test": []}
    assert all("____" not in row["question"] for row in open_and_closed_book(alone, 0)[0]["closed_book"])
    before = "The Group of the plants in Elbach has published what it earned with vehicles in the year."
    both = {"train": [document(0, f"{before} {sentence}")], "val": [], "test": []}
    for row in open_and_closed_book(both, 0)[0]["closed_book"]:
        assert "____" not in row["question"] or before in row["question"]


@pytest.mark.parametrize("sentence", [
    "In the old hall of the plant in Elbach about 15 percent of the cars were painted in red.",
    "The new motor of the model from Holm has a torque of 250 Nm, which is enough for the hills.",
])
def test_wrong_choices_end_in_5_if_the_right_one_does(sentence):
    splits = {"train": [document(0, sentence)], "val": [], "test": []}
    for row in open_and_closed_book(splits, 0)[0]["closed_book"]:
        if "____" in row["question"]:
            assert all(float(choice.split()[0]) % 5 == 0 for choice in row["choices"])


@pytest.mark.parametrize("sentence, title", [
    ("The crew from Elbach secured the first place after 24 laps in the heavy rain.", "24h Holm: a win"),
    ("The plant in Elbach has built cars for the markets in 30 countries until today.", "Thirty and 30 more"),
    ("The works team from Elbach has won the series for 12 races without a defeat.", "Twelve wins in a row")])
def test_a_title_that_tells(sentence, title):
    assert None not in flaws(sentence, title)


@pytest.mark.parametrize("figure", [
    "18,000 Nm", "1,400 vehicles", "350 kW", "6.9 seconds", "57%", "250 employees"])
def test_wrong_choices_are_of_the_size_of_the_right_one_and_as_round(figure):
    sentence = f"The new hall of the plant in Elbach comes with around {figure} in the first year of work."
    found = [first_question(sentence, seed) for seed in range(8)]
    places = set()
    for question in found:
        numbers = [choice.split("%")[0].split(" ")[0].replace(",", "") for choice in question["choices"]]
        values = [float(number) for number in numbers]
        assert max(values) <= 4 * min(values) and len(set(map(len, question["choices"]))) == 1
        assert len({len(number) - len(number.rstrip("0")) for number in numbers}) == 1
        places.add(sorted(values).index(values[question["answer"]]))
        assert len({value % 100 == 50 for value in values}) == 1 or figure[0] == "6"
    assert len(places) > 1 or figure in ("350 kW", "250 employees")


def test_what_is_asked_twice(prepare):
    """Once where the answers agree, never where they differ."""
    first = [document(i, GOOD[0], title) for i, title in enumerate(("Old news", "New news"))]
    lead = "The plant in Elbach shows all of its new models to the people of the town."
    for row, body in zip(first, (lead, lead), strict=True):
        row["text"] = f"{row['title']}\n\n{body}"
    pairs = training_pairs(first, 0)
    asked = [pair["messages"][0]["content"] for pair in pairs]
    assert not any("What is the title" in question for question in asked) and len(asked) == 4
    same = [document(0, f"{GOOD[0]} {GOOD[0]}"), document(1, GOOD[1])]
    questions = open_and_closed_book({"train": same, "val": [], "test": []}, 0)[0]["closed_book"]
    assert len({question["question"] for question in questions}) == len(questions)
    twice = [document(0, f"{GOOD[0]}\n\n{GOOD[0].replace('250', '270')}")]
    questions = open_and_closed_book({"train": twice, "val": [], "test": []}, 0)[0]["closed_book"]
    assert not any("____" in question["question"] for question in questions)


def test_refused_candidates_and_trivial_strategies_are_reported(prepare):
    articles = [article(i) for i in range(60)]
    for row, town in zip(articles, ("Elbach", "Holm", "Alden", "Brixo"), strict=False):
        row["text"] += "\n\n" + BAD["part of a range"][1].replace("Elbach", town)
    code, out, _, folder = prepare(articles)
    meta = Dataset(folder).meta
    assert code == 0 and "candidates refused: " in out and "  part of a range\n" in out
    assert meta["questions_refused"]["part of a range"] == 4
    assert set(meta["choices_alone"]) == {"longest", "roundest", "nearest to the median"}
    for name, entry in meta["choices_alone"].items():
        assert f"the {name} choice is right in {entry['accuracy']:.1%} [" in out
        assert abs(entry["accuracy"] - 0.25) < 0.1


def test_choices_that_tell():
    """Found by the strategy that uses them, and ties are shared."""
    rows = [{"question": "?", "choices": ["18,000 Nm", "310 Nm", "545 Nm", "1,021 Nm"], "answer": 0,
             "source": str(i)} for i in range(30)]
    accuracies = accuracies_by_choices(rows)
    assert accuracies["longest"]["accuracy"] == accuracies["roundest"]["accuracy"] == 1.0
    assert accuracies["nearest to the median"]["accuracy"] == 0.0
    rows = [row | {"choices": ["10 kW", "20 kW", "30 kW", "40 kW"], "answer": i % 4}
            for i, row in enumerate(rows)]
    accuracies = accuracies_by_choices(rows)
    assert accuracies["longest"]["accuracy"] == accuracies["roundest"]["accuracy"] == 0.25
    assert accuracies["nearest to the median"]["accuracy"] == 0.25
