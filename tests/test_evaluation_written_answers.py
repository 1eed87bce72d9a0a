"""evaluation/written_answers.py: known values by hand, and those of the libraries."""

from types import SimpleNamespace

import pytest

from nanoprune.evaluation.comparison import summarize_by_task
from nanoprune.evaluation.written_answers import (
    corpus_bleu,
    corpus_numbers,
    exact_match,
    invented_numbers,
    numbers,
    overlap_scores,
    repetition,
    token_f1,
)
from nanoprune.io.jsonl import write_jsonl


def test_exact_match_and_f1():
    assert exact_match("The  Munich!", "munich") == 1 and exact_match("in Munich", "Munich") == 0
    assert token_f1("in Munich today", "Munich") == pytest.approx(0.5)
    assert token_f1("a b c", "x y") == 0 and token_f1("", "") == 1 and token_f1("", "x") == 0
    assert token_f1("x x y", "x y y") == pytest.approx(2 / 3)  # each word as often as it stands


def test_repetition():
    assert repetition("one two three") == 0 and repetition("a b c d e f g") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert repetition("x " * 20) == pytest.approx(1 - 1 / 17)


def test_invented_numbers():
    assert numbers("1,234 cars, 3.5 % and 17.") == ["1,234", "3.5", "17"]
    assert invented_numbers("It has 200 kW and 99 seats, as in 2025", "In 2025", {"200"}) == 1
    assert invented_numbers("none", "", set()) == 0


def test_numbers_of_conversations_are_those_that_people_read(tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [{"messages": [{"role": "user", "content": "5–7 cars …"}]}])
    assert corpus_numbers(SimpleNamespace(conversations=True, folder=tmp_path)) == {"5", "7"}


def test_bleu_of_short_answers():
    """1 where all are right, however short; sacrebleu's own where there are four words in a row."""
    sacrebleu = pytest.importorskip("sacrebleu")
    assert corpus_bleu(["45 Nm", "46 Nm"], ["45 Nm", "46 Nm"]) == pytest.approx(1)
    assert corpus_bleu(["red"], ["red"]) == pytest.approx(1)
    assert 0 <= corpus_bleu(["45 Nm"], ["red"]) < 0.5
    answers, references = ["the cat sat on a mat", "yes"], ["the cat sat on the mat", "no"]
    theirs = sacrebleu.corpus_bleu(answers, [references]).score / 100
    assert corpus_bleu(answers, references) == pytest.approx(theirs)


def test_by_task():
    row = {"exact_match": 1.0, "f1": 1.0, "repetition": 0.0, "numbers": 2, "invented": 1, "answer": "a",
           "reference": "a"}
    found = summarize_by_task([[
        row | {"task": "x"}, row | {"task": "y", "exact_match": 0.0, "numbers": 0, "invented": 0}]])
    assert found["all"]["n"] == 2 and found["all"]["exact_match"] == 0.5 and found["all"]["invented"] == 0.5
    assert found["x"]["exact_match"] == 1 and found["y"]["invented"] == 0


def test_rouge_and_bleu_are_the_libraries():
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    found = overlap_scores("the new car has two motors", "the new car has one motor")
    assert found["rouge1"] == pytest.approx(5 / 6)  # motors is motor, stemmed
    assert found["rouge2"] == pytest.approx(3 / 5)
    assert found["rougeL"] == pytest.approx(5 / 6) and 0 < found["bleu"] < 1
    row = {"task": "x", "exact_match": 0.0, "f1": 0.5, "repetition": 0.0, "numbers": 0, "invented": 0} | found
    words = "one two three four five"
    same = summarize_by_task([[row | {"answer": words, "reference": words}]])
    assert same["x"]["bleu"] == pytest.approx(1) and same["x"]["rougeL"] == pytest.approx(5 / 6)
