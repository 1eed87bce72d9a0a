"""clean.py: what is boilerplate, which language it is, what is the same text again."""

import time

import numpy as np
import pytest
from small import text

from nanoprune.data.cleaning import boilerplate_kind, paragraphs_of, remove_boilerplate
from nanoprune.data.duplicates import near_duplicates, signature
from nanoprune.data.language import language_of, words_of
from nanoprune.data.rule_questions import training_pairs

BOILERPLATE = {
    "contact": ["In case of queries, please contact:", "Corporate Communications", "Tel: +49-89-382-00000",
                "E-Mail: somebody@example.com", "Media Contact", "If you have any questions, please contact:",
                "In the event of enquiries please contact:", "For media inquiries, please contact:"],
    "link": ["www.example.com/press", "Internet: www.example.com", "YouTube: https://youtube.com/example"],
    "company": ["With its four brands BMW, MINI, Rolls-Royce and BMW Motorrad, the company is a manufacturer."],
    "consumption": ["BMW iX3: Power consumption combined: 17.9-15.1 kWh/100 km; CO2 emissions combined: 0 g/km; CO2 class: A."],
}
TEXT = [
    "CO2 emissions fell by a third, said the head of Corporate Communications, who has led the department since 2019.",
    "You can call the new hotline on working days.", "The website shows all models, and the company wants to sell more there.",
    "With its four doors the car is larger than its predecessor.", "Contact with customers is what counts here.",
    "The car drives 500 km on one charge, its consumption is lower than before and that makes it the best in its class.",
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


def test_languages():
    spanish = "El coche es de la marca y se fabrica en el sur con un motor para los clientes"
    for found, language in ((text(3), "EN"), (spanish, "ES"), ("BMW iX3 M60", None), ("新款车型" * 9, "ZH")):
        assert language_of(found, words_of(found)) == language


def shingles(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def test_near_duplicates_are_those_of_the_plain_comparison():
    """MinHash against all pairs; a similarity just at the threshold may be missed by chance, none may be made up."""
    texts = []
    for i in range(60):
        words = text(i).lower().replace(".", "").replace(",", "").split()
        texts.append(" ".join(words))
        if i % 3 == 0:
            for k in range(0, len(words), 150 if i % 2 else 30):
                words[k] = f"other{k}"
            texts.append(" ".join(words))
    found = set(near_duplicates(np.stack([signature(words_of(t)) for t in texts]), texts.__getitem__))
    sets = [shingles(t) for t in texts]
    similar = {(i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i in range(len(texts)) for j in range(i)}
    assert found <= {(j, i) for (i, j), s in similar.items() if s >= 0.8}
    assert {(j, i) for (i, j), s in similar.items() if s >= 0.9} <= found and len(found) >= 10


@pytest.mark.parametrize("unit", ["x@", "info@press.com,", "has 5 kW ", "+49 ", "km combined 5 ", "Press contact: a "])
def test_cleaning_and_questions_take_linear_time(unit):
    def seconds(size: int) -> float:
        document = {"id": "a", "title": "T", "date": "2024-01-01", "text": "T\n\n" + (unit * size)[: size]}
        began = time.process_time()
        remove_boilerplate(document["text"])
        training_pairs([document], 0)
        return time.process_time() - began

    assert seconds(64_000) < 80 * max(min(seconds(4000) for _ in range(3)), 1e-3)
