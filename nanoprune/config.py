"""The settings of an experiment: a frozen, flat `Config`, read from a Python file that binds `config`.

The file is the user's own code and is executed. `--key=value` overrides are read by the field's type. All
problems are reported together, before anything is downloaded or allocated.
"""

import difflib
import math
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

MOST_OVERFLOWS = 30  # steps in a row that float16 may skip: its loss scale has then fallen to nothing
IGNORE = -100  # a target that does not count, torch's convention
MOST_ENTRIES = 10**5  # of a field
MOST_STEP_TOKENS = 2**26  # of an optimizer step: 1.6 GB of ids, targets and documents


# ---------------------------------------------------------------- types of fields, with their bounds
class Bound(NamedTuple):
    """What a field allows, in words and as a test of its value."""

    words: str
    holds: Callable[[Any], bool]


def whole(least: int, most: int) -> Any:
    """The type of a whole number from `least` to `most`."""
    return Annotated[int, Bound(f"from {least:,} to {most:,}", lambda x: least <= x <= most)]


def _names_parts(blocks: Iterable[int | str]) -> bool:
    """True if every name is 25, "25.attn" or "25.mlp", and each block is named once."""
    names = [str(block) for block in blocks]
    known = all(re.fullmatch(r"\d+(\.attn|\.mlp)?", name) for name in names)
    return known and len({name.partition(".")[0] for name in names}) == len(names)


def _once(values: tuple, holds: Callable[[Any], bool]) -> bool:
    return len(set(values)) == len(values) and all(map(holds, values))


Name = Annotated[str, Bound("a plain folder name, without slashes", lambda x: Path(x).name == x
                            and x.isprintable() and x not in ("", ".."))]
Base = Annotated[str | dict, Bound("a hub name, a folder, a run or a shape", bool)]
Parts = Annotated[tuple[int | str, ...], Bound(
    "indices from 0 up, each once, or parts of these blocks such as 25.attn and 25.mlp", _names_parts)]
Device = Annotated[str, Bound("auto, cpu, cuda, cuda:N or mps",
                              re.compile(r"auto|cpu|cuda(:\d{1,3})?|mps").fullmatch)]
Positive, Count, Threads, Seed = whole(1, 10**7), whole(0, 10**7), whole(0, 1024), whole(0, 2**62)
PositiveFloat = Annotated[float, Bound("above 0", lambda x: x > 0)]
NonNegative = Annotated[float, Bound("0 or more", lambda x: x >= 0)]
Share = Annotated[float, Bound("from 0 to 1", lambda x: 0 <= x <= 1)]
ShareBelow1 = Annotated[float, Bound("from 0 to below 1", lambda x: 0 <= x < 1)]
ShareAbove0 = Annotated[float, Bound("above 0 and at most 1", lambda x: 0 < x <= 1)]
Rate = Annotated[float, Bound("above 0 and below 1", lambda x: 0 < x < 1)]
Rates = Annotated[tuple[float, ...], Bound(
    "numbers above 0 and below 1, each once, at least one", lambda xs: xs and _once(xs, lambda x: 0 < x < 1))]
Seeds = Annotated[tuple[int, ...], Bound(
    "whole numbers from 0 up, each once, at least one", lambda xs: xs and _once(xs, lambda x: x >= 0))]
Factors = Annotated[tuple[float, ...], Bound(
    "numbers above 1, each once", lambda xs: _once(xs, lambda x: x > 1))]
Arms = Annotated[tuple[int | str, ...], Bound(
    "blocks such as 14, parts such as 14.attn, or several such as 12+14, each once",
    lambda xs: _once(tuple(map(str, xs)), lambda x: x == "none" or _names_parts(x.split("+"))))]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Frozen = Literal["stored", "float32", "bfloat16", "float16", "nf4"]
FROZEN = get_args(Frozen)


# ---------------------------------------------------------------- the settings
class Settings:
    """What `Config` and `Study` share: the check of their values."""

    def problems(self) -> list[str]:
        """All problems of the values, one line each: field, value given, what is allowed."""
        conflicts = [] if field_problems(self, with_bounds=False) else self._conflicts()
        return field_problems(self) + conflicts


@dataclass(frozen=True)
class Config(Settings):
    # what is trained
    name: Name  # the run's name; its folder is runs/<name>
    base: Base  # hub name, folder or run; or the shape of a model with random weights (config.json's entries)
    data: str  # dataset folder made by prepare.py
    revision: str | None = None  # of a hub base: branch, tag or commit
    drop_blocks: Parts = ()  # removed from the base before training: 25, or "25.attn" or "25.mlp" of it
    runs: str = "runs"  # folder that holds the runs

    # what it sees
    context: Positive = 1024  # tokens a row
    batch_size: Positive = 4  # rows a micro-batch
    accumulation: Positive = 8  # micro-batches a step; batch_size x accumulation x context tokens a step
    pair_repeats: Count = 0  # times an epoch that each question/answer pair is seen (0: documents only)
    replay: ShareBelow1 = 0.0  # share of an epoch that is general text (prepare.py --replay)
    max_steps: Positive = 1000  # optimizer steps
    epochs: Count = 0  # times through the data, which then decide on max_steps (0: max_steps counts)
    seed: Seed = 0  # of the order of documents, of dropout and, from scratch, of the weights

    # how it learns: AdamW, linear warm-up, cosine decay
    lr: Rate = 2e-5  # highest learning rate
    min_lr: Share = 0.1  # the last step's learning rate, as a share of lr
    warmup_steps: Count = 50  # steps until lr is reached
    weight_decay: NonNegative = 0.1  # on matrices only, never on norms and biases
    beta1: ShareBelow1 = 0.9  # AdamW: memory of the gradient
    beta2: ShareBelow1 = 0.95  # AdamW: memory of its square
    eps: PositiveFloat = 1e-8  # AdamW: added to the denominator
    teacher: str | None = None  # model whose likeliest next tokens are learned, too: hub name, folder or run
    teacher_share: ShareAbove0 = 0.5  # of the loss: divergence from the teacher; the rest is cross entropy
    teacher_top: Positive = 32  # likeliest tokens that are kept of it, in <runs>/teachers
    teacher_temperature: PositiveFloat = 1.0  # above 1: a flatter distribution
    clip: NonNegative = 1.0  # largest gradient norm (0: no clipping)
    optimizer: Literal["adamw", "lean"] = "adamw"  # lean: small moments, no clipping

    # adapters: low-rank matrices learn beside a base that does not
    lora: str = ""  # layers that get one: q_proj,v_proj or model.layers.3.* or all (empty: all weights learn)
    lora_rank: Positive = 8  # rank of an adapter's two matrices
    lora_alpha: PositiveFloat = 16.0  # an adapter counts alpha / rank times
    lora_dropout: ShareBelow1 = 0.0  # share of an adapter's inputs that is zeroed at random
    lora_root: bool = False  # an adapter counts alpha / sqrt(rank) times (rsLoRA)
    frozen: Frozen = "stored"  # type of the base's matrices; nf4 is four bits (QLoRA)

    # how it runs
    device: Device = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: Dtype = "auto"  # of the products, by autocast; auto: the fastest that the device has units for
    tf32: bool = False  # float32 products on CUDA with 10 bits of fraction instead of 23: faster
    recompute: Literal["none", "pointwise", "blocks"] = "none"  # in the backward pass
    compile: bool = False  # blocks by torch.compile, which takes a while at the first step
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: each process has all, or a shard
    threads: Threads = 0  # CPU threads (0: torch's choice); results repeat bit by bit at a fixed number

    # what it reports and keeps
    log: Literal["none", "wandb", "trackio", "tensorboard"] = "none"  # where its rows go besides the CSVs
    log_every: Positive = 1  # steps between printed lines; train.csv has every step
    eval_every: Count = 100  # steps between validations (0: only before the first step and after the last)
    eval_documents: Count = 0  # validation documents used, evenly spaced (0: all)
    patience: Count = 0  # stop after this many validations without a better loss (0: never)
    keep: Literal["best", "last"] = "best"  # which weights become model/; the same for both arms
    save_every: Count = 100  # steps between saves of the state that --resume needs (0: only at the end)

    def __new__(cls, **settings):
        """Name every unknown or missing field at once; the dataclass itself would stop at the first."""
        problems = [_unknown(name, _types(cls)) for name in settings if name not in _types(cls)]
        problems += [f"{name}: missing; every config names it" for name in _missing(cls, settings)]
        if problems:
            raise ValueError("\n  ".join(problems))
        return super().__new__(cls)

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.accumulation

    @property
    def tokens_per_step(self) -> int:
        return self.context * self.rows_per_step

    def to_dict(self) -> dict:
        return asdict(self)

    def _conflicts(self) -> list[str]:
        """Problems of settings that do not go together."""
        scratch, most = isinstance(self.base, dict), math.inf if self.epochs else self.max_steps
        rules = [
            (self.warmup_steps >= most,
             f"warmup_steps: given {self.warmup_steps}, must be from 0 to below max_steps ({most})"),
            (self.tokens_per_step > MOST_STEP_TOKENS,
             f"accumulation: batch_size x accumulation x context comes to {self.tokens_per_step:,} tokens a "
             f"step, at most {MOST_STEP_TOKENS:,} are allowed; lower one of them"),
            (self.optimizer == "lean" and (self.clip or self.accumulation > 1 or self.dtype == "float16"),
             f"optimizer: lean updates during the backward pass, so it needs clip=0 (given {self.clip}), "
             f"accumulation=1 (given {self.accumulation}) and no float16 (given {self.dtype})"),
            (self.patience and not self.eval_every,
             f"patience: given {self.patience}, has no effect without eval_every; set eval_every or "
             "patience=0"),
            (self.revision and (scratch or Path(self.base).exists()),
             f"revision: given {self.revision!r}, has no effect on a base that is no hub name; remove it"),
            (self.lora and (scratch or self.compile),
             "lora: adapters need a trained base (a hub name, a folder or a run), and compile=false"),
            (scratch and self.drop_blocks,
             "drop_blocks: a model trained from scratch has no blocks worth dropping; lower "
             "num_hidden_layers"),
        ]
        rules += [(not self.lora and getattr(self, f.name) != f.default,
                   f"{f.name}: given {getattr(self, f.name)!r}, has no effect without lora; set "
                   "lora=q_proj,v_proj or all")
                  for f in fields(self) if f.name.startswith("lora_") or f.name == "frozen"]
        return [problem for broken, problem in rules if broken]


@dataclass(frozen=True)
class Study(Settings):
    """Each block removed and healed, beside the full model on the same tokens, as study.py runs it."""

    name: Name  # its folder is <training.runs>/<name>
    training: Config  # of all runs, but for name, seed, lr and drop_blocks
    learning_rates: Rates  # tried by both arms, full and reduced, on the first seed
    seeds: Seeds = (0, 1, 2)  # of the order of documents: a run of every arm each
    blocks: Arms = ()  # what is removed, an arm each: 14, "14.attn", or "12+14" (none named: every block)
    once: Arms = ()  # arms that run on the first seed alone; "none" is the full model's
    longer: Factors = ()  # heal the block whose removal costs least this many times as long, too
    adapters: dict = field(default_factory=dict)  # settings to heal by adapters, too: dict(lora="all", ...)
    distill: bool = True  # heal the block whose removal costs least with the full model as its teacher, too
    rounded: bool = True  # measure the full model with matrices rounded to NF4 and int8, too
    general: str = "qa/general.jsonl"  # general text, to see what is forgotten (lines with a `text`)
    results: str = ""  # folder that holds the tables and what was measured, in <name> (empty: the runs')
    keep_models: bool = False  # keep the weights of every run

    @property
    def runs_folder(self) -> Path:
        return Path(self.training.runs) / self.name

    @property
    def folder(self) -> Path:
        return Path(self.results or self.training.runs) / self.name

    def _conflicts(self) -> list[str]:
        training = self.training
        rules = [
            (training.drop_blocks or training.teacher or isinstance(training.base, dict),
             "training: drop_blocks and teacher are the study's to set, and base must be a trained model"),
            (training.keep != "last" or training.patience,
             "training: set keep='last' and patience=0, so that every run takes the same steps"),
            (self.adapters.keys() & {"name", "runs", "seed", "teacher", "drop_blocks"},
             "adapters: name, runs, seed, teacher and drop_blocks are the study's to set"),
            (training.lora and self.adapters,
             "adapters: all runs heal by adapters already, as training.lora says; leave it out"),
            (self.blocks and not any(str(arm).isdecimal() for arm in self.blocks),
             f"blocks: given {self.blocks}; name at least one whole block, which the learning rates are "
             "tried on"),
            (not Path(self.general).is_file(),
             f"general: given {self.general!r}, there is no such file; give a JSONL file whose lines have a "
             "`text`"),
        ]
        problems = [problem for broken, problem in rules if broken]
        problems += [f"training.{problem}" for problem in training.problems()]
        if self.adapters and not problems:
            try:
                adapted = replace(training, **self.adapters)
                problems += [f"adapters.{problem}" for problem in adapted.problems()]
            except (ValueError, TypeError) as error:
                problems.append(f"adapters: {error}")
        return problems


# Settings of a study that the command line may override.
STUDY_OVERRIDES = ("name", "learning_rates", "seeds", "blocks", "once", "longer")


# ---------------------------------------------------------------- reading
def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Config that a Python file binds, with overrides such as "--lr=1e-5"; ValueError lists all problems."""
    config = _load_file(path, "config", Config)
    changes, problems = _read_overrides(overrides, _types(Config))
    config = replace(config, **changes)
    if not config.teacher:
        problems += [f"{name}: goes with --teacher" for name in changes if name.startswith("teacher_")]
    return _checked(config, path, problems)


def load_study(path: str | Path, overrides: Iterable[str] = ()) -> Study:
    """Study that a Python file binds, with overrides of STUDY_OVERRIDES and of its training.

    ValueError lists all problems.
    """
    study = _load_file(path, "study", Study)
    of_training = {name: kind for name, kind in _types(Config).items() if name not in ("lr", "seed")}
    own = {name: _types(Study)[name] for name in STUDY_OVERRIDES}
    changes, problems = _read_overrides(overrides, of_training | own)
    of_study = {name: changes.pop(name) for name in STUDY_OVERRIDES if name in changes}
    if isinstance(study.training, Config):
        of_study["training"] = replace(study.training, **changes)
    return _checked(replace(study, **of_study), path, problems)


def config_from_dict(raw: dict, where: str) -> Config:
    """A config as `to_dict` gave it (a run's config.json); lists become tuples again."""
    try:
        config = Config(**_with_tuples(raw))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return _checked(config, where)


def read_fields(kind: type, content: dict, where: str | Path) -> Any:
    """A dataclass of the entries of a JSON object that its fields name, lists as tuples.

    ValueError names every entry that is missing, of another type or out of bounds.
    """
    values = _with_tuples({f.name: content[f.name] for f in fields(kind) if f.name in content})
    if missing := sorted(_missing(kind, values)):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    record = kind(**values)
    if problems := field_problems(record):
        raise ValueError(f"{where}: {'; '.join(problems)}")
    return record


def _with_tuples(content: dict) -> dict:
    """The entries of a JSON object, with tuples for lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}


def _missing(kind: type, values: dict) -> list[str]:
    """The fields of a dataclass that have no default, and no value here."""
    return [f.name for f in fields(kind)
            if f.default is f.default_factory is MISSING and f.name not in values]


def _checked(settings: Any, where: str | Path, problems: Iterable[str] = ()) -> Any:
    """The settings; ValueError with their problems and those found before, if there are some."""
    problems = [*problems, *settings.problems()]
    if problems:
        raise ValueError(f"{where}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return settings


def _load_file(path: str | Path, name: str, kind: type) -> Any:
    """The value that a Python file binds to this name."""
    if not Path(path).is_file():
        raise ValueError(f"there is no config file {path}; shipped ones are in configs/, and settings are "
                         "given as --key=value")
    try:
        value = runpy.run_path(str(path)).get(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # the user's own code: name the fault and its line rather than show our stack
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else path  # a SyntaxError's text names its line
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} binds no `{name}`; the file must end with {name} = {kind.__name__}(...) or "
                         "replace(other, ...)")
    return value


def _read_overrides(overrides: Iterable[str], kinds: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(values of `--key=value` by key, problems); `kinds` are the types of all keys."""
    changes, problems = {}, []
    for text in overrides:
        key, equals, value = text.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if not text.startswith("--") or not equals:
            problems.append(f"{text}: overrides are written --key=value, such as --max_steps=200")
        elif key not in kinds:
            problems.append(_unknown(key, kinds))
        else:
            try:
                changes[key] = _parse(value, kinds[key])
            except (ValueError, KeyError):
                problems.append(f"{key}: given {value!r}, must be {_fault(value, kinds[key])}")
    if "max_steps" in changes:  # it decides, not the epochs of the file
        changes = {"epochs": 0} | changes
    return changes, problems


def _parse(text: str, kind) -> Any:
    """The value that a text stands for in a field of this type; ValueError or KeyError if it is none."""
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.strip("()").split(",")]
        return tuple(_parse(part, get_args(kind)[0]) for part in parts if part)
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if kind in (int, float):
        return kind(text)
    if kind == str | None and text.lower() == "none":
        return None
    if kind == int | str and text != "none" and not set(".+") & set(text):  # a block, and no part or group
        return int(text)
    return text


# ---------------------------------------------------------------- checking
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a dict",
              NoneType: "None",
              tuple: f"numbers with commas between, such as 13,25 (at most {MOST_ENTRIES:,})"}


@cache
def _types(cls: type, with_bounds: bool = False) -> dict[str, Any]:
    """The types of a class's fields."""
    return get_type_hints(cls, include_extras=with_bounds)


def field_problems(settings: Any, with_bounds: bool = True) -> list[str]:
    """A line for each field of a dataclass whose value is of another type, or out of bounds."""
    problems = []
    for name, kind in _types(type(settings), with_bounds).items():
        value = getattr(settings, name)
        if fault := _fault(value, kind):
            problems.append(f"{name}: given {shown(value)}, must be {fault}")
    return problems


def shown(value: Any) -> str:
    """A value in a message: its beginning, if it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _fault(value: Any, kind) -> str:
    """The words for what a value must be, if it is not; empty if it is."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        faults = [_fault(value, part) for part in parts]
        return "" if "" in faults else " or ".join(faults)
    if origin is Annotated:
        plain, bound = parts
        return _fault(value, plain) or ("" if bound.holds(value) else bound.words)
    if origin is Literal:
        return "" if value in parts else " or ".join(parts) + _nearest(str(value), parts)
    if origin is tuple and isinstance(value, tuple) and len(value) <= MOST_ENTRIES:
        fault = next(filter(None, (_fault(item, parts[0]) for item in value)), "")
        return fault and f"{fault}, each"
    if kind is float:
        fits = type(value) in (int, float) and abs(value) <= sys.float_info.max
    else:
        fits = origin is None and isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return "" if fits else TYPE_NAMES.get(origin or kind, f"a {kind.__name__}")


def _unknown(name: str, names: Iterable[str]) -> str:
    return f"{name}: no such setting{_nearest(name, names) or '; there are ' + ', '.join(names)}"


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close and close[0] != name else ""
