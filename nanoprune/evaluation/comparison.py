"""Each model's numbers with their intervals, and paired differences between models and between seeds."""

import itertools
import math
import re
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from nanoprune.evaluation.perplexity import EDGES
from nanoprune.evaluation.written_answers import SCORES, summarize_by_task
from nanoprune.statistics import (
    RESAMPLES,
    Interval,
    Ratio,
    bootstrap,
    bootstrap_ratios,
    detectable_difference,
    mcnemar,
)

RULES = {"correct": "accuracy", "correct_norm": "accuracy_norm", "correct_bytes": "accuracy_bytes"}
ABOUT = ("name", "path", "blocks", "original", "params", "tokenizer", "seed", "like")


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


def column(rows: list[dict], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], float)


def nats(rows: list[dict]) -> Ratio:
    """Nats per token."""
    return Ratio(column(rows, "nll"), column(rows, "tokens"))


def bits(rows: list[dict]) -> Ratio:
    """Bits per byte."""
    return Ratio(column(rows, "nll") / math.log(2), column(rows, "bytes"))


def summarize_text(rows: list[dict]) -> dict:
    total = {key: column(rows, key).sum() for key in ("nll", "tokens", "bytes", "words")}
    mean, interval = nats(rows).value, bootstrap(*nats(rows), range(len(rows)))
    return {
        "nll": mean,
        "nll_interval": interval,
        "perplexity": math.exp(mean),
        "perplexity_interval": [math.exp(end) for end in interval],
        "bits_per_byte": total["nll"] / math.log(2) / total["bytes"],
        "bits_per_byte_interval": bootstrap(*bits(rows), range(len(rows))),
        "word_perplexity": math.exp(min(700, total["nll"] / total["words"])),
        "byte_perplexity": math.exp(total["nll"] / total["bytes"]),
        "tokens": int(total["tokens"]),
        "bytes": int(total["bytes"]),
        "words": int(total["words"]),
        "documents": len(rows),
    }


def summarize_questions(rows: list[dict]) -> dict:
    n, sources = len(rows), [row["source"] for row in rows]
    if not n:
        return {"n": 0, "sources": 0, "accuracy": None, "chance": None}
    summary = {"n": n, "sources": len(set(sources))}
    summary |= {key: column(rows, key).mean() for key in ("chance", "longest")}
    for key, name in RULES.items():
        right = column(rows, key)
        summary |= {name: right.mean(), f"{name}_interval": bootstrap(right, np.ones(n), sources)}
    summary["mean_loglikelihood"] = column(rows, "loglikelihood").mean()
    summary["mean_margin"] = column(rows, "margin").mean()
    summary["stderr"] = column(rows, "correct").std(ddof=1) / math.sqrt(n) if n > 1 else None
    return summary | {f"by_{kind}": accuracy_by(rows, kind) for kind in ("category", "difficulty")}


def accuracy_by(rows: list[dict], kind: str) -> dict[str, dict]:
    """Accuracy by category or by difficulty."""
    accuracies = {}
    for value in sorted({str(row[kind]) for row in rows} - {""}):
        group = [row for row in rows if str(row[kind]) == value]
        right = column(group, "correct")
        interval = bootstrap(right, np.ones(len(right)), [row["source"] for row in group])
        accuracies[value] = {"n": len(group), "accuracy": right.mean(), "interval": interval}
    return accuracies


def slices(result: dict) -> list[dict]:
    """The rows of slices.csv: test loss by month, category, length, and position in a document."""
    rows, lines = result["test"], []
    thirds = np.quantile(column(rows, "tokens"), [1 / 3, 2 / 3]) if rows else []

    def add(kind: str, value: str, documents: list[dict], suffix: str = "") -> None:
        nll, tokens = column(documents, f"nll{suffix}"), column(documents, f"tokens{suffix}")
        scored = tokens > 0
        if scored.any():
            loss = Ratio(nll[scored], tokens[scored])
            low, high = bootstrap(*loss, range(int(scored.sum())))
            lines.append({
                "model": result["name"], "slice": kind, "value": value, "nll": loss.value, "low": low,
                "high": high, "tokens": int(loss.denominators.sum()), "documents": int(scored.sum())})

    def length(row: dict) -> str:
        names = ("shortest third", "middle third", "longest third")
        return names[int(np.searchsorted(thirds, row["tokens"]))]

    groupings = {"month": lambda row: row["month"], "category": lambda row: row["category"], "length": length}
    for kind, group_of in groupings.items():
        for value in sorted({group_of(row) for row in rows} - {""}):
            add(kind, value, [row for row in rows if group_of(row) == value])
    for first, after in itertools.zip_longest(EDGES, EDGES[1:]):
        add("position", f"{first} to {after - 1}" if after else f"from {first}", rows, f"_{first}")
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
        if not before:
            continue
        interval = partial(bootstrap_ratios, bits(before), bits(after), range(len(before)))
        gain = bits(after).value - bits(before).value
        differences[f"{label}bits_per_byte"] = verdict(gain, interval, len(before), comparisons)
        if same_tokens:
            gains = Ratio(column(after, "nll") - column(before, "nll"), column(before, "tokens"))
            differences[f"{label}nll"] = mean_difference(gains, range(len(before)), comparisons)
    if not same_tokens:
        return differences | {"note": "different tokenizers: compared in bits per byte only"}
    for name, before in a["answers"].items():
        after, sources = b["answers"][name], [row["source"] for row in before]
        if not before:
            continue
        for key, measure in RULES.items():
            right, right_after = column(before, key), column(after, key)
            gains = Ratio(right_after - right, np.ones(len(before)))
            differences[f"{name} {measure}"] = mean_difference(gains, sources, comparisons) | {
                "mcnemar_p": mcnemar(right, right_after)}
    for key in SCORES if a["written"] else ():
        gain = column(b["written"], key) - column(a["written"], key)
        gains = Ratio(gain, np.ones(len(gain)))
        differences[f"written {key}"] = mean_difference(gains, range(len(gain)), comparisons)
    return differences


def mean_difference(gains: Ratio, groups: Iterable, comparisons: int) -> dict:
    groups = list(groups)
    return verdict(gains.value, partial(bootstrap, *gains, groups), len(set(groups)), comparisons)


def verdict(value: float, interval: Callable[..., Interval], groups: int, comparisons: int) -> dict:
    """A difference, its interval, and whether it holds alone and among all comparisons (Bonferroni)."""
    low, high = interval(level=0.95)
    wide = interval(level=1 - 0.05 / max(1, comparisons))
    return {
        "difference": float(value),
        "interval": [low, high],
        "shown": low > 0 or high < 0,
        "groups": groups,
        "shown_among_all": wide.low > 0 or wide.high < 0,
        "detectable": detectable_difference(low, high),
        "method": f"paired bootstrap, {RESAMPLES} resamples, percentile, 95 %",
    }


# ---------------------------------------------------------------- several seeds
def over_seeds(results: list[dict]) -> dict[str, list[dict]]:
    """The test nll of configs that ran with several seeds, and the differences between them.

    Two sources of variance stand apart: `documents`, the standard error of the seeds' mean over resampled
    documents, and `seeds`, the standard deviation between them. The interval of a difference has both.

    Of the test nll. The two sources of variance stand apart: `documents`, the standard error of the seeds'
    mean over resampled documents, and `seeds`, the standard deviation between them. The interval of a
    difference has both.
    """
    by_config = {}
    for result in results:
        if result["like"]:
            by_config.setdefault(result["like"], []).append(result)
    groups = {}
    for runs in by_config.values():
        if len(runs) > 1:
            first = runs[0]["name"]
            groups[re.sub(r"[-_]?s?\d+$", "", first) or first] = runs
    configs = {name: summarize_seeds(name, runs) for name, runs in groups.items()}
    losses = {name: mean_over_seeds(runs) for name, runs in groups.items()}
    comparisons = []
    for a, b in itertools.combinations(groups, 2):
        if groups[a][0]["tokenizer"] == groups[b][0]["tokenizer"]:
            comparisons.append(compare_seeds(configs[a], configs[b], losses[a], losses[b]))
    return {"configs": list(configs.values()), "comparisons": comparisons}


def mean_over_seeds(runs: list[dict]) -> Ratio:
    """Nats per token: of each document the mean over seeds, and its tokens."""
    nll = np.mean([column(run["test"], "nll") for run in runs], axis=0)
    return Ratio(nll, column(runs[0]["test"], "tokens"))


def document_error(loss: Ratio) -> float:
    """Standard error over resampled documents."""
    low, high = bootstrap(*loss, range(len(loss.numerators)))
    return (high - low) / 3.92


def summarize_seeds(name: str, runs: list[dict]) -> dict:
    means = np.array([nats(run["test"]).value for run in runs])
    return {"config": name, "runs": len(runs), "nll": float(means.mean()),
            "documents": document_error(mean_over_seeds(runs)), "seeds": float(means.std(ddof=1)),
            "lowest": float(means.min()), "highest": float(means.max())}


def compare_seeds(a: dict, b: dict, loss_a: Ratio, loss_b: Ratio) -> dict:
    """The difference of config b from config a, from their rows and their mean losses."""
    gains = Ratio(loss_b.numerators - loss_a.numerators, loss_a.denominators)
    documents = document_error(gains)
    seeds = sum(config["seeds"] ** 2 / config["runs"] for config in (a, b))
    margin, difference = 1.96 * math.sqrt(documents**2 + seeds), float(gains.value)
    return {"configs": [a["config"], b["config"]], "difference": difference,
            "interval": [difference - margin, difference + margin], "shown": abs(difference) > margin,
            "documents": documents, "seeds": math.sqrt(seeds),
            "method": "normal, variances of documents and of seeds added"}
