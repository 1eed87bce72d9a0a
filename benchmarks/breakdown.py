"""The share of a training step that each kind of operation takes, and the rate of its matrix products.

    python -m benchmarks.breakdown small full-fp32

Rows are those of benchmarks.train, with nothing recomputed. Every operation is timed around its call; the
rest of the step is Python, autograd, torch's own dispatch and the watching. The machine's rate is that of
train.py's MFU. Writes results/breakdown.md. """

import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import SMALL, WHOLE, make_parser
from benchmarks.tables import markdown
from model import Decoder
from nanoprune import command_line
from nanoprune.config import Config
from nanoprune.device import keep_freed_memory, matmul_rate
from nanoprune.io.files import write_text
from nanoprune.nn.model_config import ModelConfig
from train import make_optimizer

ROWS = {"small": (SMALL, 8, 256, 20), "full-fp32": (WHOLE, 1, 1024, 2)}  # shape, rows, context, steps
KINDS = {  # an operation is of the first kind one of whose words its name contains
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
        result = func(*args, **(kwargs or {}))
        took, name = time.perf_counter() - began, str(func)
        kind = next(kind for kind, words in KINDS.items() if any(word in name for word in words))
        self.seconds[kind] += took
        return result


def measure(shape: dict, rows: int, context: int, steps: int) -> dict:
    """Shares of a step by kind of operation, seconds of a whole step, FLOP/s of the products."""
    torch.manual_seed(0)
    keep_freed_memory()
    model = Decoder(ModelConfig.from_dict(shape)).train()
    optimizer = make_optimizer(model, Config(name="breakdown", base=shape, data="none"))
    ids, targets = torch.randint(0, shape["vocab_size"], (2, rows, context))

    def step() -> None:
        model(ids, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step()
    with Watch() as watch:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = time.perf_counter() - began
    matrices = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.dim() == 2)
    flops = 6 * rows * context * (matrices + shape["vocab_size"] * shape["hidden_size"]) * steps
    shares = {kind: part / seconds for kind, part in watch.seconds.items()}
    return {"shares": shares, "step_s": seconds / steps, "rate": flops / watch.seconds["matrix products"]}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; both without")
    args = parser.parse_args()
    names = args.rows or list(ROWS)
    if unknown := set(names) - set(ROWS):
        raise ValueError(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    measured = [measure(*ROWS[name]) for name in names]
    rows = [[kind, *(f"{row['shares'][kind]:.0%}" for row in measured)] for kind in KINDS]
    rest = [1 - sum(row["shares"].values()) for row in measured]
    rows.append(["Python, autograd and dispatch", *(f"{share:.0%}" for share in rest)])
    rows.append(["seconds a step", *(f"{row['step_s']:.2f}" for row in measured)])
    machine_rate = matmul_rate(torch.device("cpu"), torch.float32)
    rows.append([f"products at, GFLOP/s (the machine: {machine_rate / 1e9:.0f})",
                 *(f"{row['rate'] / 1e9:.0f}" for row in measured)])
    text = "\n".join(markdown(["share of a step", *names], rows)) + "\n"
    write_text(args.out / "breakdown.md", text)
    print(f"{text}\nwrote {args.out}/breakdown.md")


if __name__ == "__main__":
    command_line.run(main)
