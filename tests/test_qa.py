"""The questions written by hand in qa/."""

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
