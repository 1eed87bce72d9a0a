"""The page of a study, its tables as files, and its figures."""


import math
from dataclasses import asdict

from nanoprune.evaluation.arms import find_steps, warnings
from nanoprune.evaluation.block_scores import BlockScores, estimates
from nanoprune.evaluation.comparison import compare_all, difference_rows, summarize
from nanoprune.evaluation.exchange_rate import equal_time, tokens_to_reach
from nanoprune.evaluation.results_page import page, protocol, speeds
from nanoprune.evaluation.results_summary import compared, conclusions, doubts, forgotten
from nanoprune.evaluation.study_tables import (
    StudyResults,
    curve_rows,
    exchange_rows,
    learning_rate_rows,
    predict_healed_loss,
    study_rows,
)
from nanoprune.figures.study import draw_exchange, draw_study
from nanoprune.io.files import finite_or_none, write_csv, write_json, write_text
from nanoprune.io.markdown import cell, interval_table, with_interval

FILES = ("study.md", "study.json", "study.csv", "study.png", "exchange.csv", "exchange.png", "curves.csv",
         "learning_rates.csv")


def write_study(results: StudyResults) -> None:
    """Write all tables, the page and the figures into the study's folder, and print the page."""
    folder, rows = results.study.folder, study_rows(results)
    tables = {"study": rows, "exchange": exchange_rows(results, rows), "curves": curve_rows(results),
              "learning_rates": learning_rate_rows(results)}
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
    text = study_page(results, tables, predictions, rate)
    write_text(folder / "study.md", text)
    print(text)
    print(f"wrote {folder}: study.md, study.json, tables and figures")


def study_page(
    results: StudyResults, tables: dict[str, list[dict]], predictions: list[dict], rate: dict
) -> str:
    healed = [results.tuned(row) for row in ("none", results.best) if row in results.runs]
    arms = [results.base("none"), results.base(results.best), *healed]
    models, steps = list(map(summarize, healed)), find_steps(arms)
    rows, options, sets = difference_rows(compare_all(arms)), tables["exchange"], results.items["questions"]
    columns = ("what", "bits_per_byte", "lost", *(f"lost_{name}" for name in sets), "parameters", "bytes",
               "training_seconds", "decode_tokens_per_s")
    screen = [*interval_table(
        options, columns,
        "Lost: nats a token of the test split above the first model, and shares of right answers below it; "
        "paired. Tokens a second: the median over rounds [lowest, highest]."), "",
        "![Each block, before healing and after](study.png)"]
    timed = [{"name": option["what"], "cost": option} for option in options if "note" in option]
    sections = {
        "Protocol": protocol(models, results.about),
        "Each block": interval_table(
            tables["study"], ("block", "lost_before", "after", "lost_after", "rank_before", "rank_after",
                              "lost_general", "runs", "diverged"),
            "Nats a token. Lost before: above the base, test split; after: above the full model, fine-tuned "
            "alike, paired by seed; general: the same on general text. Rank 1 loses least."),
        "Does a score before healing predict the loss after it?": [
            f"Rank correlation with what is lost after healing, over {predictions[0]['of']} blocks; 95 % "
            "interval by Fisher's z. One that contains 0 shows nothing.", "",
            *interval_table(predictions, ("score", "text", "spearman"))],
        "Scores before healing": scores_table(results.scores),
        "More tokens, or as much time": rate_tables(rate),
        "Learning rates": ["Both arms at each rate, on the first seed.", "",
                           *interval_table(tables["learning_rates"])],
        "Questions": ["Shares of right answers.", "", *interval_table(
            tables["study"], ("block", *(f"accuracy_{name}" for name in sets)))],
        "Speed": speeds(timed) if timed else [],
    }
    return page(
        f"{results.study.name}: what each block is worth", compared(arms, results.about),
        conclusions(models, rows) + least_and_most(results, tables["study"]), screen,
        [*forgotten(rows), *doubts(healed, models), *warnings(arms, steps)], sections,
        {"More tokens, or as much time": "exchange.png"})


def least_and_most(results: StudyResults, rows: list[dict]) -> list[str]:
    """The blocks whose removal costs least and most when all are healed."""
    healed = sorted((row for row in rows if row["block"] in results.whole
                     and math.isfinite(row.get("lost_after", math.nan))), key=lambda row: row["lost_after"])
    if len(healed) < 2:
        return []
    least, most = (f"{cell(row, 'lost_after')} nats a token without block {row['block']}"
                   for row in (healed[0], healed[-1]))
    return [f"**All {len(healed)} blocks, after healing:** from {least} to {most}."]


def scores_table(scores: BlockScores) -> list[str]:
    base = scores.rows[0]
    correlations = ", ".join(f"{name} {with_interval(found['spearman'], found['interval'], '+')}"
                             for name, found in scores.correlations.items())
    return [f"Loss without each block on the validation split, {base['tokens']:,} tokens of "
            f"{base['documents']} documents, less that of the base ({cell(base, 'nll')}); and what cheaper "
            "scores say of it.", "",
            *interval_table(scores.rows[1:], ("block", "difference", "rank", *estimates()),
                            f"Rank correlation with this loss, over blocks: {correlations}.")]


def rate_tables(rate: dict) -> list[str]:
    if not rate["equal_time"]:
        return []
    return ["Tokens that the reduced model needs for the full model's validation loss; inf: not reached.", "",
            *interval_table(rate["tokens_to_reach"]), "",
            "The reduced model at its end beside the full one at the same time, in validation loss (of the "
            "machines that each ran on):", "",
            *interval_table([rate["equal_time"]])]
