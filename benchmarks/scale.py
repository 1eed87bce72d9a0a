"""What several processes cost on one machine, and what a checkpoint does: how long the loop stands still for it.

    python -m benchmarks.scale

Qwen3-0.6B's shape cut to 7 blocks, and a model of 4 M parameters, steps of 2 rows of 512 random tokens: one process with all
threads, two under torchrun with ddp and with fsdp, in turn. Rates leave out the first step; memory is the peak of rank 0's
process. The state is saved after the last step but one, and what the next row of train.csv then came too late by is its cost,
which is also given as a share of the 100 steps between two saves by default. Writes results/scale.csv and .md.
"""

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.train import QUARTER, ROOT, SMALL, read, write_data, write_rows

MODELS = {"0.6 B cut to 7 blocks": QUARTER, "4 M": SMALL}
KINDS = {"one process": (1, "ddp"), "two, ddp": (2, "ddp"), "two, fsdp": (2, "fsdp")}


def measure(model: str, kind: str, work: Path, steps: int, turn: int) -> dict:
    """One run in fresh processes: tokens/s, GB, seconds that the save took and its size, and the last loss."""
    processes, parallel = KINDS[kind]
    name = f"{kind.replace(', ', '-').replace(' ', '-')}-{turn}"
    config = work / f"{name}.py"
    config.write_text(f"""from configs import Config
config = Config(name={name!r}, base={MODELS[model]!r}, data={str(work / "data")!r},
                runs={str(work / "runs")!r}, context=512, batch_size=1, accumulation=2, max_steps={steps},
                warmup_steps=0, lr=1e-5, dtype="float32", device="cpu",
                parallel={parallel!r}, eval_every=0, save_every={steps - 1}, keep="last")
""")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *torchrun, "train.py", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    with open(work / "runs" / name / "train.csv", newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    state = max((work / "runs" / name / "state").iterdir())
    stood = rows[-1]["seconds"] - rows[-2]["seconds"] - 1024 / rows[-1]["tokens_per_s"]
    found = {"model": model, "kind": kind, "round": turn,
             "tokens_per_s": statistics.median(row["tokens_per_s"] for row in rows[1:]),
             "memory_gb": rows[-1]["memory_gb"], "loss": rows[-1]["loss"], "save_s": stood,
             "state_gb": sum(path.stat().st_size for path in state.iterdir()) / 1e9}
    shutil.rmtree(work / "runs" / name)  # gigabytes
    return found


def tabulate(found: list[dict]) -> str:
    def spread(values: list[float], form: str) -> str:
        ends = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
        return f"{statistics.median(values):{form}}{ends}"

    lines = ["| model | processes | tokens/s | to one process | peak memory, GB, rank 0 | a save, s | of 100 steps "
             "| its size, GB | last loss |", "|" + "---|" * 9]
    for model, kind in dict.fromkeys((one["model"], one["kind"]) for one in found):
        ours = [one for one in found if (one["model"], one["kind"]) == (model, kind)]
        alone = [one["tokens_per_s"] for one in found if (one["model"], one["kind"]) == (model, "one process")]
        column = {key: [one[key] for one in ours] for key in found[0] if key not in ("model", "kind", "round")}
        ratios = [a / b for a, b in zip(column["tokens_per_s"], alone, strict=True)]
        shares = [one["save_s"] / (100 * 1024 / one["tokens_per_s"]) for one in ours]
        lines.append(f"| {model} | {kind} | {spread(column['tokens_per_s'], '.1f')} | {spread(ratios, '.2f')} | "
                     f"{spread(column['memory_gb'], '.2f')} | {spread(column['save_s'], '.2f')} | {spread(shares, '.2%')} | "
                     f"{column['state_gb'][0]:.2f} | {column['loss'][0]:.6f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.out if args.out.is_dir() else None) as folder:
        work = Path(folder).resolve()
        models = {name: MODELS[name] for name in args.models} if args.models else MODELS
        found = [one for one in read(args.out / "scale.csv") if one["model"] not in models]
        for model, shape in models.items():
            rng, tokens = np.random.default_rng(0), shape["vocab_size"] - 300
            steps = args.steps if shape is QUARTER else 10 * args.steps
            shutil.rmtree(work / "data", ignore_errors=True)
            documents = [rng.integers(0, tokens, 513).tolist() for _ in range(2 * steps)]
            write_data(work / "data", {"train": documents, "val": [documents[0][:64]]}, tokens)
            for turn in range(args.rounds):
                for kind in KINDS:
                    found.append(measure(model, kind, work, steps, turn))
                    print(found[-1], file=sys.stderr, flush=True)
                    write_rows(args.out / "scale.csv", found)
    (args.out / "scale.md").write_text(tabulate(found))
    print(f"torch {torch.__version__}\n{tabulate(found)}\nwrote {args.out}/scale.csv and {args.out}/scale.md")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"benchmarks.scale: {error}", file=sys.stderr)
        sys.exit(2)
