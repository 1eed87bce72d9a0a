"""Questions by rule: from articles to training pairs and four-choice questions, each resting on a named
article.

Two kinds of facts are found: figures with a unit ("250 kW") and days ("5 December 2025"). A candidate with a
flaw is refused and counted (`question_check`). A wrong choice is of the right one's size and as round, and
the article does not hold it; the right one's place among the four by size is balanced.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import pairwise
from typing import NamedTuple

from nanoprune.data.question_check import (
    DAY,
    GAP,
    MONTHS,
    NAMES_A_DAY,
    NEEDS_CONTEXT,
    flaw_of,
    gives_away,
    value_of,
)

QUANTITIES = (  # the units of each: a figure in one of them tells that in another
    r"kW|kilowatts?|hp|HP|horsepower|bhp|PS", r"Nm|newton metres?|ft[-. ]?lbs?|lbs?[-. ]?ft|pound-feet",
    r"km/h|kph|mph", r"km|kilomet(?:re|er)s?|miles|met(?:re|er)s?",
    r"mm|millimet(?:re|er)s?|cm|centimet(?:re|er)s?|inch(?:es)?",
    r"kg|kilograms?|lbs?|pounds|tonnes|(?:metric )?tons", r"kWh|kilowatt[- ]hours?",
    r"cc|ccm|cm³|lit(?:re|er)s?", r"%|per ?cent", r"euros?|EUR", r"square met(?:re|er)s|m²|sqm",
    r"seconds?|minutes?|hours?", r"days|weeks|months|years?",
    r"vehicles|cars|automobiles|motorcycles|units|models",
    r"employees|associates|people|trainees|apprentices", r"visitors|guests",
    r"countries|markets", r"cities", r"laps", r"races", r"points", r"drivers|riders",
    r"teams", r"artists")
FIGURE = re.compile(
    r"(?<![\w.,:/+–-])(?P<number>\d{1,3}(?:,\d{3})+|\d+(?:\.\d{1,2})?)(?P<scale> (?:million|billion))? ?(?:"
    + "|".join(f"(?P<q{i}>{pattern})" for i, pattern in enumerate(QUANTITIES)) + r")(?![\w/])")
SCALES = {None: 1, " million": 1e6, " billion": 1e9}
DIGIT = re.compile(r"\d")
SENTENCE_END = re.compile(  # an initial (A. Lange) and a title (Dr.) end none
    r"(?:(?<=[.!?])|(?<=[.!?][”\"]))(?<!^[A-Z]\.)(?<! [A-Z]\.)(?<!\b[DM]r\.)\s+(?=[A-Z“\"])")
LEAST_STEP, LARGEST_STEP = 0.08, 0.16  # between a figure and the next wrong one, as shares of it
MOST_PAIRS, MOST_OF_A_KIND = 3, 4  # pairs of a document on figures and days, and questions of one kind
MOST_QUESTIONS = 300  # of a set
LARGEST_RATIO = 1.85  # of a wrong figure and the right one, or the other way round


class Mention(NamedTuple):
    """A figure or day in a text."""

    kind: str  # of QUANTITIES, or "day"
    number: str  # "250", and the text after it:
    rest: str  # " kW"; empty for a day
    value: float  # tells true from wrong; for days their ordinal number

    @property
    def answer(self) -> str:
        return self.number + self.rest

    @property
    def category(self) -> str:
        return "day" if self.kind == "day" else "figure"


class Fact(NamedTuple):
    """A sentence and a figure or day that stands once in it."""

    mention: Mention
    sentence: str
    before: str  # the sentence before it in its paragraph
    paragraph: str

    @property
    def with_gap(self) -> str:
        return self.sentence.replace(self.mention.answer, GAP)


class Question(NamedTuple):
    """A question on a document, before its choices."""

    text: str
    mention: Mention  # the right answer
    document: dict
    flaw: str | None
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
        for before, sentence in pairwise(["", *SENTENCE_END.split(paragraph)]):
            if not (50 <= len(sentence) <= 260 and sentence[0].isalnum()):
                continue
            mentions = mentions_in(sentence)
            kinds = Counter(mention.kind for mention in mentions)
            facts += [Fact(mention, sentence, before, paragraph) for mention in mentions
                      if kinds[mention.kind] == 1 and sentence.count(mention.answer) == 1]
    return facts


def mentions_in(text: str) -> list[Mention]:
    """The figures of a text, then its days."""
    if not DIGIT.search(text):  # most sentences have none, and the patterns are slow
        return []
    mentions = []
    for match in FIGURE.finditer(text):
        number = match["number"]
        quantity = QUANTITIES[int(match.lastgroup[1:])]
        value = value_of(number) * SCALES[match["scale"]]
        mentions.append(Mention(quantity, number, match[0].removeprefix(number), value))
    for match in DAY.finditer(text):
        if match["year"] < "2000":  # history, which a model may know
            continue
        try:
            mentions.append(Mention("day", match[0], "", value_of(match[0])))
        except ValueError:  # a misprint, such as 31 April
            continue
    return mentions


def publication_day(document: dict) -> Mention:
    day = long_date(document["date"])
    return Mention("day", day, "", value_of(day))


def is_dated(document: dict) -> bool:
    """False if the document's day is a guess, which is no fact."""
    return document.get("dated_by") != "file"


def titles_once(documents: Iterable[dict]) -> set[str]:
    """The titles that name one document each."""
    counts = Counter(document["title"] for document in documents)
    return {title for title, count in counts.items() if title and count == 1}


# ---------------------------------------------------------------- training pairs
def training_pairs(documents: list[dict], seed: int, context: bool = False) -> list[dict]:
    """Chat examples from training documents: day of publication, first sentence, title, and figures to
    complete.

    With `context` the document's text stands before the question. What is asked twice stands there once, and
    not at all if the answers differ.
    """
    rng, pairs, titles = random.Random(seed), {}, titles_once(documents)
    for document in documents:
        if document["title"] not in titles:  # the questions call a document by its title
            continue
        for task, question, answer in _tasks_on(document, rng):
            if context:
                question = f"{document['text']}\n\n{question}"
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            pair = {"messages": messages, "task": task, "source": document["id"]}
            pairs.setdefault(question, {}).setdefault(answer, pair)
    return [pair for answers in pairs.values() if len(answers) == 1 for pair in answers.values()]


def _tasks_on(document: dict, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """(task, question, answer) of a document."""
    title, day = document["title"], long_date(document["date"])
    if is_dated(document) and not gives_away(title, day):
        yield "date", f"When was “{title}” published?", day
    lead = document["text"].split("\n\n")[1]
    first = next((sentence for sentence in SENTENCE_END.split(lead) if len(sentence) >= 60), "")
    if 60 <= len(first) <= 400:
        yield "summary", f"What does the press release “{title}” say first?", first
        if not gives_away(first, title):
            yield "title", f"What is the title of the press release that begins: “{first}”", title
    candidates = facts_of(document)
    for fact in rng.sample(candidates, min(MOST_PAIRS, len(candidates))):
        question = f"Complete this sentence from “{title}”: “{fact.with_gap}”"
        yield fact.mention.category, question, fact.mention.answer


# ---------------------------------------------------------------- four-choice questions
def open_and_closed_book(
    splits: dict[str, list[dict]], seed: int
) -> tuple[dict[str, list[dict]], Counter]:
    """Two sets of questions: on facts of training documents from memory, and of test documents with the
    passage; and the number of refused candidates by reason.
    """
    titles = titles_once(document for documents in splits.values() for document in documents)
    facts = [facts_of(document) for document in splits["train"]]
    holders = Counter((fact.sentence, fact.mention) for document_facts in facts for fact in document_facts)
    closed, on_days = [], []
    for document, document_facts in zip(splits["train"], facts, strict=True):
        title = document["title"]
        if title not in titles:
            continue
        for fact in document_facts:
            told, context, flaw = fact.with_gap, "", None
            if NEEDS_CONTEXT.search(told):
                told, context = f"{fact.before} {told}", fact.before or told
            if NEEDS_CONTEXT.search(context):
                flaw = "needs more of the text"
            elif holders[fact.sentence, fact.mention] > 1:
                flaw = "stands in several documents"
            text = f"Which figure belongs in the gap of this text from “{title}”? “{told}”"
            flaw = flaw or flaw_of(told, fact.mention.kind, fact.mention.answer, title)
            closed.append(Question(text, fact.mention, document, flaw))
        if is_dated(document):
            text = f"On which day did the press release “{title}” come out?"
            flaw = "a day beside it tells the answer" if NAMES_A_DAY.search(title) else None
            on_days.append(Question(text, publication_day(document), document, flaw))
    opened = [Question(f"Going by the text, what is missing here? “{fact.with_gap}”", fact.mention, document,
                       flaw_of(fact.with_gap, fact.mention.kind, fact.mention.answer), fact.paragraph)
              for document in splits["test"] for fact in facts_of(document) if len(fact.paragraph) <= 1500]
    refused = Counter()
    closed_book = with_choices(closed, seed, MOST_QUESTIONS, refused)
    closed_book += with_choices(on_days, seed, MOST_QUESTIONS // 3, refused)
    open_book = with_choices(opened, seed + 1, MOST_QUESTIONS, refused)
    return {"closed_book": closed_book, "open_book": open_book}, refused


def with_choices(candidates: list[Question], seed: int, limit: int, refused: Counter) -> list[dict]:
    """At most `limit` questions; right answers balanced over positions and over places by size."""
    answers = defaultdict(set)
    for question in candidates:
        answers[question.text, question.context].add(question.mention.answer)
    rng, chosen, counts, ranks = random.Random(seed), [], Counter(), Counter()
    for question in rng.sample(candidates, len(candidates)):
        key, kind = (question.text, question.context), (question.document["id"], question.mention.kind)
        if len(chosen) == limit or counts[kind] == MOST_OF_A_KIND or key not in answers:
            continue
        flaw = question.flaw
        if len(answers.pop(key)) > 1:
            flaw = "asked again with another answer"
        if wrong := not flaw and wrong_choices(question.mention, question.document, ranks, rng):
            counts[kind] += 1
            chosen.append((question, wrong))
        else:
            refused[flaw or "no wrong choices of its size"] += 1
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
    right: Mention, document: dict, ranks: Counter, rng: random.Random
) -> list[str] | None:
    """Three answers like the right one that the document does not contain; None if there are fewer.

    Of the right one's possible places among the four by size, it takes the one that `ranks` counts least.
    """
    published = publication_day(document).value
    true_values = {mention.value for mention in mentions_in(document["text"])} | {published}
    smaller, larger = [], []
    for sign, answers in ((-1, smaller), (1, larger)):
        for number, value in like(right, sign, rng):
            if right.kind == "day" and right.value != published:  # it is to come, or it is past
                if (value > published) != (right.value > published):
                    continue
            if value not in true_values and number + right.rest not in document["text"]:
                answers.append(number + right.rest)
    possible = [rank for rank in range(4) if len(smaller) >= rank and len(larger) >= 3 - rank]
    if not possible:
        return None
    rank = min(possible, key=lambda rank: (ranks[rank], rng.random()))
    ranks[rank] += 1
    return rng.sample(smaller[:rank] + larger[: 3 - rank], 3)


def like(right: Mention, sign: int, rng: random.Random) -> Iterator[tuple[str, float]]:
    """(text, value) of larger (1) or smaller (-1) figures or days that could stand in the right one's place,
    the nearest first.

    Days are on the same weekday. Figures are as long and as round: as many zeros at the end, and from 10 on
    a 5 before them or not, as 250 and 350 but not 240 or 300.
    """
    if right.kind == "day":
        for weeks in sorted(rng.sample(range(1, 7), 4)):
            day = right.value + sign * 7 * weeks
            yield long_date(date.fromordinal(day).isoformat()), day
        return
    decimals, comma = len(right.number.partition(".")[2]), "," if "," in right.number else ""
    digits = right.number.replace(",", "").replace(".", "")
    places = lead = int(digits.rstrip("0") or 0)  # 38 of 3,800
    ends_in_5 = lead >= 10 and lead % 5 == 0
    unit = 10 if ends_in_5 else 1
    while lead:
        places += sign * unit * max(1, round(places * rng.uniform(LEAST_STEP, LARGEST_STEP) / unit))
        if not 1 / LARGEST_RATIO <= places / lead <= LARGEST_RATIO:
            return
        number = f"{places * int(digits) // lead / 10**decimals:{comma}.{decimals}f}"
        as_round = places % 10 and (lead < 10 or ends_in_5 == (places % 5 == 0))
        if as_round and len(number) == len(right.number):
            yield number, value_of(number) * right.value / value_of(right.number)
