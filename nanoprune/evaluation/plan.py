"""The difference that a test split and question sets can show, said before any training."""

import math

import numpy as np

from nanoprune.evaluation.arms import values
from nanoprune.statistics import Ratio, Spread

ASSUMED = 0.2  # share of a set's answers that another model changes
NATS, POINTS = 0.01, 5  # the differences that documents and questions are counted for


def text_plan(whole: list[dict], reduced: list[dict]) -> dict:
    """The difference in nats a token that these documents can show, from the rows of two models."""
    tokens = values([whole], "tokens")[0]
    gains = Ratio(values([reduced], "nll") - values([whole], "nll"), tokens)
    least, documents = gains.spread().detectable(), int((tokens > 0).sum())
    return {
        "documents": documents,
        "detectable_nats": least,
        "detectable_perplexity_percent": 100 * math.expm1(least),
        "documents_needed": needed(documents, least, NATS),
    }


def question_plan(whole: list[dict], reduced: list[dict], changed: float) -> dict:
    """The difference in points of accuracy that these questions can show if `changed` of them are answered
    otherwise, as many better as worse, each for itself.
    """
    count, measured = len(whole), np.mean(values([whole], "correct") != values([reduced], "correct"))
    least = Spread(100 * math.sqrt(changed / count), max(1, count - 1)).detectable()
    return {
        "questions": count,
        "sources": len({row["source"] for row in whole}),
        "changed_without_block": float(measured),
        "detectable_points": least,
        "questions_needed": needed(count, least, POINTS),
    }


def needed(count: int, least: float, difference: float) -> int | None:
    """The units that would show a difference, where `count` show `least`; None where that is unknown."""
    return math.ceil(count * (least / difference) ** 2) if math.isfinite(least) else None


def describe_plan(plan: dict) -> list[str]:
    """The lines that say what can be shown, and on what assumptions."""
    text, block = plan["text"], plan["without"]
    lines = [
        f"Assumed: two models differ from document to document as {plan['model']} does with and without "
        f"block {block}.",
        f"Assumed: {plan['changed']:.0%} of the answers change, as many to the better as to the worse, each "
        "question for itself. Questions of one source change together and show less.",
        f"test: {text['documents']} documents are too few to say." if text["documents_needed"] is None else
        f"test: {text['documents']} documents show {text['detectable_nats']:.2g} nats a token "
        f"({text['detectable_perplexity_percent']:.2g} % of perplexity) or more with 80 % power; "
        f"{NATS} nats would need {text['documents_needed']:,} documents."]
    for name, questions in plan["questions"].items():
        lines.append(
            f"{name}: {questions['questions']} questions on {questions['sources']} sources show "
            f"{questions['detectable_points']:.2g} points of accuracy or more; {POINTS} points would need "
            f"{questions['questions_needed']:,}. Without block {block} "
            f"{questions['changed_without_block']:.0%} of these were answered right instead of wrong, or "
            "wrong instead of right.")
    return lines
