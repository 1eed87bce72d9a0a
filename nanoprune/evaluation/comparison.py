"""Each model's numbers with their intervals, and paired differences between models."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nanoprune.evaluation.arms import Arm, RunRows, bits, find_steps, nats, values
from nanoprune.evaluation.perplexity import EDGES
from nanoprune.evaluation.written_answers import KINDS, MEANS, SCORES, corpus_bleu
from nanoprune.statistics import Ratio, Spread, holm, mcnemar, mean, share_interval, spread

RULES = {"correct": "accuracy", "correct_norm": "accuracy_norm", "correct_bytes": "accuracy_bytes"}
# Logarithms of ratios, which are shown in per cent; those of bits where the tokenizers differ.
PERPLEXITIES = {"nll": "test perplexity", "general nll": "general perplexity"}
BITS = {"log_bits_per_byte": "test bits per byte", "general log_bits_per_byte": "general bits per byte"}
LENGTHS = ("shortest third", "middle third", "longest third")
BINS = 10  # of confidence, for calibration
METHOD = ("95 %, paired, t over documents or sources, jackknife, Satterthwaite's degrees of freedom; of "
          "several seeds: crossed random effects of seeds and documents")


def sources(rows: list[dict]) -> list[str]:
    """The text that each question rests on."""
    return [row["source"] for row in rows]


def grouped(runs: RunRows, key: str) -> dict[str, RunRows]:
    """By value of a column each run's rows; rows without a value are left out."""
    parts = {}
    for number, rows in enumerate(runs):
        for row in rows:
            if row.get(key) not in ("", None):
                parts.setdefault(str(row[key]), [[] for _ in runs])[number].append(row)
    return dict(sorted(parts.items()))


# ---------------------------------------------------------------- one model
def summarize(arm: Arm) -> dict:
    """A model's entry in results.json; of several seeds, means over them."""
    first = arm.first
    return {
        "name": arm.name, "paths": [run["path"] for run in arm.runs], "seeds": arm.seeds,
        "identities": [run["identity"] for run in arm.runs],
        "removed": arm.removed, **{key: first[key] for key in ("blocks", "original", "params", "tokenizer")},
        "test": summarize_text(arm.rows("test")),
        "general": summarize_text(arm.rows("general")) if first["general"] else None,
        "qa": {name: summarize_questions(arm.rows("", name)) for name in first["answers"]},
        "written": summarize_by_task(arm.rows("written")) if first["written"] else {},
        "cost": first["cost"],
    }


def estimate(name: str, ratio: Ratio, groups: Sequence | None = None) -> dict:
    """A measure and its interval, as they stand in results.json."""
    return {name: ratio.value, f"{name}_interval": ratio.interval(groups)}


def perplexity(nats: float) -> float:
    """The exponential of a loss; inf where it is too large for a float."""
    return math.inf if nats > 700 else math.exp(nats)


def summarize_text(runs: RunRows) -> dict:
    nll = values(runs, "nll")
    tokens, size, words = (int(values(runs[:1], key).sum()) for key in ("tokens", "bytes", "words"))
    loss = estimate("nll", nats(runs))
    return loss | {
        "perplexity": perplexity(loss["nll"]),
        "perplexity_interval": [perplexity(end) for end in loss["nll_interval"]],
        **estimate("bits_per_byte", bits(runs)),
        "word_perplexity": perplexity(nll.sum(1).mean() / words),
        "byte_perplexity": perplexity(nll.sum(1).mean() / size),
        "nll_by_seed": (nll.sum(1) / tokens).tolist(),
        "tokens": tokens,
        "bytes": size,
        "words": words,
        "documents": len(runs[0]),
        "not_finite": int((~np.isfinite(nll)).any(0).sum()),
    }


def summarize_questions(runs: RunRows) -> dict:
    rows, of = runs[0], sources(runs[0])
    summary = {"n": len(rows), "sources": len(set(of))}
    summary |= {key: values(runs, key).mean() for key in ("chance", "longest")}
    for key, name in RULES.items():
        right = values(runs, key)
        summary |= {name: right.mean(), f"{name}_interval": share_interval(right, of)}
    summary |= estimate("true_bits_per_byte", true_bits(runs), of)
    true, best_other = np.array([[true_and_best_other(row) for row in run] for run in runs]).mean((0, 1))
    summary |= {"mean_loglikelihood": true, "mean_margin": true - best_other,
                "calibration_error": np.mean([calibration_error(run) for run in runs])}
    for kind in ("category", "difficulty"):
        accuracies = summary[f"by_{kind}"] = {}
        for value, own in grouped(runs, kind).items():
            right = values(own, "correct")
            accuracies[value] = {"n": len(own[0]), "accuracy": right.mean(),
                                 "interval": share_interval(right, sources(own[0]))}
    return summary


def true_bits(runs: RunRows) -> Ratio:
    """Bits per byte of the true answers: a signal, too, where the accuracy is at chance."""
    nll = [[-row["loglikelihoods"][row["answer"]] / math.log(2) for row in run] for run in runs]
    return Ratio(np.array(nll), values(runs, "answer_bytes")[0])


def true_and_best_other(row: dict) -> tuple[float, float]:
    """The log-likelihoods of the true choice and of the best other."""
    scores, answer = np.array(row["loglikelihoods"]), row["answer"]
    return scores[answer], np.delete(scores, answer).max()


def calibration_error(rows: list[dict]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599), in ten bins of equal width.

    The mean distance of the share that is right from the probability of the choice taken, where the choices'
    likelihoods are scaled to sum to 1.
    """
    confidence = np.array([1 / np.exp(np.array(row["loglikelihoods"]) - max(row["loglikelihoods"])).sum()
                           for row in rows])
    right, bins = values([rows], "correct")[0], np.minimum((confidence * BINS), BINS - 1)
    if not np.isfinite(confidence).all():
        return math.nan
    gaps = np.bincount(bins.astype(int), right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(rows))


def summarize_by_task(runs: RunRows) -> dict[str, dict]:
    """Means of every measure over all answers, by task, by category and by difficulty."""
    summaries = {"all": summarize_answers(runs)}
    for kind in KINDS:
        for value, own in grouped(runs, kind).items():
            summaries[value if kind == "task" else f"{kind} {value}"] = summarize_answers(own)
    return summaries


def summarize_answers(runs: RunRows) -> dict:
    """Means over answers, those of SCORES with intervals; `invented` is a share of the numbers written."""
    means = {measure: mean(values(runs, measure)) for measure in MEANS if measure in runs[0][0]}
    summary = {"n": len(runs[0])} | {measure: ratio.value for measure, ratio in means.items()}
    if "bleu" in runs[0][0]:
        rows = list(itertools.chain.from_iterable(runs))
        summary["bleu"] = corpus_bleu([row["answer"] for row in rows], [row["reference"] for row in rows])
    for measure in SCORES:
        summary |= estimate(measure, means[measure])
    written = values(runs, "numbers").sum()
    return summary | {"invented": values(runs, "invented").sum() / written if written else 0.0}


def slices(arm: Arm) -> list[dict]:
    """The rows of slices.csv: test loss by month, category, length and position; general text by category."""
    thirds = np.quantile(values(arm.rows("test"), "tokens")[0], [1 / 3, 2 / 3])
    test = [[row | {"length": LENGTHS[np.searchsorted(thirds, row["tokens"])]} for row in rows]
            for rows in arm.rows("test")]
    parts = [(kind, value, "", own) for kind in ("month", "category", "length")
             for value, own in grouped(test, kind).items()]
    parts += [("general", value, "", own)
              for value, own in grouped(arm.rows("general"), "category").items()]
    for first, after in itertools.zip_longest(EDGES, EDGES[1:]):
        parts.append(
            ("position", f"{first} to {after - 1}" if after else f"from {first}", f"_{first}", test))
    lines = []
    for kind, value, suffix, runs in parts:
        tokens = values(runs, f"tokens{suffix}")[0]
        if tokens.any():
            loss = Ratio(values(runs, f"nll{suffix}"), tokens)
            low, high = loss.interval()
            lines.append({"model": arm.name, "slice": kind, "value": value, "nll": loss.value, "low": low,
                          "high": high, "tokens": int(tokens.sum()), "documents": int((tokens > 0).sum())})
    return lines


# ---------------------------------------------------------------- two models
def compare_all(arms: list[Arm]) -> list[dict]:
    """Comparisons of every two models; those that are a step of the experiment come first."""
    named = {(a.name, b.name): step for step, pairs in find_steps(arms).items() for a, b in pairs}
    by_name = {arm.name: arm for arm in arms}
    others = [pair for pair in itertools.combinations(by_name, 2)
              if pair not in named and pair[::-1] not in named]
    return [{"models": pair, "step": named.get(pair, "")} | compare(*map(by_name.get, pair))
            for pair in (*named, *others)]


def pair(a: Arm, b: Arm) -> tuple[Arm, Arm]:
    """Two arms, of runs on both sides those with the same seeds, or else the first of each."""
    if not (a.seeds and b.seeds):
        return a, b
    common = set(a.seeds) & set(b.seeds)
    a, b = (replace(arm, runs=[run for run in arm.runs if run["run"]["seed"] in common] or arm.runs[:1])
            for arm in (a, b))
    return a, b


def loss_gains(a: Arm, b: Arm, text: str) -> Ratio:
    """Nats a token that b, paired with a, adds."""
    return Ratio(values(b.rows(text), "nll") - values(a.rows(text), "nll"), values(a.rows(text), "tokens")[0])


def compare(a: Arm, b: Arm) -> dict:
    """Paired differences of b from a."""
    a, b = pair(a, b)
    differences = {"seeds": max(len(a.runs), len(b.runs))}
    same_tokens = a.first["tokenizer"] == b.first["tokenizer"]
    for text, label in (("test", ""), ("general", "general ")):
        before, after = a.rows(text), b.rows(text)
        if not before[0]:
            continue
        if same_tokens:
            differences[f"{label}nll"] = verdict(loss_gains(a, b, text))
        first, second = bits(before), bits(after)
        # each unit's part in the logarithm of the ratio, for its spread
        parts = second.influences / second.value - first.influences / first.value
        differences[f"{label}log_bits_per_byte"] = describe(
            math.log(second.value / first.value), spread(parts, second.denominators))
    if not same_tokens:
        return differences | {"note": "different tokenizers: compared in bits per byte only"}
    for name in a.first["answers"]:
        differences |= compare_answers(name, a.rows("", name), b.rows("", name))
    for key in SCORES if a.first["written"] else ():
        gains = mean(values(b.rows("written"), key) - values(a.rows("written"), key))
        differences[f"written {key}"] = verdict(gains)
    return differences


def compare_answers(name: str, before: RunRows, after: RunRows) -> dict:
    """Differences in the answers to a question set, as a whole and by category."""
    differences = {f"{name} {measure}": compare_right(before, after, key) for key, measure in RULES.items()}
    first, second = true_bits(before), true_bits(after)
    gains = Ratio(second.numerators - first.numerators, first.denominators)
    differences[f"{name} true_bits_per_byte"] = verdict(gains, sources(before[0]))
    categories, theirs = {}, grouped(after, "category")
    for category, own in grouped(before, "category").items():
        categories[category] = compare_right(own, theirs[category], "correct", n=len(own[0]))
    adjusted = holm(np.array([category["p"] for category in categories.values()]))
    for category, p in zip(categories.values(), adjusted, strict=True):
        category["p_holm"] = float(p)
    return differences | {f"{name} by category": categories}


def compare_right(before: RunRows, after: RunRows, key: str, **more) -> dict:
    """The difference in right answers, `more`, and McNemar's exact p of one run each, else the t interval's.
    """
    a, b, of = values(before, key), values(after, key), sources(before[0])
    gains = mean(b - a)
    p = mcnemar(a[0], b[0]) if len(a) == len(b) == 1 else gains.spread(of).p_value((b - a).mean())
    return verdict(gains, of) | more | {"p": p}


def verdict(gains: Ratio, groups: Sequence | None = None) -> dict:
    """A paired difference, its interval, and whether it is shown; `identical`: no unit differs."""
    return describe(gains.value, gains.spread(groups)) | {"identical": not gains.numerators.any()}


def describe(value: float, varied: Spread) -> dict:
    low, high = varied.interval(value)
    return {"difference": value, "interval": [low, high], "shown": bool(low > 0 or high < 0),
            "identical": False, "freedom": varied.freedom, "detectable": varied.detectable()}


def difference_rows(comparisons: list[dict]) -> list[dict]:
    """The rows of differences.csv: perplexities in per cent, accuracies in points."""
    rows = []
    for comparison in comparisons:
        first, second = comparison["models"]
        ratios = PERPLEXITIES | (BITS if "note" in comparison else {})
        for measure, found in comparison.items():
            if measure not in ratios and not measure.endswith(" accuracy"):
                continue
            value, low, high, least = (100 * (perplexity(x) - 1 if measure in ratios else x) for x in (
                found["difference"], *found["interval"], found["detectable"]))
            rows.append({
                "first": first, "second": second, "step": comparison["step"],
                "measure": ratios.get(measure, measure), "unit": "%" if measure in ratios else "points",
                "difference": value, "low": low, "high": high, "detectable": least,
                "shown": found["shown"], "identical": found["identical"], "seeds": comparison["seeds"]})
    return rows


def summarize_agreement(rows: list[dict]) -> list[dict]:
    """The entries of results.json on how far every two models predict alike."""
    pairs = defaultdict(list)
    for row in rows:
        pairs[row["first"], row["second"]].append(row)
    entries = []
    for models, documents in pairs.items():
        same, kl, tokens = (values([documents], key)[0] for key in ("same", "kl", "tokens"))
        entries.append({
            "models": models, **estimate("top1", Ratio(same, tokens)),
            **estimate("kl", Ratio(kl, tokens)), "tokens": int(tokens.sum()), "documents": len(documents)})
    return entries
