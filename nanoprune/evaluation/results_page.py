"""The page of results: results.md."""

import math

from nanoprune.evaluation.comparison import RULES
from nanoprune.evaluation.written_answers import SCORES
from nanoprune.io.markdown import table, with_interval
from nanoprune.statistics import LEAST, digits

OVERLAPS = ("rouge1", "rouge2", "rougeL", "bleu", "repetition", "invented")


def results_page(
    models: list[dict], comparisons: list[dict], agreement: list[dict], seeds: dict, protocol: str,
    samples: list[dict],
) -> str:
    lines = ["# Results", "", conclusions(models, comparisons, seeds), "", protocol, ""]
    lines += [*overview(models), "", *sizes(models[0])]
    sections = {
        "Size and cost": sizes_of_models(models) + ["", *speeds(models)],
        "Text": texts(models),
        "Questions": questions_table(models),
        "Answers written to held-out instructions": written_table(models),
        "Differences": differences(comparisons),
        "From base to others and between them": agreement_table(agreement),
        "Over seeds": seeds_table(seeds["configs"]),
        "Side by side": side_by_side(samples),
    }
    for title, section in sections.items():
        if section:
            lines += ["", f"## {title}", "", *section]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- cells
def cell(values: dict, key: str) -> str:
    return with_interval(values[key], values[f"{key}_interval"])


def difference(d: dict) -> str:
    return with_interval(d["difference"], d["interval"], "+")


def known(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


# ---------------------------------------------------------------- the sections
def overview(models: list[dict]) -> list[str]:
    rows = []
    for model in models:
        row = {"model": model["name"], "blocks": model["blocks"], "parameters": f"{model['params']:,}"}
        if all(model["tokenizer"] == other["tokenizer"] for other in models):  # else it cannot be compared
            row["test perplexity [95 %]"] = cell(model["test"], "perplexity")
        row["bits/byte [95 %]"] = cell(model["test"], "bits_per_byte")
        row |= {f"{name} accuracy [95 %]": cell(q, "accuracy") for name, q in model["qa"].items()}
        rows.append(row)
    return table(rows)


def sizes(model: dict) -> list[str]:
    """Sizes of the test split and of the question sets, and a warning where they are small."""
    test, fewest = model["test"], model["test"]["documents"]
    lines = [f"Test split: {test['documents']} documents, {test['tokens']:,} scored tokens of "
             f"{model['name']}."]
    for name, q in model["qa"].items():
        lines.append(f"{name}: {q['n']} questions on {q['sources']} sources; chance {q['chance']:.3f}, the "
                     f"longest choice alone {q['longest']:.3f}.")
        fewest = min(fewest, q["sources"])
    if fewest < LEAST:
        lines.append(f"Over fewer than {LEAST} documents or sources there are no intervals (nan): simulated "
                     "ones do not cover what they say.")
    return lines


def sizes_of_models(models: list[dict]) -> list[str]:
    rows = []
    for model in models:
        cost = model["cost"]
        rows.append({
            "model": model["name"],
            "trained parameters": known(cost["trained_params"], ","),
            "a token, MFLOP": f"{cost['token_mflop']:,.4g}",
            "a token, MB": f"{cost['token_mb']:,.4g}",
            "in bf16, MB": f"{cost['bf16_mb']:,.1f}",
            "on disk, MB": f"{cost['disk_mb']:,.1f} ({cost['disk_dtype']})",
            "trained for, s": known(cost["training_s"], ",.0f"),
            "on, tokens": known(cost["training_tokens"], ","),
        })
    return [*table(rows), "", f"A token is decoded behind {cost['token_context']} others: operations of all "
            "products, and bytes of the weights that it reads, in the type of the products. In bf16: all "
            "parameters at two bytes. On disk: the files as they are, an adapter's without its base."]


def speeds(models: list[dict]) -> list[str]:
    if not any("note" in model["cost"] for model in models):
        return ["Speed and memory were not measured: `eval.py --cost` measures them."]
    rows = []
    for model in models:
        cost = model["cost"]
        row = {"model": model["name"]}
        if "peak_mb" in cost:
            row |= {"peak memory, MB": f"{cost['peak_mb']:,.0f}"}
            for key, label in (("prefill", "reading"), ("decode", "writing")):
                row[f"{label}, tokens/s"] = with_range(cost, f"{key}_tokens_per_s", ",.4g")
                row[f"{label}, to the first model"] = with_range(cost, f"{key}_ratio", ".3f")
        rows.append(row | {"note": cost["note"]})
    return [*table(rows), "", "One sequence, each model in processes of its own, one at a time: the median "
            "over rounds (lowest to highest). Ratios are taken within a round. Machine busy: a model's "
            "rounds disagree by more than 20 %. Peak memory is the process's, on CUDA its tensors'."]


def with_range(cost: dict, key: str, form: str) -> str:
    if key not in cost:
        return "-"
    return f"{cost[key]:{form}} ({cost[f'{key}_low']:{form}} to {cost[f'{key}_high']:{form}})"


def texts(models: list[dict]) -> list[str]:
    rows = [{
        "text": text,
        "model": model["name"],
        "nll a token [95 %]": cell(model[text], "nll"),
        "perplexity [95 %]": cell(model[text], "perplexity"),
        "bits/byte [95 %]": cell(model[text], "bits_per_byte"),
        "byte perplexity": f"{model[text]['byte_perplexity']:.3f}",
        "word perplexity": f"{model[text]['word_perplexity']:.4g}",
    } for text in ("test", "general") for model in models if model[text]]
    return ["test: the test split; general: text on many things, which tells what was forgotten.", "",
            *table(rows)]


def questions_table(models: list[dict]) -> list[str]:
    rows = []
    for name in models[0]["qa"]:
        for model in models:
            q = model["qa"][name]
            rows.append({
                "set": name, "model": model["name"],
                **{f"{measure} [95 %]": cell(q, measure) for measure in RULES.values()},
                "log-likelihood": f"{q['mean_loglikelihood']:.2f}", "margin": f"{q['mean_margin']:+.2f}"})
    if not rows:
        return []
    return ["accuracy takes the choice of the highest log-likelihood, accuracy_norm the highest per "
            "character, accuracy_bytes per byte; log-likelihood and margin of the true answer, in nats.", "",
            *table(rows)]


def written_table(models: list[dict]) -> list[str]:
    return table([
        {"model": model["name"], "task": task, "n": means["n"],
         **{f"{key} [95 %]": cell(means, key) for key in SCORES},
         **{key: f"{means[key]:.3f}" for key in OVERLAPS if key in means}}
        for model in models for task, means in model["written"].items()])


def differences(comparisons: list[dict]) -> list[str]:
    rows = []
    for comparison in comparisons:
        first, second = comparison["models"]
        for measure, d in comparison.items():
            in_nats = measure.replace("bits_per_byte", "nll")
            other_units = in_nats != measure and in_nats in comparison
            if measure in ("models", "note") or other_units or measure.endswith(("_norm", "_bytes")):
                continue
            rows.append({
                "first": first, "second": second, "measure": "test nll" if measure == "nll" else measure,
                "difference [95 %]": difference(d),
                "detectable": f"{d['detectable']:.{digits(*d['interval'])}f}",
                "McNemar p": known(d.get("mcnemar_p"), ".2g"),
                "": "*" if d["shown_among_all"] else "" if d["shown"] else "no difference shown"})
    if not rows:
        return []
    return ["Second model less first, paired; an interval that contains 0 shows no difference. Were there "
            f"none at all, one in twenty would be shown all the same, {0.05 * len(rows):.1f} of these "
            f"{len(rows)}; those that hold at 95 % for all of them together (Bonferroni) are marked *. "
            "Detectable: the minimum detectable difference (80 % power).", "", *table(rows)]


def agreement_table(pairs: list[dict]) -> list[str]:
    rows = [{"first": pair["models"][0], "second": pair["models"][1],
             "top-1 agreement [95 %]": cell(pair, "top1"), "KL, nats a token [95 %]": cell(pair, "kl"),
             "tokens": f"{pair['tokens']:,}", "documents": pair["documents"]} for pair in pairs]
    if not rows:
        return []
    return ["On the beginnings of test documents, evenly spaced. Top-1 agreement: the share of tokens for "
            "which both models hold the same likeliest. KL: KL(first || second), 0 where both predict alike.",
            "", *table(rows)]


def seeds_table(configs: list[dict]) -> list[str]:
    return table([
        {"config": row["config"], "runs": row["runs"], "test nll": f"{row['nll']:.4f}",
         "standard error, documents": f"{row['documents']:.4f}",
         "standard deviation, seeds": f"{row['seeds']:.4f}",
         "lowest to highest": f"{row['lowest']:.4f} to {row['highest']:.4f}"} for row in configs])


def side_by_side(samples: list[dict]) -> list[str]:
    lines = ["Greedy, from the same beginnings."]
    for sample in samples:
        lines += ["", f"> {' '.join(sample['prompt'].split())}", ""]
        lines += [f"- **{name}:** {' '.join(text.split())}" for name, text in sample["texts"].items()]
    return lines


# ---------------------------------------------------------------- one plain paragraph
def conclusions(models: list[dict], comparisons: list[dict], seeds: dict) -> str:
    """A paragraph that follows from the numbers."""
    sentences = []
    for text, label in (("test", "the test documents"), ("general", "general text")):
        if models[0][text]:
            bits = {model["name"]: model[text]["bits_per_byte"] for model in models}
            best = min(bits, key=lambda name: (math.isnan(bits[name]), bits[name]))
            sentences.append(f"Fewest bits a byte on {label}: {best}, {bits[best]:.3f}.")
    sentences += [text_conclusion(comparison) for comparison in comparisons]
    for name in models[0]["qa"]:
        measure = f"{name} accuracy"
        listed = [c for c in comparisons if measure in c]
        pairs = [f"{c['models'][1]} {c[measure]['difference']:+.3f} from {c['models'][0]}"
                 for c in listed if c[measure]["shown"]]
        if listed:
            sentences.append(f"On {name}: {'; '.join(pairs) or 'no difference shown between any two'}.")
    for comparison in seeds["comparisons"]:
        first, second = comparison["configs"]
        remark = "" if comparison["shown"] else ", no difference shown"
        sentences.append(f"Over seeds and documents, {second} against {first}: {difference(comparison)} "
                         f"nats a token{remark}.")
    return " ".join(sentences)


def text_conclusion(comparison: dict) -> str:
    """A sentence on which of two models predicts the test documents better."""
    first, second = comparison["models"]
    d = comparison.get("nll", comparison["bits_per_byte"])
    unit = "nats a token" if "nll" in comparison else "bits a byte (the tokenizers differ)"
    if not d["shown"]:
        return (f"{first} to {second}: no difference shown ({difference(d)} {unit}; {d['detectable']:.2g} "
                "would have been).")
    quality = "worse" if d["difference"] > 0 else "better"
    return f"{second} predicts {quality} than {first} by {difference(d)} {unit}."
