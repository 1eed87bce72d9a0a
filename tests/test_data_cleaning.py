"""Boilerplate, and text that only looks like it."""

import pytest

from nanoprune.data.cleaning import boilerplate_kind, paragraphs_of

BOILERPLATE = {
    "contact": ["In case of queries, please contact:", "Corporate Communications", "Tel: +49-89-382-00000",
                "E-Mail: somebody@example.com", "Media Contact", "If you have any questions, please contact:",
                "In the event of enquiries please contact:", "For media inquiries, please contact:"],
    "link": ["www.example.com/press", "Internet: www.example.com", "YouTube: https://youtube.com/example"],
    "company": ["With its four brands BMW, MINI, Rolls-Royce and BMW Motorrad, the company is a "
                "manufacturer."],
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
