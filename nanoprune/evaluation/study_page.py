"""Tables and the page of a study: the loss without each block, before healing and after it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nanoprune.config import Study
from nanoprune.evaluation.block_scores import BlockScores, RemovalLosses, estimates
from nanoprune.figures.study import draw_study
from nanoprune.io.files import finite_or_none, write_csv, write_json, write_text
from nanoprune.statistics import bootstrap, spearman, spearman_interval

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
    """All that a study measured; lists of runs hold one for each seed."""

    study: Study
    blocks: list[int]
    best: int  # the block whose removal costs least before healing
    scores: BlockScores  # before healing, on the validation split
    before: RemovalLosses  # before healing, on the test split: of the full model, then without each block
    full_lr: float
    reduced_lr: float
    full: list[RunResult]
    healed: dict[int, list[RunResult]]  # by the block removed
    distilled: list[RunResult]  # without the best block, taught by the full model; empty without distillation
    longer: list[RunResult]  # without the best block, for as long as the distilled ones

    @property
    def scored(self) -> np.ndarray:
        return np.flatnonzero(self.before.tokens)  # documents without tokens count nowhere

    @property
    def tokens(self) -> np.ndarray:
        return self.before.tokens[self.scored]

    def losses(self, runs: list[RunResult]) -> np.ndarray:
        """Summed nll (runs, scored documents), nan where a run diverged."""
        return np.array([run.test_nll for run in runs], float)[:, self.scored]


def write_study(results: StudyResults, folder: Path) -> None:
    """Write study.csv, study.md, study.png and study.json, and print the page."""
    rows = block_rows(results)
    extra = []
    if results.distilled:
        extra = [row_of(results, f"{results.best}, distilled", results.distilled),
                 row_of(results, f"{results.best}, as long without", results.longer)]
    predictions = predict_healed_loss(results, [row["after"] for row in rows[1:]])
    page = markdown(results, rows, extra, predictions)
    write_csv(folder / "study.csv", rows, COLUMNS)
    write_text(folder / "study.md", page)
    write_json(folder / "study.json", finite_or_none({
        "study": asdict(results.study),
        "learning_rates": {"full": results.full_lr, "reduced": results.reduced_lr}, "rows": rows + extra,
        "predicts_the_healed_loss": predictions,
        "scores": {"seconds": results.scores.seconds, "correlations": results.scores.correlations}}))
    print(page)
    figure = draw_study(folder, folder / "study.png")
    print(f"wrote {folder / 'study.csv'}, {folder / 'study.md'}, {folder / 'study.json'} and {figure}")


# ---------------------------------------------------------------- tables
def block_rows(results: StudyResults) -> list[dict]:
    """A row for the full model and one for each block, with ranks."""
    rows = [row_of(results, "none", results.full, results.before.nll[0])]
    for block, nll in zip(results.blocks, results.before.nll[1:], strict=True):
        rows.append(row_of(results, block, results.healed[block], nll))
    for when in ("before", "after"):
        order = np.argsort([row[when] for row in rows[1:]], kind="stable")
        for rank, k in enumerate(order, start=1):
            rows[1 + k][f"rank_{when}"] = rank
    return rows


def row_of(
    results: StudyResults, name: int | str, runs: list[RunResult], nll_before: np.ndarray | None = None
) -> dict:
    """The row of a model and its runs: intervals over documents, of the mean over seeds."""
    losses, full = results.losses(runs), results.losses(results.full).mean(0)
    by_seed = losses.sum(1) / results.tokens.sum()
    seconds = np.array([run.seconds for run in runs], float)
    row = dict.fromkeys(COLUMNS, "") | _with_interval(results, "after", losses.mean(0))
    row |= {"block": name, "after": by_seed.mean(), "seed_low": by_seed.min(), "seed_high": by_seed.max(),
            "runs": len(runs), "seconds": round(float(np.median(seconds)), 1)}
    row |= _with_interval(results, "lost_after", losses.mean(0) - full)
    if nll_before is not None:
        row |= _with_interval(results, "before", nll_before[results.scored])
        row |= _with_interval(results, "lost_before", (nll_before - results.before.nll[0])[results.scored])
    return row


def _with_interval(results: StudyResults, column: str, nll: np.ndarray) -> dict:
    low, high = bootstrap(nll, results.tokens, results.scored)
    return {column: nll.sum() / results.tokens.sum(), f"{column}_low": low, f"{column}_high": high}


def predict_healed_loss(results: StudyResults, healed: list[float]) -> dict[str, dict]:
    """The rank correlation of each score before healing with the loss after it, over the blocks."""
    by_block = {row["block"]: row for row in results.scores.rows}
    predictions = {}
    for label, column in {"loss before healing": "nll", **{name: name for name in estimates()}}.items():
        values = [by_block[str(block)][column] for block in results.blocks]
        predictions[label] = {
            "spearman": float(spearman(values, healed)), "interval": spearman_interval(values, healed),
            "of": len(values)}
    return predictions


# ---------------------------------------------------------------- the page
def markdown(results: StudyResults, rows: list[dict], extra: list[dict], predictions: dict[str, dict]) -> str:
    study, training = results.study, results.study.training
    rates = ", ".join(f"{lr:g}" for lr in study.learning_rates)
    lines = [
        f"# {study.name}: which block?", "",
        f"{training.max_steps} steps of {training.tokens_per_step:,} tokens, seeds "
        f"{', '.join(map(str, study.seeds))}; learning rate {results.full_lr:g} (full) and "
        f"{results.reduced_lr:g} (reduced), of {rates} by validation loss. Test loss in nats per token over "
        f"{len(results.tokens)} documents, {int(results.tokens.sum()):,} tokens, windows of "
        f"{training.context}, no prefix token; 95 % intervals by bootstrap over documents, of the mean over "
        "seeds; differences are paired.", "",
        "| removed | before healing | lost to the full model | after | lowest and highest seed | lost to the "
        "full model, fine-tuned | rank before, after | s a run |", "|---|---|---|---|---|---|---|---|"]
    lines += [markdown_row(row) for row in rows + extra]
    lines += [
        "", "Does a score before healing predict the loss after it? Rank correlation over "
        f"{len(rows) - 1} blocks, 95 % interval by bootstrap over blocks:", ""]
    for name, prediction in predictions.items():
        low, high = prediction["interval"]
        verdict = "" if low > 0 or high < 0 else ": not shown"
        lines.append(f"- {name}: {prediction['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]{verdict}")
    if extra:
        steps = ", ".join(str(run.steps) for run in results.longer)
        lines += [
            "", f"Distilled: block {results.best} healed with the fine-tuned full model of the same seed as "
            f"teacher (the likeliest {training.teacher_top} tokens, share {training.teacher_share:g}, "
            f"temperature {training.teacher_temperature:g}), whose run over the rows counts in the time; as "
            f"long without: plain steps for as long ({steps} by seed)."]
    return "\n".join(lines) + "\n"


def markdown_row(row: dict) -> str:
    full = row["block"] == "none"
    lost_after = cell(row, "lost_after")
    if row["lost_after_low"] <= 0 <= row["lost_after_high"]:
        lost_after += " no difference shown"
    cells = [
        "nothing (full model)" if full else row["block"],
        cell(row, "before"), "" if full else cell(row, "lost_before"),
        cell(row, "after"), f"{row['seed_low']:.4f} to {row['seed_high']:.4f}", "" if full else lost_after,
        f"{row['rank_before']}, {row['rank_after']}" if row["rank_before"] else "", row["seconds"]]
    return f"| {' | '.join(map(str, cells))} |"


def cell(row: dict, measure: str) -> str:
    """A measure with its interval."""
    if row[measure] == "":
        return "-"
    sign = "+" if measure.startswith("lost") else ""
    value, low, high = (f"{row[measure + end]:{sign}.4f}" for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"
