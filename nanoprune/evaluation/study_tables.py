"""The results of a study as models, like those of eval.py, and the tables that follow from them."""


import math
from dataclasses import dataclass

import numpy as np

from nanoprune.config import Study
from nanoprune.evaluation.arms import Arm, bits, nats, values, without
from nanoprune.evaluation.block_scores import BlockScores, estimates
from nanoprune.evaluation.comparison import loss_gains, pair, sources
from nanoprune.evaluation.measured import RunResult, final_validation
from nanoprune.evaluation.multiple_choice import answer_row
from nanoprune.evaluation.removal_losses import Removal, is_block
from nanoprune.statistics import Ratio, columns, mean, share_interval, spearman, spearman_interval

FORMS = {"nf4": "NF4", "int8": "int8"}  # of the full model with its matrices rounded
TEXTS = {"after": "test", "general": "general"}  # columns of study.csv, and the texts they are of


@dataclass(frozen=True)
class StudyResults:
    """All that a study measured."""

    study: Study
    items: dict  # as measured/items.json has them
    about: dict  # `data` and `machine` in words, and the hash of the `base`
    arms: dict[str, Removal]  # what each removes
    best: str  # the arm of the block whose removal costs least before healing
    scores: BlockScores  # before healing, on the validation split
    general_scores: BlockScores  # the same on general text
    before: dict[str, dict[str, np.ndarray]]  # sums of nll before healing, by text, by "none" or arm
    tried: dict[str, dict[float, RunResult]]  # by arm ("none" and the best) and learning rate
    lr: dict[str, float]  # the best learning rate of both
    runs: dict[str, list[RunResult]]  # by row, a run for each seed: "none", the arms, and further ones
    speed: dict[str, dict]  # by arm, of one sequence on this machine

    @property
    def whole(self) -> list[str]:
        """The arms that remove one whole block."""
        return [arm for arm, removed in self.arms.items() if is_block(removed)]

    def base(self, arm: str) -> Arm:
        """The base without an arm's blocks: its losses alone."""
        losses = {text: by_arm[arm] for text, by_arm in self.before.items() if arm in by_arm}
        name = f"base {self.without(arm)}".strip()
        return Arm(name, name, [self.result(arm, losses | {"questions": {}}) | {"run": None}])

    def name(self, row: str, form: str = "trained") -> str:
        """Such as "fine-tuned without block 14, distilled", of the row "14, distilled"."""
        arm, *how = row.split(", ")
        how += [FORMS[form]] if form in FORMS else []
        return ", ".join([f"fine-tuned {self.without(arm) or 'full'}", *how])

    def tuned(self, row: str, form: str = "trained") -> Arm:
        """The runs of a row, with their weights in this form."""
        return self.model(self.name(row, form), row.partition(", ")[0], self.runs[row], form)

    def model(self, name: str, arm: str, runs: list[RunResult], form: str = "trained") -> Arm:
        """Runs as eval.py has its results, a model of several seeds; those that diverged are left out."""
        training, lr = self.study.training.to_dict(), self.lr.get(arm, self.lr[self.best])
        results = []
        for seed, run in zip(self.study.seeds, runs, strict=False):
            if not run.diverged:
                results.append(self.result(arm, run.measures[form]) | {
                    "run": training | {"seed": seed, "lr": lr}, "params": run.parameters,
                    "cost": {"training_tokens": run.tokens}})
        return Arm(name, name, results)

    def without(self, arm: str) -> str:
        return without("" if arm == "none" else arm.replace("+", ","))

    def result(self, arm: str, measures: dict) -> dict:
        removed = {"original": arm.replace("+", ","), "base_sha256": self.about["base"],
                   "method": "loss on the validation split"}
        texts = {text: [about | {"nll": nll} for about, nll in
                        zip(self.items[text], measures.get(text, ()), strict=False)]
                 for text in TEXTS.values()}
        answers = {name: [answer_row(about, np.array(scores, float)) for about, scores in
                          zip(self.items["questions"][name], rows, strict=True)]
                   for name, rows in measures["questions"].items()}
        return texts | {
            "answers": answers, "history": [] if arm == "none" else [removed], "written": [],
            "label": self.study.training.base, "path": "", "identity": "", "sha256": self.about["base"],
            "base_sha256": self.about["base"], "blocks": len(self.scores.rows) - 1, "original": [],
            "params": 0, "tokenizer": "", "cost": {}}


def study_rows(results: StudyResults) -> list[dict]:
    """A row for each entry of `runs`: intervals over documents, of the mean over seeds; and ranks.

    Ranks are of the paired losses: a seed moves the full model, too, and not all arms have the same seeds.
    """
    full, base, rows = results.tuned("none"), results.base("none"), []
    for name, runs in results.runs.items():
        tuned, row = results.tuned(name), {"block": name}
        if name in ("none", *results.arms):
            reduced = results.base(name)
            row |= nats(reduced.rows("test")).columns("before")
            row |= loss_gains(base, reduced, "test").columns("lost_before")
        if tuned.runs:
            for measure, text in TEXTS.items():
                row |= nats(tuned.rows(text)).columns(measure)
                row |= loss_gains(*pair(full, tuned), text).columns(f"lost_{measure}")
            for questions, answers in tuned.first["answers"].items():
                right = values(tuned.rows("", questions), "correct")
                row |= columns(f"accuracy_{questions}", right.mean(), share_interval(right, sources(answers)))
            by_seed = [nats([own]).value for own in tuned.rows("test")]
            row |= {"seed_low": min(by_seed), "seed_high": max(by_seed)}
        else:
            row["after"] = math.nan
        seconds = [run.seconds for run in runs if not run.diverged] or [math.nan]
        rows.append(row | {"seconds": round(float(np.median(seconds)), 1), "runs": len(runs),
                           "diverged": len(runs) - len(tuned.runs)})
    for when in ("before", "after"):
        arms = [row for row in rows if row["block"] in results.arms]
        for rank, row in enumerate(sorted(arms, key=lambda row: np.nan_to_num(
                row.get(f"lost_{when}", np.inf), nan=np.inf)), 1):
            row[f"rank_{when}"] = rank
    return rows


def exchange_rows(results: StudyResults, rows: list[dict]) -> list[dict]:
    """What the block of least cost saves and costs, beside what else saves bytes: a row for each option."""
    full, table = results.tuned("none"), []
    seconds = {row["block"]: row["seconds"] for row in rows}
    others = set(results.whole) - {results.best}
    healed = {row: [run for run in runs if not run.diverged] for row, runs in results.runs.items()
              if row not in others}
    options = [(row, form) for row, runs in healed.items() for form in ("trained", *FORMS)
               if runs and all(form in run.measures for run in runs)]
    for row, form in options:
        arm, run = results.tuned(row, form), healed[row][0]
        before, after = pair(full, arm)
        lost = loss_gains(before, after, "test")
        option = {"what": arm.name, "parameters": run.parameters, "bytes": run.measures[form]["bytes"]}
        lost_bits = Ratio(lost.numerators / math.log(2), values(after.rows("test"), "bytes")[0])
        option |= bits(arm.rows("test")).columns("bits_per_byte") | lost.columns("lost")
        option |= lost_bits.columns("lost_bits_per_byte")
        for name, answers in arm.first["answers"].items():
            right = (values(model.rows("", name), "correct") for model in (before, after))
            option |= mean(np.subtract(*right)).columns(f"lost_{name}", sources(answers))
        option["training_seconds"] = seconds[row]
        table.append(option | (results.speed.get(row, {}) if form == "trained" else {}))
    return table


def learning_rate_rows(results: StudyResults) -> list[dict]:
    """Both arms at each learning rate, on the first seed, and the paired difference between them."""
    rows = []
    for lr in results.study.learning_rates:
        row, arms = {"lr": lr}, []
        for name, arm in (("full", "none"), ("reduced", results.best)):
            run = results.tried[arm][lr]
            row[f"{name}_validation"] = final_validation(run)
            arms.append(results.model(name, arm, [run]))
        if all(arm.runs for arm in arms):
            row |= loss_gains(*arms, "test").columns("lost")
        rows.append(row)
    return rows


def curve_rows(results: StudyResults) -> list[dict]:
    """Validation loss at each mark, of every run."""
    return [{"block": results.name(name), "seed": seed, "tokens": mark["tokens"],
             "nll": sum(mark["nll"]) / sum(mark["predicted"])}
            for name, runs in results.runs.items()
            for seed, run in zip(results.study.seeds, runs, strict=False) for mark in run.validation]


def predict_healed_loss(results: StudyResults, rows: list[dict]) -> list[dict]:
    """The rank correlation of each score before healing with `lost_after`, over whole blocks."""
    healed = {row["block"]: row.get("lost_after", math.nan) for row in rows}
    blocks = [block for block in results.whole if block in results.runs]
    predictions = []
    for text, scores in (("validation", results.scores), ("general", results.general_scores)):
        by_block = {row["block"]: row for row in scores.rows}
        for name in ("nll", *estimates()):
            pairs = [by_block[block][name] for block in blocks], [healed[block] for block in blocks]
            predictions.append({"score": "loss before healing" if name == "nll" else name, "text": text}
                               | columns("spearman", float(spearman(*pairs)), spearman_interval(*pairs))
                               | {"of": len(blocks)})
    return predictions
