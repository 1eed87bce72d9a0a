"""Questions by rule: from articles to training pairs and four-choice questions, each resting on a named article.

Two kinds of facts are found: figures with a unit ("250 kW") and days ("5 December 2025"). A choice is wrong by being of
the same kind and not being true: a figure of the same unit, or a day, of another article that this article never names.
"""

import random
import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from datetime import date
from heapq import merge
from itertools import islice


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")
UNITS = {  # one name per unit; a figure is compared with figures of its unit only
    "kW": r"kW|kilowatts?", "hp": r"hp|horsepower", "PS": r"PS", "Nm": r"Nm|newton metres?", "km/h": r"km/h|kph", "mph": r"mph",
    "km": r"km|kilomet(?:re|er)s?", "miles": r"miles", "mm": r"mm|millimet(?:re|er)s?", "cm": r"cm|centimet(?:re|er)s?",
    "kg": r"kg|kilograms?", "kWh": r"kWh|kilowatt[- ]hours?", "percent": r"%|per ?cent", "euros": r"euros?|EUR",
    "litres": r"lit(?:re|er)s?", "seconds": r"seconds?", "minutes": r"minutes?", "hours": r"hours?", "years": r"years?",
    "vehicles": r"vehicles|cars|automobiles", "motorcycles": r"motorcycles", "units": r"units",
    "employees": r"employees|associates", "countries": r"countries", "laps": r"laps", "points": r"points",
    "inches": r"inch(?:es)?",
}
FIGURE = re.compile(
    r"(?<![\w.,:/+–-])(?P<number>\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)(?P<scale> (?:million|billion))? ?(?:"
    + "|".join(f"(?P<u{i}>{pattern})" for i, pattern in enumerate(UNITS.values())) + r")(?![\w/])")
DAY = re.compile(rf"(?<!\w)(?P<day>[1-9]|[12]\d|3[01]) (?P<month>{'|'.join(MONTHS)}) (?P<year>20\d\d)(?!\d)")
DIGIT = re.compile(r"\d")
GAP = "____"


@dataclass(frozen=True)
class Mention:
    """A figure or day in a text."""

    kind: str  # a unit of UNITS, or "day"
    shape: str  # unit, scale and decimals: only figures of one shape are choices of one question
    number: str  # "250", and what follows it:
    rest: str  # " kW"; empty for a day
    value: float  # to tell true from wrong, and near from far

    @property
    def answer(self) -> str:
        return self.number + self.rest


@dataclass(frozen=True)
class Fact:
    """A sentence and the one figure or day in it that is asked for."""

    mention: Mention
    sentence: str = ""
    paragraph: str = ""


def written(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def sentences_of(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?”\"])\s+(?=[A-Z“\"])", paragraph)


def facts_of(document: dict) -> list[Fact]:
    """Figures and days of a document's body that stand alone in a sentence of handy length."""
    found = []
    for paragraph in document["text"].split("\n\n")[1:]:
        for sentence in sentences_of(paragraph):
            if not (50 <= len(sentence) <= 260 and sentence[0].isalnum()):
                continue
            mentions = _mentions(sentence)
            for m in mentions:
                if sum(other.kind == m.kind for other in mentions) == 1 and sentence.count(m.answer) == 1:
                    found.append(Fact(m, sentence, paragraph))
    return found


def _mentions(text: str) -> list[Mention]:
    found = []
    if not DIGIT.search(text):  # most sentences, and the patterns are slow
        return found
    for match in FIGURE.finditer(text):
        unit = next(name for i, name in enumerate(UNITS) if match[f"u{i}"])
        number, scale = match["number"], match["scale"] or ""
        decimals = len(number.partition(".")[2])
        value = float(number.replace(",", "")) * {" million": 1e6, " billion": 1e9, "": 1}[scale]
        found.append(Mention(unit, f"{unit}{scale} .{decimals}", number, match[0].removeprefix(number), value))
    # Days need not exist (31 April in a misprint): an ordering is all that is wanted.
    found += [Mention("day", "day", match[0], "",
                      int(match["year"]) * 372 + MONTHS.index(match["month"]) * 31 + int(match["day"]))
              for match in DAY.finditer(text)]
    return found


def training_pairs(documents: list[dict], seed: int, per_document: int = 3, context: bool = False) -> list[dict]:
    """Chat examples from training documents: the day of publication, how it begins, its title, and figures to complete.

    With `context` the document's text stands before the question.
    """
    rng, pairs = random.Random(seed), []
    for document in documents:
        title, body = document["title"], document["text"].split("\n\n", 1)[1]
        if not title:  # there is nothing to call it by
            continue
        def add(task: str, question: str, answer: str, source: str = document["id"], text: str = document["text"]) -> None:
            question = f"{text}\n\n{question}" if context else question
            pairs.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                          "task": task, "source": source})

        if not _gives_away(title, written(date.fromisoformat(document["date"]))):
            add("date", f"When was “{title}” published?", written(date.fromisoformat(document["date"])))
        first = next((s for s in sentences_of(body.split("\n\n")[0]) if len(s) >= 60), None)
        if first and len(first) <= 400:
            add("summary", f"What does the press release “{title}” say first?", first)
            if not _gives_away(first, title):
                add("title", f"What is the title of the press release that begins: “{first}”", title)
        facts = facts_of(document)
        for fact in rng.sample(facts, min(per_document, len(facts))):
            add(_category(fact), f"Complete this: “{blank(fact)}”", fact.mention.answer)
    return pairs


def open_and_closed_book(splits: dict[str, list[dict]], seed: int, limit: int = 300) -> dict[str, list[dict]]:
    """Two sets of four-choice questions: facts of training documents from memory, and of test documents with the passage."""
    pool: dict[str, dict[float, str]] = {}  # the numbers of a shape, by value
    for documents in splits.values():
        for d in documents:
            for m in [*_mentions(d["text"]), _publication(d)]:
                pool.setdefault(m.shape, {})[m.value] = m.number
    pool = {shape: dict(sorted(numbers.items())) for shape, numbers in pool.items()}
    named = [d for d in splits["train"] if d["title"]]
    closed = [(f"Which figure belongs in the gap of this sentence from “{d['title']}”? “{blank(f)}”", d, f, None)
              for d in named for f in facts_of(d)]
    closed += [(f"On which day did the press release “{d['title']}” come out?", d, Fact(_publication(d)), None)
               for d in named]
    opened = [(f"Going by the text, what is missing here? “{blank(f)}”", d, f, f.paragraph)
              for d in splits["test"] for f in facts_of(d) if len(f.paragraph) <= 1500]
    return {"closed_book": _choose(closed, pool, seed, limit), "open_book": _choose(opened, pool, seed + 1, limit)}


def blank(fact: Fact) -> str:
    return fact.sentence.replace(fact.mention.answer, GAP)


def _publication(document: dict) -> Mention:
    day = date.fromisoformat(document["date"])
    return Mention("published", "published", written(day), "", day.toordinal())


def _category(fact: Fact) -> str:
    return "day" if fact.mention.kind in ("day", "published") else "figure"


def _choose(asked: list[tuple], pool: dict, seed: int, limit: int, per_document: int = 2) -> list[dict]:
    """At most `limit` questions, `per_document` of a kind from each document, with near wrong choices, answers balanced."""
    rng, made, taken = random.Random(seed), [], Counter()
    for question, document, fact, context in rng.sample(asked, len(asked)):
        key = document["id"], fact.mention.kind
        if len(made) == limit or taken[key] == per_document or _gives_away(question, fact.mention.answer):
            continue
        if wrong := _wrong_choices(fact.mention, document, pool[fact.mention.shape], rng):
            taken[key] += 1
            made.append((question, document, fact, context, wrong))
    positions = [i % 4 for i in range(len(made))]
    rng.shuffle(positions)
    lines = []
    for (question, document, fact, context, choices), answer in zip(made, positions, strict=True):
        choices.insert(answer, fact.mention.answer)
        lines.append({"question": question, "choices": choices, "answer": answer} | ({"context": context} if context else {})
                     | {"category": _category(fact), "source": document["id"]})
    return lines


def _wrong_choices(true: Mention, document: dict, numbers: dict[float, str], rng: random.Random) -> list[str] | None:
    """Three answers of the same shape, near the true one, that the document does not contain; None where there are not."""
    true_here = {m.value for m in _mentions(document["text"]) if m.kind == true.kind} | {true.value}
    values = list(numbers)  # ascending
    place = bisect_left(values, true.value)
    near = merge(reversed(values[:place]), values[place:], key=lambda value: (abs(value - true.value), value))
    texts = (numbers[value] + true.rest for value in near if value not in true_here)
    found = list(islice((text for text in texts if text not in document["text"]), 8))
    return rng.sample(found, 3) if len(found) >= 3 else None


def _gives_away(question: str, answer: str) -> bool:
    """Whether the answer stands in the question: the whole, its number, or for a day its month and year."""
    number, day = re.match(r"[\d.,]*\d", answer), DAY.fullmatch(answer)
    parts = (day["month"], day["year"]) if day else (number[0],) if number else (answer,)
    return all(part in question and re.search(rf"(?<![\w.,]){re.escape(part)}(?![\w]|[.,]\d)", question) for part in parts)
