"""The folder of results: results.json, the page, CSV files of raw rows, figures."""

from pathlib import Path

from nanoprune.evaluation.comparison import (
    compare_all,
    over_seeds,
    slices,
    summarize,
    summarize_agreement,
)
from nanoprune.evaluation.results_page import results_page
from nanoprune.evaluation.written_answers import KINDS
from nanoprune.figures.results import draw_categories, draw_results, draw_slices, draw_tradeoff
from nanoprune.figures.runs import draw_curves
from nanoprune.io.files import finite_or_none, write_csv, write_json, write_text
from nanoprune.io.jsonl import write_jsonl

OPTIONAL = ("agreement.csv", "answers.csv", "answers.jsonl", "categories.png",
            "curves.png", "tradeoff.png")  # an earlier evaluation's
FILES = ("results.md", "results.json", "samples.jsonl", "models.csv", "accuracy.csv", "documents.csv",
         "slices.csv", "questions.csv", "comparison.png", "slices.png", *OPTIONAL)


def write_results(
    folder: Path, results: list[dict], agreement: list[dict], protocol: str, prompts: list[str]
) -> None:
    """Write everything about the models' results; `agreement`: rows of `compare_predictions`."""
    for name in OPTIONAL:
        (folder / name).unlink(missing_ok=True)
    models = [summarize(result) for result in results]
    comparisons, seeds, pairs = compare_all(results), over_seeds(results), summarize_agreement(agreement)
    samples = [{"prompt": prompt, "texts": {result["name"]: result["samples"][i] for result in results}}
               for i, prompt in enumerate(prompts)]
    write_text(folder / "results.md", results_page(models, comparisons, pairs, seeds, protocol, samples))
    write_json(folder / "results.json", finite_or_none(
        {"protocol": protocol, "models": models, "comparisons": comparisons, "agreement": pairs,
         "over_seeds": seeds}))
    write_jsonl(folder / "samples.jsonl", samples)
    write_csv(folder / "models.csv", model_rows(models))
    write_csv(folder / "accuracy.csv", accuracy_rows(models))
    for name, rows in raw_rows(results).items():
        write_csv(folder / name, rows)
    if agreement:
        write_csv(folder / "agreement.csv", agreement)
    if results[0]["written"]:
        write_jsonl(folder / "answers.jsonl", side_by_side(results))
    draw_figures(folder, results)


def model_rows(models: list[dict]) -> list[dict]:
    rows = []
    for model in models:
        test, row = model["test"], {"model": model["name"]}
        row |= {key: model[key] for key in ("tokenizer", "blocks", "params")} | {"nll": test["nll"]}
        for key, short in (("perplexity", "perplexity"), ("bits_per_byte", "bits")):
            low, high = test[f"{key}_interval"]
            row |= {key: test[key], f"{short}_low": low, f"{short}_high": high}
        rows.append(row | model["cost"])
    return rows


def accuracy_rows(models: list[dict]) -> list[dict]:
    """A row per model and question set, and per category of it."""
    rows = []
    for model in models:
        for name, questions in model["qa"].items():
            whole = questions | {"interval": questions["accuracy_interval"]}
            for category, part in ({"": whole} | questions["by_category"]).items():
                low, high = part["interval"]
                rows.append({
                    "model": model["name"], "set": name, "category": category, "n": part["n"],
                    "accuracy": part["accuracy"], "low": low, "high": high,
                    "chance": questions["chance"], "longest": questions["longest"]})
    return rows


def raw_rows(results: list[dict]) -> dict[str, list[dict]]:
    """By file: the rows of every document, slice, question and answer."""
    tables = {"documents.csv": [], "slices.csv": [], "questions.csv": []}
    if results[0]["written"]:
        tables["answers.csv"] = []
    for result in results:
        model = {"model": result["name"]}
        for name in ("test", "general"):
            tables["documents.csv"] += [model | {"set": name} | row for row in result[name]]
        tables["slices.csv"] += slices(result)
        for name, rows in result["answers"].items():
            tables["questions.csv"] += [model | {"set": name} | row for row in rows]
        for row in result["written"]:
            tables["answers.csv"].append(model | row)
    return tables


def side_by_side(results: list[dict]) -> list[dict]:
    """Each instruction with the answers of all models."""
    rows = []
    for i, first in enumerate(results[0]["written"]):
        row = {key: first[key] for key in (*KINDS, "prompt", "reference")}
        rows.append(row | {"answers": {result["name"]: result["written"][i]["answer"] for result in results}})
    return rows


def draw_figures(folder: Path, results: list[dict]) -> None:
    draw_results(folder, folder / "comparison.png")
    draw_slices(folder, folder / "slices.png")
    if any("decode_tokens_per_s" in result["cost"] for result in results):
        draw_tradeoff(folder, folder / "tradeoff.png")
    if any(row["category"] for result in results for rows in result["answers"].values() for row in rows):
        draw_categories(folder, folder / "categories.png")
    runs = [Path(result["path"]).parent for result in results if result["like"]]
    if runs:
        draw_curves(runs, folder / "curves.png")
