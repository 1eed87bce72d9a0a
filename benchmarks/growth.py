"""How the cost of a training step grows with the context and with the size of the model, to plan a run by.

    python -m benchmarks.growth

Rows of one document, random weights and tokens, train.py itself in fresh processes; seconds are the median step without the
first, memory the peak of the process. "Grows" is the slope of the logarithms from the line above: 1 is in proportion, 2 is
squared. Writes results/growth.csv and results/growth.md.
"""

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.train import QWEN3, ROOT, peak, write_data, write_rows

SHAPES = {  # Qwen3's vocabulary throughout: a large part of a small model
    "0.1 B": QWEN3 | {"num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8,
                      "num_key_value_heads": 4, "head_dim": 64},
    "0.2 B": QWEN3 | {"num_hidden_layers": 20, "hidden_size": 640, "intermediate_size": 1920, "num_attention_heads": 10,
                      "num_key_value_heads": 5, "head_dim": 64},
    "0.3 B": QWEN3 | {"num_hidden_layers": 28, "hidden_size": 768, "intermediate_size": 2304, "num_attention_heads": 12,
                      "num_key_value_heads": 6, "head_dim": 64},
    "0.6 B": QWEN3 | {"num_hidden_layers": 28},
}
RUNS = [("0.1 B", context) for context in (256, 512, 1024, 2048, 4096, 8192)] + [(size, 512) for size in SHAPES]


def measure(size: str, context: int, steps: int) -> dict:
    """Steps of train.py on one row of `context` tokens, in this process."""
    import train
    from nanoprune.config import Config

    rng, tokens = np.random.default_rng(0), QWEN3["vocab_size"] - 300
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        documents = [rng.integers(0, tokens, context + 1).tolist() for _ in range(steps)]
        write_data(data, {"train": documents, "val": [documents[0][:64]]}, tokens)
        train.save_state = train.Decoder.save_pretrained = lambda *_, **__: None
        train.train(Config(name="growth", base=SHAPES[size], data=folder, runs=folder, context=context, batch_size=1,
                           accumulation=1, max_steps=steps, warmup_steps=0, lr=1e-5, device="cpu", dtype="float32",
                           eval_every=0, save_every=0, keep="last"))
        with open(data / "growth" / "train.csv", newline="") as file:
            ends = [float(row["seconds"]) for row in csv.DictReader(file)]
    parameters = sum(p.numel() for p in train.Decoder(train.ModelConfig.from_dict(SHAPES[size])).parameters())
    return {"size": size, "parameters": parameters, "context": context, "seconds": statistics.median(np.diff(ends)),
            "memory_gb": peak()}


def table(found: list[dict], key: str) -> str:
    """Lines of measurements that differ in `key`, with the slopes between them."""
    lines = ["| size | parameters | context | seconds a step | grows | peak memory, GB | grows |", "|" + "---|" * 7]
    for before, one in pairwise([found[0], *found]):
        cells = [one["size"], f"{one['parameters'] / 1e6:.0f} M", str(one["context"])]
        for measured in ("seconds", "memory_gb"):
            slope = math.log(one[measured] / before[measured]) / math.log(one[key] / before[key]) if one is not before else None
            cells += [f"{one[measured]:.2f}", "" if slope is None else f"{slope:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args.steps)))
        return
    found = []
    for size, context in RUNS:
        command = [sys.executable, "-m", "benchmarks.growth", "--one", size, str(context), "--steps", str(args.steps)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{size} at {context} tokens failed (memory?):\n{done.stderr[-2000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], file=sys.stderr, flush=True)
    write_rows(args.out / "growth.csv", found)
    contexts = len(RUNS) - len(SHAPES)
    text = f"{table(found[:contexts], 'context')}\n{table(found[contexts:], 'parameters')}"
    (args.out / "growth.md").write_text(text)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n{text}")
    print(f"wrote {args.out}/growth.csv, {args.out}/growth.md")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"benchmarks.growth: {error}", file=sys.stderr)
        sys.exit(2)
