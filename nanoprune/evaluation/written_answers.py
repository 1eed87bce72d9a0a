"""What a model writes when asked: answers to held-out instructions, measured against the reference and against the corpus.

ROUGE is rouge-score's and BLEU sacrebleu's, where they are installed (pip install rouge-score sacrebleu).
"""

import re
import string
from collections import Counter

import numpy as np
import torch

from model import Decoder
from nanoprune.distributed import ALONE, Ranks
from nanoprune.nn.sampling import generate
from nanoprune.statistics import bootstrap

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SCORES = ("exact_match", "f1")  # of which intervals and differences are given
KINDS = ("task", "category", "difficulty")  # what an instruction is told apart by
WORD = re.compile(r"\w+")


def normalized(text: str) -> str:
    """Lower case without punctuation, articles and extra space, as SQuAD compares answers (arXiv:1606.05250)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, reference: str) -> float:
    return float(normalized(answer) == normalized(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words (arXiv:1606.05250); 1 where both are empty."""
    a, b = normalized(answer).split(), normalized(reference).split()
    common = sum((Counter(a) & Counter(b)).values())
    if not a or not b:
        return float(a == b)
    return 2 * common / (len(a) + len(b))


def repetition(text: str, n: int = 4) -> float:
    """Share of the text's n-grams of words that stood in it before; 0 where it is shorter."""
    words = WORD.findall(text.lower())
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text)


def invented(text: str, prompt: str, known: set[str]) -> tuple[int, int]:
    """(numbers that stand neither in the prompt nor among the corpus's, all numbers) of a text."""
    found, here = numbers(text), set(numbers(prompt))
    return sum(number not in here and number not in known for number in found), len(found)


def overlap_scores(answer: str, reference: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L (F) and sentence BLEU, of the libraries that are there; nothing otherwise."""
    found = {}
    try:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
        found |= {name: score.fmeasure for name, score in scorer.score(reference, answer).items()}
    except ImportError:
        pass
    try:
        from sacrebleu import sentence_bleu

        found["bleu"] = sentence_bleu(answer, [reference]).score / 100
    except ImportError:
        pass
    return found


def corpus_bleu(answers: list[str], references: list[str]) -> float | None:
    """BLEU (0 to 1) over all answers together, of as many words in a row as they have, at most four: where no answer has four
    it would be 0 whatever they say. None without sacrebleu."""
    try:
        from sacrebleu import BLEU
    except ImportError:
        return None
    return BLEU(effective_order=True).corpus_score(answers, [references]).score / 100


def write_answers(
    model: Decoder, tokenizer, asked: list[dict], known: set[str], most: int, ranks: Ranks = ALONE, label: str = "answers",
    stop: set[int] = frozenset(),
) -> list[dict]:
    """A row per `asked` {prompt, tokens, reference, task, ...}: the greedy answer and its measures. One sequence at a time."""
    rows = [{} for _ in asked]
    for i in ranks.turns(range(len(asked)), label):
        one = asked[i]
        try:
            ids = generate(model, torch.tensor([one["tokens"]]), most, stop=model.stop_tokens | stop)[0]
        except ValueError:  # logits that are not finite say nothing
            ids = []
        text = tokenizer.decode(ids).strip()
        wrong, count = invented(text, one["prompt"], known)
        rows[i] = {
            **{kind: one.get(kind) for kind in KINDS}, "prompt": one["prompt"], "reference": one["reference"], "answer": text,
            "exact_match": exact_match(text, one["reference"]), "f1": token_f1(text, one["reference"]),
            **overlap_scores(text, one["reference"]), "repetition": repetition(text), "numbers": count, "invented": wrong}
    return ranks.gather(rows)


def summarize_by_task(rows: list[dict]) -> dict[str, dict]:
    """Means of every measure over all, by task, and by category and difficulty where there are such, those of SCORES with
    intervals over answers; `invented` is a share of the numbers written."""
    groups = {"all": rows}
    for kind in KINDS:
        for value in sorted({row[kind] for row in rows if row.get(kind)}):
            groups[value if kind == "task" else f"{kind} {value}"] = [row for row in rows if row.get(kind) == value]
    found = {}
    for task, chosen in groups.items():
        means = {key: float(np.mean([row[key] for row in chosen])) for key in (
            "exact_match", "f1", "rouge1", "rouge2", "rougeL", "repetition") if all(key in row for row in chosen)}
        bleu = corpus_bleu([row["answer"] for row in chosen], [row["reference"] for row in chosen])
        total = sum(row["numbers"] for row in chosen)
        found[task] = {"n": len(chosen), **means} | ({} if bleu is None else {"bleu": bleu})
        for key in SCORES:
            values = np.array([row[key] for row in chosen])
            found[task][f"{key}_interval"] = list(bootstrap(values, np.ones(len(values)), range(len(values))))
        found[task]["invented"] = sum(row["invented"] for row in chosen) / total if total else 0.0
    return found
