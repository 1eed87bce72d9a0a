"""Study: remove each block, heal, and compare with the full model fine-tuned on the same tokens, over seeds.

    python study.py configs/study.py  -> runs/which: study.csv, exchange.csv, study.md, figures, and all runs

Both arms, full and reduced, try the same learning rates first, on the first seed and the validation split:
the full model, and the base without the block whose removal costs least. Then each block, or whatever else
the study names, is removed and healed for as many steps as the full model is trained, once for each seed. All
are measured on the test split, on general text and on the question sets. What is measured is kept in
`measured/`, in small files that another machine can go on from, and found again by a hash of everything that
changes it. After a stop or a kill the same command resumes the study. Under torchrun the ranks share each
run.
"""

import argparse
import math
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model import Decoder
from nanoprune import command_line
from nanoprune.command_line import catch_signals
from nanoprune.config import Config, Study, load_study
from nanoprune.data.dataset import Dataset
from nanoprune.device import environment, keep_freed_memory, make_autocast, pick_device, pick_dtype
from nanoprune.distributed import Ranks, join
from nanoprune.evaluation import cost
from nanoprune.evaluation.block_scores import BlockScores, score_blocks
from nanoprune.evaluation.items import Items
from nanoprune.evaluation.measured import Measured, RunResult, describe_items, final_validation, measure_model
from nanoprune.evaluation.perplexity import Protocol
from nanoprune.evaluation.removal_losses import Calibration, KeptLosses, Removal, is_block, losses_without
from nanoprune.evaluation.results_summary import data_and_machine
from nanoprune.evaluation.study_page import FILES, write_study
from nanoprune.evaluation.study_tables import StudyResults
from nanoprune.figures.blocks import draw_blocks
from nanoprune.figures.style import numbers, read_csv
from nanoprune.io.files import json_hash, read_json, write_csv, write_json
from nanoprune.io.folders import claim
from nanoprune.io.hub import locate
from nanoprune.nn.identity import model_identity
from nanoprune.nn.lora import count_parameters
from nanoprune.nn.model_config import part_name, read_parts
from nanoprune.nn.peft import check_weights_can_change
from nanoprune.nn.rounding import ROUNDED, VERSIONS, round_matrices, stored_bytes
from nanoprune.training.batches import count_steps
from nanoprune.training.run_folder import has_state
from nanoprune.training.teacher import VERSION as PREDICTIONS
from train import STOPPED, VERSION, Diverged, train


class Stopped(Exception):
    """A run was asked to stop, and has saved its state."""


def run_study(study: Study) -> None:
    """Run a study into its folder and reuse the results in it; ValueError for what the user can mend."""
    training = study.training
    ranks, device = join(training.device), pick_device(training.device)
    dataset, source = Dataset(training.data), locate(training.base, training.revision)
    rows = dataset.rows(training.context, training.seed, training.pair_repeats, training.replay)
    training = replace(count_steps(training, rows.epoch_tokens), epochs=0,
                       dtype=pick_dtype(training.dtype, device))
    study = replace(study, training=training)
    keep_freed_memory()
    check_weights_can_change(training.base, source)
    model = Decoder.from_pretrained(source, device=device).eval()
    dataset.check_model(training.base, source, model.config.vocab_size)
    arms = {str(arm): tuple(read_parts(str(arm).split("+"), model.config))
            for arm in study.blocks or range(model.config.num_hidden_layers)}
    if unknown := set(map(str, study.once)) - {"none", *arms}:
        raise ValueError(f"once: given {', '.join(sorted(unknown))}; allowed are 'none' and what is removed: "
                         f"{', '.join(arms)}")
    items = Items(dataset, source, Protocol(context=training.context), model.config.max_position_embeddings)
    items.add_test()
    items.add_general(study.general)
    items.add_questions(cut=True)
    base = model_identity(source)
    measured = Measured(study, dataset, items, base, {"train": VERSION} | VERSIONS, ranks.rank == 0)
    measured.check()
    kept = KeptLosses(study.folder / "blocks.losses.json", base | {"dtype": training.dtype}, ranks.rank == 0)
    described = describe_items(items)
    if ranks.rank == 0:
        if not (measured.folder / "items.json").is_file():
            claim("study", *(study.folder / name for name in FILES))
        write_json(measured.folder / "items.json", described)

    # ---- before healing
    scores, general_scores, before = measure_before(model, arms, study, items, kept, ranks)
    del model
    rank = {row["block"]: float(row["rank"]) for row in scores.rows[1:]}
    best = min((arm for arm in arms if arm in rank), key=rank.get)

    # ---- learning rates: both arms try the same ones
    runs, tried, lr = Runs(study, measured, items, ranks), {}, {}
    for arm in ("none", best):
        tried[arm], lr[arm] = tune_learning_rate(runs, arm, names(arms.get(arm, ())))

    # ---- after healing: all models take the same steps on the same tokens
    results, missing = defaultdict(list), set()
    for row, result in heal(runs, arms, best, lr):
        if result is None:
            missing.add(row)
        elif row not in missing:  # a seed stands beside its own
            results[row].append(result)
    if ranks.rank == 0 and results:  # after a stop, a page of what is measured
        if not runs.stopped and not study.keep_models:  # those of teachers
            for key in study.runs_folder.glob("*/.study.json"):
                shutil.rmtree(key.with_name("model"), ignore_errors=True)
        rivals = {"none": ()} | {arm: removed for arm, removed in arms.items()
                                 if arms[best][0].block in {part.block for part in removed}}
        speed = kept_speed(source, rivals, training, device, study.folder / "speed.json", bool(runs.stopped))
        about = data_and_machine(training.data, dataset.meta, device) | {"base": base, "protocol": (
            f"Windows of {items.protocol.context} tokens, no prefix token; products in {training.dtype} on "
            f"{device.type}. Questions by log-likelihood of the choices.")}
        write_study(StudyResults(study, described, about, arms, best, scores, general_scores, before, tried,
                                 lr, results, speed))
    if runs.stopped:
        raise runs.stopped


def heal(
    runs: "Runs", arms: dict[str, tuple], best: str, lr: dict[str, float]
) -> Iterator[tuple[str, RunResult | None]]:
    """The rows of the study's table, each as often as it has seeds, with a run's result; None: stopped."""
    study = runs.study
    once, first = set(map(str, study.once)), study.seeds[0]
    reduced = {"drop_blocks": names(arms[best]), "lr": lr[best]}
    steps, plain = study.training.max_steps, {}
    for seed in study.seeds:
        for arm, removed in {"none": (), **arms}.items():
            if seed == first or arm not in once:
                # the curves of arms of one seed are compared with none
                curve = {"eval_every": 0} if arm in once - {"none", best} else {}
                plain[arm, seed] = runs.result(
                    arm, drop_blocks=names(removed), lr=lr.get(arm, lr[best]), seed=seed, **curve)
                yield arm, plain[arm, seed]

    # ---- the block whose removal costs least: healed longer, by adapters, by the full model
    for times in study.longer:
        more = round(steps * times)
        yield f"{best}, {times:g} times as long", runs.result(
            f"{best}-{more}-steps", **reduced, seed=first, max_steps=more)
    if study.adapters:
        yield "none, adapters", runs.result(
            "none-adapters", **{"lr": lr["none"], "seed": first} | study.adapters)
        yield f"{best}, adapters", runs.result(
            f"{best}-adapters", **reduced | {"seed": first} | study.adapters)
    for seed in study.seeds if study.distill else ():
        full, alone = plain.get(("none", seed)), plain.get((best, seed))
        if full is None or alone is None:  # stopped, or one of the two runs on the first seed alone
            break
        if full.diverged or alone.diverged:
            for row in (f"{best}, distilled", f"{best}, as long without"):
                yield row, RunResult(diverged=True)  # so that later seeds stand beside their own
            continue
        teacher = runs.configure("none", lr=lr["none"], seed=seed)
        taught = runs.result(f"{best}-distilled", teacher, **reduced, seed=seed)
        yield f"{best}, distilled", taught
        if taught is None:
            break
        as_long = steps if taught.diverged else max(steps, round(steps * taught.seconds / alone.seconds))
        yield f"{best}, as long without", runs.result(
            f"{best}-{as_long}-steps", **reduced, seed=seed, max_steps=as_long)


def measure_before(
    model: Decoder, arms: dict[str, tuple], study: Study, items: Items, kept: KeptLosses, ranks: Ranks
) -> tuple[BlockScores, BlockScores, dict[str, dict[str, np.ndarray]]]:
    """Scores of all blocks on the validation split and on general text; and sums of nll by document.

    The sums are of "none" and all arms on the test split, of "none" and whole blocks on general text.
    """
    context, autocast = items.protocol.context, make_autocast(study.training.dtype, model.device)
    validation, general, test = (
        Calibration.of_split(model, examples, context, ranks=ranks, autocast=autocast, kept=kept)
        for examples in (items.dataset.split("val"), [text.example for text in items.general],
                         [text.example for text in items.test]))
    scores = score(model, validation, study.folder / "blocks.csv")
    general_scores = score(model, general, study.folder / "blocks_general.csv")
    whole = {arm: removed for arm, removed in arms.items() if is_block(removed)}
    losses = {}
    for text, removals, calibration in (("test", arms, test), ("general", whole, general)):
        nll = losses_without(model, [(), *removals.values()], calibration).nll
        losses[text] = dict(zip(("none", *removals), nll, strict=True))
    return scores, general_scores, losses


def names(removed: tuple) -> tuple[str, ...]:
    return tuple(map(part_name, removed))


def open_without(source: tuple[Path, Removal], device: str) -> Decoder:
    """The model of a folder without blocks, or parts of them."""
    folder, removed = source
    model = Decoder.from_pretrained(folder, device=device)
    model.drop_blocks(removed)
    return model


def kept_speed(
    source: Path, rivals: dict[str, Removal], training: Config, device: torch.device, path: Path,
    stopped: bool,
) -> dict[str, dict]:
    """The speed of the base without each of these, measured once and kept; after a stop only what is kept."""
    about = model_identity(source) | {"arms": list(rivals), "device": device.type, "dtype": training.dtype,
                                      "version": cost.VERSION}
    if path.is_file() and (kept := read_json(path))["about"] == about:
        return kept["speed"]
    if stopped:
        return {}
    sources = {arm: (source, removed) for arm, removed in rivals.items()}
    speed = cost.measure_speed(open_without, sources, str(device), training.dtype)
    if all("decode_tokens_per_s" in row for row in speed.values()):
        write_json(path, {"about": about, "speed": speed, "environment": environment(device)})
    return speed


def score(model: Decoder, calibration: Calibration, path: Path) -> BlockScores:
    """The scores of all blocks, written with their figure."""
    scores = score_blocks(model, calibration)
    if calibration.ranks.rank == 0:
        write_csv(path, scores.rows)
        print(f"wrote {path} and {draw_blocks(path, path.with_suffix('.png'))}")
    return scores


class Runs:
    """The runs of a study: each is trained and measured once, and its result kept."""

    def __init__(self, study: Study, measured: Measured, items: Items, ranks: Ranks):
        self.study, self.measured, self.items, self.ranks = study, measured, items, ranks
        self.stop_signals = catch_signals()  # from here on a run ends after its step, and no other begins
        self.stopped: Stopped | None = None

    def configure(self, name: str, **changes) -> Config:
        training = replace(self.study.training, runs=str(self.study.runs_folder), **changes)
        return replace(training, name=f"{name}-lr{training.lr:g}-s{training.seed}")

    def result(self, name: str, teacher: Config | None = None, **changes) -> RunResult | None:
        """The kept result of a run with these changes of the study's config, or that of training it now.

        None if the study was stopped before; `stopped` says where.
        """
        config = self.configure(name, **changes)
        about = self.measured.about(config, None)
        if teacher:
            config = replace(config, teacher=str(teacher.folder / "model"))
            teacher_about = self.measured.about(teacher, None)
            about = self.measured.about(config, teacher_about | {"predictions": PREDICTIONS})
        result = self.measured.read(about)
        if result and (result.diverged or result.measures.keys() >= set(self.forms(config))):
            return result
        if self.ranks.sum([len(self.stop_signals)])[0]:
            self.stopped = self.stopped or Stopped(
                f"{self.study.folder}: stopped between two runs; the same command resumes it")
            return None
        self.ranks.barrier()  # until every rank has looked
        try:
            if teacher:
                self.train(teacher, teacher_about)
            result = self.measure(config, about)
        except Stopped as stopped:
            self.stopped = stopped
            return None
        self.measured.write(config.name, about, result)
        if self.ranks.rank == 0:
            shutil.rmtree(config.folder / "state", ignore_errors=True)
            if not (self.study.keep_models or (self.study.distill and not config.drop_blocks)):
                shutil.rmtree(config.folder / "model", ignore_errors=True)
        self.ranks.barrier()
        return result

    def forms(self, config: Config) -> tuple[str, ...]:
        """The forms of a run's weights that are measured."""
        full = not config.drop_blocks and not config.lora and self.study.rounded
        return "trained", *(ROUNDED if full else ())

    def train(self, config: Config, about: dict) -> None:
        """Train a run, or resume it; nothing where exactly it is finished and has its model."""
        key, exactly = config.folder / ".study.json", {"about": json_hash(about)}
        resume = has_state(config.folder / "state")
        if not resume and any((config.folder / "model").glob("*.safetensors")):
            if not key.is_file() or read_json(key) != exactly:
                raise ValueError(f"{config.folder} holds a run of another base, dataset or other settings: "
                                 "move it away, or give this study another name")
            return
        self.ranks.barrier()  # until every rank has looked
        if self.ranks.rank == 0:
            if not resume:
                shutil.rmtree(config.folder, ignore_errors=True)  # killed before its first save
            write_json(key, exactly)
        self.ranks.barrier()
        if not train(config, resume=resume, listen=lambda: self.stop_signals):
            raise Stopped(f"{config.folder}: the same command resumes it")

    def measure(self, config: Config, about: dict) -> RunResult:
        """Train a run and measure it: as trained and, of the full model, with its matrices rounded."""
        try:
            self.train(config, about)
        except Diverged as error:  # perhaps in the first step, of which no log tells
            print(f"{config.folder}: {error}")
            return RunResult(diverged=True)
        device, measures = pick_device(config.device), {}
        for form in self.forms(config):
            model = Decoder.from_pretrained(config.folder / "model", device=device).eval()
            size = round_matrices(model, form) if form in ROUNDED else stored_bytes(model)
            print(f"{config.folder}: measuring ({form})")
            measures[form] = {"bytes": size} | measure_model(
                model, self.items, make_autocast(config.dtype, device), self.ranks)
        steps = read_csv(config.folder / "train.csv", ("step", "tokens", "tokens_per_s"))
        step_seconds = config.tokens_per_step / np.median(numbers(steps, "tokens_per_s"))
        teacher_seconds = read_json(config.folder / "env.json").get("teacher_seconds", 0.0)
        return RunResult(
            steps=len(steps), tokens=len(steps) * config.tokens_per_step,
            seconds=round(len(steps) * step_seconds + teacher_seconds, 2),
            parameters=count_parameters(model).total, validation=read_validation(config.folder),
            measures=measures)


def read_validation(run: Path) -> list[dict]:
    """By mark of tokens trained on: sums of nll, and tokens predicted, by document."""
    marks = defaultdict(list)
    for row in read_csv(run / "eval_documents.csv", ("tokens", "nll", "predicted")):
        marks[int(row["tokens"])].append(row)
    return [{"tokens": tokens, "nll": [round(float(row["nll"]), 6) for row in rows],
             "predicted": [int(row["predicted"]) for row in rows]} for tokens, rows in marks.items()]


def tune_learning_rate(
    runs: Runs, arm: str, removed: tuple[str, ...]
) -> tuple[dict[float, RunResult], float]:
    """A run with each learning rate, on the first seed, and the rate with the lowest validation loss.

    ValueError if all diverge.
    """
    rates, seed = runs.study.learning_rates, runs.study.seeds[0]
    tried = {lr: runs.result(arm, drop_blocks=removed, lr=lr, seed=seed) for lr in rates}
    if runs.stopped:
        raise runs.stopped
    losses = {lr: final_validation(run) for lr, run in tried.items()}
    best = min(losses, key=losses.get)
    if losses[best] == math.inf:
        raise ValueError(f"{arm} diverged with every learning rate of {rates}: give lower ones, under "
                         "another name")
    print(f"learning rate of {arm}: {best:g} of "
          + ", ".join(f"{lr:g} (validation {loss:.4f})" for lr, loss in losses.items()))
    return tried, best


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog="--seeds, --blocks, --once, --longer and --learning_rates take lists with commas; any setting "
               "of the training can be given as --key=value.")
    parser.add_argument("study", help="a config file that binds `study`, such as configs/study.py")
    args, overrides = parser.parse_known_args()
    try:
        run_study(load_study(args.study, overrides))
    except Stopped as stopped:
        print(stopped)
        return STOPPED
    return 0


if __name__ == "__main__":
    command_line.run(main, "stopped; the same command resumes the study")
