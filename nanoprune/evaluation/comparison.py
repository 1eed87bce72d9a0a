"""Each model's numbers with their intervals, and paired differences between models and between seeds."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from nanoprune.evaluation.perplexity import EDGES
from nanoprune.evaluation.written_answers import KINDS, MEANS, SCORES, corpus_bleu
from nanoprune.statistics import (
    LEVEL,
    NO_SPREAD,
    Ratio,
    Spread,
    crossed_spread,
    mcnemar,
    mean,
    share_interval,
    spread,
)

RULES = {"correct": "accuracy", "correct_norm": "accuracy_norm", "correct_bytes": "accuracy_bytes"}
ABOUT = ("name", "path", "blocks", "original", "params", "tokenizer", "seed", "like")
LENGTHS = ("shortest third", "middle third", "longest third")


def column(rows: list[dict], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], float)


def sources(rows: list[dict]) -> list[str]:
    """The text that each question rests on."""
    return [row["source"] for row in rows]


def grouped(rows: list[dict], key: str) -> dict[str, list[dict]]:
    """Rows by a column; those without a value are left out."""
    groups = defaultdict(list)
    for row in rows:
        if row.get(key) not in ("", None):
            groups[str(row[key])].append(row)
    return groups


def nats(rows: list[dict]) -> Ratio:
    """Nats per token."""
    return Ratio(column(rows, "nll"), column(rows, "tokens"))


def bits(rows: list[dict]) -> Ratio:
    """Bits per byte."""
    return Ratio(column(rows, "nll") / math.log(2), column(rows, "bytes"))


# ---------------------------------------------------------------- one model
def summarize(result: dict) -> dict:
    """A model's entry in results.json."""
    return {key: result[key] for key in ABOUT} | {
        "test": summarize_text(result["test"]),
        "general": summarize_text(result["general"]) if result["general"] else None,
        "qa": {name: summarize_questions(rows) for name, rows in result["answers"].items()},
        "written": summarize_by_task(result["written"]) if result["written"] else {},
        "cost": result["cost"],
    }


def estimate(name: str, ratio: Ratio, groups: Sequence | None = None) -> dict:
    """A measure and its interval, as they stand in results.json."""
    return {name: ratio.value, f"{name}_interval": ratio.interval(groups)}


def summarize_text(rows: list[dict]) -> dict:
    nll, tokens, size, words = (column(rows, key).sum() for key in ("nll", "tokens", "bytes", "words"))
    loss = estimate("nll", nats(rows))
    return loss | {
        "perplexity": math.exp(loss["nll"]),
        "perplexity_interval": [math.exp(end) for end in loss["nll_interval"]],
        "bits_per_byte": nll / math.log(2) / size,
        "bits_per_byte_interval": bits(rows).interval(),
        "word_perplexity": math.exp(min(700, nll / words)),
        "byte_perplexity": math.exp(nll / size),
        "tokens": int(tokens),
        "bytes": int(size),
        "words": int(words),
        "documents": len(rows),
    }


def summarize_questions(rows: list[dict]) -> dict:
    n = len(rows)
    summary = {"n": n, "sources": len(set(sources(rows)))}
    summary |= {key: column(rows, key).mean() for key in ("chance", "longest")}
    for key, name in RULES.items():
        right = column(rows, key)
        summary |= {name: right.mean(), f"{name}_interval": share_interval(right, sources(rows))}
    true, best_other = np.array([true_and_best_other(row) for row in rows]).T
    summary |= {"mean_loglikelihood": true.mean(), "mean_margin": (true - best_other).mean()}
    summary["stderr"] = column(rows, "correct").std(ddof=1) / math.sqrt(n) if n > 1 else None
    for kind in ("category", "difficulty"):
        accuracies = summary[f"by_{kind}"] = {}
        for value, group in sorted(grouped(rows, kind).items()):
            right = column(group, "correct")
            accuracies[value] = {"n": len(group), "accuracy": right.mean(),
                                 "interval": share_interval(right, sources(group))}
    return summary


def true_and_best_other(row: dict) -> tuple[float, float]:
    """The log-likelihoods of the true choice and of the best other."""
    scores, answer = np.array(row["loglikelihoods"]), row["answer"]
    return scores[answer], np.delete(scores, answer).max()


def summarize_by_task(rows: list[dict]) -> dict[str, dict]:
    """Means of every measure over all answers, by task, by category and by difficulty."""
    summaries = {"all": summarize_answers(rows)}
    for kind in KINDS:
        for value, group in sorted(grouped(rows, kind).items()):
            summaries[value if kind == "task" else f"{kind} {value}"] = summarize_answers(group)
    return summaries


def summarize_answers(rows: list[dict]) -> dict:
    """Means over answers, those of SCORES with intervals; `invented` is a share of the numbers written."""
    means = {measure: mean(column(rows, measure)) for measure in MEANS if measure in rows[0]}
    summary = {"n": len(rows)} | {measure: ratio.value for measure, ratio in means.items()}
    if "bleu" in rows[0]:
        summary["bleu"] = corpus_bleu([row["answer"] for row in rows], [row["reference"] for row in rows])
    for measure in SCORES:
        summary |= estimate(measure, means[measure])
    written = column(rows, "numbers").sum()
    return summary | {"invented": column(rows, "invented").sum() / written if written else 0.0}


def slices(result: dict) -> list[dict]:
    """The rows of slices.csv: test loss by month, category, length and position; general text by category."""
    thirds = np.quantile(column(result["test"], "tokens"), [1 / 3, 2 / 3])
    rows = [row | {"length": LENGTHS[np.searchsorted(thirds, row["tokens"])]} for row in result["test"]]
    parts = [(kind, value, "", documents) for kind in ("month", "category", "length")
             for value, documents in sorted(grouped(rows, kind).items())]
    parts += [("general", value, "", documents)
              for value, documents in sorted(grouped(result["general"], "category").items())]
    for first, after in itertools.zip_longest(EDGES, EDGES[1:]):
        parts.append(("position", f"{first} to {after - 1}" if after else f"from {first}", f"_{first}", rows))
    lines = []
    for kind, value, suffix, documents in parts:
        scored = [row for row in documents if row[f"tokens{suffix}"]]
        loss = Ratio(column(scored, f"nll{suffix}"), column(scored, f"tokens{suffix}"))
        if scored:
            low, high = loss.interval()
            lines.append({
                "model": result["name"], "slice": kind, "value": value, "nll": loss.value, "low": low,
                "high": high, "tokens": int(loss.denominators.sum()), "documents": len(scored)})
    return lines


# ---------------------------------------------------------------- two models
def compare_all(results: list[dict]) -> list[dict]:
    """Comparisons of every two models; those that hold among all differences listed are marked."""
    pairs = list(itertools.combinations(results, 2))
    first = results[0]
    measures = 1 + bool(first["general"]) + len(first["answers"]) + len(SCORES) * bool(first["written"])
    return [compare(a, b, len(pairs) * measures) for a, b in pairs]


def compare(a: dict, b: dict, comparisons: int) -> dict:
    """Paired differences of b from a with 95 % intervals; `comparisons`: how many are listed in all."""
    same_tokens = a["tokenizer"] == b["tokenizer"]
    differences = {"models": [a["name"], b["name"]]}
    for text, label in (("test", ""), ("general", "general ")):
        before, after = a[text], b[text]
        if before:
            gain = bits(after).value - bits(before).value
            varied = spread(bits(after).influences - bits(before).influences, column(before, "bytes"))
            differences[f"{label}bits_per_byte"] = verdict(gain, varied, comparisons)
            if same_tokens:
                gains = Ratio(column(after, "nll") - column(before, "nll"), column(before, "tokens"))
                differences[f"{label}nll"] = mean_difference(gains, None, comparisons)
    if not same_tokens:
        return differences | {"note": "different tokenizers: compared in bits per byte only"}
    for name, before in a["answers"].items():
        for key, measure in RULES.items():
            right, right_after = column(before, key), column(b["answers"][name], key)
            gains = mean(right_after - right)
            differences[f"{name} {measure}"] = mean_difference(gains, sources(before), comparisons) | {
                "mcnemar_p": mcnemar(right, right_after)}
    for key in SCORES if a["written"] else ():
        gains = mean(column(b["written"], key) - column(a["written"], key))
        differences[f"written {key}"] = mean_difference(gains, None, comparisons)
    return differences


def mean_difference(gains: Ratio, groups: Sequence | None, comparisons: int) -> dict:
    return verdict(gains.value, gains.spread(groups), comparisons)


def verdict(value: float, varied: Spread, comparisons: int) -> dict:
    """A difference, its interval, and whether it holds alone and among all comparisons (Bonferroni)."""
    low, high = varied.interval(value)
    lowest, highest = varied.interval(value, 1 - (1 - LEVEL) / comparisons)
    return {"difference": value, "interval": [low, high], "shown": bool(low > 0 or high < 0),
            "shown_among_all": bool(lowest > 0 or highest < 0), "freedom": varied.freedom,
            "detectable": varied.detectable(), "method": "linearised t, 95 %, paired"}


def summarize_agreement(rows: list[dict]) -> list[dict]:
    """The entries of results.json on how far every two models predict alike."""
    pairs = defaultdict(list)
    for row in rows:
        pairs[row["first"], row["second"]].append(row)
    entries = []
    for models, documents in pairs.items():
        tokens = column(documents, "tokens")
        entry = {"models": list(models)} | estimate("top1", Ratio(column(documents, "same"), tokens))
        entry |= estimate("kl", Ratio(column(documents, "kl"), tokens))
        entries.append(entry | {"tokens": int(tokens.sum()), "documents": len(documents)})
    return entries


# ---------------------------------------------------------------- several seeds
def over_seeds(results: list[dict]) -> dict[str, list[dict]]:
    """The test nll of configs that ran with several seeds, and the differences between them.

    The interval of a difference is that of a new seed and a new document. Its runs are paired by seed where
    both configs ran with the same ones.
    """
    families = {}  # the runs of each config, by its name
    for runs in grouped(results, "like").values():
        if len(runs) > 1:
            name = re.sub(r"[-_]?s?\d+$", "", runs[0]["name"]) or runs[0]["name"]
            families[name] = sorted(runs, key=lambda run: run["seed"])
    pairs = itertools.combinations(families.items(), 2)
    comparisons = [compare_seeds(a, b, runs_a, runs_b) for (a, runs_a), (b, runs_b) in pairs
                   if runs_a[0]["tokenizer"] == runs_b[0]["tokenizer"]]
    return {"configs": [describe_seeds(name, runs) for name, runs in families.items()],
            "comparisons": comparisons}


def losses_by_seed(runs: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of test nll (seeds, documents) and tokens (documents,)."""
    return np.array([column(run["test"], "nll") for run in runs]), column(runs[0]["test"], "tokens")


def describe_seeds(name: str, runs: list[dict]) -> dict:
    nll, tokens = losses_by_seed(runs)
    means, loss = nll.sum(1) / tokens.sum(), Ratio(nll.mean(0), tokens)
    return {"config": name, "runs": len(runs), "nll": means.mean(),
            "documents": loss.spread().standard_error, "seeds": means.std(ddof=1), "lowest": means.min(),
            "highest": means.max()}


def compare_seeds(a: str, b: str, runs_a: list[dict], runs_b: list[dict]) -> dict:
    """The difference of config b from config a over the seeds that both ran with."""
    common = {run["seed"] for run in runs_a} & {run["seed"] for run in runs_b}
    (nll_a, tokens), (nll_b, _) = (losses_by_seed([run for run in runs if run["seed"] in common] or runs[:1])
                                   for runs in (runs_a, runs_b))
    gains = nll_b - nll_a
    value = gains.mean(0).sum() / tokens.sum()
    influences = (gains - value * tokens) / tokens.sum()
    varied = crossed_spread(influences, tokens) if len(common) > 1 else NO_SPREAD
    low, high = varied.interval(value)
    return {"configs": [a, b], "difference": value, "interval": [low, high],
            "shown": bool(low > 0 or high < 0), "seeds": len(common), "error": varied.standard_error,
            "freedom": varied.freedom,
            "method": "crossed random effects of seeds and documents, Satterthwaite"}
