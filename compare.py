"""From measurements to results: each model's numbers with intervals, differences, seeds, and the text that a reader gets."""

import itertools
import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np

from answers import SCORES, by_task
from predict import EDGES
from stats import FEW, RESAMPLES, bootstrap, bootstrap_ratios, detectable, digits, mcnemar

RULES = {"correct": "accuracy", "correct_norm": "accuracy_norm", "correct_bytes": "accuracy_bytes"}


# ---------------------------------------------------------------- one model


def summarize(found: dict) -> dict:
    """A model's entry in results.json."""
    known = {key: found[key] for key in ("name", "path", "blocks", "original", "params", "tokenizer", "seed", "like")}
    general = text_summary(found["general"]) if found["general"] else None
    return known | {"test": text_summary(found["test"]), "general": general,
                    "qa": {name: answer_summary(rows) for name, rows in found["answers"].items()},
                    "written": by_task(found["written"]) if found["written"] else {}, "cost": found["cost"]}


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


# ---------------------------------------------------------------- two models


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
            "shown_among_all": least > 0 or most < 0, "detectable": detectable(low, high),
            "method": f"paired bootstrap, {RESAMPLES} resamples, percentile, 95 %"}


def difference(numerators: np.ndarray, denominators: np.ndarray, groups, comparisons: int) -> dict:
    groups = list(groups)
    return verdict(numerators.sum() / denominators.sum(), partial(bootstrap, numerators, denominators, groups),
                   len(set(groups)), comparisons)


# ---------------------------------------------------------------- several seeds of one config


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


# ---------------------------------------------------------------- what a reader gets


def number(value: float, interval, sign: str = "") -> str:
    """With as many digits as the interval supports."""
    low, high = interval
    n = digits(value, low, high)
    return f"{value:{sign}.{n}f} [{low:{sign}.{n}f}, {high:{sign}.{n}f}]"


def row_of(cells: list) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def markdown(models: list[dict], comparisons: list[dict], seeds: tuple, protocol: str, samples: list[dict]) -> str:
    """results.md."""
    sets = [name for name, q in models[0]["qa"].items() if q["n"]]
    several = len({m["tokenizer"] for m in models}) > 1  # a perplexity tells nothing beside another tokenizer's
    head = ["model", "blocks", "parameters", *(["test perplexity [95 %]", "bits/byte [95 %]"][several:]),
            *(f"{s} accuracy [95 %]" for s in sets)]
    lines = ["# Results", "", conclusions(models, comparisons, seeds), "", protocol, "",
             row_of(head), row_of(["---"] * len(head))]
    for m in models:
        test, accuracies = m["test"], [m["qa"][name] for name in sets]
        lines.append(row_of([
            m["name"], m["blocks"], f"{m['params']:,}",
            *(number(test[key], test[f"{key}_interval"]) for key in ("perplexity", "bits_per_byte")[several:]),
            *(number(q["accuracy"], q["accuracy_interval"]) for q in accuracies)]))
    test, few = models[0]["test"], []
    lines += ["", f"Test split: {test['documents']} documents, {test['tokens']:,} scored tokens of {models[0]['name']}."]
    for name in sets:
        q = models[0]["qa"][name]
        lines.append(f"{name}: {q['n']} questions on {q['sources']} sources; chance {q['chance']:.3f}, the longest choice "
                     f"alone {q['longest']:.3f}.")
        few.append(q["sources"])
    if min([test["documents"], *few]) < FEW:
        lines.append(f"Intervals over fewer than {FEW} documents or sources are too narrow; over one there is none (nan).")
    lines += ["", "## Size, speed, quality", "", cost_table(models)]
    lines += ["", "## Text", "", "The test split, and general text that tells what was forgotten." if models[0]["general"] else
              "The test split.", "",
              row_of(["text", "model", "nll a token [95 %]", "perplexity [95 %]", "bits/byte [95 %]", "byte perplexity",
                      "word perplexity"]), row_of(["---"] * 7)]
    for name in ("test", "general"):
        lines += [row_of([name, m["name"], *(number(m[name][key], m[name][f"{key}_interval"]) for key in (
            "nll", "perplexity", "bits_per_byte")), f"{m[name]['byte_perplexity']:.3f}", f"{m[name]['word_perplexity']:.4g}"])
            for m in models if m[name]]
    if sets:
        lines += ["", "## Questions", "", "The choice of the highest log-likelihood; per character and per byte of the choice; "
                  "log-likelihood and margin of the true answer, in nats.", "",
                  row_of(["set", "model", "accuracy [95 %]", "per character [95 %]", "per byte [95 %]", "log-likelihood",
                          "margin"]), row_of(["---"] * 7)]
        lines += [row_of([name, m["name"], *(number(q[rule], q[f"{rule}_interval"]) for rule in RULES.values()),
                          f"{q['mean_loglikelihood']:.2f}", f"{q['mean_margin']:+.2f}"])
                  for name in sets for m in models for q in [m["qa"][name]]]
    if any(m["written"] for m in models):
        keys = ["rouge1", "rouge2", "rougeL", "bleu", "repetition", "invented"]
        head = ["model", "task", "n", *(f"{key} [95 %]" for key in SCORES), *keys]
        lines += ["", "## Answers written to held-out instructions", "", row_of(head), row_of(["---"] * len(head))]
        lines += [row_of([m["name"], task, by["n"], *(number(by[key], by[f"{key}_interval"]) for key in SCORES),
                          *(f"{by[key]:.3f}" if key in by else "-" for key in keys)])
                  for m in models for task, by in m["written"].items()]
    if comparisons:
        lines += ["", "## Differences", "", *difference_table(comparisons)]
    if seeds[0]:
        lines += ["", "## Over seeds", "", row_of(["config", "runs", "test nll", "standard error, documents",
                  "standard deviation, seeds", "lowest to highest"]), row_of(["---"] * 6)]
        lines += [row_of([r["config"], r["runs"], f"{r['nll']:.4f}", f"{r['documents']:.4f}", f"{r['seeds']:.4f}",
                          f"{r['lowest']:.4f} to {r['highest']:.4f}"]) for r in seeds[0]]
        lines += ["", *(f"{c['configs'][1]} less {c['configs'][0]}, over documents and seeds: nll "
                        f"{number(c['difference'], c['interval'], '+')}{'' if c['shown'] else ', no difference shown'}."
                        for c in seeds[1])]
    if samples:
        lines += ["", "## Side by side", "", "Greedy, from the same beginnings of test documents."]
        for sample in samples:
            lines += ["", f"> {' '.join(sample['prompt'].split())}", ""]
            lines += [f"- **{name}:** {' '.join(text.split())}" for name, text in sample["texts"].items()]
    return "\n".join(lines) + "\n"


def cost_table(models: list[dict]) -> str:
    head = ["model", "parameters", "trained", "on disk, MB", "peak memory, MB", "reading, tokens/s", "writing, tokens/s",
            "a token, ms, p50 / p95", "trained, s", "on tokens", "test nll"]
    lines = [row_of(head), row_of(["---"] * len(head))]
    for m in models:
        c = m["cost"]
        lines.append(row_of([
            m["name"], f"{m['params']:,}", "-" if c["trained_params"] is None else f"{c['trained_params']:,}",
            f"{c['disk_mb']:.1f}", f"{c['peak_mb']:,.0f}", f"{c['prefill_tokens_per_s']:,.0f}",
            f"{c['decode_tokens_per_s']:,.0f}", f"{c['token_p50_ms']:.1f} / {c['token_p95_ms']:.1f}",
            f"{c['training_s']:,.0f}" if c["training_s"] is not None else "-",
            f"{c['training_tokens']:,}" if c["training_tokens"] is not None else "-", f"{m['test']['nll']:.4f}"]))
    lines += ["", "Peak memory is the process's, on top of what the models before left; an adapter's size on disk is without "
              "its base."]
    return "\n".join(lines)


def difference_table(comparisons: list[dict]) -> list[str]:
    rows = []
    for c in comparisons:
        for measure, d in c.items():
            if not isinstance(d, dict) or measure.endswith(("accuracy_norm", "accuracy_bytes")):
                continue
            if measure.endswith("bits_per_byte") and measure.replace("bits_per_byte", "nll") in c:
                continue  # the same, in other units
            said = ("" if d["shown"] else "no difference shown") + ("*" if d["shown_among_all"] else "")
            p = "" if "mcnemar_p" not in d else f"{d['mcnemar_p']:.3f}" if d["mcnemar_p"] >= 0.001 else "< 0.001"
            name = "test nll" if measure == "nll" else measure
            n = digits(d["difference"], *d["interval"])
            amount = number(d["difference"], d["interval"], "+")
            rows.append(row_of([*c["models"], name, amount, f"{d['detectable']:.{n}f}", p, said]))
    notes = {f"{' and '.join(c['models'])}: {c['note']}." for c in comparisons if "note" in c}
    return ["Second model less first, paired; an interval that contains 0 shows no difference. Were there none at all, one in "
            f"twenty would be shown all the same, {0.05 * len(rows):.1f} of these {len(rows)}; those that hold at 95 % for all "
            "of them together (Bonferroni) are marked *. Detectable: what this set would have shown in four cases of five.", "",
            row_of(["first", "second", "measure", "difference [95 %]", "detectable", "McNemar p", ""]), row_of(["---"] * 7),
            *rows, *([""] if notes else []), *sorted(notes)]


def conclusions(models: list[dict], comparisons: list[dict], seeds: tuple) -> str:
    """One plain paragraph that follows from the numbers."""
    bits = {m["name"]: m["test"]["bits_per_byte"] for m in models}
    best = min(bits, key=lambda name: bits[name] if math.isfinite(bits[name]) else math.inf)
    said = [f"Of {len(models)} models {best} predicts the test documents best ({bits[best]:.3f} bits a byte)."
            if len(models) > 1 else f"{best} predicts the test documents with {bits[best]:.3f} bits a byte."]
    for c in comparisons:
        first, second = c["models"]
        d = c.get("nll", c["bits_per_byte"])
        unit = "nats a token" if "nll" in c else "bits a byte (the tokenizers differ)"
        low, high = d["interval"]
        amount = number(d["difference"], d["interval"], "+")
        if math.isnan(low):
            said.append(f"{first} to {second}: one document, nothing can be said.")
        elif not d["shown"]:
            said.append(f"{first} to {second}: no difference shown ({amount} {unit}; {d['detectable']:.2g} would have been).")
        else:
            said.append(f"{second} predicts {'worse' if low > 0 else 'better'} than {first} by {amount} {unit}.")
    if len(models) > 1 and all(m["general"] for m in models):
        (best, low), *_, (worst, high) = sorted(
            ((m["name"], m["general"]["bits_per_byte"]) for m in models), key=lambda pair: np.nan_to_num(pair[1], nan=math.inf))
        said.append(f"General text is predicted best by {best} ({low:.3f} bits a byte) and worst by {worst} ({high:.3f}).")
    for name in models[0]["qa"]:
        shown = [c for c in comparisons if c.get(f"{name} accuracy", {}).get("shown")]
        pairs = [f"{c['models'][1]} {c[f'{name} accuracy']['difference']:+.3f} from {c['models'][0]}" for c in shown]
        if any(f"{name} accuracy" in c for c in comparisons):
            said.append(f"On {name}: " + ("; ".join(pairs) + "." if pairs else "no difference shown between any two."))
    for c in seeds[1]:
        said.append(f"Over seeds, {c['configs'][1]} against {c['configs'][0]}: {number(c['difference'], c['interval'], '+')}"
                    f"{'' if c['shown'] else ', no difference shown'}.")
    return " ".join(said)
