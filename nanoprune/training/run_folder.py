"""A run's folder: logs, model, and the states that make it resumable.

    config.json, env.json     the settings; versions, device and hashes that the numbers depend on
    train.csv, eval.csv       a row for each step and each validation
    model/                    the model to use, as Hugging Face's or PEFT's files
    state/step-00000200/
        training.safetensors  trained weights and optimizer moments, by parameter name
        state.json            counters and checksums of both: written last, so it marks a complete state

A state is written beside its place, synced and renamed. The two newest are kept: if one is damaged, the other
is used.
"""

import csv
import errno
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nanoprune.config import Config, Count, NonNegative, config_from_dict, field_problems, read_fields
from nanoprune.distributed import Ranks, join_full_tensors, restarted, shard_like
from nanoprune.io.files import (
    file_hash,
    json_hash,
    make_folder,
    naming_failures,
    read_json,
    write_bytes,
    write_csv,
    write_json,
)
from nanoprune.io.folders import lock, replace_folder
from nanoprune.io.hub import copy_tokenizer, matching_files
from nanoprune.io.tensors import file_order, open_tensors, write_tensors
from nanoprune.nn.peft import save_adapter
from nanoprune.training.model_card import Origin, write_card
from nanoprune.training.tracker import Tracker

if TYPE_CHECKING:
    from model import Decoder

STATES_KEPT = 2
# Entries of env.json that change the numbers, or their last digits.
DECISIVE = ("version", "base_config", "device", "threads", "torch", "numpy")
FREE_TO_CHANGE = ("name", "runs", "log")  # settings that a resumed run may change
FREE_FROM_STATE = (  # that a new run may change, which begins with the state of another
    *FREE_TO_CHANGE, "max_steps", "lr", "min_lr", "warmup_steps", "clip", "dtype", "eval_every", "save_every")


@dataclass
class Progress:
    """The counters of a run, which every state holds."""

    step: Count = 0  # updates made
    seconds: NonNegative = 0.0  # spent in the loop
    best: float = math.inf  # lowest validation loss
    best_step: int = 0  # its step
    stale: int = 0  # validations since then
    overflows: int = 0  # steps that float16 skipped
    in_a_row: int = 0  # steps skipped since the last update
    scaler: dict = field(default_factory=dict)  # float16's loss scale
    config: dict = field(default_factory=dict)  # the settings that the run began with
    finished: bool = False

    def count_validation(self, nll: float) -> bool:
        """True if this loss is the best so far."""
        if nll < self.best:
            self.best, self.best_step, self.stale = nll, self.step, 0
            return True
        self.stale += 1
        return False

    def count_overflow(self, overflow: bool) -> None:
        """Count a step by whether its loss or gradient is infinite."""
        self.overflows += overflow
        self.in_a_row = self.in_a_row + 1 if overflow else 0


@dataclass(frozen=True)
class Began:
    """The entries of env.json that are more than compared."""

    data: dict | None = None  # hashes by file, as are the next two
    base: dict | None = None
    teacher: dict | None = None
    ranks: Count = 1


class RunFolder:
    """The folder of a run. All ranks call its methods in the same order; rank 0 alone writes."""

    def __init__(
        self, config: Config, ranks: Ranks, resume: bool, from_state: Path | None = None,
        ignore_changes: bool = False,
    ):
        """Write nothing yet; ValueError if a new run would replace another one, or has no tracker.

        `from_state`: another run, with whose state a new one begins. `ignore_changes`: go on from a state
        although files or the machine changed since.
        """
        path = config.folder
        self.path, self.writes, self.logs, self.tracker = path, ranks.rank == 0, {}, Tracker(config)
        self.resume, self.source, self.saved = resume, path if resume else from_state, Progress()
        self.ignore_changes = ignore_changes
        self.settings, self.removed = {}, False  # bytes of files that are small, to be written again
        if ignore_changes and not self.source:
            raise ValueError("--ignore-changes goes with --resume or --from-state")
        if not resume and not restarted():
            advice = f"resume it (python train.py --resume {path}), " if has_state(path / "state") else ""
            files = [file.relative_to(path) for file in sorted(path.rglob("*"))
                     if file.is_symlink() or not file.is_dir()]  # through a link others' files are replaced
            if others := [str(file) for file in files if not str(file).startswith(".")]:
                raise ValueError(f"{path} holds a run already, or other files ({', '.join(others[:3])}): "
                                 f"{advice}give this one another name (--name={path.name}-2), or remove the "
                                 "folder")

    def __str__(self) -> str:
        return str(self.path)

    def lock(self) -> None:
        """Keep other processes out for as long as this object lives; ValueError if one is in already."""
        if not self.writes:
            return
        self._lock = open(make_folder(self.path) / ".lock", "a+")
        try:
            if not lock(self._lock):
                print(f"warning: {self} lies on a file system without locks: nothing keeps another process "
                      "from writing to it, too")
        except BlockingIOError as error:
            self._lock.seek(0)
            raise ValueError(f"another process ({self._lock.read().strip()}) is writing to {self}: wait for "
                             "it, or give this run another name") from error
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()}\n")
        self._lock.flush()

    def find_state(self, config: Config) -> bool:
        """Find the newest complete state to go on from, if any: True if the run is finished.

        ValueError if the state was reached with other settings.
        """
        if not self.source:
            return False
        self.saved, self.tensors = load_state(self.source / "state")
        now = json.loads(json.dumps(config.to_dict()))  # tuples become lists, as in the state
        free = FREE_TO_CHANGE if self.resume else FREE_FROM_STATE
        undecided = {"max_steps": config.epochs > 0, "dtype": config.dtype == "auto"}
        changed = [name for name, value in self.saved.config.items()
                   if now.get(name) != value and name not in free and not undecided.get(name)]
        if changed:
            raise ValueError(f"{self.source} began with other settings: {', '.join(changed)} changed. Only "
                             f"these may: {', '.join(free)}. Restore them (a run's own stand in its "
                             "config.json), or start a new run under another name")
        if self.resume and self.saved.finished:
            print(f"{self} is finished, at step {self.saved.step}: nothing to resume, {self}/model is up to "
                  "date")
            return True
        return False

    def begin(
        self, config: Config, env: dict, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
        *sources: Path | None,
    ) -> Progress:
        """Write what a new run begins with, or take a state into optimizer, parameters and loss scale.

        Of the tokenizer's files the last source's count. ValueError if the state was reached with other files
        or on another machine.
        """
        step, base = self.saved.step, sources[-1]
        self.origin = Origin(config.base, env["base"], base) if base else None
        if self.source:
            env = self._check_unchanged(env)
            load_tensors(self.tensors, optimizer)
        if self.resume:
            if self.writes and "began" in env:
                write_json(self.path / "env.json", env)
            scaler.load_state_dict(self.saved.scaler)
            self._open_logs(config, step)
            return self.saved
        if step >= config.max_steps:
            raise ValueError(f"the state of {self.source} is that after step {step}: set max_steps above it, "
                             f"given {config.max_steps}")
        if self.writes:
            write_json(self.path / "config.json", config.to_dict())
            write_json(self.path / "env.json", env)
            for source in filter(None, sources):
                copy_tokenizer(source, make_folder(self.path / "model"))
        self._open_logs(config, None)
        return Progress(step, config=config.to_dict())

    def _check_unchanged(self, env: dict) -> dict:
        """What env.json tells from now on; ValueError if the numbers would differ from those of a run that
        was never stopped, because files or the machine changed (with `ignore_changes` a warning).
        """
        # Runs of version 1 did not record it, nor their base's config.
        path = self.source / "env.json"
        began = {"version": 1, "base_config": env["base_config"]} | read_json(path)
        read = read_fields(Began, began, path)
        if read.ranks != env["ranks"]:
            print(f"note: {self.source} began with {read.ranks} processes and resumes with {env['ranks']}: "
                  "sums differ in the last digits")
            began = began | {"threads": env["threads"]}  # which follow from the number of processes
        changed = []
        for name in ("data", "base", "teacher"):
            before, now = getattr(read, name) or {}, env.get(name, {})
            files = sorted(file for file in before | now if before.get(file) != now.get(file))
            if files:
                changed.append(f"{name} ({', '.join(files)})")
        changed += [f"{name} ({began.get(name)} then, {env[name]} now)" for name in DECISIVE
                    if began.get(name) != env[name]]
        if changed and not self.ignore_changes:
            raise ValueError(f"{self.source} began with other files or another machine: "
                             f"{'; '.join(changed)}. Its numbers would not be those of a run that was never "
                             "stopped: restore them, start a new run under another name, or add "
                             f"--ignore-changes to train.py, and {self}/env.json records it")
        if changed:
            print(f"warning: {self.source} goes on although this changed since it began: "
                  f"{'; '.join(changed)}")
        elif began.get("git") != env["git"]:
            print(f"warning: the code changed since {self.source} began ({began.get('git')} then, "
                  f"{env['git']} now)")
        if changed or not self.resume:
            env = env | {"from": str(self.source), "began": began}
        return env

    def _open_logs(self, config: Config, step: int | None) -> None:
        self.logs = {name: Log(self.path / f"{name}.csv", step)
                     for name in ("train", "eval", "eval_documents")}
        files = [self.path / "config.json", self.path / "env.json"]
        files += matching_files(self.path / "model")
        self.settings = {path: path.read_bytes() for path in files if path.is_file()}
        if self.writes:
            self.tracker.begin(config, self.resume)

    def log(self, name: str, **row) -> None:
        """Add a row to a log, and send it to the tracker, unless it was before this run was resumed."""
        if self.writes:
            self._write_removed()
            self.logs[name].write(**row)
            if name != "eval_documents" and row["step"] > self.logs[name].before:
                self.tracker.log(name, row)

    def _write_removed(self) -> None:
        """Write logs and settings again if the folder was removed or moved away: the run goes on."""
        if all(log.is_there() for log in self.logs.values()):
            return
        print(f"warning: {self} was removed or moved while it trains; settings and logs are written again")
        self.removed = True
        with naming_failures(f"write {self} again, which was removed while it trains"):
            self.lock()
            for path, content in self.settings.items():
                write_bytes(path, content)
            for log in self.logs.values():
                log.write_again()

    def log_validation(self, loss: dict, documents: list[dict], **mark) -> None:
        """Add a row to eval.csv, and one for each document to eval_documents.csv; `mark`: step and tokens."""
        self.log("eval", **mark, split="val", **loss, documents=len(documents))
        for document in documents:
            self.log("eval_documents", **mark, **document)

    def save_model(self, model: "Decoder") -> None:
        """Write model/: the whole model, or its adapters alone."""
        if self.writes and model.adapter:
            save_adapter(model, self.path / "model")
        elif self.writes:
            model.save_pretrained(self.path / "model")
        elif not model.adapter:
            join_full_tensors(file_order(model.state_dict()).values())

    def save_state(self, progress: Progress, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after `progress.step` steps."""
        tensors = state_tensors(optimizer)
        if self.writes:
            write_state(self.path / "state", tensors, progress)
        else:
            join_full_tensors(tensors.values())

    def conclude(self, progress: Progress, config: Config, stop_signals: list[str]) -> None:
        """Say how the run ended, and where its results are; `stop_signals`: received by this process.

        ValueError if its folder was removed while it trained.
        """
        self._write_removed()
        if self.writes and (self.path / "model" / "config.json").is_file():
            try:
                write_card(self.path / "model", self.origin)
            except ValueError as error:
                print(f"warning: {self}/model has no card: {error}")
        self.tracker.finish()
        if self.removed:
            there = ["settings", "logs"] + [name for name in ("model", "state")
                                            if any((self.path / name).rglob("*.safetensors"))]
            raise ValueError(f"{self} was removed or moved while it trained, up to step {progress.step}. "
                             f"Written again: {', '.join(there)}; what else was in it is lost, unless it was "
                             "moved")
        if progress.overflows and config.dtype == "float16":
            print(f"{progress.overflows} steps were skipped, because their gradients overflowed in float16")
        if not progress.finished:
            stopped_by = stop_signals[0] if stop_signals else "another process"
            print(f"stopped by {stopped_by} after step {progress.step}, saved in {self}/state; resume "
                  f"with python train.py --resume {self}")
            return
        if config.patience and progress.stale >= config.patience:
            print(f"stopped: {config.patience} validations without a better loss than at step "
                  f"{progress.best_step}")
        if config.keep == "best" and not progress.best_step:
            print(f"warning: no validation was better than the one before training, so {self}/model holds "
                  "the untrained model; lower lr, or set keep=last for both arms")
        best = f"step {progress.best_step}, nll {progress.best:.4f}"
        chosen = best if config.keep == "best" else f"step {progress.step}"
        print(f"wrote {self}/model ({config.keep}: {chosen}), {self}/train.csv, {self}/eval.csv, "
              f"{self}/state")


class Log:
    """A CSV file that grows by whole lines; its first row names the columns.

    A run resumed after `step` drops the rows of later steps; a new run (None) drops all.
    """

    def __init__(self, path: Path, step: int | None):
        self.path, self.file, self.rows, self.before = path, None, [], -1
        if step is not None and path.is_file():
            rows = csv.DictReader(path.read_text().splitlines())
            # A kill can leave half a last line: it has too few cells, or no step.
            rows = [row for row in rows if None not in row.values()]
            self.before = max((int(row["step"]) for row in rows), default=-1)
            self.rows = [row for row in rows if int(row["step"]) <= step]

    def write(self, **row) -> None:
        """Add one line, on the disk before this returns."""
        if self.file is None:
            write_csv(self.path, self.rows, row)
            self.file = open(self.path, "ab+", buffering=0)
        line, end = (",".join(map(str, row.values())) + "\n").encode(), self.file.seek(0, os.SEEK_END)
        try:
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.file.truncate(end)  # no half line
            raise ValueError(f"cannot write {self.path}: {error}; free some space and resume from the last "
                             "saved state") from error

    def is_there(self) -> bool:
        """False if the file was removed or replaced since it was opened."""
        try:
            return not self.file or os.path.samefile(self.path, self.file.fileno())
        except OSError:
            return False

    def write_again(self) -> None:
        """Write the file anew: what was removed can be read for as long as it is open."""
        if self.file:
            self.file.seek(0)
            write_bytes(self.path, self.file.read())
            self.file = open(self.path, "ab+", buffering=0)


def has_state(folder: Path) -> bool:
    """True if a state folder holds a complete state."""
    return bool(_states(folder))


def saved_config(run: Path) -> Config:
    """The config of a run to resume; ValueError if it has no state or was moved."""
    if not has_state(run / "state"):
        raise ValueError(f"there is no saved state in {run} to resume from; a run that stopped before its "
                         "first save starts anew: remove its folder and run its config again")
    config = config_from_dict(read_json(run / "config.json"), f"{run}/config.json")
    if config.folder.resolve() != run.resolve():
        raise ValueError(f"{run} was written as {config.folder}; move it back there to resume it")
    return config


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The tensors of a state in the order of its file; the optimizer knows its parameters' names."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            tensors[f"weights/{name}"] = parameter
            for key, value in optimizer.state[parameter].items():
                tensors[f"optimizer/{name}/{key}"] = value
    return file_order(tensors)


@torch.no_grad()
def load_tensors(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Copy a state's tensors, or this rank's shards, one at a time into the optimizer and its parameters.

    ValueError where they are those of another model or optimizer.
    """
    tensors = state_tensors(optimizer)
    with open_tensors(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            raise ValueError(f"{path} is the state of another model or optimizer: its tensors have other "
                             "names or shapes")
        for name, tensor in tensors.items():
            tensor.copy_(shard_like(file.get_tensor(name), tensor))


def write_state(folder: Path, tensors: dict[str, torch.Tensor], progress: Progress) -> None:
    """Write one state, and remove all but the newest, and what a kill has left of others."""
    for unfinished in folder.glob(".step-*"):
        shutil.rmtree(unfinished)
    with replace_folder(folder / f"step-{progress.step:08d}") as state:
        write_tensors(state / "training.safetensors", tensors)
        counters = asdict(progress) | {"sha256": file_hash(state / "training.safetensors")}
        write_json(state / "state.json", {"counters": counters, "sha256": json_hash(counters)})
    for old in _states(folder)[:-STATES_KEPT]:
        shutil.rmtree(old)


def load_state(folder: Path) -> tuple[Progress, Path]:
    """(counters, file of the tensors) of the newest complete state; a damaged one is named and skipped."""
    for state in reversed(_states(folder)):
        try:
            content, tensors = read_json(state / "state.json"), state / "training.safetensors"
            counters = content["counters"]
            if content["sha256"] != json_hash(counters):
                raise ValueError(f"{state / 'state.json'} is damaged: its checksum is wrong")
            if counters.pop("sha256") != file_hash(tensors):
                raise ValueError(f"{tensors} is damaged: its checksum is wrong")
            progress = Progress(**counters)
            best = 0.0 if progress.best == math.inf else progress.best  # there was none yet
            if problems := field_problems(replace(progress, best=best)):
                raise ValueError(f"{state / 'state.json'} is damaged: {'; '.join(problems)}")
            return progress, tensors
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            print(f"warning: {error}; trying the state before it")
    raise ValueError(f"{folder} holds no complete state to resume from; start the run anew under another "
                     "name")


def _states(folder: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())
