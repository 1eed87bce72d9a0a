"""The questions and the general texts written by hand in qa/."""

import re
from collections import Counter

from small import ROOT

from nanoprune.data.dataset import read_questions
from nanoprune.data.rule_questions import long_date
from nanoprune.io.jsonl import read_jsonl


def test_the_questions_written_by_hand():
    """66 in six kinds; the place of the right answer tells nothing, and no answer stands in its question."""
    questions = read_questions(ROOT / "qa" / "bmw_news.jsonl")
    kinds, places = Counter(q["category"] for q in questions), Counter(q["answer"] for q in questions)
    assert len(questions) >= 60 and {"who", "where", "when", "how many", "which model"} <= set(kinds)
    assert min(kinds.values()) >= 5
    assert all(len(q["choices"]) == 4 for q in questions) and max(places.values()) - min(places.values()) <= 3
    assert not any(choice.lower() in q["question"].lower() for q in questions for choice in q["choices"])
    longest = [max(range(4), key=lambda i, q=q: len(q["choices"][i])) == q["answer"] for q in questions]
    assert sum(longest) / len(questions) < 0.4


def test_the_questions_written_by_hand_rest_on_their_articles(real):
    articles = {a["id"]: a for a in read_jsonl(real / "bmw" / "articles.jsonl")}
    for q in read_questions(ROOT / "qa" / "bmw_news.jsonl"):
        article = articles[q["source"]]
        text = f"{long_date(article['date'])} {article['title']} {article['text']}".lower()
        text = re.sub(r"(?<=\d)[.,](?=\d{3})", "", text)
        words = re.findall(r"\w+", q["choices"][q["answer"]].replace(",", "").lower())
        found = [word for word in words if word in text]
        answer = q["choices"][q["answer"]]
        assert len(found) >= max(1, len(words) / 2), f"{q['question']}: {answer} is not in {q['source']}"


def test_the_general_texts_written_by_hand():
    """70 in ten kinds, no two alike, none on what the models are fine-tuned on."""
    texts = read_jsonl(ROOT / "qa" / "general.jsonl", ("id", "category", "text"))
    ids, kinds = [row["id"] for row in texts], Counter(row["category"] for row in texts)
    assert len(texts) >= 60 and len(set(ids)) == len(ids)
    assert len(kinds) == 10 and min(kinds.values()) >= 5, kinds
    places: dict[tuple, str] = {}  # of each run of eight words, the text that holds it
    for row in texts:
        name, text = row["id"], row["text"]
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name), name
        assert 90 <= len(text.split()) <= 180, f"{name} has {len(text.split())} words"
        assert text == text.strip() and not re.search(r"[^ -~\n]", text), f"{name} has an odd character"
        cars = re.search(r"\b(cars?|vehicles?|bmw|compan(y|ies)|press releases?)\b", text, re.IGNORECASE)
        assert not cars, f"{name} speaks of {cars[0]}"
        words = re.findall(r"\w+", text.lower())
        for run in zip(*(words[i:] for i in range(8)), strict=False):
            assert places.setdefault(run, name) == name, f"{name} and {places[run]} share {' '.join(run)}"
    openings = Counter(" ".join(row["text"].lower().split()[:2]) for row in texts)
    assert max(openings.values()) == 1, openings.most_common(2)
