"""benchmarks.train: its tables from made-up measurements, and the least time of a step."""

import pytest
import torch

from benchmarks import limit
from benchmarks.common import SMALL
from benchmarks.limit import step_limit
from benchmarks.train import ROWS, check_losses, tabulate
from nanoprune.config import Config


def measurements(name: str, **ours) -> list[dict]:
    """Two rounds of every side of a row; a peer has half of our speed, the next half of its, and so on."""
    common = {"row": name, "step_s": 1.0, "first_loss": 2.0, "last_losses": 1.5, "overhead": 0.01,
              "loss_differs": 0.0, "machine": "one", "versions": "torch"}
    return [common | {"setting": side, "round": turn, "rate": 8 / 2**number, "memory_gb": 3.0 * number + 3}
            | (ours if side == "nanoprune" else {})
            for turn in range(2) for number, side in enumerate(("nanoprune", *ROWS[name].peers))]


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_its_table(name):
    header, _, row, *_ = tabulate(measurements(name))
    cells = dict(zip(header.split("|"), row.split("|"), strict=True))
    best = next(iter(ROWS[name].peers))
    assert cells[" to its best setting "] == f" 2.00 (2.00 to 2.00), {best} "
    assert cells[" to its best setting's "] == " 0.50 (0.50 to 0.50) "
    plain = " 2.00 (2.00 to 2.00) " if best == "as it comes" else "  "
    assert cells[" speed to Trainer as it comes "] == plain


def test_sides_that_did_not_compute_the_same_are_named():
    rows = measurements("lean")
    check_losses(rows)
    rows[1]["loss_differs"] = 0.1
    with pytest.raises(ValueError, match=r"lean \(8 bits, checkpointing: 1.0e-01\)"):
        check_losses(rows)


def test_the_limit_follows_the_settings(monkeypatch):
    """Lean moves fewer bytes; blocks that are recomputed multiply once more."""
    monkeypatch.setattr(limit, "seconds", lambda function, *arguments: 1.0)
    shape = SMALL | {"num_hidden_layers": 1}
    config = {"name": "limit", "base": shape, "data": "none", "context": 8, "batch_size": 1}
    adamw = step_limit(shape, Config(**config), torch.float32)
    lean = step_limit(shape, Config(**config, optimizer="lean", clip=0, accumulation=1, recompute="blocks"),
                      torch.float32)
    assert adamw["products"] == 3 * 8  # seven matrices and the head
    assert lean["products"] == 4 * 7 + 3
    assert lean["optimizer"] == pytest.approx(adamw["optimizer"] * 18 / 28)
