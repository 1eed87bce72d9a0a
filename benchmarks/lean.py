"""The lean optimizer beside AdamW: the same runs with both, over seeds, and the noise that seeds make.

    python -m benchmarks.lean models/press-qwen3-4m --data data/press

Each seed has its own order of documents, the same for both arms. Plain AdamW clips the gradient's norm at 1,
lean does not. "Difference" is lean less plain of one seed; "seeds" is the standard deviation of plain over
seeds. Writes results/lean.csv, results/lean.md and results/lean.png. """

import shutil
import statistics
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from benchmarks.common import make_parser, read_columns, record, report, select
from benchmarks.tables import markdown
from nanoprune import command_line
from nanoprune.config import Config, replace

ARMS = {"plain": {}, "lean": {"optimizer": "lean", "clip": 0.0}}


def measure(config: Config) -> list[dict]:
    """Validation losses of one run, and at each the training loss since the one before."""
    from train import train

    train(config)
    losses, = read_columns(config.folder / "train.csv", "loss")
    steps, validation = read_columns(config.folder / "eval.csv", "step", "nll")
    steps = [int(step) for step in steps]
    training = ["", *(statistics.fmean(losses[before:after]) for before, after in pairwise(steps))]
    return [{"step": step, "validation_nll": nll, "training_loss": loss}
            for step, nll, loss in zip(steps, validation, training, strict=True)]


def tabulate(measurements: list[dict]) -> list[str]:
    """Means over the seeds, the difference of the arms, and what one seed differs from another by."""
    rows, steps = [], dict.fromkeys(row["step"] for row in measurements)
    columns = {"validation_nll": "validation", "training_loss": "training"}
    for (column, name), step in product(columns.items(), steps):
        plain, lean = ([row[column] for row in select(measurements, arm=arm, step=step)] for arm in ARMS)
        if plain[0] == "":  # before the first step
            continue
        gap = np.array(lean) - np.array(plain)
        difference = f"{gap.mean():+.4f} ({gap.min():+.4f} to {gap.max():+.4f})"
        rows.append([step, name, f"{np.mean(plain):.4f}", f"{np.mean(lean):.4f}", difference,
                     f"{np.std(plain, ddof=1):.4f}"])
    return markdown(["step", "loss", "plain", "lean", "difference (lowest to highest)", "seeds"], rows)


def draw(measurements: list[dict], path: Path) -> None:
    """Validation curves: one line a seed, one colour an arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for arm, colour in zip(ARMS, ("C0", "C1"), strict=True):
        for seed in dict.fromkeys(row["seed"] for row in measurements):
            curve = select(measurements, arm=arm, seed=seed)
            axes.plot([row["step"] for row in curve], [row["validation_nll"] for row in curve], colour,
                      alpha=0.7, label=arm if seed == measurements[0]["seed"] else None)
    axes.set(xlabel="step", ylabel="validation loss (nats per token)",
             title="AdamW, plain and lean: one line a seed")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("base", help="a small model")
    parser.add_argument("--data", required=True, help="a dataset folder of its tokenizer")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="2 or more")
    parser.add_argument("--lr", type=float, default=5e-4)
    args = parser.parse_args()
    if args.seeds < 2 or args.steps < 1:
        raise ValueError(f"given --seeds {args.seeds} and --steps {args.steps}; needed are at least 2 seeds, "
                         "to see how much seeds differ, and 1 step")
    runs = args.out / "lean-runs"
    shutil.rmtree(runs, ignore_errors=True)
    config = Config(
        name="lean", base=args.base, data=args.data, runs=str(runs), context=256, batch_size=2,
        accumulation=1, max_steps=args.steps, warmup_steps=min(20, args.steps - 1), lr=args.lr,
        dtype="float32", device="cpu", log_every=50, eval_every=max(1, args.steps // 6), eval_documents=16,
        keep="last", save_every=0)
    measurements = []
    for seed, arm in product(range(args.seeds), ARMS):
        for row in measure(replace(config, name=f"{arm}-{seed}", seed=seed, **ARMS[arm])):
            record(measurements, {"seed": seed, "arm": arm} | row, args.out / "lean.csv")
    draw(measurements, args.out / "lean.png")
    report(tabulate(measurements), args.out, "lean")
    print(f"wrote {args.out}/lean.png and the runs in {runs}")


if __name__ == "__main__":
    command_line.run(main)
