"""The page that a reader gets: results.md."""

import math

import numpy as np

from nanoprune.evaluation.comparison import RULES
from nanoprune.evaluation.written_answers import SCORES
from nanoprune.statistics import FEW, digits


def with_interval(value: float, interval, sign: str = "") -> str:
    """With as many digits as the interval supports."""
    low, high = interval
    n = digits(value, low, high)
    return f"{value:{sign}.{n}f} [{low:{sign}.{n}f}, {high:{sign}.{n}f}]"


def table_row(cells: list) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def markdown(models: list[dict], comparisons: list[dict], seeds: tuple, protocol: str, samples: list[dict]) -> str:
    """results.md."""
    sets = [name for name, q in models[0]["qa"].items() if q["n"]]
    several = len({m["tokenizer"] for m in models}) > 1  # a perplexity tells nothing beside another tokenizer's
    head = ["model", "blocks", "parameters", *(["test perplexity [95 %]", "bits/byte [95 %]"][several:]),
            *(f"{s} accuracy [95 %]" for s in sets)]
    lines = ["# Results", "", conclusions(models, comparisons, seeds), "", protocol, "",
             table_row(head), table_row(["---"] * len(head))]
    for m in models:
        test, accuracies = m["test"], [m["qa"][name] for name in sets]
        lines.append(table_row([
            m["name"], m["blocks"], f"{m['params']:,}",
            *(with_interval(test[key], test[f"{key}_interval"]) for key in ("perplexity", "bits_per_byte")[several:]),
            *(with_interval(q["accuracy"], q["accuracy_interval"]) for q in accuracies)]))
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
              table_row(["text", "model", "nll a token [95 %]", "perplexity [95 %]", "bits/byte [95 %]", "byte perplexity",
                      "word perplexity"]), table_row(["---"] * 7)]
    for name in ("test", "general"):
        lines += [table_row([name, m["name"], *(with_interval(m[name][key], m[name][f"{key}_interval"]) for key in (
            "nll", "perplexity", "bits_per_byte")), f"{m[name]['byte_perplexity']:.3f}", f"{m[name]['word_perplexity']:.4g}"])
            for m in models if m[name]]
    if sets:
        lines += ["", "## Questions", "", "The choice of the highest log-likelihood; per character and per byte of the choice; "
                  "log-likelihood and margin of the true answer, in nats.", "",
                  table_row(["set", "model", "accuracy [95 %]", "per character [95 %]", "per byte [95 %]", "log-likelihood",
                          "margin"]), table_row(["---"] * 7)]
        lines += [table_row([name, m["name"], *(with_interval(q[rule], q[f"{rule}_interval"]) for rule in RULES.values()),
                          f"{q['mean_loglikelihood']:.2f}", f"{q['mean_margin']:+.2f}"])
                  for name in sets for m in models for q in [m["qa"][name]]]
    if any(m["written"] for m in models):
        keys = ["rouge1", "rouge2", "rougeL", "bleu", "repetition", "invented"]
        head = ["model", "task", "n", *(f"{key} [95 %]" for key in SCORES), *keys]
        lines += ["", "## Answers written to held-out instructions", "", table_row(head), table_row(["---"] * len(head))]
        lines += [table_row([m["name"], task, by["n"], *(with_interval(by[key], by[f"{key}_interval"]) for key in SCORES),
                          *(f"{by[key]:.3f}" if key in by else "-" for key in keys)])
                  for m in models for task, by in m["written"].items()]
    if comparisons:
        lines += ["", "## Differences", "", *difference_table(comparisons)]
    if seeds[0]:
        lines += ["", "## Over seeds", "", table_row(["config", "runs", "test nll", "standard error, documents",
                  "standard deviation, seeds", "lowest to highest"]), table_row(["---"] * 6)]
        lines += [table_row([r["config"], r["runs"], f"{r['nll']:.4f}", f"{r['documents']:.4f}", f"{r['seeds']:.4f}",
                          f"{r['lowest']:.4f} to {r['highest']:.4f}"]) for r in seeds[0]]
        lines += ["", *(f"{c['configs'][1]} less {c['configs'][0]}, over documents and seeds: nll "
                        f"{with_interval(c['difference'], c['interval'], '+')}{'' if c['shown'] else ', no difference shown'}."
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
    lines = [table_row(head), table_row(["---"] * len(head))]
    for m in models:
        c = m["cost"]
        lines.append(table_row([
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
            amount = with_interval(d["difference"], d["interval"], "+")
            rows.append(table_row([*c["models"], name, amount, f"{d['detectable']:.{n}f}", p, said]))
    notes = {f"{' and '.join(c['models'])}: {c['note']}." for c in comparisons if "note" in c}
    return ["Second model less first, paired; an interval that contains 0 shows no difference. Were there none at all, one in "
            f"twenty would be shown all the same, {0.05 * len(rows):.1f} of these {len(rows)}; those that hold at 95 % for all "
            "of them together (Bonferroni) are marked *. Detectable: what this set would have shown in four cases of five.", "",
            table_row(["first", "second", "measure", "difference [95 %]", "detectable", "McNemar p", ""]), table_row(["---"] * 7),
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
        amount = with_interval(d["difference"], d["interval"], "+")
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
        said.append(f"Over seeds, {c['configs'][1]} against {c['configs'][0]}: {with_interval(c['difference'], c['interval'], '+')}"
                    f"{'' if c['shown'] else ', no difference shown'}.")
    return " ".join(said)
