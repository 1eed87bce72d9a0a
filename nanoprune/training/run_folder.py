"""A run's state on disk: atomic, checked, resumable; and what the run began on, which it must go on with.

    state/step-00000200/training.safetensors    weights that are trained and optimizer moments, by parameter name
                      state.json              step, counters, checksums of both: written last, so its presence means complete

A state is written beside, synced and renamed; the two newest are kept, so that a damaged one has a predecessor.
"""

import csv
import errno
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import IO

import numpy as np
import torch

from nanoprune.distributed import shard_like
from nanoprune.io.files import file_hash, make_folder, read_json, write_json, write_text
from nanoprune.io.tensors import file_order, open_tensors, write_tensors

try:
    import fcntl
except ImportError:  # not on Windows: nobody watches there that a folder has one writer
    fcntl = None

STATES_KEPT = 2
DECISIVE = ("device", "threads", "torch", "numpy")  # of env.json: what the last digits depend on


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All that a state holds, by name, in the order of the file; the optimizer's groups must carry the parameters' names."""
    tensors = {f"weights/{name}": parameter for name, parameter in _named(optimizer)}
    for name, parameter in _named(optimizer):
        tensors |= {f"optimizer/{name}/{key}": torch.as_tensor(value) for key, value in optimizer.state[parameter].items()}
    return file_order(tensors)


def save_state(folder: Path, step: int, tensors: dict[str, torch.Tensor], counters: dict) -> Path:
    """Write the state after `step` steps."""
    state = make_folder(folder) / f"step-{step:08d}"
    beside = folder / f"step-{step:08d}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        counters = counters | {"step": step, "sha256": write_tensors(beside / "training.safetensors", tensors)}
        write_json(beside / "state.json", {"counters": counters, "sha256": _hash(counters)})
        shutil.rmtree(state, ignore_errors=True)
        beside.rename(state)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    for old in _states(folder)[:-STATES_KEPT]:
        shutil.rmtree(old)
    return state


def load_state(folder: Path) -> tuple[dict, Path]:
    """(counters, file of the tensors) of the newest complete state; a damaged one is named and the one before it used."""
    for state in reversed(_states(folder)):
        try:
            found = read_json(state / "state.json")
            if found["sha256"] != _hash(found["counters"]):
                raise ValueError(f"{state / 'state.json'} is damaged: its checksum is wrong")
            if found["counters"]["sha256"] != file_hash(state / "training.safetensors"):
                raise ValueError(f"{state / 'training.safetensors'} is damaged: its checksum is wrong")
            return found["counters"], state / "training.safetensors"
        except (ValueError, OSError, KeyError, TypeError) as error:
            print(f"warning: {error}; trying the state before it")
    raise ValueError(f"{folder} holds no complete state to resume from; start the run anew under another name")


@torch.no_grad()
def restore(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put a state's tensors into the optimizer and its parameters, one at a time; of a divided model, this rank's parts."""
    with open_tensors(path) as file:
        for name, parameter in _named(optimizer):
            parameter.copy_(shard_like(file.get_tensor(f"weights/{name}"), parameter))
            prefix, state = f"optimizer/{name}/", optimizer.state[parameter]
            for key in (key.removeprefix(prefix) for key in file.keys() if key.startswith(prefix)):
                value = file.get_tensor(prefix + key).clone()
                value = value if key == "step" else shard_like(value, parameter)
                on_cpu = key == "step" and key not in state  # the lean optimizer's
                state[key] = value if on_cpu else value.to(parameter.device)


def has_state(folder: Path) -> bool:
    return bool(_states(folder))


def lock_folder(folder: Path) -> IO | None:
    """A file that says whose folder it is, as long as it is held; ValueError where another process holds it.

    The system lets go of it when the process ends, however it ends.
    """
    file = open(make_folder(folder) / ".lock", "a+")
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        raise ValueError(f"another process ({file.read().strip()}) is writing to {folder}: wait for it, or give this run "
                         "another name") from error
    file.truncate(0)
    file.write(f"process {os.getpid()}\n")
    file.flush()
    return file


def environment(device: torch.device) -> dict:
    """What a run depends on besides its config, data and base."""
    describe = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    git = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True) if shutil.which("git") else None
    return {
        "git": git.stdout.strip() or None if git else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()} "
                  + torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def check_unchanged(run: Path, env: dict, anyway: bool, write: bool) -> None:
    """ValueError if a run would go on elsewhere than it began, where its numbers would differ without a word of it."""
    began = read_json(run / "env.json")
    changed = []
    for name in ("data", "base", "teacher"):
        before, now = began.get(name) or {}, env.get(name, {})
        files = sorted(file for file in before | now if before.get(file) != now.get(file))
        changed += [f"{name} ({', '.join(files)})"] if files else []
    if began.get("ranks", 1) != env["ranks"]:
        print(f"note: {run} began with {began.get('ranks', 1)} processes, and goes on with {env['ranks']}: sums differ in the "
              "last digits")
        began = began | {"threads": env["threads"]}  # which follow from the processes
    changed += [f"{name} ({began.get(name)} then, {env[name]} now)" for name in DECISIVE if began.get(name) != env[name]]
    if changed and not anyway:
        raise ValueError(f"{run} began on something else than there is now: {'; '.join(changed)}. Its numbers would not be "
                         "those of a run that was never stopped: put it back, begin anew under another name, or go on "
                         f"regardless with --anyway, which {run}/env.json then tells")
    if changed:
        print(f"warning: {run} goes on although this changed since it began: {'; '.join(changed)}")
        if write:
            write_json(run / "env.json", env | {"began": began})
    elif began.get("git") != env["git"]:
        print(f"warning: the code is another than when {run} began ({began.get('git')} then, {env['git']} now)")


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
        self.file = open(path, "ab", buffering=0)

    def write(self, **row) -> None:
        """One line, on the disk before this returns."""
        assert tuple(row) == self.columns, f"{tuple(row)} are not the columns {self.columns}"
        line, end = ",".join(str(value) for value in row.values()) + "\n", self.file.seek(0, os.SEEK_END)
        try:
            if self.file.write(line.encode()) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self.file.fileno(), end)  # no half line
            raise ValueError(f"cannot write {self.path}: {error}; make room and go on from the last saved state") from error


def _hash(counters: dict) -> str:
    return hashlib.sha256(json.dumps(counters, sort_keys=True).encode()).hexdigest()


def _named(optimizer: torch.optim.Optimizer):
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


def _states(folder: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp" and (path / "state.json").is_file())
