"""Questions by rule: from articles to training pairs and four-choice questions, each resting on a named
article.

Two kinds of facts are found: figures with a unit ("250 kW") and days ("5 December 2025"). A candidate with a
flaw is refused and counted (`question_check`). A wrong choice is of the right one's size and as round, and the
article does not name it; the place of the right one among the four in order of size is balanced.
"""

import math
import random
import re
from calendar import monthrange
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import chain, islice, pairwise

from nanoprune.data.question_check import DAY, GAP, MONTHS, flaw_of, gives_away, names_a_day, needs_context, value_of

UNITS = {  # one name per unit; a figure is compared with figures of its unit only
    "kW": r"kW|kilowatts?", "hp": r"hp|horsepower|bhp", "PS": r"PS", "Nm": r"Nm|newton metres?",
    "ft-lb": r"ft[-. ]?lbs?|lbs?[-. ]?ft|pound-feet", "km/h": r"km/h|kph", "mph": r"mph",
    "km": r"km|kilomet(?:re|er)s?", "miles": r"miles", "metres": r"met(?:re|er)s",
    "mm": r"mm|millimet(?:re|er)s?", "cm": r"cm|centimet(?:re|er)s?", "inches": r"inch(?:es)?",
    "kg": r"kg|kilograms?", "lbs": r"lbs?|pounds", "tonnes": r"tonnes|(?:metric )?tons",
    "kWh": r"kWh|kilowatt[- ]hours?", "cc": r"cc|ccm|cm³", "litres": r"lit(?:re|er)s?",
    "percent": r"%|per ?cent", "euros": r"euros?|EUR", "square metres": r"square met(?:re|er)s|m²|sqm",
    "seconds": r"seconds?", "minutes": r"minutes?", "hours": r"hours?", "days": r"days", "weeks": r"weeks",
    "months": r"months", "years": r"years?",
    "vehicles": r"vehicles|cars|automobiles", "motorcycles": r"motorcycles", "units": r"units",
    "employees": r"employees|associates", "people": r"people", "visitors": r"visitors|guests",
    "countries": r"countries", "markets": r"markets", "cities": r"cities", "laps": r"laps", "races": r"races",
    "points": r"points", "drivers": r"drivers|riders", "teams": r"teams", "models": r"models",
    "artists": r"artists", "trainees": r"trainees|apprentices", "degrees": r"degrees",
}
UNIT_NAMES = list(UNITS)
# Units of one quantity: a figure in one of them tells that in another.
QUANTITIES = [{"kW", "hp", "PS"}, {"Nm", "ft-lb"}, {"km/h", "mph"}, {"km", "miles", "metres"},
              {"mm", "cm", "inches"}, {"kg", "lbs", "tonnes"}, {"cc", "litres"},
              {"seconds", "minutes", "hours"}, {"days", "weeks", "months", "years"},
              {"vehicles", "motorcycles", "units", "models"}, {"employees", "people", "trainees"}]


def figure_of(units: Iterable[str]) -> re.Pattern:
    """The pattern of the end of a figure in one of these units, in a range or not."""
    return re.compile(rf"\d(?: million| billion)?[ -]?(?:{'|'.join(UNITS[unit] for unit in units)})(?!\w)")


SAME_QUANTITY = {unit: figure_of([unit]) for unit in UNITS} | {
    unit: figure_of(sorted(units)) for units in QUANTITIES for unit in units}
FIGURE = re.compile(
    r"(?<![\w.,:/+–-])(?P<number>\d{1,3}(?:,\d{3})+|\d+(?:\.\d{1,2})?)(?P<scale> (?:million|billion))? ?(?:"
    + "|".join(f"(?P<u{i}>{pattern})" for i, pattern in enumerate(UNITS.values())) + r")(?![\w/])")
SCALES = {None: 1, " million": 1e6, " billion": 1e9}
DIGIT = re.compile(r"\d")
LEAST_RATIO, LARGEST_RATIO = 1.08, 1.85  # of a wrong figure and the right one, or the other way round
DRAWS = 60  # of figures, for three that fit
NEAR_DAYS = 6  # before and after a day, from which wrong days are drawn


@dataclass(frozen=True)
class Mention:
    """A figure or day in a text."""

    kind: str  # a unit of UNITS, "day" or "published"
    number: str  # "250", and the text after it:
    rest: str  # " kW"; empty for a day
    value: float  # tells true from wrong; for days their ordinal number
    shape: str = ""  # unit, scale and decimals: only figures of one shape are choices of one question

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
    before: str  # the sentence before it in its paragraph
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
    flaw: str | None = None


def long_date(day: str) -> str:
    """Write 2025-12-05 as 5 December 2025."""
    day = date.fromisoformat(day)
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


# ---------------------------------------------------------------- facts
def facts_of(document: dict) -> list[Fact]:
    """Figures and days of a document's body that stand alone in a sentence of handy length."""
    facts = []
    for paragraph in document["text"].split("\n\n")[1:]:
        sentences = sentences_of(paragraph)
        for before, sentence in pairwise(["", *sentences]):
            if not (50 <= len(sentence) <= 260 and sentence[0].isalnum()):
                continue
            mentions = mentions_in(sentence)
            kinds = Counter(mention.kind for mention in mentions)
            facts += [Fact(mention, sentence, before, paragraph) for mention in mentions
                      if kinds[mention.kind] == 1 and sentence.count(mention.answer) == 1]
    return facts


def sentences_of(paragraph: str) -> list[str]:
    """The sentences; an initial (A. Lange) and an abbreviation end none."""
    return re.split(r"(?<=[.!?”\"])(?<!^[A-Z]\.)(?<!\s[A-Z]\.)(?<!\b(?:Dr|Mr|St|No|vs)\.)(?<!Mrs\.)\s+(?=[A-Z“\"])", paragraph)


def mentions_in(text: str) -> list[Mention]:
    """The figures of a text, then its days."""
    if not DIGIT.search(text):  # most sentences have none, and the patterns are slow
        return []
    mentions = []
    for match in FIGURE.finditer(text):
        unit, number, scale = UNIT_NAMES[int(match.lastgroup[1:])], match["number"], match["scale"]
        shape = f"{unit}{scale or ''} .{len(number.partition('.')[2])}"
        value = float(number.replace(",", "")) * SCALES[scale]
        mentions.append(Mention(unit, number, match[0].removeprefix(number), value, shape))
    for match in DAY.finditer(text):
        try:
            mentions.append(Mention("day", match[0], "", value_of(match[0])))
        except ValueError:  # a misprint, such as 31 April
            continue
    return mentions


def publication_day(document: dict) -> Mention:
    value = date.fromisoformat(document["date"]).toordinal()
    return Mention("published", long_date(document["date"]), "", value)


def is_dated(document: dict) -> bool:
    """False if the document's day is a guess, which is no fact."""
    return document.get("dated_by") != "file"


def titles_once(documents: Iterable[dict]) -> set[str]:
    """The titles that name one document each."""
    counts = Counter(document["title"] for document in documents)
    return {title for title, count in counts.items() if title and count == 1}


# ---------------------------------------------------------------- training pairs
def training_pairs(
    documents: list[dict], seed: int, per_document: int = 3, context: bool = False
) -> list[dict]:
    """Chat examples from training documents: day of publication, first sentence, title, and figures to
    complete.

    With `context` the document's text stands before the question. What is asked twice stands there once, and
    not at all if the answers differ.
    """
    rng, pairs, titles = random.Random(seed), {}, titles_once(documents)
    for document in documents:
        if document["title"] not in titles:  # the questions call a document by its title
            continue
        for task, question, answer in _tasks_on(document, rng, per_document):
            if context:
                question = f"{document['text']}\n\n{question}"
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            pair = {"messages": messages, "task": task, "source": document["id"]}
            pairs.setdefault(question, {}).setdefault(answer, pair)
    return [pair for answers in pairs.values() if len(answers) == 1 for pair in answers.values()]


def _tasks_on(document: dict, rng: random.Random, facts: int) -> Iterator[tuple[str, str, str]]:
    """(task, question, answer) of a document."""
    title, day = document["title"], long_date(document["date"])
    if is_dated(document) and not gives_away(title, day):
        yield "date", f"When was “{title}” published?", day
    lead = document["text"].split("\n\n")[1]
    first = next((sentence for sentence in sentences_of(lead) if len(sentence) >= 60), "")
    if 60 <= len(first) <= 400:
        yield "summary", f"What does the press release “{title}” say first?", first
        if not gives_away(first, title):
            yield "title", f"What is the title of the press release that begins: “{first}”", title
    candidates = facts_of(document)
    for fact in rng.sample(candidates, min(facts, len(candidates))):
        question = f"Complete this sentence from “{title}”: “{fact.with_gap}”"
        yield fact.mention.category, question, fact.mention.answer


# ---------------------------------------------------------------- four-choice questions
def open_and_closed_book(
    splits: dict[str, list[dict]], seed: int, limit: int = 300, refused: Counter | None = None
) -> dict[str, list[dict]]:
    """Two sets of questions: on facts of training documents from memory, and of test documents with the
    passage.

    The candidates that are refused are counted in `refused`, by reason.
    """
    documents = [document for documents in splits.values() for document in documents]
    titles, closed, on_days = titles_once(documents), [], []
    holders = Counter(sentence for document in splits["train"]
                      for sentence in {fact.sentence for fact in facts_of(document)})
    for document in splits["train"]:
        title = document["title"]
        if title not in titles:
            continue
        for fact in facts_of(document):
            told, flaw = fact.with_gap, None
            if needs_context(told):
                told = f"{fact.before} {told}"
                if not fact.before or needs_context(fact.before):
                    flaw = "needs the sentences before"
            if holders[fact.sentence] > 1:
                flaw = "stands in several documents"
            text = f"Which figure belongs in the gap of this text from “{title}”? “{told}”"
            flaw = flaw or flaw_of_fact(fact, told, title)
            closed.append(Question(text, fact.mention, document, flaw=flaw))
        if is_dated(document):
            text, flaw = f"On which day did the press release “{title}” come out?", None
            if names_a_day(title):
                flaw = "the question tells the answer"
            on_days.append(Question(text, publication_day(document), document, flaw=flaw))
    opened = [Question(f"Going by the text, what is missing here? “{fact.with_gap}”", fact.mention, document,
                       fact.paragraph, flaw_of_fact(fact, fact.with_gap))
              for document in splits["test"] for fact in facts_of(document) if len(fact.paragraph) <= 1500]
    pool = ChoicePool(documents)
    refused = Counter() if refused is None else refused
    on_facts = with_choices(closed, pool, seed, limit, refused)
    return {"closed_book": on_facts + with_choices(on_days, pool, seed, limit // 3, refused),
            "open_book": with_choices(opened, pool, seed + 1, limit, refused)}


def flaw_of_fact(fact: Fact, text: str, title: str = "") -> str | None:
    """The reason to refuse a question on a fact, told in a text with a gap in place of its figure or day."""
    kind = fact.mention.kind
    if kind in SAME_QUANTITY and SAME_QUANTITY[kind].search(f"{title} {text}"):
        return "a figure beside it tells the answer"
    return flaw_of(text, kind, fact.mention.number, title)


def with_choices(
    candidates: list[Question], pool: "ChoicePool", seed: int, limit: int, refused: Counter,
    per_document: int = 4,
) -> list[dict]:
    """At most `limit` questions, `per_document` of a kind from each document; right answers balanced over
    positions and over ranks of size.
    """
    answers = defaultdict(set)
    for question in candidates:
        answers[question.text, question.context].add(question.mention.answer)
    rng, chosen, counts, ranks, asked = random.Random(seed), [], Counter(), Counter(), set()
    for question in rng.sample(candidates, len(candidates)):
        key, kind = (question.text, question.context), (question.document["id"], question.mention.kind)
        if len(chosen) == limit or counts[kind] == per_document or key in asked:
            continue
        asked.add(key)
        flaw, wrong = question.flaw, None
        if len(answers[key]) > 1:
            flaw = "asked again with another answer"
        if not flaw:
            wrong = pool.wrong_choices(question.mention, question.document, ranks, rng)
        if wrong:
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


# ---------------------------------------------------------------- wrong choices
class ChoicePool:
    """Wrong choices: the figures and days of all documents, and where they are too few, others like them."""

    def __init__(self, documents: list[dict]):
        self.days = sorted({publication_day(document).value for document in documents if is_dated(document)})
        self.mentions = {document["id"]: mentions_in(document["text"]) for document in documents}
        self.figures = defaultdict(set)
        for mention in chain.from_iterable(self.mentions.values()):
            if mention.kind != "day":
                self.figures[mention.shape].add(mention.number)

    def wrong_choices(
        self, right: Mention, document: dict, ranks: Counter, rng: random.Random
    ) -> list[str] | None:
        """Three of them, in random order; None if there are fewer.

        Of the right answer's possible ranks by size it takes the one that `ranks` counts least.
        """
        true_values = {mention.value for mention in self.mentions[document["id"]] if mention.kind == right.kind}
        if right.category == "day":
            true_values |= {publication_day(document).value, right.value}

        def three(larger: bool) -> list[str]:
            """Three at most that are not true."""
            like = ((value, answer + right.rest) for answer, value in self._like(right, document, larger, rng))
            wrong = {value: answer for value, answer in like
                     if value not in true_values and answer not in document["text"]}
            apart = [right.value]  # each as far from the last as that is from the right one, at least
            for value in sorted(islice(wrong, 12), key=lambda value: abs(value - right.value)):
                if right.category == "day" or max(value, apart[-1]) >= LEAST_RATIO * min(value, apart[-1]):
                    apart.append(value)
            return [wrong[value] for value in apart[1:4]]

        below, above = three(larger=False), three(larger=True)
        possible = [rank for rank in range(4) if len(below) >= rank and len(above) >= 3 - rank]
        if not possible:
            return None
        rank = min(possible, key=lambda rank: (ranks[rank], rng.random()))
        ranks[rank] += 1
        return rng.sample(below[:rank] + above[: 3 - rank], 3)

    def _like(
        self, right: Mention, document: dict, larger: bool, rng: random.Random
    ) -> Iterator[tuple[str, float]]:
        """(text, value) of smaller or larger figures or days of the right one's size, perhaps repeated."""
        if right.category == "figure":
            known = sorted(self.figures[right.shape])
            return figures_like(right, rng.sample(known, len(known)), larger, rng)
        if right.kind == "day":
            days = days_like(date.fromordinal(right.value), 1 if larger else -1)
            if right.value != (published := publication_day(document).value):  # it is to come, or it is past
                days = [day for day in days if (day > published) == (right.value > published)]
        elif larger:
            days = [day for day in self.days if day > right.value][:NEAR_DAYS]
        else:
            days = [day for day in self.days if day < right.value][-NEAR_DAYS:]
        return ((long_date(date.fromordinal(day).isoformat()), day) for day in rng.sample(days, len(days)))


def figures_like(
    right: Mention, known: list[str], larger: bool, rng: random.Random
) -> Iterator[tuple[str, float]]:
    """(text, value) of the `known` figures, then of figures drawn at random, that could be in the right one's
    place: of its size, and as round.

    As round: as many zeros at the end, and a 5 before them or not, as 250 and 350 but not 240 or 300.
    """
    decimals = len(right.number.partition(".")[2])
    own = in_last_places(right.number)
    step = 1
    while own % (10 * step) == 0:
        step *= 10
    lead = own // step  # 38 of 3,800
    ends_in_5 = lead > 20 and lead % 5 == 0  # too few figures are like 15
    most = 100 * 10**decimals if right.kind == "percent" else math.inf

    def is_like(figure: int) -> bool:
        places, rest = divmod(figure, step)
        as_round = not rest and places % 10 and (lead < 20 or (places % 5 == 0) == ends_in_5)
        ratio = figure / own if larger else own / figure
        return as_round and LEAST_RATIO <= ratio <= LARGEST_RATIO and (figure < most or own >= most)

    def drawn() -> Iterator[int]:
        for _ in range(DRAWS):
            ratio = LEAST_RATIO + (LARGEST_RATIO - LEAST_RATIO) * rng.random() ** 2
            places = lead * ratio if larger else lead / ratio
            yield step * (10 * round((places - 5) / 10) + 5 if ends_in_5 else round(places))

    scale = right.value / float(right.number.replace(",", ""))
    for figure in chain(map(in_last_places, known), drawn()):
        if figure > 0 and is_like(figure):
            text = f"{figure / 10**decimals:,.{decimals}f}"
            if "," not in right.number and own >= 1000 * 10**decimals:
                text = text.replace(",", "")
            if len(text) == len(right.number):
                yield text, float(text.replace(",", "")) * scale


def in_last_places(number: str) -> int:
    """A figure in units of its last place: 45 for 4.5."""
    return int(number.replace(",", "").replace(".", ""))


def days_like(day: date, direction: int) -> list[int]:
    """Days after (1) or before (-1) a day, on its weekday; for the first or last of a month those of others."""
    last = monthrange(day.year, day.month)[1]
    if day.day not in (1, last):
        return [day.toordinal() + 7 * direction * weeks for weeks in range(1, NEAR_DAYS + 1)]
    days = []
    for months in range(1, NEAR_DAYS + 1):
        year, month = divmod(day.year * 12 + day.month - 1 + direction * months, 12)
        first = date(year, month + 1, 1).toordinal()
        days.append(first if day.day == 1 else first + monthrange(year, month + 1)[1] - 1)
    return days
