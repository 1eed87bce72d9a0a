"""What makes a question bad: reasons to refuse a candidate, and what the choices alone tell of a whole set."""

import re
from datetime import date
from itertools import combinations

import numpy as np

from nanoprune.statistics import Interval, bootstrap

GAP = "____"
MONTHS = ("January", "February", "March", "April", "May", "June",
          "July", "August", "September", "October", "November", "December")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAY = re.compile(rf"(?<!\w)(?P<day>[1-9]|[12]\d|3[01]) (?P<month>{'|'.join(MONTHS)}) (?P<year>20\d\d)(?!\d)")
NAMES_A_DAY = re.compile(rf"\b(?:{'|'.join(MONTHS + WEEKDAYS)}|(?:19|20)\d\d)\b")
VERB = re.compile(  # sentences of newsrooms have one of them, or one in -ed
    r"(?<![-\w])(?:[a-z]+ed|is|are|was|were|has|have|had|will|can|could|would|should|may|might|must|does|did|accelerates?"
    r"|achieves?|began|becomes?|became|brings?|brought|builds?|built|came|comes?|costs?|covers?|delivers?|develops?|drives?"
    r"|drove|employs?|enables?|enhances?|expects?|features?|fell|gave|generates?|gets?|gives?|goes|got|grew|held|holds?"
    r"|includes?|joins?|keeps?|kept|leads?|leaves?|led|left|lies|made|makes?|met|offers?|opens?|operates?|produces?"
    r"|provides?|ran|reaches|reduces?|remains?|represents?|requires?|rises?|rolls?|rose|runs?|saw|sees|sells?|sets?|sold"
    r"|spent|sprints?|stands?|starts?|stood|supports?|takes?|tells?|took|totals?|travels?|weighs?|went|wins?|won|works?)\b")
FLAWS = {reason: re.compile(pattern) for reason, pattern in {  # searched for in a sentence with its gap
    "no whole sentence":
        r"^[^A-Z]|[^.!?”\"]$|[|•*]|\+\+\+|[a-z_][.!?][A-Z]|[.!?] ____|____.*:|^\S+ ?[-–] |\b[A-Z]{4,} [A-Z]{4,}\b",
    "a figure beside it tells the answer":
        r"[/(=] ?____|____ ?[/(=]|\([^)]*\b20\d\d:|\(\d+\)|(?:equivalent|corresponds|respectively)\b|\bor ____|____ or ",
    "part of a range":
        r"\d\S* ?(?:[-–—]|to|and|until|till|through) ?____|____ ?(?:[-–—]|to|and|until|till|through) ?\d"
        r"|\b(?:between|from) (?:\w+ (?:and|to) )?____|____ to ",
    "part of a name":
        r"(?<=\w )[A-Z#]\S* ____|\w[-–]?____|____[-–]?\w|____ (?:class\b|[A-Z]|of [A-Z][a-zé]+ [A-Z])",
    "an open bound has several answers":
        r"(?i)\b(?:(?:more|less|fewer|greater|higher|lower|longer|better|faster|slower|older|younger) th[ae]n|over"
        r"|above|under|below|within|at (?:the )?(?:least|most)|exceed\w*|surpass\w*|minimum|maximum of|beyond"
        r"|before|after|since|until|by)(?: an?| the| about| around| well)? ____|____ or (?:more|less)",
    "a comparison tells the answer":
        r"(?i)\b(?:compared|previous(?:ly)?|prior|up from|down from|instead of|rather than|versus|vs|twice"
        r"|doubl\w+|tripl\w+|(?:half|thirds?|quarters?) of|number of years|bore)\b",
}.items()}
NEEDS_CONTEXT = re.compile(
    r"^(?:It|Its|They|Their|He|His|She|Her|This|These|That|Those|There|Here|Then|Thus|Such|Both|The (?:result|same|population)|We|Our|I|My|You|Your"
    r"|Another|Also|But|And|However|Meanwhile|Afterwards|Later|In addition|As a result|(?:Since|By|From|Until|At) th\w+)\b"
    r"|(?i:\b(?:(?:this|these) (?!year|week|month)|(?:they|them|he|she|him|we|our|my|\d+-year-old|the (?:two )?other|the (?:latter|former))\b))|^[^,]*, it\b|\bI\b")
SPAN = re.compile(r"\b(?:19|20)\d\d|\d(?:st|nd|rd|th)\b|(?i:anniversary|birthday|decade|century|centuries)")
KNOWN = {("km/h", "100"), ("mph", "62"), ("mph", "60"), ("km", "100"), ("hours", "24"), ("days", "7"),
         ("days", "365"), ("months", "12"), ("minutes", "60"), ("seconds", "60"),
         ("percent", "5")}
USUAL_DAY = re.compile(r"31 December|1 January|3[01] (?:March|June|September)")  # on which periods begin and end
NUMBER_WORDS = dict(enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen".split())) | dict(zip(
        range(20, 101, 10), "twenty thirty forty fifty sixty seventy eighty ninety hundred".split(), strict=True))


def needs_context(sentence: str) -> bool:
    """True if a sentence speaks of what the sentences before it name."""
    return NEEDS_CONTEXT.search(sentence) is not None


def flaw_of(text: str, kind: str, number: str, title: str = "") -> str | None:
    """The reason to refuse a question for a number of this kind in the gap of a text; None if there is none.

    `title`: of the document, where the question names it.
    """
    for reason, pattern in FLAWS.items():
        if pattern.search(text):
            return reason
    if not VERB.search(text):
        return "no whole sentence"
    if (kind, number) in KNOWN or USUAL_DAY.match(number) or kind == "percent" and number.startswith("9"):
        return "known without the document"
    question = f"{title} {text}"
    if kind in ("years", "months") and SPAN.search(question) or kind == "day" and names_a_day(question):
        return "a span or day beside it tells the answer"
    figures = [float(figure.replace(",", "")) for figure in re.findall(r"\d[\d,]*(?:\.\d+)?", question)]
    if kind != "day" and any(float(number.replace(",", "")) in (a + b, abs(a - b))
                             for a, b in combinations(figures, 2)):
        return "figures beside it add up to the answer"
    return "the question holds the answer" if gives_away(question, number) else None


def names_a_day(text: str) -> bool:
    """True if a text names a month, a weekday or a year."""
    return NAMES_A_DAY.search(text) is not None


def gives_away(question: str, answer: str) -> bool:
    """True if the answer stands in the question: its number or that in words, or of a day the month and year."""
    if day := DAY.fullmatch(answer):
        return day["month"] in question and day["year"] in question
    number = re.match(r"[\d.,]*\d", answer)
    if not number:
        return answer in question
    word = NUMBER_WORDS.get(int(number[0])) if number[0].isdigit() else None
    patterns = [rf"(?<![\d.,]){re.escape(number[0])}(?!\d|[.,]\d)", rf"(?i)\b{word}\b"]
    return any(re.search(pattern, question) for pattern in patterns)


# ---------------------------------------------------------------- what the choices alone tell
def trivial_accuracies(questions: list[dict]) -> dict[str, tuple[float, Interval]]:
    """Accuracy, with its 95 % interval, of answers by a look at the choices alone; chance is 0.25.

    Choices between which a strategy does not decide share the answer.
    """
    strategies = {"longest": len, "shortest": lambda choice: -len(choice), "roundest": roundness}
    scores = {name: [[measure(choice) for choice in question["choices"]] for question in questions]
              for name, measure in strategies.items()}
    values = np.array([[value_of(choice) for choice in question["choices"]] for question in questions])
    scores["nearest to the median"] = -abs(values - np.median(values, axis=1, keepdims=True))
    answers = np.array([question["answer"] for question in questions])
    sources, accuracies = [question["source"] for question in questions], {}
    for name, by_choice in scores.items():
        best = np.array(by_choice)
        best = best == best.max(axis=1, keepdims=True)
        hits = best[np.arange(len(best)), answers] / best.sum(axis=1)
        accuracies[name] = hits.mean(), bootstrap(hits, np.ones(len(hits)), sources)
    return accuracies


def value_of(choice: str) -> float:
    """The number at the beginning of a choice, or of a day its ordinal number; ValueError if it has none."""
    if day := DAY.fullmatch(choice):
        return date(int(day["year"]), MONTHS.index(day["month"]) + 1, int(day["day"])).toordinal()
    number = re.match(r"[\d.,]*\d", choice)
    return float(number[0].replace(",", ""))


def roundness(choice: str) -> int:
    """The zeros at the end of a choice's number, less its decimals; of a day 1 if it is the first of a month."""
    if day := DAY.fullmatch(choice):
        return int(day["day"] == "1")
    number = re.match(r"[\d.,]*\d", choice)[0]
    digits = number.replace(",", "").replace(".", "")
    return len(digits) - len(digits.rstrip("0")) - len(number.partition(".")[2])
