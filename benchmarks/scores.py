"""The loss without each block at Qwen3-0.6B's shape: shared prefixes beside a forward pass for each block.

    python -m benchmarks.scores

Random weights, rows of 256 random tokens, fp32; both sides in turn, in fresh processes, on the same rows. "Naive" is the model
less each block in turn, whole; a "full forward" is the unpruned model with its loss. Writes results/scores.csv and .md.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.train import ROOT, WHOLE, machine, peak, write_rows

SIDES = ("shared", "naive", "full")


def measure(side: str, rows: int) -> dict:
    """Seconds in all, in blocks and in the head, memory, and the losses."""
    from model import Decoder
    from nanoprune.device import keep_freed_memory
    from nanoprune.evaluation.block_scores import losses_without, window_tokens
    from nanoprune.evaluation.perplexity import document_nll
    from nanoprune.nn.model_config import ModelConfig
    from prune import drop_blocks

    keep_freed_memory()
    torch.manual_seed(0)
    model = Decoder(ModelConfig.from_dict(WHOLE)).eval()
    count, rng = model.config.num_hidden_layers, np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 150_000, (rows, 257)))
    batch = max(1, window_tokens(model, 2 * count + 1) // 256)
    windows = [(part[:, :-1], part[:, 1:], np.arange(i * batch, i * batch + len(part))) for i, part in
               enumerate(tokens.split(batch))]
    began, seconds = time.perf_counter(), {}
    if side == "shared":
        nll, counts, seconds = losses_without(model, windows, rows, [((i, ""),) for i in range(count)])
        losses = (nll.sum(1) / counts.sum()).tolist()
    else:
        layers, config, losses = model.model.layers, model.config, []
        for i in range(count if side == "naive" else 3):
            if side == "naive":
                drop_blocks(model, [i])
            began = time.perf_counter() if side == "full" and i == 1 else began  # the first one warms up
            nll, counts = document_nll(model, windows, rows)
            losses.append(float(nll.sum() / counts.sum()))
            model.model.layers, model.config = layers, config
    took = (time.perf_counter() - began) * (count / 2 if side == "full" else 1)  # of two, for as many as there are blocks
    return {"side": side, "seconds": took, "blocks_s": seconds.get("blocks", ""), "head_s": seconds.get("head", ""),
            "memory_gb": peak(), "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="of 256 tokens")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.rows)))
        return
    found = []
    for turn in range(args.rounds):
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.scores", "--one", side, "--rows", str(args.rows)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
            found.append({"round": turn} | json.loads(done.stdout.splitlines()[-1]))
            print({k: v for k, v in found[-1].items() if k != "losses"}, file=sys.stderr, flush=True)
    lines = ["| round | shared prefixes, s (blocks, head) | naive, s | 28 full forwards, s | to naive | to full forwards "
             "| peak memory, GB | losses differ by |", "|" + "---|" * 8]
    for turn in range(args.rounds):
        ours, naive, full = (next(one for one in found if (one["round"], one["side"]) == (turn, side)) for side in SIDES)
        apart = max(abs(a / b - 1) for a, b in zip(ours["losses"], naive["losses"], strict=True))
        lines.append(f"| {turn} | {ours['seconds']:.1f} ({ours['blocks_s']:.1f}, {ours['head_s']:.1f}) | "
                     f"{naive['seconds']:.1f} | {full['seconds']:.1f} | {ours['seconds'] / naive['seconds']:.2f} | "
                     f"{ours['seconds'] / full['seconds']:.2f} | {ours['memory_gb']:.2f}, naive {naive['memory_gb']:.2f} | "
                     f"{apart:.1e} |")
    table = "\n".join([*lines, "", f"{args.rows} rows of 256 tokens, fp32; {machine()}; torch {torch.__version__}"]) + "\n"
    write_rows(args.out / "scores.csv", [{k: v for k, v in one.items() if k != "losses"} for one in found])
    (args.out / "scores.md").write_text(table)
    print(f"{table}\nwrote {args.out}/scores.csv and {args.out}/scores.md")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"benchmarks.scores: {error}", file=sys.stderr)
        sys.exit(2)
