"""Each model's numbers with their intervals, and paired differences between models and between seeds."""

import itertools
import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np

from nanoprune.evaluation.perplexity import EDGES
from nanoprune.evaluation.written_answers import SCORES, summarize_by_task
from nanoprune.statistics import RESAMPLES, bootstrap, bootstrap_ratios, detectable_difference, mcnemar

RULES = {"correct": "accuracy", "correct_norm": "accuracy_norm", "correct_bytes": "accuracy_bytes"}


def summarize(found: dict) -> dict:
    """A model's entry in results.json."""
    known = {key: found[key] for key in ("name", "path", "blocks", "original", "params", "tokenizer", "seed", "like")}
    general = text_summary(found["general"]) if found["general"] else None
    return known | {"test": text_summary(found["test"]), "general": general,
                    "qa": {name: answer_summary(rows) for name, rows in found["answers"].items()},
                    "written": summarize_by_task(found["written"]) if found["written"] else {}, "cost": found["cost"]}


def column(rows: list[dict], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], float)


def text_summary(rows: list[dict]) -> dict:
    nll, tokens, nbytes, words = (column(rows, key) for key in ("nll", "tokens", "bytes", "words"))
    mean, interval = nll.sum() / tokens.sum(), bootstrap(nll, tokens, range(len(nll)))
    bits = bootstrap(nll / math.log(2), nbytes, range(len(nll)))
    return {"nll": mean, "nll_interval": list(interval), "perplexity": math.exp(mean),
            "perplexity_interval": [math.exp(end) for end in interval],
            "bits_per_byte": nll.sum() / math.log(2) / nbytes.sum(), "bits_per_byte_interval": list(bits),
            "word_perplexity": math.exp(min(700, nll.sum() / words.sum())),
            "byte_perplexity": math.exp(nll.sum() / nbytes.sum()), "tokens": int(tokens.sum()), "bytes": int(nbytes.sum()),
            "words": int(words.sum()), "documents": len(rows)}


def answer_summary(rows: list[dict]) -> dict:
    n, sources = len(rows), [row["source"] for row in rows]
    if not n:
        return {"n": 0, "sources": 0, "accuracy": None, "chance": None}
    found = {"n": n, "sources": len(set(sources))} | {key: column(rows, key).mean() for key in ("chance", "longest")}
    for key, name in RULES.items():
        right = column(rows, key)
        found |= {name: right.mean(), f"{name}_interval": list(bootstrap(right, np.ones(n), sources))}
    found |= {"mean_loglikelihood": column(rows, "loglikelihood").mean(), "mean_margin": column(rows, "margin").mean(),
              "stderr": column(rows, "correct").std(ddof=1) / math.sqrt(n) if n > 1 else None}
    for kind in ("category", "difficulty"):
        values = sorted({str(row[kind]) for row in rows} - {""})
        found[f"by_{kind}"] = {}
        for value in values:
            chosen = [row for row in rows if str(row[kind]) == value]
            right = column(chosen, "correct")
            low, high = bootstrap(right, np.ones(len(right)), [row["source"] for row in chosen])
            found[f"by_{kind}"][value] = {"n": len(chosen), "accuracy": right.mean(), "interval": [low, high]}
    return found


def slices(found: dict) -> list[dict]:
    """Test loss by month, category and length of the documents, and by position within them."""
    rows, lines = found["test"], []
    thirds = np.quantile(column(rows, "tokens"), [1 / 3, 2 / 3]) if rows else []

    def third(row: dict) -> str:
        return ("shortest third", "middle third", "longest third")[int(np.searchsorted(thirds, row["tokens"]))]

    def line(kind: str, value: str, nll: np.ndarray, tokens: np.ndarray) -> None:
        if (scored := tokens > 0).any():
            nll, tokens = nll[scored], tokens[scored]
            low, high = bootstrap(nll, tokens, range(len(nll)))
            lines.append({"model": found["name"], "slice": kind, "value": value, "nll": nll.sum() / tokens.sum(), "low": low,
                          "high": high, "tokens": int(tokens.sum()), "documents": len(nll)})

    for kind, of in (("month", lambda row: row["month"]), ("category", lambda row: row["category"]), ("length", third)):
        for value in sorted({of(row) for row in rows} - {""}):
            chosen = [row for row in rows if of(row) == value]
            line(kind, value, column(chosen, "nll"), column(chosen, "tokens"))
    for first, after in itertools.zip_longest(EDGES, EDGES[1:]):
        line("position", f"{first} to {after - 1}" if after else f"from {first}", column(rows, f"nll_{first}"),
             column(rows, f"tokens_{first}"))
    return lines


def compare(a: dict, b: dict, comparisons: int) -> dict:
    """What b has over a: paired differences with 95 % intervals, and whether they hold among so many `comparisons`."""
    found = {"models": [a["name"], b["name"]]}
    for name in ("test", "general"):
        if not a[name]:
            continue
        one, other = ([column(m[name], key) for key in ("nll", "tokens", "bytes")] for m in (a, b))
        label = "" if name == "test" else "general "
        bits = [(part[0] / math.log(2), part[2]) for part in (one, other)]
        value = bits[1][0].sum() / bits[1][1].sum() - bits[0][0].sum() / bits[0][1].sum()
        found[f"{label}bits_per_byte"] = verdict(value, partial(bootstrap_ratios, *bits, range(len(one[0]))), len(one[0]),
                                                 comparisons)
        if a["tokenizer"] == b["tokenizer"]:
            found[f"{label}nll"] = difference(other[0] - one[0], one[1], range(len(one[0])), comparisons)
    if a["tokenizer"] != b["tokenizer"]:
        return found | {"note": "different tokenizers: compared in bits per byte only"}
    for name in a["answers"]:
        pairs = list(zip(a["answers"][name], b["answers"][name], strict=True))
        sources = [row["source"] for row, _ in pairs]
        for key, measure in RULES.items():
            gain = np.array([y[key] - x[key] for x, y in pairs], float)
            if len(gain):
                one = difference(gain, np.ones(len(gain)), sources, comparisons)
                p = mcnemar(column([x for x, _ in pairs], key), column([y for _, y in pairs], key))
                found[f"{name} {measure}"] = one | {"mcnemar_p": p}
    for key in SCORES if a["written"] else ():
        gain = column(b["written"], key) - column(a["written"], key)
        found[f"written {key}"] = difference(gain, np.ones(len(gain)), range(len(gain)), comparisons)
    return found


def verdict(value: float, interval: Callable, groups: int, comparisons: int) -> dict:
    low, high = interval(level=0.95)
    least, most = interval(level=1 - 0.05 / max(1, comparisons))
    return {"difference": float(value), "interval": [low, high], "shown": low > 0 or high < 0, "groups": groups,
            "shown_among_all": least > 0 or most < 0, "detectable": detectable_difference(low, high),
            "method": f"paired bootstrap, {RESAMPLES} resamples, percentile, 95 %"}


def difference(numerators: np.ndarray, denominators: np.ndarray, groups, comparisons: int) -> dict:
    groups = list(groups)
    return verdict(numerators.sum() / denominators.sum(), partial(bootstrap, numerators, denominators, groups),
                   len(set(groups)), comparisons)


def over_seeds(models: list[dict]) -> tuple[list[dict], list[dict]]:
    """(a row per config of which several seeds were given, differences between such configs), of the test nll.

    The two sources of variance stand apart: `documents`, the standard error of the seeds' mean over resampled documents, and
    `seeds`, the standard deviation between them. The interval of a difference takes in both.
    """
    by_config = {}
    for model in models:
        if model["like"]:
            by_config.setdefault(model["like"], []).append(model)
    groups = {re.sub(r"[-_]?s?\d+$", "", members[0]["name"]) or members[0]["name"]: members
              for members in by_config.values() if len(members) > 1}
    rows, found = [], []
    for name, members in groups.items():
        each = [m["test"] for m in members]
        nll, tokens = np.mean([column(rows_, "nll") for rows_ in each], axis=0), column(each[0], "tokens")
        means = np.array([column(rows_, "nll").sum() / tokens.sum() for rows_ in each])
        low, high = bootstrap(nll, tokens, range(len(nll)))
        rows.append({"config": name, "runs": len(members), "nll": float(means.mean()), "documents": (high - low) / 3.92,
                     "seeds": float(means.std(ddof=1)), "lowest": float(means.min()), "highest": float(means.max())})
    for (one, a), (other, b) in itertools.combinations(groups.items(), 2):
        if a[0]["tokenizer"] != b[0]["tokenizer"]:
            continue
        parts = [np.mean([column(m["test"], "nll") for m in members], axis=0) for members in (a, b)]
        tokens = column(a[0]["test"], "tokens")
        low, high = bootstrap(parts[1] - parts[0], tokens, range(len(tokens)))
        spread = [next(row for row in rows if row["config"] == name)["seeds"] ** 2 / len(members)
                  for name, members in ((one, a), (other, b))]
        error = math.sqrt(((high - low) / 3.92) ** 2 + sum(spread))
        value = float((parts[1] - parts[0]).sum() / tokens.sum())
        found.append({"configs": [one, other], "difference": value, "interval": [value - 1.96 * error, value + 1.96 * error],
                      "shown": abs(value) > 1.96 * error, "documents": (high - low) / 3.92, "seeds": math.sqrt(sum(spread)),
                      "method": "normal, variances of documents and of seeds added"})
    return rows, found
