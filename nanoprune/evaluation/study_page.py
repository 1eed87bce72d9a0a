"""Tables and the page of a study: the loss without each block, before healing and after it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nanoprune.config import Study
from nanoprune.evaluation.block_scores import BlockScores, RemovalLosses, estimates
from nanoprune.figures.study import draw_study
from nanoprune.io.files import finite_or_none, write_csv, write_json, write_text
from nanoprune.io.markdown import table, with_interval
from nanoprune.statistics import Ratio, spearman, spearman_interval

MEASURES = ("before", "lost_before", "after", "lost_after")
COLUMNS = ("block", *(f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")),
           "seed_low", "seed_high", "rank_before", "rank_after", "seconds", "runs")


@dataclass(frozen=True)
class RunResult:
    """A run of a study, measured; None where it diverged."""

    test_nll: list[float | None]  # by document, summed, in nats
    val: float | None  # nats per token
    seconds: float | None  # of training, and of the teacher's one run over the training rows
    steps: int | None


@dataclass(frozen=True)
class StudyResults:
    """All that a study measured."""

    study: Study
    best: int  # the block whose removal costs least before healing
    scores: BlockScores  # before healing, on the validation split
    before: RemovalLosses  # before healing, on the test split: of the full model, then without each block
    full_lr: float
    reduced_lr: float
    # By row, a run for each seed: "none", then each block in the order of `before`; where the study distils,
    # also the best block's "B, distilled" and "B, as long without".
    runs: dict[int | str, list[RunResult]]


def write_study(results: StudyResults, folder: Path) -> None:
    """Write study.csv, study.md, study.png and study.json, and print the page."""
    rows = study_rows(results)
    blocks = rows[1 : len(results.before.nll)]
    for when in ("before", "after"):
        ranked = sorted(blocks, key=lambda row: np.nan_to_num(row[when], nan=np.inf))
        for rank, row in enumerate(ranked, start=1):
            row[f"rank_{when}"] = rank
    predictions = predict_healed_loss(results, blocks)
    page = markdown(results, rows, predictions)
    write_csv(folder / "study.csv", [rows[0], *blocks])
    write_text(folder / "study.md", page)
    write_json(folder / "study.json", finite_or_none({
        "study": asdict(results.study),
        "learning_rates": {"full": results.full_lr, "reduced": results.reduced_lr}, "rows": rows,
        "predicts_the_healed_loss": predictions,
        "scores": {"seconds": results.scores.seconds, "correlations": results.scores.correlations}}))
    print(page)
    figure = draw_study(folder, folder / "study.png")
    print(f"wrote {folder / 'study.csv'}, {folder / 'study.md'}, {folder / 'study.json'} and {figure}")


# ---------------------------------------------------------------- tables
def study_rows(results: StudyResults) -> list[dict]:
    """A row for each entry of `runs`: intervals over documents, of the mean over seeds; no ranks yet."""
    scored, rows = np.flatnonzero(results.before.tokens), []  # documents without tokens count nowhere
    tokens, before = results.before.tokens[scored], results.before.nll[:, scored]
    losses = {removed: np.array([run.test_nll for run in runs], float)[:, scored]  # nan where one diverged
              for removed, runs in results.runs.items()}
    full = losses["none"].mean(0)
    for k, (removed, runs) in enumerate(results.runs.items()):
        healed = losses[removed].mean(0)
        nll = {"after": healed, "lost_after": healed - full}
        if k < len(before):
            nll |= {"before": before[k], "lost_before": before[k] - before[0]}
        row = dict.fromkeys(COLUMNS, "") | {"block": removed, "runs": len(runs)}
        for measure, numerators in nll.items():
            loss = Ratio(numerators, tokens)
            low, high = loss.interval()
            row |= {measure: loss.value, f"{measure}_low": low, f"{measure}_high": high}
        by_seed = losses[removed].sum(1) / tokens.sum()
        seconds = np.array([run.seconds for run in runs], float)
        rows.append(row | {"after": by_seed.mean(), "seed_low": by_seed.min(), "seed_high": by_seed.max(),
                           "seconds": round(float(np.median(seconds)), 1)})
    return rows


def predict_healed_loss(results: StudyResults, blocks: list[dict]) -> dict[str, dict]:
    """The rank correlation of each score before healing with the loss after it, over the rows of blocks."""
    by_block = {row["block"]: row for row in results.scores.rows}
    healed, predictions = [row["after"] for row in blocks], {}
    for name in ("nll", *estimates()):
        values = [by_block[str(row["block"])][name] for row in blocks]
        predictions["loss before healing" if name == "nll" else name] = {
            "spearman": float(spearman(values, healed)), "interval": spearman_interval(values, healed),
            "of": len(values)}
    return predictions


# ---------------------------------------------------------------- the page
def markdown(results: StudyResults, rows: list[dict], predictions: dict[str, dict]) -> str:
    study, training, tokens = results.study, results.study.training, results.before.tokens
    rates = ", ".join(f"{lr:g}" for lr in study.learning_rates)
    correlations = [
        {"score": name, "rank correlation [95 %]": with_interval(rank["spearman"], rank["interval"], "+")}
        for name, rank in predictions.items()]
    lines = [
        f"# {study.name}: which block?", "",
        f"{training.max_steps} steps of {training.tokens_per_step:,} tokens, seeds "
        f"{', '.join(map(str, study.seeds))}; learning rate {results.full_lr:g} (full) and "
        f"{results.reduced_lr:g} (reduced), of {rates} by validation loss. Test loss in nats per token over "
        f"{np.count_nonzero(tokens)} documents, {int(tokens.sum()):,} tokens, windows of "
        f"{training.context}, no prefix token; 95 % intervals by bootstrap over documents, of the mean over "
        "seeds; differences are paired.", "", *table([page_row(row) for row in rows]), "",
        "Does a score before healing predict the loss after it? Rank correlation over "
        f"{len(results.before.nll) - 1} blocks, 95 % interval by bootstrap over blocks; one that contains 0 "
        "shows nothing:", "", *table(correlations)]
    if study.distill:
        steps = ", ".join(str(run.steps) for run in results.runs[f"{results.best}, as long without"])
        lines += [
            "", f"Distilled: block {results.best} healed with the fine-tuned full model of the same seed as "
            f"teacher (the likeliest {training.teacher_top} tokens, share {training.teacher_share:g}, "
            f"temperature {training.teacher_temperature:g}), whose run over the rows counts in the time; as "
            f"long without: plain steps for as long ({steps} by seed)."]
    return "\n".join(lines) + "\n"


def page_row(row: dict) -> dict[str, str]:
    return {
        "removed": row["block"],
        "before healing": cell(row, "before"),
        "lost to the full model": cell(row, "lost_before"),
        "after": cell(row, "after"),
        "lowest and highest seed": f"{row['seed_low']:.4f} to {row['seed_high']:.4f}",
        "lost to the full model, fine-tuned": cell(row, "lost_after"),
        "rank before": row["rank_before"],
        "rank after": row["rank_after"],
        "s a run": row["seconds"],
    }


def cell(row: dict, measure: str) -> str:
    """A measure with its interval; none where it was not measured, or the full model stands beside itself."""
    if not row[measure]:
        return ""
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    value = with_interval(row[measure], (low, high), "+" if measure.startswith("lost") else "")
    return f"{value}, no difference shown" if low <= 0 <= high else value
