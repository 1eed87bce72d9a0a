"""How the cost of a training step grows with the context and with the size of the model, to plan a run by.

    python -m benchmarks.growth

Rows of one document, random weights and tokens, train.py itself in fresh processes; seconds are the median
step without the first, memory the peak of the process. "Grows" is the slope of the logarithms from the line
above: 1 is in proportion, 2 is squared. Writes results/growth.csv and results/growth.md. """

import json
import math
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import (
    QWEN3,
    make_parser,
    peak,
    random_documents,
    read_columns,
    record,
    report,
    run_fresh,
    train_without_saving,
    write_dataset,
)
from benchmarks.tables import markdown
from nanoprune import command_line
from nanoprune.config import Config

SHAPES = {  # Qwen3's vocabulary throughout: a large part of a small model
    "0.1 B": QWEN3 | {"num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 1536,
                      "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
    "0.2 B": QWEN3 | {"num_hidden_layers": 20, "hidden_size": 640, "intermediate_size": 1920,
                      "num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 64},
    "0.3 B": QWEN3 | {"num_hidden_layers": 28, "hidden_size": 768, "intermediate_size": 2304,
                      "num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 64},
    "0.6 B": QWEN3 | {"num_hidden_layers": 28},
}
CONTEXTS = [("0.1 B", context) for context in (256, 512, 1024, 2048, 4096, 8192)]
SIZES = [(size, 512) for size in SHAPES]


def measure(size: str, context: int, steps: int) -> dict:
    """Steps of train.py on one row of `context` tokens, in this process."""
    from model import Decoder
    from nanoprune.nn.model_config import ModelConfig

    vocab_size = QWEN3["vocab_size"] - 300
    documents = random_documents(np.random.default_rng(0), [context + 1] * steps, vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), {"train": documents, "val": [documents[0][:64]]}, vocab_size)
        config = Config(
            name="growth", base=SHAPES[size], data=folder, runs=folder, context=context, batch_size=1,
            accumulation=1, max_steps=steps, warmup_steps=0, lr=1e-5, device="cpu", dtype="float32",
            eval_every=0, save_every=0, keep="last")
        train_without_saving(config)
        ends, = read_columns(config.folder / "train.csv", "seconds")
    with torch.device("meta"):
        model = Decoder(ModelConfig.from_dict(SHAPES[size]))
    return {"size": size, "parameters": sum(p.numel() for p in model.parameters()), "context": context,
            "seconds": statistics.median(np.diff(ends)), "memory_gb": peak()}


def tabulate(measurements: list[dict], variable: str) -> list[str]:
    """Lines of measurements that differ in `variable`, with the slopes between them."""
    rows = []
    for before, row in pairwise([measurements[0], *measurements]):
        cells = [row["size"], f"{row['parameters'] / 1e6:.0f} M", row["context"]]
        for column in ("seconds", "memory_gb"):
            cells += [f"{row[column]:.2f}", slope(before, row, variable, column) if row is not before else ""]
        rows.append(cells)
    header = ["size", "parameters", "context", "seconds a step", "grows", "peak memory, GB", "grows"]
    return markdown(header, rows)


def slope(before: dict, after: dict, variable: str, column: str) -> str:
    """The slope of the logarithms between two measurements."""
    return f"{math.log(after[column] / before[column]) / math.log(after[variable] / before[variable]):.2f}"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--context", type=int, help="measure this context alone, with --side SIZE")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.context, args.steps)))
        return
    measurements = []
    for size, context in CONTEXTS + SIZES:
        row = run_fresh("benchmarks.growth", "--side", size, "--context", context, "--steps", args.steps)
        record(measurements, row, args.out / "growth.csv")
    by_context, by_size = measurements[: len(CONTEXTS)], measurements[len(CONTEXTS) :]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    report([*tabulate(by_context, "context"), "", *tabulate(by_size, "parameters")], args.out, "growth")


if __name__ == "__main__":
    command_line.run(main)
