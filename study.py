"""Study: remove each block, heal, and compare with the full model fine-tuned on the same tokens, over seeds.

    python study.py configs/study.py  -> runs/which: study.csv, study.md, study.png, blocks.csv and all runs

Both arms, full and reduced, try the same learning rates first, on the first seed and the validation split:
the full model, and the base without the block whose removal costs least. Then each block is removed and
healed for as many steps as the full model is trained, once for each seed, and all are measured on the test
split. Results are kept: after a stop or a kill the same command resumes the study. Under torchrun the ranks
share each run.
"""

import argparse
import json
import math
import shutil
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

from model import Decoder
from nanoprune import command_line
from nanoprune.command_line import catch_signals
from nanoprune.config import Config, Study, load_study
from nanoprune.data.dataset import Dataset
from nanoprune.device import pick_device
from nanoprune.distributed import join
from nanoprune.evaluation.block_scores import Calibration, losses_without, score_blocks
from nanoprune.evaluation.perplexity import score_text
from nanoprune.evaluation.study_page import RunResult, StudyResults, write_study
from nanoprune.figures.blocks import draw_blocks
from nanoprune.figures.style import read_csv
from nanoprune.io.files import finite_or_none, read_json, write_csv, write_json
from nanoprune.io.hub import locate
from nanoprune.nn.model_config import Part, read_parts
from nanoprune.training.run_folder import has_state
from train import STOPPED, Diverged, train


class Stopped(Exception):
    """A run was asked to stop, and has saved its state."""


def run_study(study: Study) -> None:
    """Run a study into its folder and reuse the results in it; ValueError for what the user can mend."""
    training = study.training
    ranks, device = join(training.device), pick_device(training.device)
    folder, dataset = Path(training.runs) / study.name, Dataset(training.data)
    about, settings = folder / "study.json", {"study": asdict(study)}
    if about.is_file() and read_json(about)["study"] != json.loads(json.dumps(settings))["study"]:
        raise ValueError(f"{folder} holds another study of this name: give this one another name, or remove "
                         "the folder")
    source = locate(training.base, training.revision)
    model = Decoder.from_pretrained(source, device=device).eval()
    dataset.check_model(training.base, source, model.config.vocab_size)
    blocks = [part.block for part in read_parts(study.blocks, model.config)]
    blocks = blocks or list(range(model.config.num_hidden_layers))
    if ranks.rank == 0 and not about.is_file():
        write_json(about, settings)
    ranks.barrier()

    # ---- before healing: scores of all blocks on the validation split, losses without them on the test split
    validation = Calibration.of_split(model, dataset.split("val"), training.context, ranks=ranks)
    scores = score_blocks(model, validation)
    if ranks.rank == 0:
        write_csv(folder / "blocks.csv", scores.rows)
        print(f"wrote {folder / 'blocks.csv'} and "
              f"{draw_blocks(folder / 'blocks.csv', folder / 'blocks.png')}")
    best = min(blocks, key=lambda block: float(scores.rows[1 + block]["rank"]))
    test = Calibration.of_split(model, dataset.split("test"), training.context, ranks=ranks)
    before = losses_without(model, [(), *((Part(block),) for block in blocks)], test)
    del model

    # ---- learning rates: both arms try the same ones
    runs = Runs(study, folder, test)
    full_lr = tune_learning_rate(runs, "full", ())
    reduced_lr = tune_learning_rate(runs, f"less-{best}", (best,))

    # ---- after healing: all models take the same steps on the same tokens
    results = defaultdict(list)
    for seed in study.seeds:
        results["none"].append(runs.result(f"full-s{seed}", study.distill, lr=full_lr, seed=seed))
        for block in blocks:
            results[block].append(
                runs.result(f"less-{block}-s{seed}", drop_blocks=(block,), lr=reduced_lr, seed=seed))

    # ---- distillation: the full model teaches the one without the best block; plain healing for as long
    for seed, plain in zip(study.seeds if study.distill else (), results[best], strict=False):
        changes = {"drop_blocks": (best,), "lr": reduced_lr, "seed": seed}
        teacher = str(folder / f"full-s{seed}" / "model")
        taught = runs.result(f"distilled-{best}-s{seed}", teacher=teacher, **changes)
        diverged = None in (taught.seconds, plain.seconds)  # it took no time worth comparing
        ratio = 1.0 if diverged else max(1.0, taught.seconds / plain.seconds)
        steps = round(training.max_steps * ratio)
        results[f"{best}, distilled"].append(taught)
        results[f"{best}, as long without"].append(
            runs.result(f"longer-{best}-s{seed}", max_steps=steps, **changes))

    if ranks.rank == 0:
        write_study(StudyResults(study, best, scores, before, full_lr, reduced_lr, results), folder)


class Runs:
    """The runs of a study: each is trained and measured once, and its result kept in a file."""

    def __init__(self, study: Study, folder: Path, test: Calibration):
        self.study, self.folder, self.test, self.ranks = study, folder, test, test.ranks

    def result(self, name: str, keep_model: bool = False, **changes) -> RunResult:
        """The kept result of this name, or that of a run trained with these changes of the study's config."""
        path = self.folder / "measured" / f"{name}.json"
        if not path.is_file():
            config = replace(self.study.training, name=name, runs=str(self.folder), **changes)
            result = self.train_and_measure(config)
            if self.ranks.rank == 0:
                write_json(path, asdict(result))
                shutil.rmtree(config.folder / "state", ignore_errors=True)
                if not (keep_model or self.study.keep_models):
                    shutil.rmtree(config.folder / "model", ignore_errors=True)
            self.ranks.barrier()
        return RunResult(**read_json(path))

    def train_and_measure(self, config: Config) -> RunResult:
        """Train a run, or resume it, and measure its test loss."""
        resume = has_state(config.folder / "state")
        if config.folder.exists() and not resume and self.ranks.rank == 0:
            shutil.rmtree(config.folder)  # killed before its first save
        self.ranks.barrier()
        try:
            if not train(config, resume=resume, listen=catch_signals):
                raise Stopped(f"{self.folder}: the same command resumes it")
        except Diverged as error:  # perhaps in the first step, of which no log tells
            print(f"{config.folder}: {error}")
            return RunResult([None] * self.test.documents, None, None, None)
        model = Decoder.from_pretrained(config.folder / "model", device=pick_device(config.device)).eval()
        losses = score_text(model, self.test.windows, self.test.documents, ranks=self.ranks)
        last_step = read_csv(config.folder / "train.csv", ("step", "seconds"))[-1]
        last_validation = read_csv(config.folder / "eval.csv", ("nll",))[-1]
        teacher_seconds = read_json(config.folder / "env.json").get("teacher_seconds", 0.0)
        return RunResult(
            finite_or_none(losses.nll.tolist()), finite_or_none(float(last_validation["nll"])),
            float(last_step["seconds"]) + teacher_seconds, int(last_step["step"]))


def tune_learning_rate(runs: Runs, arm: str, drop_blocks: tuple[int, ...]) -> float:
    """The learning rate with the lowest validation loss, on the first seed; ValueError if all diverge."""
    study, losses = runs.study, {}
    for lr in study.learning_rates:
        run = runs.result(f"sweep-{arm}-lr{lr:g}", drop_blocks=drop_blocks, seed=study.seeds[0], lr=lr)
        losses[lr] = math.inf if run.val is None else run.val
    best = min(losses, key=losses.get)
    if losses[best] == math.inf:
        raise ValueError(f"{arm} diverged with every learning rate of {study.learning_rates}: give lower "
                         "ones, under another name")
    print(f"learning rate of {arm}: {best:g} of "
          + ", ".join(f"{lr:g} (validation {loss:.4f})" for lr, loss in losses.items()))
    return best


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog="--seeds, --blocks and --learning_rates take lists with commas; any setting of the training "
               "can be given as --key=value.")
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
