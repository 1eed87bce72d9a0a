"""The page of a study, its tables as files, and its figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

from nanoprune.evaluation.arms import find_steps, warnings
from nanoprune.evaluation.block_scores import BlockScores, estimates
from nanoprune.evaluation.comparison import compare_all, difference_rows, summarize
from nanoprune.evaluation.exchange_rate import equal_time, tokens_to_reach
from nanoprune.evaluation.results_page import detailed, protocol, speeds
from nanoprune.evaluation.results_summary import compared, conclusions, doubts, forgotten, with_range
from nanoprune.evaluation.study_tables import (
    StudyResults,
    curve_rows,
    exchange_rows,
    learning_rate_rows,
    predict_healed_loss,
    question_rows,
    study_rows,
)
from nanoprune.figures.study import draw_exchange, draw_study
from nanoprune.io.files import finite_or_none, write_csv, write_json, write_text
from nanoprune.io.markdown import cell, interval_table, table, with_interval

FILES = ("study.md", "study.json", "study.csv", "study.png", "questions.csv", "exchange.csv", "exchange.png",
         "curves.csv", "learning_rates.csv")


def write_study(results: StudyResults) -> None:
    """Write all tables, the page and the figures into the study's folder, and print the page."""
    folder, rows = results.study.folder, study_rows(results)
    tables = {"study": rows, "questions": question_rows(results), "exchange": exchange_rows(results, rows),
              "curves": curve_rows(results), "learning_rates": learning_rate_rows(results)}
    arms = results.runs["none"], results.runs.get(results.best, [])
    rate = {"tokens_to_reach": tokens_to_reach(*arms), "equal_time": equal_time(*arms)}
    predictions = predict_healed_loss(results, rows)
    for name, table_rows in tables.items():
        write_csv(folder / f"{name}.csv", table_rows)
    write_json(folder / "study.json", finite_or_none({
        "study": asdict(results.study), "best": results.best, "learning_rates": results.lr, "rows": rows,
        "predicts_the_healed_loss": predictions, "exchange_rate": rate,
        "correlations_before_healing": results.scores.correlations}))
    draw_study(folder, folder / "study.png")
    draw_exchange(folder, folder / "exchange.png")
    page = study_page(results, tables, predictions, rate)
    write_text(folder / "study.md", page)
    print(page)
    print(f"wrote {folder}: study.md, study.json, tables and figures")


def study_page(
    results: StudyResults, tables: dict[str, list[dict]], predictions: list[dict], rate: dict
) -> str:
    healed = [results.healed(row) for row in ("none", results.best) if row in results.runs]
    arms = [results.base("none"), results.base(results.best), *healed]
    models, comparisons, steps = list(map(summarize, arms)), compare_all(arms), find_steps(arms)
    rows, options = difference_rows(comparisons), tables["exchange"]
    lines = [f"# {results.study.name}: what each block is worth", "",
             *compared(arms, models, results.about), ""]
    lines += [f"- {sentence}" for sentence in [
        *conclusions(models[2:], comparisons, rows), *least_and_most(results, tables["study"])]]
    lines += ["", *overview(options, list(results.items["questions"])), "",
              "![Each block, before healing and after](study.png)", ""]
    lines += [f"- {sentence}" for sentence in [
        *forgotten(rows), *doubts(healed, models[2:]), *warnings(arms, steps)]]
    timed = [{"name": option["what"], "cost": option} for option in options if "note" in option]
    sections = {
        "Protocol": protocol(models[2:], results.about),
        "Each block": block_table(tables["study"]),
        "Does a score before healing predict the loss after it?": predictions_table(predictions),
        "Scores before healing": scores_table(results.scores),
        "More tokens, or as much time": rate_lines(rate),
        "Learning rates": ["Both arms at each rate, on the first seed.", "",
                           *interval_table(tables["learning_rates"])],
        "Questions": questions_table(tables["questions"]),
        "Speed": speeds(timed) if timed else [],
    }
    figures = {"More tokens, or as much time": "exchange.png"}
    return "\n".join([*lines, *detailed(sections, figures)]) + "\n"


# ---------------------------------------------------------------- the first screen
def in_units(row: dict, column: str, convert: Callable[[float], float]) -> str:
    """What is lost, and its interval, in other units; - where nothing differs."""
    value, low, high = (convert(row[f"{column}{end}"]) for end in ("", "_low", "_high"))
    return "-" if value == low == high else with_interval(value, (low, high), "+")


def percent(nats: float) -> float:
    """A difference of losses as a change of perplexity."""
    return 100 * math.expm1(nats)


def points(share: float) -> float:
    return 100 * share


def least_and_most(results: StudyResults, rows: list[dict]) -> list[str]:
    """The blocks whose removal costs least and most when all are healed."""
    healed = sorted((row for row in rows if row["block"] in results.whole and "lost_after" in row),
                    key=lambda row: row["lost_after"])
    if len(healed) < 2:
        return []
    least, most = (f"{in_units(row, 'lost_after', percent)} % of perplexity without block {row['block']}"
                   for row in (healed[0], healed[-1]))
    return [f"**All {len(healed)} blocks, after healing:** from {least} to {most}."]


def overview(options: list[dict], sets: list[str]) -> list[str]:
    rows = []
    for option in options:
        row = {"model": option["what"], "bits/byte": cell(option, "bits_per_byte"),
               "perplexity lost, %": in_units(option, "lost", percent)}
        row |= {f"{name} lost, points": in_units(option, f"lost_{name}", points) for name in sets}
        row |= {"parameters": f"{option['parameters']:,}", "MB": f"{option['bytes'] / 1e6:,.4g}",
                "trained for, s": f"{option['training_seconds']:,.0f}"}
        if any("note" in other for other in options):
            row["written tokens/s"] = with_range(option, "decode_tokens_per_s", ",.4g")
        rows.append(row)
    return [*table(rows), "", "Lost: to the first model, paired; a minus is a gain."]


# ---------------------------------------------------------------- details
def block_table(rows: list[dict]) -> list[str]:
    return [*interval_table(rows, ("block", "lost_before", "after", "lost_after", "rank_before", "rank_after",
                                   "lost_general", "runs", "diverged")), "",
            "Nats a token. Lost before: to the base, test split; after: to the full model, fine-tuned alike; "
            "general: the same on general text. Rank 1 loses least."]


def predictions_table(predictions: list[dict]) -> list[str]:
    return [f"Rank correlation over {predictions[0]['of']} blocks, 95 % interval by Fisher's z. One that "
            "contains 0 shows nothing.", "", *interval_table(predictions, ("score", "text", "spearman"))]


def scores_table(scores: BlockScores) -> list[str]:
    base = scores.rows[0]
    correlations = ", ".join(f"{name} {with_interval(found['spearman'], found['interval'], '+')}"
                             for name, found in scores.correlations.items())
    return [f"Loss without each block on the validation split, {base['tokens']:,} tokens of "
            f"{base['documents']} documents, less that of the base ({cell(base, 'nll')}); and what cheaper "
            "scores say of it.", "",
            *interval_table(scores.rows[1:], ("block", "difference", "rank", *estimates())), "",
            f"Rank correlation with this loss, over blocks: {correlations}."]


def rate_lines(rate: dict) -> list[str]:
    if not rate["equal_time"]:
        return []
    rows = [{"tokens of the full model": f"{row['tokens']:,}", "its validation loss": f"{row['nll']:.4f}",
             "tokens of the reduced model": reached(row["reduced"]),
             "95 % interval": " to ".join(dict.fromkeys(
                 reached(row[f"reduced_{end}"]) for end in ("low", "high")))}
            for row in rate["tokens_to_reach"]]
    now = rate["equal_time"]
    lost = with_interval(now["lost"], (now["lost_low"], now["lost_high"]), "+")
    return ["Tokens that the reduced model needs for the full model's validation loss.", "", *table(rows),
            "", f"At equal time the reduced model has {now['tokens']:,} tokens behind it, the full one "
            f"{now['full_tokens']:,.0f}; the reduced one then lost {lost} nats a token."]


def reached(tokens: float) -> str:
    if math.isnan(tokens):
        return "-"
    return "not reached" if math.isinf(tokens) else f"{tokens:,.0f}"


def questions_table(rows: list[dict]) -> list[str]:
    by_block = {}
    for row in rows:
        interval = 100 * row["accuracy_low"], 100 * row["accuracy_high"]
        by_block.setdefault(row["block"], {"block": row["block"]})[f"{row['set']}, % right"] = with_interval(
            100 * row["accuracy"], interval)
    return table(list(by_block.values()))
