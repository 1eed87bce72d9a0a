"""Where a training step's time goes, and how near its products are to what the machine can multiply at.

    python -m benchmarks.breakdown small full-fp32

Rows are those of benchmarks.train, "full-fp32" cut to 4 blocks. The shares are of the profiler's own time by operation over a
few steps after warm-up; the machine's rate is that of train.py's MFU. Writes results/breakdown.md.
"""

import argparse
import sys
from pathlib import Path

import torch

import train
from benchmarks.train import QWEN3, SMALL
from configs import Config

ROWS = {"small": (SMALL, 8, 256), "full-fp32": (QWEN3 | {"num_hidden_layers": 4}, 1, 1024)}  # shape, rows, context
KINDS = {  # the first that an operation's name contains
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention (SDPA)": ("scaled_dot_product",),
    "activation function": ("silu",),
    "optimizer and clipping": ("_fused_adamw", "_foreach"),
    "softmax of the head": ("aten::exp_", "aten::amax", "aten::div_", "aten::log", "aten::scatter", "aten::gather"),
    "other pointwise operations and sums": ("aten::",),
    "Python and the profiler": ("",),
}


def measure(shape: dict, rows: int, context: int, steps: int) -> tuple[dict[str, float], float]:
    """(seconds a step by kind of operation, FLOP/s of the products)."""
    torch.manual_seed(0)
    train.keep_freed_memory()
    model = train.Decoder(train.ModelConfig.from_dict(shape)).train()
    optimizer = train.make_optimizer(model, Config(name="breakdown", base=shape, data="none"))
    ids, targets = torch.randint(0, shape["vocab_size"], (2, rows, context))

    def step() -> None:
        model(ids, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        train.give_back("gradient", model.head_weight.grad)
        optimizer.zero_grad()

    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            step()
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in profile.key_averages():
        kind = next(kind for kind, names in KINDS.items() if any(name in event.key for name in names))
        seconds[kind] += event.self_cpu_time_total / 1e6 / steps
    matrices = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.dim() == 2)
    flops = 6 * rows * context * (matrices + shape["vocab_size"] * shape["hidden_size"])
    return seconds, flops / seconds["matrix products"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; both without")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        raise ValueError(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    device = torch.device("cpu")
    found = {row: measure(*ROWS[row], args.steps) for row in args.rows or ROWS}
    lines = [f"| share of a step | {' | '.join(found)} |", "|" + "---|" * (len(found) + 1)]
    for kind in KINDS:
        lines.append(f"| {kind} | {' | '.join(f'{s[kind] / sum(s.values()):.0%}' for s, _ in found.values())} |")
    lines.append(f"| products at, GFLOP/s | {' | '.join(f'{rate / 1e9:.0f}' for _, rate in found.values())} |")
    machine = train.matmul_rate(device, torch.float32)
    lines.append(f"| share of the machine's rate, {machine / 1e9:.0f} GFLOP/s | "
                 f"{' | '.join(f'{rate / machine:.0%}' for _, rate in found.values())} |")
    lines.append(f"| seconds a step, profiled | {' | '.join(f'{sum(s.values()):.2f}' for s, _ in found.values())} |")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "breakdown.md").write_text("\n".join(lines) + "\n")
    print("\n".join([*lines, "", f"wrote {args.out}/breakdown.md"]))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"benchmarks.breakdown: {error}", file=sys.stderr)
        sys.exit(2)
