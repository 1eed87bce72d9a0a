"""Does the lean optimizer learn as AdamW does? The same runs with both, over seeds, and the noise that seeds make.

    python -m benchmarks.lean models/press-qwen3-4m --data data/press

Each seed has its own order of documents, the same for both arms. Plain AdamW clips the gradient's norm at 1, lean does not.
"Difference" is lean less plain of one seed; "seeds" is the standard deviation of plain over seeds. Writes results/lean.csv,
results/lean.md and results/lean.png.
"""

import argparse
import csv
import shutil
import statistics
import sys
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.train import write_rows
from nanoprune.config import Config
from train import train

ARMS = {"plain": {}, "lean": {"optimizer": "lean", "clip": 0.0}}


def measure(args: argparse.Namespace, seed: int, arm: str, runs: Path) -> list[dict]:
    """Validation losses of one run, and at each the training loss since the one before."""
    config = Config(name=f"{arm}-{seed}", base=args.base, data=args.data, runs=str(runs), context=256, batch_size=2,
                    accumulation=1, max_steps=args.steps, warmup_steps=20, lr=args.lr, seed=seed, dtype="float32", device="cpu",
                    log_every=50, eval_every=max(1, args.steps // 6), eval_documents=16, keep="last", save_every=0, **ARMS[arm])
    train(config)
    with open(config.folder / "train.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    with open(config.folder / "eval.csv", newline="") as file:
        points = [(int(row["step"]), float(row["nll"])) for row in csv.DictReader(file)]
    starts = [0, *(step for step, _ in points)]
    return [{"seed": seed, "arm": arm, "step": step, "validation_nll": nll,
             "training_loss": statistics.fmean(losses[before:step]) if step else ""}
            for before, (step, nll) in zip(starts, points, strict=False)]


def tabulate(found: list[dict]) -> str:
    """Means over the seeds, the difference of the arms, and what one seed differs from another by."""
    def over_seeds(arm: str, step: int, key: str) -> np.ndarray:
        return np.array([one[key] for one in found if (one["arm"], one["step"]) == (arm, step)])

    lines = ["| step | loss | plain | lean | difference (lowest to highest) | seeds |", "|" + "---|" * 6]
    for key, name in (("validation_nll", "validation"), ("training_loss", "training")):
        for step in dict.fromkeys(one["step"] for one in found if one[key] != ""):
            plain, lean = (over_seeds(arm, step, key) for arm in ARMS)
            gap = lean - plain
            lines.append(f"| {step} | {name} | {plain.mean():.4f} | {lean.mean():.4f} | {gap.mean():+.4f} ({gap.min():+.4f} to "
                         f"{gap.max():+.4f}) | {plain.std(ddof=1):.4f} |")
    return "\n".join(lines) + "\n"


def draw(found: list[dict], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for one, colour in zip(ARMS, ("C0", "C1"), strict=True):
        for seed in dict.fromkeys(row["seed"] for row in found):
            curve = [(row["step"], row["validation_nll"]) for row in found if (row["arm"], row["seed"]) == (one, seed)]
            axes.plot(*zip(*curve, strict=True), colour, alpha=0.7, label=one if seed == found[0]["seed"] else None)
    axes.set(xlabel="step", ylabel="validation loss (nats per token)", title="AdamW, plain and lean: one line a seed")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a small model")
    parser.add_argument("--data", required=True, help="a dataset folder of its tokenizer")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="2 or more")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    if args.seeds < 2 or args.steps < 1:
        raise ValueError(f"given --seeds {args.seeds} and --steps {args.steps}; it takes 2 seeds, to see what they differ by, "
                         "and 1 step")
    runs = args.out / "lean-runs"
    shutil.rmtree(runs, ignore_errors=True)
    found = [row for seed in range(args.seeds) for arm in ARMS for row in measure(args, seed, arm, runs)]
    write_rows(args.out / "lean.csv", found)
    (args.out / "lean.md").write_text(tabulate(found))
    draw(found, args.out / "lean.png")
    print(f"{tabulate(found)}\nwrote {args.out}/lean.csv, {args.out}/lean.md, {args.out}/lean.png and the runs in {runs}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"benchmarks.lean: {error}", file=sys.stderr)
        sys.exit(2)
