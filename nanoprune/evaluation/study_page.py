"""Tables and the page of a study: each block before healing and after it, and what one block buys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from nanoprune.config import Study
from nanoprune.evaluation.block_scores import BlockScores, estimates
from nanoprune.evaluation.exchange_rate import equal_time, tokens_to_reach
from nanoprune.evaluation.items import Items
from nanoprune.evaluation.measured import RunResult, final_validation
from nanoprune.evaluation.removal_losses import Removal, RemovalLosses
from nanoprune.figures.study import draw_exchange, draw_study
from nanoprune.io.files import finite_or_none, write_csv, write_json, write_text
from nanoprune.io.markdown import interval_table, with_interval
from nanoprune.statistics import Ratio, share_interval, spearman, spearman_interval

FORMS = {"nf4": "none, NF4", "int8": "none, int8"}  # rows of the full model with its matrices rounded
TEXTS = {"after": "test", "general": "general"}  # measures of healed models, and the texts they are of
ENDS = ("", "_low", "_high")
FILES = ("study.md", "study.json", "study.csv", "study.png", "questions.csv", "exchange.csv", "exchange.png",
         "curves.csv", "learning_rates.csv")


@dataclass(frozen=True)
class StudyResults:
    """All that a study measured."""

    study: Study
    items: Items
    arms: dict[str, Removal]  # what each removes
    best: str  # the arm of the block whose removal costs least before healing
    scores: BlockScores  # before healing, on the validation split
    general_scores: BlockScores  # the same on general text
    before: RemovalLosses  # before healing, on the test split: of the full model, then of each arm
    tried: dict[str, dict[float, RunResult]]  # by arm ("none" and the best) and learning rate
    lr: dict[str, float]  # the best learning rate of both
    runs: dict[str, list[RunResult]]  # by row, a run for each seed: "none", the arms, and further ones
    speed: dict[str, dict]  # by arm, of one sequence on this machine

    def nll(self, row: str, text: str, form: str = "trained") -> np.ndarray:
        """Sums of nll (seeds, documents) of a text; nan where a run diverged."""
        nothing = np.full(len(self.texts(text)), math.nan)
        return np.array([nothing if run.diverged else run.measures[form][text] for run in self.runs[row]],
                        float)

    def texts(self, text: str) -> list:
        return getattr(self.items, text)

    def sizes(self, text: str, unit: str) -> np.ndarray:
        """Tokens or bytes (documents,) that the losses of a text are sums over."""
        if unit == "bytes":
            return np.array([item.about["bytes"] for item in self.texts(text)], float)
        return np.array([item.example.learned[1:].sum() for item in self.texts(text)], float)

    def correct(self, row: str, questions: str, form: str = "trained") -> np.ndarray:
        """Answers (seeds, questions) that are right by the highest sum; nan where a run diverged."""
        answers = np.array([question.question["answer"] for question in self.items.questions[questions]])
        rows = np.full((len(self.runs[row]), len(answers)), math.nan)
        for run, right in zip(self.runs[row], rows, strict=True):
            if not run.diverged:
                right[:] = answers == list(map(np.argmax, run.measures[form]["questions"][questions]))
        return rows

    def sources(self, questions: str) -> list[str]:
        return [str(question.get("source", number))
                for number, question, _ in self.items.questions[questions]]


def write_study(results: StudyResults) -> None:
    """Write all tables, the page and the figures into the study's folder, and print the page."""
    folder, rows = results.study.folder, study_rows(results)
    arms = [row for row in rows if row["block"] in results.arms]
    for when in ("before", "after"):
        ranked = sorted(arms, key=lambda row: np.nan_to_num(row[when], nan=np.inf))
        for rank, row in enumerate(ranked, start=1):
            row[f"rank_{when}"] = rank
    predictions = predict_healed_loss(results, rows)
    questions, exchange = question_rows(results), exchange_rows(results, rows)
    rates = learning_rate_rows(results)
    arms_of_rate = results.runs["none"], results.runs.get(results.best, [])
    curves, exchange_rate = curve_rows(results), {"tokens_to_reach": tokens_to_reach(*arms_of_rate),
                                                  "equal_time": equal_time(*arms_of_rate)}
    page = markdown(results, rows, predictions, questions, exchange, rates, exchange_rate)
    write_csv(folder / "study.csv", rows)
    write_csv(folder / "questions.csv", questions)
    write_csv(folder / "exchange.csv", exchange)
    write_csv(folder / "curves.csv", curves)
    write_csv(folder / "learning_rates.csv", rates)
    write_text(folder / "study.md", page)
    write_json(folder / "study.json", finite_or_none({
        "study": asdict(results.study), "best": results.best, "learning_rates": results.lr, "rows": rows,
        "predicts_the_healed_loss": predictions, "exchange_rate": exchange_rate,
        "correlations_before_healing": results.scores.correlations}))
    print(page)
    figures = draw_study(folder, folder / "study.png"), draw_exchange(folder, folder / "exchange.png")
    print(f"wrote {folder}: study.md, study.json, study.csv, questions.csv, exchange.csv, curves.csv, "
          f"learning_rates.csv, {figures[0].name} and {figures[1].name}")


# ---------------------------------------------------------------- tables
def study_rows(results: StudyResults) -> list[dict]:
    """A row for each entry of `runs`: intervals over documents, of the mean over seeds; no ranks yet."""
    rows, before = [], results.before
    sizes = {text: results.sizes(text, "tokens") for text in TEXTS.values()}
    losses_before = dict(zip(("none", *results.arms), before.nll, strict=True))
    for name, runs in results.runs.items():
        row = {"block": name}
        if name in losses_before:
            row |= entry("before", losses_before[name][None], before.tokens)
            row |= entry("lost_before", losses_before[name][None] - before.nll[:1], before.tokens)
        else:
            row |= {f"{measure}{end}": "" for measure in ("before", "lost_before") for end in ENDS}
        for measure, text in TEXTS.items():
            nll, size = results.nll(name, text), sizes[text]
            row |= entry(measure, nll, size)
            row |= entry(f"lost_{measure}", paired(nll, results.nll("none", text)), size)
        by_seed = results.nll(name, "test").sum(1) / sizes["test"].sum()
        seconds = [run.seconds for run in runs if not run.diverged] or [math.nan]
        rows.append(row | {
            "seed_low": np.fmin.reduce(by_seed), "seed_high": np.fmax.reduce(by_seed),
            "rank_before": "", "rank_after": "",
            "seconds": round(float(np.median(seconds)), 1), "runs": len(runs),
            "diverged": sum(run.diverged for run in runs)})
    return rows


def entry(name: str, values: np.ndarray, sizes: np.ndarray, groups: Sequence | None = None) -> dict:
    """A ratio of sums and its interval, as columns.

    `values` (seeds, units): of one seed the interval is of that run, of several of a new seed and a new unit.
    Seeds that diverged, and units of no size, count nowhere.
    """
    values, some = converged(values), sizes > 0
    if not len(values):
        return {f"{name}{end}": math.nan for end in ENDS}
    values, sizes = values[:, some], sizes[some]
    ratio = Ratio(values, sizes)
    return dict(zip([f"{name}{end}" for end in ENDS], (ratio.value, *ratio.interval(groups)), strict=True))


def converged(values: np.ndarray) -> np.ndarray:
    """The values (seeds, units) of the seeds that did not diverge."""
    return values[np.isfinite(values).all(1)]


def paired(values: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Differences (seeds, units) from the full model's runs with the same seeds."""
    seeds = min(len(values), len(full))
    return values[:seeds] - full[:seeds]


def question_rows(results: StudyResults) -> list[dict]:
    """Accuracy by row and question set, and the paired difference from the full model, fine-tuned."""
    rows = []
    for name in results.runs:
        for questions in results.items.questions:
            right, sources = results.correct(name, questions), results.sources(questions)
            each, lost = np.ones(len(sources)), -paired(right, results.correct("none", questions))
            accuracy = converged(right).mean(0) if len(converged(right)) else right[0]
            row = {"block": name, "set": questions, "n": len(each), "accuracy": accuracy.mean()}
            row["accuracy_low"], row["accuracy_high"] = share_interval(accuracy, sources)
            rows.append(row | entry("lost", lost, each, sources))
    return rows


def exchange_rows(results: StudyResults, rows: list[dict]) -> list[dict]:
    """What one block saves and costs, beside what else saves bytes: a row for each option."""
    full, tokens = results.runs["none"][0], results.sizes("test", "tokens")
    by_name, options = {row["block"]: row for row in rows}, {"none": ("none", "trained")}
    options |= {label: ("none", form) for form, label in FORMS.items() if form in full.measures}
    parts = [arm for arm, removed in results.arms.items() if arm in results.runs
             and {part.block for part in removed} & {part.block for part in results.arms[results.best]}]
    further = [name for name in results.runs if name not in results.arms and name != "none"]
    options |= {name: (name, "trained") for name in (*parts, *further)}
    table = []
    for label, (name, form) in options.items():
        run = results.runs[name][0]
        if run.diverged:
            continue
        lost = paired(results.nll(name, "test", form), results.nll("none", "test"))
        row = {"what": label, "parameters": run.parameters, "bytes": run.measures[form]["bytes"]}
        row |= entry("lost", lost, tokens)
        row |= entry("lost_bits_per_byte", lost / math.log(2), results.sizes("test", "bytes"))
        for questions in results.items.questions:
            lost = -paired(results.correct(name, questions, form), results.correct("none", questions))
            row |= entry(f"lost_{questions}", lost, np.ones(lost.shape[1]), results.sources(questions))
        row["training_seconds"] = by_name[name]["seconds"]
        table.append(row | results.speed.get(label, {}))
    return table


def learning_rate_rows(results: StudyResults) -> list[dict]:
    """Both arms at each learning rate, on the first seed, and the paired difference between them."""
    rows, tokens = [], results.sizes("test", "tokens")
    for lr in results.study.learning_rates:
        full, reduced = (results.tried[arm][lr] for arm in ("none", results.best))
        row = {"lr": lr, "full_validation": final_validation(full),
               "reduced_validation": final_validation(reduced)}
        if not full.diverged and not reduced.diverged:
            nll = [np.array([run.measures["trained"]["test"]], float) for run in (full, reduced)]
            row |= entry("full_test", nll[0], tokens) | entry("reduced_test", nll[1], tokens)
            row |= entry("lost", nll[1] - nll[0], tokens)
        rows.append(row)
    return rows


def curve_rows(results: StudyResults) -> list[dict]:
    """Validation loss at each mark, of every run."""
    return [{"block": name, "seed": seed, "tokens": mark["tokens"],
             "nll": sum(mark["nll"]) / sum(mark["predicted"])}
            for name, runs in results.runs.items()
            for seed, run in zip(results.study.seeds, runs, strict=False) for mark in run.validation]


def predict_healed_loss(results: StudyResults, rows: list[dict]) -> list[dict]:
    """The rank correlation of each score before healing with the loss after it, over whole blocks."""
    healed = {row["block"]: row["after"] for row in rows}
    blocks = [arm for arm, removed in results.arms.items()
              if arm in results.runs and len(removed) == 1 and not removed[0].half]
    predictions = []
    for text, scores in (("validation", results.scores), ("general", results.general_scores)):
        by_block = {row["block"]: row for row in scores.rows}
        for name in ("nll", *estimates()):
            pairs = [by_block[block][name] for block in blocks], [healed[block] for block in blocks]
            low, high = spearman_interval(*pairs)
            predictions.append({
                "score": "loss before healing" if name == "nll" else name, "text": text,
                "spearman": float(spearman(*pairs)), "spearman_low": low, "spearman_high": high,
                "of": len(blocks)})
    return predictions


# ---------------------------------------------------------------- the page
def markdown(
    results: StudyResults, rows: list[dict], predictions: list[dict], questions: list[dict],
    exchange: list[dict], rates: list[dict], exchange_rate: dict,
) -> str:
    study, training, tokens = results.study, results.study.training, results.before.tokens
    scored, sets = results.scores.rows[0], list(results.items.questions)
    answered = [{"block": name} | {
        f"{row['set']}{key.removeprefix('accuracy')}": value for row in questions if row["block"] == name
        for key, value in row.items() if key.startswith("accuracy")} for name in results.runs]
    lines = [
        f"# {study.name}: which block?", "",
        f"{training.base}: {training.max_steps} steps of {training.tokens_per_step:,} tokens, products in "
        f"{training.dtype}; learning rate {results.lr['none']:g} (full) and {results.lr[results.best]:g} "
        f"(reduced), each the best of {', '.join(f'{lr:g}' for lr in study.learning_rates)} by validation "
        "loss.", "",
        f"Test loss in nats per token over {np.count_nonzero(tokens)} documents, {int(tokens.sum()):,} "
        f"tokens, windows of {training.context}, no prefix token. Intervals: 95 %, t, over "
        "documents and, of several seeds, over seeds, too; those of one seed are of this pair of runs. "
        "Differences are paired. Lost: to the full model, fine-tuned alike.", "",
        *interval_table(rows, ("block", "before", "lost_before", "after", "seed_low", "seed_high",
                               "lost_after", "rank_before", "rank_after", "lost_general", "runs", "diverged",
                               "seconds")), "",
        "## Before healing", "",
        f"Loss without each block on the validation split, {scored['tokens']:,} tokens of "
        f"{scored['documents']} documents, and what the cheaper scores say of it; rank 1 costs least.", "",
        *interval_table(results.scores.rows, (
            "block", "nll", "difference", "rank", *(f"{name}{end}" for name in estimates()
                                                    for end in ("", "_rank")))), "",
        "Rank correlation of the scores with this loss, over blocks: " + ", ".join(
            f"{name} {with_interval(found['spearman'], found['interval'], '+')}"
            for name, found in results.scores.correlations.items()) + ".", "",
        "## Learning rates", "", "Both arms at each rate, on the first seed.", "",
        *interval_table(rates), "",
        "## What one block buys", "",
        *interval_table(exchange, (
            "what", "parameters", "bytes", "lost", "lost_bits_per_byte",
            *(f"lost_{name}" for name in sets),
            "training_seconds", "token_ms", "prompt_token_ms")), "",
        f"Tokens that the model without block {results.best} needs for the full model's validation loss, "
        "with a 95 % interval over seeds and documents; inf: not reached.", "",
        *interval_table(exchange_rate["tokens_to_reach"]), "",
        "The reduced model at its end beside the full model at the same time, in validation loss:", "",
        *interval_table([exchange_rate["equal_time"]] if exchange_rate["equal_time"] else []), "",
        "## Does a score before healing predict the loss after it?", "",
        f"Rank correlation over {predictions[0]['of']} blocks, 95 % interval by Fisher's z. One that "
        "contains 0 shows nothing.", "", *interval_table(predictions), "",
        "## Questions", "",
        "Accuracy by log-likelihood, 95 % interval over sources; "
        + ", ".join(f"{len(results.items.questions[name])} of {name}" for name in sets) + ".", "",
        *interval_table(answered)]
    return "\n".join(lines) + "\n"
