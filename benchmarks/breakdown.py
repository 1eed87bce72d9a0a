"""Where a training step's time goes, and how near its products are to what the machine can multiply at.

    python -m benchmarks.breakdown small full-fp32

Rows are those of benchmarks.train, with nothing recomputed. Every operation is timed around its call; what is left of the step
is Python, autograd, torch's own dispatch and the watching. The machine's rate is that of train.py's MFU. Writes
results/breakdown.md.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.train import SMALL, WHOLE
from model import Decoder
from nanoprune.config import Config
from nanoprune.device import keep_freed_memory, matmul_rate
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.scratch import return_buffer
from train import make_optimizer

ROWS = {"small": (SMALL, 8, 256, 20), "full-fp32": (WHOLE, 1, 1024, 2)}  # shape, rows, context, steps
KINDS = {  # the first of which an operation's name contains one
    "matrix products": ("aten.mm.", "aten.addmm"),
    "attention (SDPA)": ("scaled_dot_product",),
    "optimizer and clipping": ("_fused_adamw", "_foreach"),
    "everything pointwise, sums, softmax, look-ups": ("",),
}


class Watch(TorchDispatchMode):
    """Sums the seconds of every operation by its kind."""

    def __init__(self):
        super().__init__()
        self.seconds = dict.fromkeys(KINDS, 0.0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        began = time.perf_counter()
        found = func(*args, **(kwargs or {}))
        took, name = time.perf_counter() - began, str(func)
        self.seconds[next(kind for kind, parts in KINDS.items() if any(part in name for part in parts))] += took
        return found


def measure(shape: dict, rows: int, context: int, steps: int) -> tuple[dict[str, float], float, float]:
    """(seconds a step by kind of operation, seconds of a whole step, FLOP/s of the products)."""
    torch.manual_seed(0)
    keep_freed_memory()
    model = Decoder(ModelConfig.from_dict(shape)).train()
    optimizer = make_optimizer(model, Config(name="breakdown", base=shape, data="none"))
    ids, targets = torch.randint(0, shape["vocab_size"], (2, rows, context))

    def step() -> None:
        model(ids, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return_buffer("gradient", model.head_weight.grad)
        optimizer.zero_grad()

    for _ in range(2):
        step()
    with Watch() as watch:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        whole = (time.perf_counter() - began) / steps
    seconds = {kind: total / steps for kind, total in watch.seconds.items()}
    matrices = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.dim() == 2)
    flops = 6 * rows * context * (matrices + shape["vocab_size"] * shape["hidden_size"])
    return seconds, whole, flops / seconds["matrix products"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; both without")
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        raise ValueError(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    device = torch.device("cpu")
    found = {row: measure(*ROWS[row]) for row in args.rows or ROWS}
    lines = [f"| share of a step | {' | '.join(found)} |", "|" + "---|" * (len(found) + 1)]
    for kind in KINDS:
        lines.append(f"| {kind} | {' | '.join(f'{seconds[kind] / whole:.0%}' for seconds, whole, _ in found.values())} |")
    left = (1 - sum(seconds.values()) / whole for seconds, whole, _ in found.values())
    lines.append(f"| Python, autograd and dispatch | {' | '.join(f'{share:.0%}' for share in left)} |")
    lines.append(f"| seconds a step | {' | '.join(f'{whole:.2f}' for _, whole, _ in found.values())} |")
    machine = matmul_rate(device, torch.float32)
    lines.append(f"| products at, GFLOP/s (the machine: {machine / 1e9:.0f}) | "
                 f"{' | '.join(f'{rate / 1e9:.0f}' for *_, rate in found.values())} |")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "breakdown.md").write_text("\n".join(lines) + "\n")
    print("\n".join([*lines, "", f"wrote {args.out}/breakdown.md"]))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"benchmarks.breakdown: {error}", file=sys.stderr)
        sys.exit(2)
