"""The cost of several processes on one machine, and of a checkpoint: how long the loop stands still for it.

    python -m benchmarks.scale

Qwen3-0.6B's shape cut to 7 blocks, and a model of 4 M parameters, steps of 2 rows of 512 random tokens: one
process with all threads, two under torchrun with ddp and with fsdp, in turn. Rates leave out the first step;
memory is the peak of rank 0's process. The state is saved after the last step but one. The delay of the next
row of train.csv is the save's cost, also given as a share of 100 steps, the default interval between saves.
Writes results/scale.csv and results/scale.md. """

import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import (
    QUARTER,
    ROOT,
    SMALL,
    make_parser,
    median_and_range,
    random_documents,
    read_columns,
    read_measurements,
    record,
    report,
    select,
    write_dataset,
)
from benchmarks.tables import markdown
from nanoprune import command_line

MODELS = {"0.6 B cut to 7 blocks": QUARTER, "4 M": SMALL}
KINDS = {"one process": (1, "ddp"), "two, ddp": (2, "ddp"), "two, fsdp": (2, "fsdp")}
STEP_TOKENS = 1024


def measure(model: str, kind: str, work: Path, steps: int, turn: int) -> dict:
    """One run in fresh processes: tokens/s, GB, seconds that the save took and its size, and the last
    loss."""
    processes, parallel = KINDS[kind]
    run = work / "runs" / f"{kind.replace(', ', '-').replace(' ', '-')}-{turn}"
    config = work / f"{run.name}.py"
    config.write_text(f"""from configs import Config
config = Config(
    name={run.name!r}, base={MODELS[model]!r}, data={str(work / "data")!r}, runs={str(run.parent)!r},
    context=512, batch_size=1, accumulation=2, max_steps={steps}, warmup_steps=0, lr=1e-5, dtype="float32",
    device="cpu", parallel={parallel!r}, eval_every=0, save_every={steps - 1}, keep="last")
""")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), "train.py", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    columns = read_columns(run / "train.csv", "seconds", "tokens_per_s", "memory_gb", "loss")
    seconds, tokens_per_s, memory, losses = columns
    state = max((run / "state").iterdir())
    row = {"model": model, "kind": kind, "round": turn, "tokens_per_s": statistics.median(tokens_per_s[1:]),
           "memory_gb": memory[-1], "loss": losses[-1],
           "save_s": seconds[-1] - seconds[-2] - STEP_TOKENS / tokens_per_s[-1],
           "state_gb": sum(path.stat().st_size for path in state.iterdir()) / 1e9}
    shutil.rmtree(run)  # gigabytes
    return row


def tabulate(measurements: list[dict]) -> list[str]:
    rows = []
    for model, kind in dict.fromkeys((row["model"], row["kind"]) for row in measurements):
        runs, alone = (select(measurements, model=model, kind=k) for k in (kind, "one process"))
        ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(runs, alone, strict=True)]
        shares = [row["save_s"] / (100 * STEP_TOKENS / row["tokens_per_s"]) for row in runs]
        columns = (("tokens_per_s", ".1f"), ("memory_gb", ".2f"), ("save_s", ".2f"))
        rate, memory, save = (median_and_range([row[name] for row in runs], form) for name, form in columns)
        rows.append([model, kind, rate, median_and_range(ratios, ".2f"), memory, save,
                     median_and_range(shares, ".2%"), f"{runs[0]['state_gb']:.2f}", f"{runs[0]['loss']:.6f}"])
    header = ["model", "processes", "tokens/s", "to one process", "peak memory, GB, rank 0", "a save, s",
              "of 100 steps", "its size, GB", "last loss"]
    return markdown(header, rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    names, path = args.models or list(MODELS), args.out / "scale.csv"
    if unknown := set(names) - set(MODELS):
        raise ValueError(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    measurements = [row for row in read_measurements(path) if row["model"] not in names]
    with tempfile.TemporaryDirectory(dir=args.out if args.out.is_dir() else None) as folder:
        for name in names:
            work, vocab_size = Path(folder).resolve() / name, MODELS[name]["vocab_size"] - 300
            steps = 10 * args.steps if MODELS[name] is SMALL else args.steps
            documents = random_documents(np.random.default_rng(0), [513] * (2 * steps), vocab_size)
            write_dataset(work / "data", {"train": documents, "val": [documents[0][:64]]}, vocab_size)
            for turn, kind in product(range(args.rounds), KINDS):
                record(measurements, measure(name, kind, work, steps, turn), path)
    print(f"torch {torch.__version__}")
    report(tabulate(measurements), args.out, "scale")


if __name__ == "__main__":
    command_line.run(main)
