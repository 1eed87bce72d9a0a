"""The folder of results: results.json, the page, CSV files of raw rows, figures."""

from pathlib import Path

from nanoprune.evaluation.arms import Arm
from nanoprune.evaluation.comparison import (
    METHOD,
    compare_all,
    difference_rows,
    slices,
    summarize,
    summarize_agreement,
)
from nanoprune.evaluation.results_page import results_page
from nanoprune.evaluation.written_answers import KINDS
from nanoprune.figures.results import draw_categories, draw_results, draw_slices, draw_tradeoff
from nanoprune.figures.runs import draw_curves
from nanoprune.io.files import finite_or_none, read_json, write_csv, write_json, write_text
from nanoprune.io.jsonl import write_jsonl
from nanoprune.io.markdown import to_html

OPTIONAL = ("agreement.csv", "answers.csv", "answers.jsonl", "categories.png", "comparison.png", "curves.png",
            "slices.png", "tradeoff.png")  # perhaps an earlier evaluation's
FILES = ("results.md", "results.html", "results.json", "samples.jsonl", "models.csv", "accuracy.csv",
         "differences.csv", "documents.csv", "slices.csv", "questions.csv", *OPTIONAL)


def write_results(
    folder: Path, arms: list[Arm], agreement: list[dict], about: dict, prompts: list[dict]
) -> None:
    """Write everything about the models' results.

    `agreement`: rows of `compare_predictions`. `about`: data, machine and protocol, in words. `prompts`: of
    the generations, with what the release says.
    """
    for name in OPTIONAL:
        (folder / name).unlink(missing_ok=True)
    if (folder / "plan.json").is_file():
        about |= {"plan": read_json(folder / "plan.json")}
    models, comparisons = [summarize(arm) for arm in arms], compare_all(arms)
    pairs = summarize_agreement(agreement)
    samples = [prompt | {
        "texts": {arm.name: arm.first["samples"][i] for arm in arms},
        "other_seeds": {f"{arm.name}, seed {seed}": run["samples"][i] for arm in arms
                        for seed, run in zip(arm.seeds[1:], arm.runs[1:], strict=True)},
    } for i, prompt in enumerate(prompts)]
    write_json(folder / "results.json", finite_or_none(
        {"about": about, "models": models, "comparisons": comparisons, "method": METHOD, "agreement": pairs}))
    write_jsonl(folder / "samples.jsonl", samples)
    tables = {"models.csv": model_rows(models), "accuracy.csv": accuracy_rows(models),
              "differences.csv": difference_rows(comparisons), **raw_rows(arms)}
    if agreement:
        tables["agreement.csv"] = agreement
    for name, rows in tables.items():
        write_csv(folder / name, rows)
    if arms[0].first["written"]:
        write_jsonl(folder / "answers.jsonl", answers_side_by_side(arms))
    draw_figures(folder, arms)
    figures = {path.name for path in folder.glob("*.png")}
    page = results_page(arms, models, comparisons, pairs, about, samples, figures)
    write_text(folder / "results.md", page)
    write_text(folder / "results.html", to_html(page, folder))


def model_rows(models: list[dict]) -> list[dict]:
    rows = []
    for model in models:
        test, row = model["test"], {"model": model["name"]}
        row |= {key: model[key] for key in ("tokenizer", "removed", "blocks", "params")}
        row |= {"seeds": len(model["seeds"]), "nll": test["nll"]}
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


def raw_rows(arms: list[Arm]) -> dict[str, list[dict]]:
    """By file: the rows of every document, slice, question and answer, of every run."""
    tables = {"documents.csv": [], "slices.csv": [], "questions.csv": []}
    for arm in arms:
        tables["slices.csv"] += slices(arm)
        for run in arm.runs:
            model = {"model": arm.name, "seed": run["run"]["seed"] if run["run"] else ""}
            for name in ("test", "general"):
                tables["documents.csv"] += [model | {"set": name} | row for row in run[name]]
            for name, rows in run["answers"].items():
                tables["questions.csv"] += [model | {"set": name} | row for row in rows]
            for row in run["written"]:
                tables.setdefault("answers.csv", []).append(model | row)
    return tables


def answers_side_by_side(arms: list[Arm]) -> list[dict]:
    """Each instruction with the answers of all models, of their first seeds."""
    return [{key: first[key] for key in (*KINDS, "prompt", "reference")}
            | {"answers": {arm.name: arm.first["written"][i]["answer"] for arm in arms}}
            for i, first in enumerate(arms[0].first["written"])]


def draw_figures(folder: Path, arms: list[Arm]) -> None:
    draw_results(folder, folder / "comparison.png")
    draw_slices(folder, folder / "slices.png")
    if any("decode_tokens_per_s" in arm.first["cost"] for arm in arms):
        draw_tradeoff(folder, folder / "tradeoff.png")
    draw_categories(folder, folder / "categories.png")
    runs = {arm.name: Path(arm.first["path"]).parent for arm in arms if arm.first["run"]}
    if runs:
        draw_curves(runs, folder / "curves.png", [arm.name for arm in arms])
