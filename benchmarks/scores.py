"""The loss without each block: shared prefixes beside a forward pass for each block.

    python -m benchmarks.scores                          random weights of Qwen3-0.6B's shape
    python -m benchmarks.scores --base models/smollm2

Rows of 256 random tokens, products in --dtype; both sides in turn, in fresh processes, on the same rows.
"Naive" is the model without each block in turn, whole; a "full forward" is the unpruned model with its loss.
Writes results/scores.csv and results/scores.md. """

import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import (
    WHOLE,
    machine,
    make_parser,
    median_and_range,
    peak,
    record,
    report,
    run_fresh,
    select,
)
from benchmarks.tables import markdown
from model import Decoder
from nanoprune import command_line
from nanoprune.data.token_file import Example
from nanoprune.device import keep_freed_memory, make_autocast
from nanoprune.evaluation.perplexity import score_text
from nanoprune.evaluation.removal_losses import Calibration, losses_without, without
from nanoprune.nn.model_config import ModelConfig, Part

SIDES = ("shared", "naive", "full")


def measure(side: str, base: Path | None, rows: int, layers: int, dtype: str) -> dict:
    """Seconds in all, in blocks and in the head, memory, and the losses."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = (Decoder.from_pretrained(base) if base
             else Decoder(ModelConfig.from_dict(WHOLE | {"num_hidden_layers": layers}))).eval()
    layers, vocabulary = model.config.num_hidden_layers, model.config.vocab_size
    rng = np.random.default_rng(0)
    documents = [Example(rng.integers(0, vocabulary, 257), np.ones(257, bool)) for _ in range(rows)]
    calibration = Calibration.of_split(model, documents, 256, autocast=make_autocast(dtype, model.device))
    seconds, began = {}, time.perf_counter()
    if side == "shared":
        losses = losses_without(model, [(Part(i),) for i in range(layers)], calibration)
        seconds, means = losses.seconds, losses.nll.sum(1) / losses.tokens.sum()
    elif side == "naive":
        means = [mean_loss_without(model, [i], calibration) for i in range(layers)]
    else:
        means = [mean_loss_without(model, [], calibration)]  # warms up
        began = time.perf_counter()
        means += [mean_loss_without(model, [], calibration) for _ in range(2)]
    took = time.perf_counter() - began
    if side == "full":  # two passes were timed; as many as there are blocks are compared
        took *= layers / 2
    return {"side": side, "seconds": took, "blocks_s": seconds.get("blocks", ""),
            "head_s": seconds.get("head", ""), "memory_gb": peak(), "losses": list(map(float, means))}


def mean_loss_without(model: Decoder, blocks: list[int], calibration: Calibration) -> float:
    """The loss of the model without some blocks, by its whole forward pass."""
    with without(model, blocks):
        with calibration.autocast():
            losses = score_text(model, calibration.windows, calibration.documents)
    return losses.nll.sum() / losses.tokens.sum()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--base", type=Path, help="a model's folder")
    parser.add_argument("--rows", type=int, default=8, help="of 256 tokens")
    parser.add_argument("--layers", type=int, default=28, help="of Qwen3-0.6B's 28, without --base")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.base, args.rows, args.layers, args.dtype)))
        return
    base = ["--base", args.base.resolve()] if args.base else []
    measurements, losses = [], {}
    for turn, side in product(range(args.rounds), SIDES):
        row = run_fresh("benchmarks.scores", "--side", side, "--rows", args.rows, "--layers", args.layers,
                        "--dtype", args.dtype, *base)
        losses[turn, side] = np.array(row.pop("losses"))
        record(measurements, {"round": turn} | row, args.out / "scores.csv")
    rows, ratios = [], []
    for turn in range(args.rounds):
        shared, naive, full = (select(measurements, round=turn, side=side)[0] for side in SIDES)
        apart = np.abs(losses[turn, "shared"] / losses[turn, "naive"] - 1).max()
        ratios.append([shared["seconds"] / side["seconds"] for side in (naive, full)])
        rows.append([turn, f"{shared['seconds']:.1f} ({shared['blocks_s']:.1f}, {shared['head_s']:.1f})",
                     f"{naive['seconds']:.1f}", f"{full['seconds']:.1f}", *(f"{r:.2f}" for r in ratios[-1]),
                     f"{shared['memory_gb']:.2f}, naive {naive['memory_gb']:.2f}", f"{apart:.1e}"])
    medians = [median_and_range(values, ".2f") for values in zip(*ratios, strict=True)]
    rows.append(["median", "", "", "", *medians, "", ""])
    header = ["round", "shared prefixes, s (blocks, head)", "naive, s", "a full forward for each block, s",
              "to naive", "to full forwards", "peak memory, GB", "losses differ by"]
    model = args.base.name if args.base else f"{args.layers} blocks of Qwen3-0.6B's shape"
    about = f"{model}; {args.rows} rows of 256 tokens, {args.dtype}; {machine()}; torch {torch.__version__}"
    report([*markdown(header, rows), "", about], args.out, "scores")


if __name__ == "__main__":
    command_line.run(main)
