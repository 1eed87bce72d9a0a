"""Which block? Each one removed, healed, and set beside the full model fine-tuned on the same tokens, over several seeds.

    python study.py configs/study.py        -> runs/which: study.csv, study.md, study.png, blocks.csv, and a folder a run

Both arms, full and reduced, try the same learning rates first, on the first seed and the validation split: the full model, and
the base less the block that is missed least. Then every block is removed and healed for as many steps as the full model is
trained, once a seed, and everything is measured on the test split. What was measured is kept: after a stop or a kill the same
command goes on. Under torchrun the ranks share each run.
"""

import argparse
import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from model import Decoder
from nanoprune import command_line
from nanoprune.config import Config, Study, load_study
from nanoprune.data.dataset import Dataset
from nanoprune.device import pick_device
from nanoprune.distributed import Ranks, join
from nanoprune.evaluation.block_scores import ESTIMATES, losses_without, score_blocks, window_tokens
from nanoprune.figures.blocks import draw_blocks
from nanoprune.figures.study import draw_study
from nanoprune.figures.style import read_csv
from nanoprune.io.files import finite_or_none, make_folder, read_json, write_csv, write_json, write_text
from nanoprune.io.hub import locate
from nanoprune.statistics import bootstrap, spearman, spearman_interval
from nanoprune.training.run_folder import has_state
from prune import read_parts
from train import STOPPED, Diverged, catch_signals, train

STUDY_COLUMNS = ("block", *(f"{what}{end}" for what in ("before", "lost_before", "after", "lost_after")
                           for end in ("", "_low", "_high")),
                 "seed_low", "seed_high", "rank_before", "rank_after", "seconds", "runs")


class Stopped(Exception):
    """A run was asked to stop, and has saved its state."""


class Measured:
    """What each run came to, by name: one file a run, so that nothing measured is measured again or lost."""

    def __init__(self, study: Study, folder: Path, dataset: Dataset, device, ranks: Ranks):
        self.study, self.folder, self.ranks, self.device = study, folder, ranks, device
        self.test, self.context = dataset.split("test"), study.training.context

    def windows(self, model: Decoder) -> list:
        return list(self.test.windows(self.context, window_tokens(model, 2 * model.config.num_hidden_layers)))

    def run(self, name: str, config: Config, keep_model: bool = False) -> dict:
        """Train as this config says, unless that was done; test loss by document, validation loss, seconds, steps."""
        path, config = self.folder / "measured" / f"{name}.json", replace(config, name=name, runs=str(self.folder))
        if path.is_file():
            return read_json(path)
        resume = has_state(config.folder / "state")
        if config.folder.exists() and not resume and self.ranks.rank == 0:
            shutil.rmtree(config.folder)  # killed before its first save
        self.ranks.wait()
        try:
            if not train(config, resume=resume, listen=catch_signals):
                raise Stopped(f"{self.folder}: the same command goes on")
            model = Decoder.from_pretrained(config.folder / "model", device=self.device).eval()
            nll = losses_without(model, self.windows(model), len(self.test), [()], self.ranks)[0][0].tolist()
            logs = [read_csv(config.folder / f"{log}.csv", ("step",))[-1] for log in ("train", "eval")]
            seconds = float(logs[0]["seconds"]) + read_json(config.folder / "env.json").get("teacher_seconds", 0.0)
            found = finite_or_none({"test_nll": nll, "val": float(logs[1]["nll"]), "seconds": seconds, "steps": int(logs[0]["step"])})
        except Diverged as error:  # perhaps in the first step, of which no log tells
            print(f"{config.folder}: {error}")
            found = {"test_nll": [None] * len(self.test), "val": None, "seconds": None, "steps": None}
        if self.ranks.rank == 0:
            write_json(path, found)
            shutil.rmtree(config.folder / "state", ignore_errors=True)
            if not (keep_model or self.study.keep_models):
                shutil.rmtree(config.folder / "model", ignore_errors=True)
        self.ranks.wait()
        return found


def run_study(study: Study) -> None:
    """All of it, into the study's folder; what is there already is not done again. ValueError for what the user can mend."""
    ranks, device = join(study.training.device), pick_device(study.training.device)
    folder = Path(study.training.runs) / study.name
    settings = json.loads(json.dumps(asdict(study)))
    if (folder / "study.json").is_file() and read_json(folder / "study.json")["study"] != settings:
        raise ValueError(f"{folder} holds another study of this name: give this one another name, or remove the folder")
    dataset = Dataset(study.training.data)
    source = locate(study.training.base, study.training.revision)
    model = Decoder.from_pretrained(source, device=device).eval()
    dataset.check_model(study.training.base, source, model.config.vocab_size)
    blocks = [b for b, _ in read_parts(study.blocks, model.config)] or list(range(model.config.num_hidden_layers))
    if ranks.rank == 0 and not (make_folder(folder) / "study.json").is_file():
        write_json(folder / "study.json", {"study": settings})
    ranks.wait()
    measured = Measured(study, folder, dataset, device, ranks)

    # Before: the loss without each block and its cheap estimates, on the validation split; the loss on the test split.
    split = dataset.split("val")
    streams = 2 * model.config.num_hidden_layers + 1
    windows = list(split.windows(study.training.context, window_tokens(model, streams)))
    scores, about = score_blocks(model, windows, len(split), ranks=ranks)
    removals = [(), *(((b, ""),) for b in blocks)]
    before, tokens, _ = losses_without(model, measured.windows(model), len(measured.test), removals, ranks)
    if ranks.rank == 0:
        write_csv(folder / "blocks.csv", scores)
        print(f"wrote {folder / 'blocks.csv'} and {draw_blocks(folder / 'blocks.csv', folder / 'blocks.png')}")
    by_block = {int(row["block"]): row for row in scores[1:]}
    best = min(blocks, key=lambda b: float(by_block[b]["rank"]))
    del model

    # The same learning rates for both arms.
    arms, chosen = {"full": (), f"less-{best}": (best,)}, {}
    for arm, drop in arms.items():
        shared = replace(study.training, drop_blocks=drop, seed=study.seeds[0])
        tried = {lr: measured.run(f"sweep-{arm}-lr{lr:g}", replace(shared, lr=lr)) for lr in study.learning_rates}
        if all(found["val"] is None for found in tried.values()):
            raise ValueError(f"{arm} diverged with every learning rate of {study.learning_rates}: give lower ones, under "
                             "another name")
        chosen[bool(drop)] = min(tried, key=lambda lr: math.inf if tried[lr]["val"] is None else tried[lr]["val"])
        print(f"learning rate of {arm}: {chosen[bool(drop)]:g} of "
              + ", ".join(f"{lr:g} (validation {finite_or(found['val']):.4f})" for lr, found in tried.items()))

    # After: everybody takes the same steps on the same tokens.
    after = {}
    for seed in study.seeds:
        for arm, drop in {"full": (), **{b: (b,) for b in blocks}}.items():
            config = replace(study.training, drop_blocks=drop, lr=chosen[bool(drop)], seed=seed)
            name = f"full-s{seed}" if arm == "full" else f"less-{arm}-s{seed}"
            after.setdefault(arm, []).append(measured.run(name, config, keep_model=arm == "full" and study.distill))
    extra = distilled(study, measured, best, chosen[True], after) if study.distill else {}
    if ranks.rank == 0:
        report(study, folder, blocks, best, by_block, before, tokens, after, chosen, extra, about)


def distilled(study: Study, measured: Measured, block: int, lr: float, after: dict) -> dict[str, list[dict]]:
    """Healing the block that is missed least with the full model as teacher, and without one for as long a time.

    The teacher is the full model of the same seed, fine-tuned; the time of its one run over the training rows counts.
    """
    found = {"distilled": [], "as long without": []}
    for i, seed in enumerate(study.seeds):
        config = replace(study.training, drop_blocks=(block,), lr=lr, seed=seed)
        teacher = replace(config, teacher=str(measured.folder / f"full-s{seed}" / "model"))
        found["distilled"].append(measured.run(f"distilled-{block}-s{seed}", teacher))
        times = found["distilled"][-1]["seconds"], after[block][i]["seconds"]
        share = 1.0 if None in times else max(1.0, times[0] / times[1])  # one that diverged took no time worth comparing
        steps = round(config.max_steps * share)
        path = measured.folder / "measured" / f"longer-{block}-s{seed}-steps.json"
        if measured.ranks.rank == 0 and not path.is_file():
            write_json(path, {"steps": steps})
        measured.ranks.wait()
        longer = replace(config, max_steps=read_json(path)["steps"])
        found["as long without"].append(measured.run(f"longer-{block}-s{seed}", longer))
    return found


def finite_or(value: float | None) -> float:
    return math.nan if value is None else value


def report(study, folder, blocks, best, by_block, before, tokens, after, chosen, extra, about) -> None:
    """study.csv, study.md, study.png and study.json."""
    keep = tokens > 0
    numbers, counts = np.flatnonzero(keep), tokens[keep]

    def line(block, nll_before, runs: list[dict]) -> dict:
        """Of a model and its runs: intervals are over documents, of the mean of the seeds, whose own spread stands beside."""
        nlls = np.array([[finite_or(v) for v in run["test_nll"]] for run in runs])[:, keep]
        full = np.array([[finite_or(v) for v in run["test_nll"]] for run in after["full"]])[:, keep].mean(0)
        each = nlls.sum(1) / counts.sum()
        row = dict.fromkeys(STUDY_COLUMNS, "") | {"block": block, "after": each.mean(), "seed_low": each.min(),
                                                  "seed_high": each.max(), "runs": len(runs)}
        row["seconds"] = round(float(np.median([finite_or(run["seconds"]) for run in runs])), 1)
        row["after_low"], row["after_high"] = bootstrap(nlls.mean(0), counts, numbers)
        row["lost_after"] = float((nlls.mean(0) - full).sum() / counts.sum())
        row["lost_after_low"], row["lost_after_high"] = bootstrap(nlls.mean(0) - full, counts, numbers)
        if nll_before is not None:
            row["before"] = nll_before[keep].sum() / counts.sum()
            row["before_low"], row["before_high"] = bootstrap(nll_before[keep], counts, numbers)
            gap = (nll_before - before[0])[keep]
            row["lost_before"] = gap.sum() / counts.sum()
            row["lost_before_low"], row["lost_before_high"] = bootstrap(gap, counts, numbers)
        return row

    rows = [line("none", before[0], after["full"])]
    rows += [line(b, before[1 + k], after[b]) for k, b in enumerate(blocks)]
    for when in ("before", "after"):
        order = np.argsort([row[when] for row in rows[1:]], kind="stable")
        for rank, k in enumerate(order, start=1):
            rows[1 + k][f"rank_{when}"] = rank
    healed = [row["after"] for row in rows[1:]]
    predicted = {}
    for name in ("nll", *ESTIMATES):
        scores = [float(by_block[b][name]) for b in blocks]
        predicted["loss before healing" if name == "nll" else name] = {
            "spearman": float(spearman(scores, healed)), "interval": spearman_interval(scores, healed), "of": len(blocks)}
    more = [line(f"{best}, {name}", None, runs) for name, runs in extra.items()]
    steps = [run["steps"] for run in extra.get("as long without", [])]
    write_csv(folder / "study.csv", rows, STUDY_COLUMNS)
    text = markdown(study, rows, more, predicted, chosen, best, len(counts), int(counts.sum()), steps)
    write_text(folder / "study.md", text)
    write_json(folder / "study.json", finite_or_none({
        "study": asdict(study), "learning_rates": {"full": chosen[False], "reduced": chosen[True]}, "rows": rows + more,
        "predicts_the_healed_loss": predicted, "scores": about}))
    print(text)
    figure = draw_study(folder, folder / "study.png")
    print("wrote " + ", ".join(str(folder / name) for name in ("study.csv", "study.md", "study.json")) + f" and {figure}")


def markdown(study, rows, more, predicted, chosen, best, documents, tokens, steps) -> str:
    def cell(row: dict, name: str) -> str:
        if row[name] == "":
            return "-"
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        sign = "+" if name.startswith("lost") else ""
        return f"{row[name]:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"

    c = study.training
    lines = [
        f"# {study.name}: which block?", "",
        f"{c.max_steps} steps of {c.tokens_per_step:,} tokens, seeds {', '.join(map(str, study.seeds))}; learning rate "
        f"{chosen[False]:g} (full) and {chosen[True]:g} (reduced), of {', '.join(f'{lr:g}' for lr in study.learning_rates)} by "
        f"validation loss. Test loss in nats per token over {documents} documents, {tokens:,} tokens, windows of {c.context}, "
        "no prefix token; 95 % intervals by bootstrap over documents, of the mean over seeds; differences are paired.", "",
        "| removed | before healing | lost to the full model | after | lowest and highest seed | lost to the full model, "
        "fine-tuned | rank before, after | s a run |", "|---|---|---|---|---|---|---|---|"]
    for row in rows + more:
        name = "nothing (full model)" if row["block"] == "none" else row["block"]
        spread = f"{row['seed_low']:.4f} to {row['seed_high']:.4f}"
        order = f"{row['rank_before']}, {row['rank_after']}" if row["rank_before"] else ""
        lost = ["", ""] if row["block"] == "none" else [cell(row, "lost_before"), cell(row, "lost_after")]
        if lost[1] and row["lost_after_low"] <= 0 <= row["lost_after_high"]:
            lost[1] += " no difference shown"
        cells = [name, cell(row, "before"), lost[0], cell(row, "after"), spread, lost[1], order, row["seconds"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"Does a score before healing predict the loss after it? Rank correlation over {len(rows) - 1} blocks, 95 % "
              "interval by bootstrap over blocks:", ""]
    for name, found in predicted.items():
        low, high = found["interval"]
        verdict = "" if low > 0 or high < 0 else ": not shown"
        lines.append(f"- {name}: {found['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]{verdict}")
    if more:
        lines += ["", f"Distilled: block {best} healed with the fine-tuned full model of the same seed as teacher (the "
                  f"likeliest {c.teacher_top} tokens, share {c.teacher_share:g}, temperature {c.teacher_temperature:g}), "
                  "whose run over the rows counts in the time; as long without: plain steps for as long "
                  f"({', '.join(map(str, steps))} by seed)."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="--seeds, --blocks and --learning_rates take lists with commas; any setting of the "
                                     "training can be given as --key=value.", allow_abbrev=False)
    parser.add_argument("study", help="a config file that binds `study`, such as configs/study.py")
    args, overrides = parser.parse_known_args()
    try:
        run_study(load_study(args.study, overrides))
    except Stopped as stopped:
        print(stopped)
        return STOPPED
    return 0


if __name__ == "__main__":
    command_line.run(main, "stopped; the same command goes on")
