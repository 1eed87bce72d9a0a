"""The vocabulary head alone: loss and gradients by nanoprune, by F.linear_cross_entropy and plainly.

    python -m benchmarks.head --rounds 3

Random tokens and weights, each form in turn in a fresh process. `products` is the time of the three products
alone. Writes results/head.csv and head.md.
"""

import json

import torch

from benchmarks.common import machine, make_parser, median_and_range, peak, record, report, run_fresh, select
from benchmarks.gpu_measures import head_steps, median_seconds
from benchmarks.tables import markdown
from nanoprune import command_line
from nanoprune.device import keep_freed_memory

PRODUCTS = "products"


def measure(side: str, args) -> dict:
    keep_freed_memory()
    torch.manual_seed(0)
    x, weight = torch.randn(1, args.tokens, args.hidden), torch.randn(args.vocabulary, args.hidden) * 0.02
    dtype, cpu, loss = getattr(torch, args.dtype), torch.device("cpu"), 0.0
    if side == PRODUCTS:
        hidden, rows = x[0].to(dtype), weight.to(dtype)
        logits = hidden @ rows.T

        def step() -> None:
            torch.mm(hidden, rows.T), torch.mm(logits, rows), torch.mm(logits.T, hidden)
    else:
        steps = head_steps(x, weight, torch.randint(0, args.vocabulary, (1, args.tokens)), dtype)
        step = steps[side]
        loss = float(step())
    before = 4 * (x.numel() + weight.numel()) / 1e9
    return {"seconds": median_seconds(step, cpu, repeats=5), "over_weights_gb": peak() - before, "loss": loss}


def main() -> None:
    parser = make_parser(__doc__)
    for name, size in (("tokens", 1024), ("hidden", 1024), ("vocabulary", 151_936), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args)))
        return
    one = torch.ones(1, 2, 2)
    sides, measurements = (*head_steps(one, one[0], torch.zeros(1, 2).long(), torch.float32), PRODUCTS), []
    given = [f"--{name}={getattr(args, name)}" for name in ("tokens", "hidden", "vocabulary", "dtype")]
    for turn in range(args.rounds):
        for side in sides:
            result = run_fresh("benchmarks.head", "--side", side, *given)
            if side == sides[0]:
                ours = result["seconds"]
            row = {"round": turn, "side": side, "ratio": result["seconds"] / ours} | result
            record(measurements, row, args.out / "head.csv")
    rows = []
    for side in sides:
        runs = select(measurements, side=side)
        rows.append([side, *(median_and_range([run[name] for run in runs], ".2f") for name in
                             ("seconds", "ratio", "over_weights_gb")), f"{runs[0]['loss']:.5f}"])
    about = (f"{args.tokens:,} tokens, {args.vocabulary:,} x {args.hidden:,}, {args.dtype}, {machine()}, "
             f"torch {torch.__version__}")
    report([*markdown(["form", "seconds", "to nanoprune's", "peak over x and weight, GB", "loss"], rows), "",
            about], args.out, "head")


if __name__ == "__main__":
    command_line.run(main)
