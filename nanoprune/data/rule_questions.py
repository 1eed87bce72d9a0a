"""Questions by rule: from articles to training pairs and four-choice questions, each resting on a named
article.

Two kinds of facts are found: figures with a unit ("250 kW") and days ("5 December 2025"). A wrong choice is
of the same kind and not true: a figure of the same unit, or a day, of another article that this article never
names.
"""

import random
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from heapq import merge
from itertools import islice

MONTHS = ("January", "February", "March", "April", "May", "June",
          "July", "August", "September", "October", "November", "December")
UNITS = {  # one name per unit; a figure is compared with figures of its unit only
    "kW": r"kW|kilowatts?", "hp": r"hp|horsepower", "PS": r"PS", "Nm": r"Nm|newton metres?",
    "km/h": r"km/h|kph", "mph": r"mph", "km": r"km|kilomet(?:re|er)s?", "miles": r"miles",
    "mm": r"mm|millimet(?:re|er)s?",
    "cm": r"cm|centimet(?:re|er)s?", "kg": r"kg|kilograms?", "kWh": r"kWh|kilowatt[- ]hours?",
    "percent": r"%|per ?cent", "euros": r"euros?|EUR", "litres": r"lit(?:re|er)s?", "seconds": r"seconds?",
    "minutes": r"minutes?", "hours": r"hours?", "years": r"years?", "vehicles": r"vehicles|cars|automobiles",
    "motorcycles": r"motorcycles", "units": r"units", "employees": r"employees|associates",
    "countries": r"countries", "laps": r"laps", "points": r"points", "inches": r"inch(?:es)?",
}
UNIT_NAMES = list(UNITS)
FIGURE = re.compile(
    r"(?<![\w.,:/+–-])(?P<number>\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)(?P<scale> (?:million|billion))? ?(?:"
    + "|".join(f"(?P<u{i}>{pattern})" for i, pattern in enumerate(UNITS.values())) + r")(?![\w/])")
SCALES = {None: 1, " million": 1e6, " billion": 1e9}
DAY = re.compile(rf"(?<!\w)(?P<day>[1-9]|[12]\d|3[01]) (?P<month>{'|'.join(MONTHS)}) (?P<year>20\d\d)(?!\d)")
DIGIT = re.compile(r"\d")
GAP = "____"


@dataclass(frozen=True)
class Mention:
    """A figure or day in a text."""

    kind: str  # a unit of UNITS, "day" or "published"
    shape: str  # unit, scale and decimals: only figures of one shape are choices of one question
    number: str  # "250", and the text after it:
    rest: str  # " kW"; empty for a day
    value: float  # tells true from wrong, and near from far

    @property
    def answer(self) -> str:
        return self.number + self.rest

    @property
    def category(self) -> str:
        return "day" if self.kind in ("day", "published") else "figure"


@dataclass(frozen=True)
class Fact:
    """A sentence and a figure or day that stands once in it."""

    mention: Mention
    sentence: str
    paragraph: str

    @property
    def with_gap(self) -> str:
        return self.sentence.replace(self.mention.answer, GAP)


@dataclass(frozen=True)
class Question:
    """A question on a document, before its choices."""

    text: str
    mention: Mention  # the right answer
    document: dict
    context: str | None = None


def long_date(day: str) -> str:
    """Write 2025-12-05 as 5 December 2025."""
    day = date.fromisoformat(day)
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


# ---------------------------------------------------------------- facts
def facts_of(document: dict) -> list[Fact]:
    """Figures and days of a document's body that stand alone in a sentence of handy length."""
    facts = []
    for paragraph in document["text"].split("\n\n")[1:]:
        for sentence in sentences_of(paragraph):
            if not (50 <= len(sentence) <= 260 and sentence[0].isalnum()):
                continue
            mentions = mentions_in(sentence)
            kinds = Counter(mention.kind for mention in mentions)
            facts += [Fact(mention, sentence, paragraph) for mention in mentions
                      if kinds[mention.kind] == 1 and sentence.count(mention.answer) == 1]
    return facts


def sentences_of(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?”\"])\s+(?=[A-Z“\"])", paragraph)


def mentions_in(text: str) -> list[Mention]:
    """The figures of a text, then its days."""
    if not DIGIT.search(text):  # most sentences have none, and the patterns are slow
        return []
    mentions = []
    for match in FIGURE.finditer(text):
        unit = UNIT_NAMES[int(match.lastgroup[1:])]
        number, scale = match["number"], match["scale"]
        shape = f"{unit}{scale or ''} .{len(number.partition('.')[2])}"
        value = float(number.replace(",", "")) * SCALES[scale]
        mentions.append(Mention(unit, shape, number, match[0].removeprefix(number), value))
    for match in DAY.finditer(text):
        # A day of a misprint need not exist (31 April): the value has to order days, no more.
        value = int(match["year"]) * 372 + MONTHS.index(match["month"]) * 31 + int(match["day"])
        mentions.append(Mention("day", "day", match[0], "", value))
    return mentions


def publication_day(document: dict) -> Mention:
    value = date.fromisoformat(document["date"]).toordinal()
    return Mention("published", "published", long_date(document["date"]), "", value)


# ---------------------------------------------------------------- training pairs
def training_pairs(
    documents: list[dict], seed: int, per_document: int = 3, context: bool = False
) -> list[dict]:
    """Chat examples from training documents: day of publication, first sentence, title, and figures to
    complete.

    With `context` the document's text stands before the question.
    """
    rng, pairs = random.Random(seed), []
    for document in documents:
        if not document["title"]:  # the questions call a document by its title
            continue
        for task, question, answer in _tasks_on(document, rng, per_document):
            if context:
                question = f"{document['text']}\n\n{question}"
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            pairs.append({"messages": messages, "task": task, "source": document["id"]})
    return pairs


def _tasks_on(document: dict, rng: random.Random, facts: int) -> Iterator[tuple[str, str, str]]:
    """(task, question, answer) of a document."""
    title, day = document["title"], long_date(document["date"])
    if not gives_away(title, day):
        yield "date", f"When was “{title}” published?", day
    lead = document["text"].split("\n\n")[1]
    first = next((sentence for sentence in sentences_of(lead) if len(sentence) >= 60), "")
    if 60 <= len(first) <= 400:
        yield "summary", f"What does the press release “{title}” say first?", first
        if not gives_away(first, title):
            yield "title", f"What is the title of the press release that begins: “{first}”", title
    candidates = facts_of(document)
    for fact in rng.sample(candidates, min(facts, len(candidates))):
        yield fact.mention.category, f"Complete this: “{fact.with_gap}”", fact.mention.answer


# ---------------------------------------------------------------- four-choice questions
def open_and_closed_book(splits: dict[str, list[dict]], seed: int, limit: int = 300) -> dict[str, list[dict]]:
    """Two sets of questions: on facts of training documents from memory, and of test documents with the
    passage.
    """
    closed, on_days = [], []
    for document in splits["train"]:
        title = document["title"]
        if title:
            closed += [Question(f"Which figure belongs in the gap of this sentence from “{title}”? "
                                f"“{fact.with_gap}”",
                                fact.mention, document) for fact in facts_of(document)]
            on_days.append(Question(f"On which day did the press release “{title}” come out?",
                                    publication_day(document), document))
    opened = [Question(f"Going by the text, what is missing here? “{fact.with_gap}”", fact.mention, document,
                       fact.paragraph)
              for document in splits["test"] for fact in facts_of(document) if len(fact.paragraph) <= 1500]
    numbers = numbers_by_shape(document for documents in splits.values() for document in documents)
    return {"closed_book": with_choices(closed + on_days, numbers, seed, limit),
            "open_book": with_choices(opened, numbers, seed + 1, limit)}


def numbers_by_shape(documents: Iterator[dict]) -> dict[str, dict[float, str]]:
    """The numbers of each shape by value, ascending."""
    numbers = defaultdict(dict)
    for document in documents:
        for mention in [*mentions_in(document["text"]), publication_day(document)]:
            numbers[mention.shape][mention.value] = mention.number
    return {shape: dict(sorted(by_value.items())) for shape, by_value in numbers.items()}


def with_choices(
    candidates: list[Question], numbers: dict[str, dict[float, str]], seed: int, limit: int,
    per_document: int = 2,
) -> list[dict]:
    """At most `limit` questions, `per_document` of a kind from each document; right answers balanced over
    positions.
    """
    rng, chosen, counts = random.Random(seed), [], Counter()
    for question in rng.sample(candidates, len(candidates)):
        mention = question.mention
        key = question.document["id"], mention.kind
        if len(chosen) == limit or counts[key] == per_document or gives_away(question.text, mention.answer):
            continue
        if wrong := wrong_choices(mention, question.document, numbers[mention.shape], rng):
            counts[key] += 1
            chosen.append((question, wrong))
    positions = [i % 4 for i in range(len(chosen))]
    rng.shuffle(positions)
    rows = []
    for (question, choices), position in zip(chosen, positions, strict=True):
        choices.insert(position, question.mention.answer)
        row = {"question": question.text, "choices": choices, "answer": position}
        if question.context:
            row["context"] = question.context
        rows.append(row | {"category": question.mention.category, "source": question.document["id"]})
    return rows


def wrong_choices(
    right: Mention, document: dict, numbers: dict[float, str], rng: random.Random
) -> list[str] | None:
    """Three answers near the right one that the document does not contain; None if there are fewer."""
    true_values = {mention.value for mention in mentions_in(document["text"]) if mention.kind == right.kind}
    true_values.add(right.value)
    values = list(numbers)
    place = bisect_left(values, right.value)
    below, above = reversed(values[:place]), values[place:]
    nearest = merge(below, above, key=lambda value: (abs(value - right.value), value))
    answers = (numbers[value] + right.rest for value in nearest if value not in true_values)
    near = list(islice((answer for answer in answers if answer not in document["text"]), 8))
    return rng.sample(near, 3) if len(near) >= 3 else None


def gives_away(question: str, answer: str) -> bool:
    """True if the answer stands in the question: the whole, its number, or of a day the month and year."""
    number, day = re.match(r"[\d.,]*\d", answer), DAY.fullmatch(answer)
    if day:
        parts = [day["month"], day["year"]]
    else:
        parts = [number[0] if number else answer]
    return all(part in question and re.search(rf"(?<![\w.,]){re.escape(part)}(?![\w]|[.,]\d)", question)
               for part in parts)
