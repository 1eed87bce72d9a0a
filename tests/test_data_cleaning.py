"""Boilerplate, and text that only looks like it."""

import textwrap

import pytest

from nanoprune.data.cleaning import boilerplate_kind, paragraphs_of, remove_boilerplate

BOILERPLATE = {
    "contact": ["In case of queries, please contact:", "Corporate Communications", "Tel: +49-89-382-00000",
                "E-Mail: somebody@example.com", "Media Contact", "If you have any questions, please contact:",
                "In the event of enquiries please contact:", "For media inquiries, please contact:"],
    "link": ["www.example.com/press", "Internet: www.example.com", "YouTube: https://youtube.com/example"],
    "consumption": ["BMW iX3: Power consumption combined: 17.9-15.1 kWh/100 km; CO2 emissions combined: 0 "
                    "g/km; CO2 class: A."],
}
TEXT = [
    "CO2 emissions fell by a third, said the head of Corporate Communications, who has led the department "
    "since 2019.",
    "You can call the new hotline on working days.", "The website shows all models, and the company wants to "
                                                     "sell more there.",
    "With its four doors the car is larger than its predecessor.", "Contact with customers is what counts "
                                                                   "here.",
    "The car drives 500 km on one charge, its consumption is lower than before and that makes it the best in "
    "its class.",
]


@pytest.mark.parametrize("kind, paragraph", [(kind, p) for kind, found in BOILERPLATE.items() for p in found])
def test_boilerplate(kind, paragraph):
    assert boilerplate_kind(paragraph, in_contact=False) == kind


@pytest.mark.parametrize("paragraph", TEXT)
def test_text_that_only_mentions_such_words_stays(paragraph):
    assert boilerplate_kind(paragraph, in_contact=False) is None
    assert boilerplate_kind(paragraph, in_contact=True) is None


def test_paragraphs():
    """One a line, its white space of whatever kind one blank."""
    assert paragraphs_of(" a  b\n\n\tc\u00a0d\u2009e\u200bf \r\n \n g") == ["a b", "c d ef", "g"]


def test_paragraphs_of_a_newsroom():
    """Its patterns cover whole paragraphs; without them, as for another newsroom, they are text."""
    shared = "Elbach Motors builds cars in nine plants."
    paragraphs = ["News of the day.", shared, f"He said: {shared}"]
    assert remove_boilerplate(paragraphs, ["(?i)elbach motors builds.*"]) == (
        [paragraphs[0], paragraphs[2]], [("company", shared)])
    assert remove_boilerplate(paragraphs) == (paragraphs, [])


SENTENCES = [
    "The plant in Elbach has run in two shifts since the spring of this year, and its manager, who came from "
    "Holm, expects a third one soon, so that four-door cars leave the line on six days of the week. " * 3,
    "A second paragraph that is also wrapped at a narrow column, as wire services do, goes on here and here."]
PARAGRAPHS = [" ".join(sentence.split()) for sentence in SENTENCES]


@pytest.mark.parametrize("width", [60, 72, 100])
def test_hard_wrapped_lines_are_joined(width):
    wrapped = "\n\n".join(textwrap.fill(paragraph, width) for paragraph in PARAGRAPHS)
    assert paragraphs_of(wrapped) == PARAGRAPHS
    assert paragraphs_of(wrapped.replace("\n", "\r\n")) == PARAGRAPHS
    items = "- One item that is as long as the others in this list.\n- Two.\n- Three, which is short."
    assert paragraphs_of(f"{wrapped}\n\n{items}") == PARAGRAPHS + items.split("\n")


@pytest.mark.parametrize("text", [
    "1. Anna Berg 25\n2. Boris Klee 20\n3. Carla Voss 16\n4. David Roth 12\n5. Elena Marsh 9\n6. Leo Falk 7",
    "\n".join(["A line of a feed that keeps a paragraph on each of its lines, however long it is. " * 2] * 6),
    "Munich.\nThe first line is long enough to be the longest of them all.\nShort.\nAlso short.\nThe end."])
def test_lines_that_are_not_wrapped_stay(text):
    assert paragraphs_of(text) == [line.strip() for line in text.split("\n")]


@pytest.mark.parametrize("text, without", [
    ("a range of 805¹ km", "a range of 805 km"), ("emissions² of 0 g/km.³", "emissions of 0 g/km."),
    ("as the report[12] says", "as the report says"), ("1,510¹² units", "1,510 units"),
    ("800 m², 10³ W, 1,499 cm³ and x²", "800 m², 10³ W, 1,499 cm³ and x²"), ("9 min⁻¹, CO₂", "9 min⁻¹, CO₂"),
    ("a[3] of the array[i]", "a of the array[i]")])
def test_marks_of_footnotes_go_and_exponents_stay(text, without):
    assert paragraphs_of(text) == [without]


def test_rules_are_no_paragraphs():
    assert paragraphs_of("=====\nNews\n* * *\n\n-----\n§ 1") == ["News", "§ 1"]
