"""The page of results: results.md. The first screen says what was compared and what followed; details after.
"""

import math

from nanoprune.evaluation.arms import REDUCED, REMOVED, Arm, find_steps, warnings
from nanoprune.evaluation.comparison import RULES, difference_rows
from nanoprune.evaluation.results_summary import (
    cell,
    compared,
    conclusions,
    doubts,
    forgotten,
    headline,
    of_row,
    overview,
    saved,
    with_range,
)
from nanoprune.evaluation.written_answers import SCORES, repetition
from nanoprune.io.markdown import counted, table, with_interval
from nanoprune.printing import CONTROL

FIGURES = {"Text": "slices.png", "Questions by kind": "categories.png", "Training": "curves.png",
           "Size and cost": "tradeoff.png"}  # by the section below which they stand
OVERLAPS = ("rouge1", "rouge2", "rougeL", "bleu", "repetition", "invented")
COVERAGE = ("95 % intervals, each for itself: of twenty comparisons without a difference one is shown all "
            "the same. Simulated, they cover 93 to 98 % from 12 documents; 88 to 91 % where a few of up to "
            "60 differ much more than the others (docs/results/coverage.md).")


def results_page(
    arms: list[Arm], models: list[dict], comparisons: list[dict], agreement: list[dict], about: dict,
    samples: list[dict], figures: set[str],
) -> str:
    """`about`: protocol, data, hardware and notes, from eval.py. `figures`: files that were drawn."""
    steps, rows = find_steps(arms), difference_rows(comparisons)
    screen = overview(models)
    if len(models) > 1:
        screen += ["", "Intervals in the table are of a model alone. Differences are paired by document or "
                       "source, so theirs are narrower."]
    if "comparison.png" in figures:
        screen += ["", "![The differences and the answers](comparison.png)"]
    remarks = [*forgotten(rows), *saved(models, steps), *doubts(arms, models), *warnings(arms, steps)]
    sections = {
        "The steps": steps_table(rows),
        "Protocol": protocol(models, about),
        "Planned and seen": plan_table(about, rows),
        "Text": texts(models),
        "Questions": questions_table(models),
        "Questions by kind": kinds_table(models, comparisons),
        "Answers written to held-out instructions": written_table(models),
        "Training": seeds_table(models),
        "Size and cost": [*sizes_of_models(models), "", *speeds(models)],
        "Agreement": agreement_table(agreement),
        "Side by side": side_by_side(samples),
    }
    drawn = {title: figure for title, figure in FIGURES.items() if figure in figures}
    return page(headline(arms, steps), compared(arms, about), conclusions(models, rows), screen, remarks,
                sections, drawn)


def page(
    title: str, subject: list[str], findings: list[str], screen: list[str], remarks: list[str],
    sections: dict[str, list[str]], figures: dict[str, str],
) -> str:
    """A first screen, and behind it those sections, by title, that have text or a figure."""
    lines = [f"# {title}", "", *subject, "", *(f"- {finding}" for finding in findings), "", *screen, "",
             *(f"- {remark}" for remark in remarks)]
    for name, section in sections.items():
        if section or name in figures:
            lines += ["", f"## {name}", "", *section]
        if name in figures:
            lines += ["", f"![{name}]({figures[name]})"]
    return "\n".join(lines) + "\n"


def known(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:{form}}"


def steps_table(rows: list[dict]) -> list[str]:
    pairs = {}
    for row in rows:
        if row["step"]:
            pair = pairs.setdefault((row["first"], row["second"]), {
                "step": row["step"], "from": row["first"], "to": row["second"]})
            pair[row["measure"]] = of_row(row)
    return table(list(pairs.values()), "The other pairs stand in differences.csv and results.json.")


def protocol(models: list[dict], about: dict) -> list[str]:
    test = models[0]["test"]
    lines = [f"Test split: {test['documents']} documents, {test['tokens']:,} scored tokens of "
             f"{models[0]['name']}. {about['protocol']}"]
    lines += [f"{name}: {q['n']} questions on {counted(q['sources'], 'source')}; chance {q['chance']:.3f}, "
              f"the longest choice alone {q['longest']:.3f}." for name, q in models[0]["qa"].items()]
    return [*lines, "", COVERAGE]


def plan_table(about: dict, rows: list[dict]) -> list[str]:
    """The least difference that `eval.py --plan` foretold, beside that of the models compared."""
    plan, seen = about.get("plan"), {row["measure"]: row for row in rows if row["step"] == REDUCED}
    if not plan or not seen:
        return []
    if plan["protocol"] not in about["protocol"]:
        return [f"plan.json is of another protocol ({plan['protocol']}): run `eval.py --plan` again."]
    planned = {"test perplexity": plan["text"]["detectable_perplexity_percent"]} | {
        f"{name} accuracy": questions["detectable_points"] for name, questions in plan["questions"].items()}
    lines = [{"least difference shown with 80 % power": f"{measure}, {row['unit']}",
              "planned": known(planned[measure], ".2g"),
              "seen": "identical" if row["identical"] else known(row["detectable"], ".2g")}
             for measure, row in seen.items() if measure in planned]
    return table(lines, f"The plan took {plan['text']['documents']} documents, the spread of {plan['model']} "
                        f"with and without block {plan['without']}, and {plan['changed']:.0%} of changed "
                        "answers.")


def texts(models: list[dict]) -> list[str]:
    rows = []
    for text in ("test", "general"):
        for model in models:
            if found := model[text]:
                row = {"text": text, "model": model["name"], "nats a token": cell(found, "nll")}
                if text == "general":
                    row |= {"perplexity": cell(found, "perplexity"),
                            "bits/byte": cell(found, "bits_per_byte")}
                rows.append(row | {"byte perplexity": f"{found['byte_perplexity']:.3f}",
                                   "word perplexity": f"{found['word_perplexity']:.4g}"})
    return table(rows, "test: the test split, whose perplexity stands above; general: text on many things, "
                       "which tells what was forgotten. By month, position and category: slices.csv.")


def questions_table(models: list[dict]) -> list[str]:
    rows = []
    for name in models[0]["qa"]:
        for model in models:
            q = model["qa"][name]
            rows.append({
                "set": name, "model": model["name"],
                **{measure: cell(q, measure) for measure in list(RULES.values())[1:]},
                "bits/byte of the true answer": cell(q, "true_bits_per_byte"),
                "log-likelihood": f"{q['mean_loglikelihood']:.2f}", "margin": f"{q['mean_margin']:+.2f}",
                "calibration error": known(q["calibration_error"], ".3f")})
    return table(rows, "The share that is right, above, takes the choice of the highest log-likelihood; "
                       "accuracy_norm the highest per character, accuracy_bytes per byte. Log-likelihood and "
                       "margin of the true answer, in nats. Calibration error: how far the probability of "
                       "the choice taken is from the share that is right, expected, in ten bins; above 0 by "
                       "chance where questions are few.")


def kinds_table(models: list[dict], comparisons: list[dict]) -> list[str]:
    """Accuracy by category of the two models that the experiment is about."""
    rows, by_name = [], {model["name"]: model for model in models}
    steps = [c for step in (REDUCED, REMOVED) for c in comparisons if c["step"] == step]
    for comparison in steps[:1]:
        for name in models[0]["qa"]:
            for kind, found in comparison.get(f"{name} by category", {}).items():
                row = {"set": name, "kind": kind, "n": found["n"]}
                for model in comparison["models"]:
                    of_kind = by_name[model]["qa"][name]["by_category"][kind]
                    row[f"{model}, % right"] = with_interval(
                        100 * of_kind["accuracy"], [100 * end for end in of_kind["interval"]])
                row |= {"p": known(found["p"], ".2g"), "p, Holm": known(found["p_holm"], ".2g")}
                rows.append(row)
    return table(rows, "p: McNemar's, of several seeds the t interval's; Holm: adjusted for all kinds of the "
                       "set. Intervals are single ones.")


def written_table(models: list[dict]) -> list[str]:
    return table([
        {"model": model["name"], "task": task, "n": means["n"],
         **{key: cell(means, key) for key in SCORES},
         **{key: f"{means[key]:.3f}" for key in OVERLAPS if key in means}}
        for model in models for task, means in model["written"].items()])


def seeds_table(models: list[dict]) -> list[str]:
    return table([
        {"model": model["name"], **{f"seed {seed}, nats a token": f"{nll:.4f}" for seed, nll in zip(
            model["seeds"], model["test"]["nll_by_seed"], strict=True)}}
        for model in models if len(model["seeds"]) > 1])


def sizes_of_models(models: list[dict]) -> list[str]:
    rows = []
    for model in models:
        cost = model["cost"]
        rows.append({
            "model": model["name"],
            "blocks": model["blocks"],
            "trained parameters": known(cost["trained_params"], ","),
            "a token, MFLOP": f"{cost['token_mflop']:,.4g}",
            "a token, MB": f"{cost['token_mb']:,.4g}",
            "on disk, MB": f"{cost['disk_mb']:,.1f} ({cost['disk_dtype']})",
            "trained for, s": known(cost["training_s"], ",.0f"),
        })
    return table(rows, f"A token is decoded behind {models[0]['cost']['token_context']} others: operations "
                       "of all products, and bytes of the weights that it reads, in the type of the "
                       "products. On disk: the files as they are, an adapter's without its base.")


def speeds(models: list[dict]) -> list[str]:
    if not any("note" in model["cost"] for model in models):
        return ["Speed and memory were not measured: `eval.py --cost` measures them."]
    rows = []
    for model in models:
        cost = model["cost"]
        row = {"model": model["name"]}
        if "peak_mb" in cost:
            row |= {"peak memory, MB": f"{cost['peak_mb']:,.0f}",
                    "read tokens/s": with_range(cost, "prefill_tokens_per_s", ",.4g")}
            for key, label in (("prefill", "reading"), ("decode", "writing")):
                row[f"{label}, to the first model"] = with_range(cost, f"{key}_ratio", ".3f")
        rows.append(row | {"note": cost["note"]})
    return table(rows, "One sequence, each model in processes of its own, one at a time: the median over "
                       "rounds (lowest to highest). Ratios are taken within a round. Machine busy: a model's "
                       "rounds disagree by more than 20 %. Peak memory is the process's, on CUDA its "
                       "tensors'.")


def agreement_table(pairs: list[dict]) -> list[str]:
    rows = [{"first": pair["models"][0], "second": pair["models"][1],
             "same likeliest token": cell(pair, "top1"), "KL, nats a token": cell(pair, "kl")}
            for pair in pairs]
    return table(rows, pairs and f"On {pairs[0]['tokens']:,} tokens, the beginnings of "
                 f"{pairs[0]['documents']} test documents. KL(first || second): 0 where both predict alike.")


def on_one_line(text: str) -> str:
    """Text without line breaks, and with the numbers of control characters, which HTML does not know."""
    return " ".join(text.split()).translate(CONTROL)


def side_by_side(samples: list[dict]) -> list[str]:
    lines = ["Each model's greedy text and one sampled at temperature 0.8, top-p 0.95; behind each the "
             "share of its sequences of four words that it repeats. Other seeds' texts stand in "
             "samples.jsonl."]
    for sample in samples:
        lines += ["", f"> {on_one_line(sample['prompt'])}", ""]
        if sample["reference"]:
            lines.append(f"- **the release:** {on_one_line(sample['reference'])}")
        lines += [f"- **{name}, {way}:** {on_one_line(text)} ({100 * repetition(text):.0f} %)"
                  for name, texts_ in sample["texts"].items() for way, text in texts_.items()]
    return lines
