"""The page of results: results.md."""

import math

import numpy as np

from nanoprune.evaluation.comparison import RULES
from nanoprune.evaluation.written_answers import SCORES
from nanoprune.statistics import FEW, digits

OVERLAPS = ("rouge1", "rouge2", "rougeL", "bleu", "repetition", "invented")


def results_page(
    models: list[dict], comparisons: list[dict], seeds: dict, protocol: str, samples: list[dict]
) -> str:
    sets = [name for name, questions in models[0]["qa"].items() if questions["n"]]
    lines = ["# Results", "", conclusions(models, comparisons, seeds), "", protocol, ""]
    lines += [*overview(models, sets), "", *sizes(models[0], sets)]
    lines += ["", "## Size, speed, quality", "", *costs(models)]
    lines += ["", "## Text", "", *texts(models)]
    if sets:
        lines += ["", "## Questions", "", *questions_table(models, sets)]
    if any(model["written"] for model in models):
        lines += ["", "## Answers written to held-out instructions", "", *written_table(models)]
    if comparisons:
        lines += ["", "## Differences", "", *differences(comparisons)]
    if seeds["configs"]:
        lines += ["", "## Over seeds", "", *seeds_table(seeds)]
    if samples:
        lines += ["", "## Side by side", "", "Greedy, from the same beginnings of test documents."]
    for sample in samples:
        lines += ["", f"> {' '.join(sample['prompt'].split())}", ""]
        lines += [f"- **{name}:** {' '.join(text.split())}" for name, text in sample["texts"].items()]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- cells and tables
def with_interval(value: float, interval: tuple[float, float], sign: str = "") -> str:
    """A value and its interval, with as many digits as the interval supports."""
    low, high = interval
    form = f"{sign}.{digits(low, high)}f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def with_intervals(values: dict, keys) -> list[str]:
    return [with_interval(values[key], values[f"{key}_interval"]) for key in keys]


def known(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def table(head: list[str], rows: list[list]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


# ---------------------------------------------------------------- the sections
def overview(models: list[dict], sets: list[str]) -> list[str]:
    measures = {"perplexity": "test perplexity [95 %]", "bits_per_byte": "bits/byte [95 %]"}
    if len({model["tokenizer"] for model in models}) > 1:
        del measures["perplexity"]  # it says nothing beside that of another tokenizer
    head = ["model", "blocks", "parameters", *measures.values()]
    rows = []
    for model in models:
        accuracies = [cell for name in sets for cell in with_intervals(model["qa"][name], ["accuracy"])]
        rows.append([model["name"], model["blocks"], f"{model['params']:,}",
                     *with_intervals(model["test"], measures), *accuracies])
    return table([*head, *(f"{name} accuracy [95 %]" for name in sets)], rows)


def sizes(model: dict, sets: list[str]) -> list[str]:
    """Sizes of the test split and of the question sets, and a warning where they are small."""
    test, questions = model["test"], {name: model["qa"][name] for name in sets}
    lines = [f"Test split: {test['documents']} documents, {test['tokens']:,} scored tokens of "
             f"{model['name']}."]
    for name, q in questions.items():
        lines.append(f"{name}: {q['n']} questions on {q['sources']} sources; chance {q['chance']:.3f}, the "
                     f"longest choice alone {q['longest']:.3f}.")
    if min([test["documents"], *(q["sources"] for q in questions.values())]) < FEW:
        lines.append(f"Intervals over fewer than {FEW} documents or sources are too narrow; over one there "
                     "is none (nan).")
    return lines


def costs(models: list[dict]) -> list[str]:
    head = ["model", "parameters", "trained", "on disk, MB", "peak memory, MB", "reading, tokens/s",
            "writing, tokens/s", "a token, ms, p50 / p95", "trained, s", "on tokens", "test nll"]
    rows = []
    for model in models:
        cost = model["cost"]
        rows.append([
            model["name"], f"{model['params']:,}", known(cost["trained_params"], ","),
            f"{cost['disk_mb']:.1f}", f"{cost['peak_mb']:,.0f}", f"{cost['prefill_tokens_per_s']:,.0f}",
            f"{cost['decode_tokens_per_s']:,.0f}", f"{cost['token_p50_ms']:.1f} / {cost['token_p95_ms']:.1f}",
            known(cost["training_s"], ",.0f"), known(cost["training_tokens"], ","),
            f"{model['test']['nll']:.4f}"])
    return [*table(head, rows), "", "Peak memory is the process's, on top of what the models before left; an "
            "adapter's size on disk is without its base."]


def texts(models: list[dict]) -> list[str]:
    head = ["text", "model", "nll a token [95 %]", "perplexity [95 %]", "bits/byte [95 %]", "byte perplexity",
            "word perplexity"]
    rows = [
        [text, model["name"], *with_intervals(model[text], ("nll", "perplexity", "bits_per_byte")),
         f"{model[text]['byte_perplexity']:.3f}", f"{model[text]['word_perplexity']:.4g}"]
        for text in ("test", "general") for model in models if model[text]]
    general = "The test split, and general text that tells what was forgotten."
    return [general if models[0]["general"] else "The test split.", "", *table(head, rows)]


def questions_table(models: list[dict], sets: list[str]) -> list[str]:
    head = ["set", "model", "accuracy [95 %]", "per character [95 %]", "per byte [95 %]", "log-likelihood",
            "margin"]
    rows = []
    for name in sets:
        for model in models:
            q = model["qa"][name]
            rows.append([name, model["name"], *with_intervals(q, RULES.values()),
                         f"{q['mean_loglikelihood']:.2f}", f"{q['mean_margin']:+.2f}"])
    return ["The choice of the highest log-likelihood; per character and per byte of the choice; "
            "log-likelihood and margin of the true answer, in nats.", "", *table(head, rows)]


def written_table(models: list[dict]) -> list[str]:
    rows = []
    for model in models:
        for task, means in model["written"].items():
            overlaps = [known(means.get(key), ".3f") for key in OVERLAPS]
            rows.append([model["name"], task, means["n"], *with_intervals(means, SCORES), *overlaps])
    return table(["model", "task", "n", *(f"{key} [95 %]" for key in SCORES), *OVERLAPS], rows)


def differences(comparisons: list[dict]) -> list[str]:
    rows, notes = [], set()
    for comparison in comparisons:
        first, second = comparison["models"]
        if "note" in comparison:
            notes.add(f"{first} and {second}: {comparison['note']}.")
        for measure, d in comparison.items():
            if measure in ("models", "note") or measure.endswith(("accuracy_norm", "accuracy_bytes")):
                continue
            if measure.endswith("bits_per_byte") and measure.replace("bits_per_byte", "nll") in comparison:
                continue  # the same, in other units
            remark = "*" if d["shown_among_all"] else "" if d["shown"] else "no difference shown"
            rows.append([
                first, second, "test nll" if measure == "nll" else measure,
                with_interval(d["difference"], d["interval"], "+"),
                f"{d['detectable']:.{digits(*d['interval'])}f}", p_value(d.get("mcnemar_p")), remark])
    head = ["first", "second", "measure", "difference [95 %]", "detectable", "McNemar p", ""]
    lines = ["Second model less first, paired; an interval that contains 0 shows no difference. Were there "
             f"none at all, one in twenty would be shown all the same, {0.05 * len(rows):.1f} of these "
             f"{len(rows)}; those that hold at 95 % for all of them together (Bonferroni) are marked *. "
             "Detectable: the minimum detectable difference (80 % power).", "", *table(head, rows)]
    return [*lines, "", *sorted(notes)] if notes else lines


def seeds_table(seeds: dict) -> list[str]:
    head = ["config", "runs", "test nll", "standard error, documents", "standard deviation, seeds",
            "lowest to highest"]
    rows = [[row["config"], row["runs"], *(f"{row[key]:.4f}" for key in ("nll", "documents", "seeds")),
             f"{row['lowest']:.4f} to {row['highest']:.4f}"] for row in seeds["configs"]]
    return [*table(head, rows), "",
            *(f"{c['configs'][1]} less {c['configs'][0]}, over documents and seeds: nll {signed(c)}."
              for c in seeds["comparisons"])]


def signed(difference: dict) -> str:
    """A difference with its interval, and a remark where it shows nothing."""
    amount = with_interval(difference["difference"], difference["interval"], "+")
    return amount if difference["shown"] else f"{amount}, no difference shown"


# ---------------------------------------------------------------- one plain paragraph
def conclusions(models: list[dict], comparisons: list[dict], seeds: dict) -> str:
    """A paragraph that follows from the numbers."""
    best, bits = ranked(models, "test")[0]
    if len(models) > 1:
        sentences = [f"Of {len(models)} models {best} predicts the test documents best ({bits:.3f} bits a "
                     "byte)."]
    else:
        sentences = [f"{best} predicts the test documents with {bits:.3f} bits a byte."]
    sentences += [text_conclusion(comparison) for comparison in comparisons]
    if len(models) > 1 and all(model["general"] for model in models):
        (best, low), *_, (worst, high) = ranked(models, "general")
        sentences.append(f"General text is predicted best by {best} ({low:.3f} bits a byte) and worst by "
                         f"{worst} ({high:.3f}).")
    for name in models[0]["qa"]:
        measure = f"{name} accuracy"
        listed = [c for c in comparisons if measure in c]
        pairs = [f"{c['models'][1]} {c[measure]['difference']:+.3f} from {c['models'][0]}"
                 for c in listed if c[measure]["shown"]]
        if listed:
            sentences.append(f"On {name}: {'; '.join(pairs) or 'no difference shown between any two'}.")
    for comparison in seeds["comparisons"]:
        first, second = comparison["configs"]
        sentences.append(f"Over seeds, {second} against {first}: {signed(comparison)}.")
    return " ".join(sentences)


def ranked(models: list[dict], text: str) -> list[tuple[str, float]]:
    """(name, bits per byte) of each model, the best first."""
    bits = [(model["name"], model[text]["bits_per_byte"]) for model in models]
    return sorted(bits, key=lambda pair: np.nan_to_num(pair[1], nan=math.inf))


def text_conclusion(comparison: dict) -> str:
    """A sentence on which of two models predicts the test documents better."""
    first, second = comparison["models"]
    d = comparison.get("nll", comparison["bits_per_byte"])
    unit = "nats a token" if "nll" in comparison else "bits a byte (the tokenizers differ)"
    amount = with_interval(d["difference"], d["interval"], "+")
    if math.isnan(d["interval"][0]):
        return f"{first} to {second}: one document, nothing can be said."
    if not d["shown"]:
        return (f"{first} to {second}: no difference shown ({amount} {unit}; {d['detectable']:.2g} would "
                "have been).")
    quality = "worse" if d["interval"][0] > 0 else "better"
    return f"{second} predicts {quality} than {first} by {amount} {unit}."
