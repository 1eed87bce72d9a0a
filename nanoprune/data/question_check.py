"""What makes a question bad: reasons to refuse a candidate, and what the choices alone tell of a set."""

import re
from datetime import date
from itertools import combinations

import numpy as np

from nanoprune.statistics import share_interval

GAP = "____"
MONTHS = (
    "January February March April May June July August September October November December").split()
DAY = re.compile(
    rf"(?<!\w)(?P<day>[1-9]|[12]\d|3[01]) (?P<month>{'|'.join(MONTHS)}) (?P<year>[12]\d{{3}})(?!\d)")
NAMES_A_DAY = re.compile(
    rf"\b(?:{'|'.join(MONTHS)}|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|(?:19|20)\d\d)\b")
FLAWS = {  # patterns in a text with its gap
    "no whole sentence":
        r"^[^A-Z]|[^.!?”\"]$|[|•*]|\+\+\+|[a-z_][.!?][A-Z]|[.!?] ____|____.*:|^\S+ ?[-–] "
        r"|\b[A-Z]{4,} [A-Z]{4,}\b",
    "a figure beside it tells the answer":
        r"[/(=+±] ?____|____ ?[/(=]|\([^)]*\b20\d\d:|\(\d+\)|(?:equivalent|corresponds|respectively)\b"
        r"|\bor ____|____ or ",
    "part of a range":
        r"\d\S* ?(?:[-–—]|to|and|until|till|through) ?____|____ ?(?:[-–—]|to|and|until|till|through) ?\d"
        r"|\b(?:between|from) (?:\w+ (?:and|to) )?____|____ to ",
    "part of a name":
        r"(?<=\w )[A-Z#]\S* ____|\w[-–]?____|____[-–]?\w|____ (?:class\b|[A-Z]|of [A-Z][a-zé]+ [A-Z])",
    "an open bound has several answers":
        r"(?i)\b(?:(?:more|less|fewer|greater|higher|lower|longer|better|faster|slower|older|younger) th[ae]n"
        r"|over|above|under|below|within|at (?:the )?(?:least|most)|exceed\w*|surpass\w*|minimum|maximum of"
        r"|beyond|before|after|since|until|by)(?: an?| the| about| around| well)? ____|____ or (?:more|less)",
    "a comparison tells the answer":
        r"(?i)\b(?:compared|previous(?:ly)?|prior|up from|down from|instead of|rather than|versus|vs|twice"
        r"|doubl\w+|tripl\w+|(?:half|thirds?|quarters?) of|number of years|bore|one in \w+|majority)\b"
        r"|\bonly ____"
        r"|^Every ____",
}
NEEDS_CONTEXT = re.compile(
    r"^(?:Its?|They|Their|He|His|She|Her|This|These|That|Those|There|Here|Then|Thus|Such|Both|We|Our|I|My|You"
    r"|Your|Another|Also|But|And|However|Meanwhile|Afterwards|Later"
    r"|The (?:result|same|population|decrease|increase|decline|rise|drop|growth|figure|share|total)"
    r"|As a result|In addition|(?:Since|By|From|Until|At) th\w+)\b|^[^,]*, it\b|\bI\b"
    r"|(?i:\b(?:th(?:is|ese) (?!year|week|month)|(?:they|them|he|she|him|we|our|my|the (?:two )?other)\b"
    r"|\d+-year-old|the latter|the former|tranche|no other)\b)"
    r"|^(?!.*(?:Group|[A-Z]\w+ (?:[Ss]egment|[Dd]ivision)\b))"
    r".*\b(?:[Ee]arnings|EBIT|[Mm]argin|[Rr]evenues?)\b")
VERB = re.compile(  # sentences of newsrooms have one of these, or one in -ed
    r"(?<![-\w])(?:[a-z]+ed|is|are|was|were|has|have|had|will|can|could|would|should|may|might|must|does|did"
    r"|accelerates?|achieves?|began|becomes?|became|brings?|brought|builds?|built|came|comes?|costs?|covers?"
    r"|delivers?|develops?|drives?|drove|employs?|enables?|enhances?|expects?|features?|fell|gave|generates?"
    r"|gets?|gives?|goes|got|grew|held|holds?|includes?|joins?|keeps?|kept|leads?|leaves?|led|left|lies|made"
    r"|makes?|met|offers?|opens?|operates?|produces?|provides?|ran|reaches|reduces?|remains?|represents?"
    r"|requires?|rises?|rolls?|rose|runs?|saw|sees|sells?|sets?|sold|spent|sprints?|stands?|starts?|stood"
    r"|supports?|takes?|tells?|took|totals?|travels?|weighs?|went|wins?|won|works?)\b")
SPAN = re.compile(r"\b(?:19|20)\d\d|\d(?:st|nd|rd|th)\b|(?i:anniversary|birthday|decade|centur|generation)")
KNOWN = re.compile(  # from 0 to 100 km/h, the hours of a day, nearly all, and days on which periods begin
    r"1[03]0 ?km(?:/h)?|6[02] ?mph|24 hours|(?:7|365) days|12 months|60 (?:minutes|seconds)"
    r"|(?:5|9\d(?:\.\d+)?|100) ?(?:%|per ?cent)|(?:1|28|29|30|31) [A-Z].*")
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty").split()


def flaw_of(text: str, kind: str, answer: str, title: str = "") -> str | None:
    """The reason to refuse a question for the figure or day in the gap of a text; None if there is none.

    `kind`: the pattern of its units, or "day". `title`: the document's, where the question names it.
    """
    question = f"{title} {text}"
    for reason, pattern in FLAWS.items():
        if re.search(pattern, text):
            return reason
    if not VERB.search(text):
        return "no whole sentence"
    if KNOWN.fullmatch(answer):
        return "known without the document"
    if gives_away(question, answer):
        return "the question holds the answer"
    if kind == "day":
        return "a day beside it tells the answer" if NAMES_A_DAY.search(question) else None
    if "year" in answer and SPAN.search(question):
        return "a span beside it tells the answer"
    # The same quantity, in a range or not, in this unit or another.
    if re.search(rf"\d(?: million| billion)?[ -]?(?:{kind})(?!\w)", question):
        return "a figure beside it tells the answer"
    figures = [float(figure.replace(",", "")) for figure in re.findall(r"\d[\d,]*(?:\.\d+)?", question)]
    sums = {value for a, b in combinations(figures, 2) for value in (a + b, abs(a - b))}
    return "figures beside it add up to the answer" if value_of(answer) in sums else None


def gives_away(question: str, answer: str) -> bool:
    """True if the answer stands in the question: its number, in words too, or of a day the month and year."""
    if day := DAY.fullmatch(answer):
        return day["month"] in question and day["year"] in question
    number = re.match(r"[\d.,]*\d", answer)
    if not number:
        return answer in question
    small = number[0].isdigit() and int(number[0]) < len(NUMBER_WORDS)
    word = NUMBER_WORDS[int(number[0])] if small else number[0]
    patterns = rf"(?<![\d.,]){re.escape(number[0])}(?!\d|[.,]\d)", rf"(?i)\b{re.escape(word)}\b"
    return any(re.search(pattern, question) for pattern in patterns)


# ---------------------------------------------------------------- what the choices alone tell
def accuracies_by_choices(questions: list[dict]) -> dict[str, dict]:
    """Accuracy and its 95 % interval of strategies that see the choices alone; chance is 0.25.

    Choices between which a strategy does not decide share the answer.
    """
    choices = np.array([question["choices"] for question in questions])
    values = np.vectorize(value_of, otypes=[float])(choices)
    scores = {"longest": np.vectorize(len)(choices), "roundest": np.vectorize(zeros_at_end)(choices),
              "nearest to the median": -abs(values - np.median(values, axis=1, keepdims=True))}
    rows, answers = np.arange(len(choices)), [question["answer"] for question in questions]
    sources, accuracies = [question["source"] for question in questions], {}
    for name, score in scores.items():
        best = score == score.max(axis=1, keepdims=True)
        right = best[rows, answers] / best.sum(axis=1)
        accuracies[name] = {"accuracy": float(right.mean()), "interval": share_interval(right, sources)}
    return accuracies


def value_of(choice: str) -> float:
    """The number at the beginning of a choice, or of a day its ordinal number; ValueError if it has none."""
    if day := DAY.fullmatch(choice):
        return date(int(day["year"]), MONTHS.index(day["month"]) + 1, int(day["day"])).toordinal()
    return float(re.match(r"[\d.,]*\d", choice)[0].replace(",", ""))


def zeros_at_end(choice: str) -> int:
    """The zeros at the end of the number at the beginning of a choice."""
    digits = re.sub("[.,]", "", re.match(r"[\d.,]*\d", choice)[0])
    return len(digits) - len(digits.rstrip("0"))
