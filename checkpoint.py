"""A run's state on disk: atomic, checked, resumable.

    state/step-00000200/training.safetensors    weights and optimizer moments, by parameter name
                      state.json              step, counters, file checksum: written last, so its presence means complete

A state is written beside, synced and renamed; the two newest are kept, so that a damaged one has a predecessor.
"""

import csv
import io
import shutil
from pathlib import Path

import torch

from files import file_hash, make_folder, read_json, read_tensors, write_json, write_tensors, write_text

KEPT = 2


def save_state(folder: Path, step: int, weights: dict, optimizer: torch.optim.Optimizer, counters: dict) -> Path:
    """Write the state after `step` steps; the parameters must carry names in the optimizer's groups."""
    state = make_folder(folder) / f"step-{step:08d}"
    beside = folder / f"step-{step:08d}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    for name, parameter in _named(optimizer):
        tensors |= {f"optimizer/{name}/{key}": torch.as_tensor(value) for key, value in optimizer.state[parameter].items()}
    try:
        write_tensors(beside / "training.safetensors", tensors)
        write_json(beside / "state.json", counters | {"step": step, "sha256": file_hash(beside / "training.safetensors")})
        shutil.rmtree(state, ignore_errors=True)
        beside.rename(state)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    for old in _states(folder)[:-KEPT]:
        shutil.rmtree(old)
    return state


def load_state(folder: Path, device) -> tuple[dict, dict[str, torch.Tensor]]:
    """(counters, tensors) of the newest complete state; a damaged one is named and the one before it used."""
    for state in reversed(_states(folder)):
        try:
            counters = read_json(state / "state.json")
            if counters["sha256"] != file_hash(state / "training.safetensors"):
                raise ValueError(f"{state / 'training.safetensors'} is damaged: its checksum is wrong")
            return counters, read_tensors(state / "training.safetensors", device)
        except (ValueError, OSError, KeyError) as error:
            print(f"warning: {error}; trying the state before it")
    raise ValueError(f"{folder} holds no complete state to resume from; start the run anew under another name")


def restore(tensors: dict[str, torch.Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a loaded state's tensors into the model and the optimizer."""
    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(part("weights/"))
    for name, parameter in _named(optimizer):
        optimizer.state[parameter] = part(f"optimizer/{name}/")


def has_state(folder: Path) -> bool:
    return bool(_states(folder))


class Log:
    """A CSV file that grows by whole lines; a run resumed after a step writes what comes later again (None: all)."""

    def __init__(self, path: Path, columns: tuple[str, ...], step: int | None):
        self.path, self.columns = path, columns
        rows = []
        if step is not None and path.is_file():
            with open(path, newline="") as file:
                # A kill can leave half a last line: it has too few cells, or no step.
                rows = [row for row in csv.DictReader(file) if None not in row.values() and int(row["step"]) <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
        self.file = open(path, "a", newline="")

    def write(self, **row) -> None:
        """One line, on the disk before this returns."""
        assert tuple(row) == self.columns, f"{tuple(row)} are not the columns {self.columns}"
        try:
            self.file.write(",".join(str(value) for value in row.values()) + "\n")
            self.file.flush()
        except OSError as error:
            raise ValueError(f"cannot write {self.path}: {error}; make room and go on from the last saved state") from error


def _named(optimizer: torch.optim.Optimizer):
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


def _states(folder: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp" and (path / "state.json").is_file())
