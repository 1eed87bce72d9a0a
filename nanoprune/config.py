"""An experiment's settings: a frozen, flat `Config`, read from a Python file that binds `config`.

The file is the user's own code and is executed; `--key=value` overrides are read by the field's type. All problems are
reported together, before anything is downloaded or allocated.
"""

import difflib
import math
import runpy
import types
import typing
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path


@dataclass(frozen=True)
class Config:
    # what is trained
    name: str  # the run's name; its folder is runs/<name>
    base: str | dict  # hub name, folder or run; or the shape of a model to train from scratch (config.json's entries)
    data: str  # dataset folder made by prepare.py
    revision: str | None = None  # of a hub base: branch, tag or commit
    drop_blocks: tuple[int | str, ...] = ()  # taken out of the base before training: 25, or "25.attn" or "25.mlp" of it
    runs: str = "runs"  # folder that holds the runs

    # what it sees
    context: int = 1024  # tokens a row
    batch_size: int = 4  # rows a micro-batch
    accumulation: int = 8  # micro-batches a step; batch_size x accumulation x context tokens a step
    pair_repeats: int = 0  # times an epoch that each question/answer pair is seen (0: releases only)
    replay: float = 0.0  # share of an epoch that is general text, against forgetting (prepare.py --replay)
    max_steps: int = 1000  # optimizer steps
    epochs: int = 0  # times through the data, instead of max_steps, which then follows from it (0: max_steps counts)
    seed: int = 0  # of the order of documents and, from scratch, of the weights

    # how it learns: AdamW, linear warm-up, cosine decay
    lr: float = 2e-5  # highest learning rate
    min_lr: float = 0.1  # the last step's learning rate, as a share of lr
    warmup_steps: int = 50  # steps until lr is reached
    weight_decay: float = 0.1  # on matrices only, never on norms and biases
    beta1: float = 0.9  # AdamW: memory of the gradient
    beta2: float = 0.95  # AdamW: memory of its square
    eps: float = 1e-8  # AdamW: added to the denominator
    teacher: str | None = None  # a model whose likeliest next tokens are learned besides the text: hub name, folder or run
    teacher_share: float = 0.5  # of the loss: divergence from the teacher; the rest is the text's cross entropy
    teacher_top: int = 32  # likeliest tokens that are kept of it, in <runs>/teachers
    teacher_temperature: float = 1.0  # above 1: more of what it holds possible
    clip: float = 1.0  # largest gradient norm (0: no clipping)
    optimizer: str = "adamw"  # adamw, or lean: moments of a byte, updates during the backward pass, no clipping

    # adapters: low-rank matrices learn beside a base that does not
    lora: str = ""  # layers that get one: q_proj,v_proj or model.layers.3.* or all (empty: no adapters, all weights learn)
    lora_rank: int = 8  # rank of an adapter's two matrices
    lora_alpha: float = 16.0  # an adapter counts alpha / rank times
    lora_dropout: float = 0.0  # share of an adapter's inputs that is left out at random
    lora_root: bool = False  # an adapter counts alpha / sqrt(rank) times (rsLoRA)
    frozen: str = "stored"  # the base's matrices: as stored, float32, bfloat16, float16, or nf4 (four bits: QLoRA)

    # how it runs
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # of the products, by autocast: float32, bfloat16, float16, or the best the device has units for
    tf32: bool = False  # products of float32 on CUDA with 10 bits of fraction instead of 23, on chips that have it: faster
    recompute: str = "none"  # in the backward pass, for memory: none, pointwise (no products, nor torch's attention), or blocks
    compile: bool = False  # blocks by torch.compile, which takes a while at the first step
    parallel: str = "ddp"  # under torchrun: ddp (each process has the whole model) or fsdp (each has a part of every tensor)
    threads: int = 0  # CPU threads (0: torch's choice); results repeat bit by bit at a fixed number

    # what it reports and keeps
    log_every: int = 1  # steps between printed lines; train.csv has every step
    eval_every: int = 100  # steps between validations (0: only before the first step and after the last)
    eval_documents: int = 0  # validation documents used, evenly spaced (0: all)
    patience: int = 0  # stop after this many validations without a better loss (0: never)
    keep: str = "best"  # which weights become model/: best (by validation loss) or last; the same for both arms
    save_every: int = 100  # steps between saves of the state that --resume needs (0: only at the end)

    def __new__(cls, *args, **given):
        """Name every unknown or missing field at once; the dataclass itself would stop at the first."""
        names = [f.name for f in fields(cls)]
        problems = [_no_such_setting(key, names) for key in given if key not in names]
        required = [f.name for f in fields(cls) if f.default is MISSING][len(args) :]
        problems += [f"{name}: missing; every config names it" for name in required if name not in given]
        if problems:
            raise ValueError("\n".join(problems))
        return super().__new__(cls)

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def tokens_per_step(self) -> int:
        return self.context * self.batch_size * self.accumulation

    def to_dict(self) -> dict:
        return asdict(self)

    def problems(self) -> list[str]:
        """Everything that is wrong with the values, one line each: field, value given, what is allowed."""
        found = []
        for f in fields(self):
            value, allowed = getattr(self, f.name), typing.get_type_hints(Config)[f.name]
            if not _is_a(value, allowed):
                found.append(f"{f.name}: given {value!r}, must be {_type_name(allowed)}")
        if found:
            return found

        def need(name: str, holds: bool, allowed: str) -> None:
            if not holds:
                found.append(f"{name}: given {getattr(self, name)!r}, must be {allowed}")

        need("name", Path(self.name).name == self.name and self.name not in ("", ".."), "a plain folder name, without slashes")
        need("base", bool(self.base), "a hub name, a folder, a run or a shape")
        for name in ("context", "batch_size", "accumulation", "max_steps", "log_every"):
            need(name, getattr(self, name) >= 1, "at least 1")
        for name in ("pair_repeats", "epochs", "seed", "threads", "eval_every", "eval_documents", "patience", "save_every"):
            need(name, getattr(self, name) >= 0, "0 or more")
        need("lr", 0 < self.lr < 1, "above 0 and below 1")
        need("min_lr", 0 <= self.min_lr <= 1, "a share of lr, from 0 to 1")
        most = math.inf if self.epochs else self.max_steps
        need("warmup_steps", 0 <= self.warmup_steps < most, f"from 0 to below max_steps ({most})")
        need("weight_decay", self.weight_decay >= 0, "0 or more")
        need("replay", 0 <= self.replay < 1, "a share of what is learned, from 0 to below 1")
        need("lora_rank", self.lora_rank >= 1, "at least 1")
        need("lora_alpha", self.lora_alpha > 0, "above 0")
        need("lora_dropout", 0 <= self.lora_dropout < 1, "from 0 to below 1")
        need("frozen", self.frozen in FROZEN, " or ".join(FROZEN) + _nearest(self.frozen, FROZEN))
        need("teacher_share", 0 < self.teacher_share <= 1, "above 0 and at most 1")
        need("teacher_top", self.teacher_top >= 1, "at least 1")
        need("teacher_temperature", self.teacher_temperature > 0, "above 0")
        need("beta1", 0 <= self.beta1 < 1, "from 0 to below 1")
        need("beta2", 0 <= self.beta2 < 1, "from 0 to below 1")
        need("eps", self.eps > 0, "above 0")
        need("clip", self.clip >= 0, "0 (off) or more")
        need("dtype", self.dtype in DTYPES, " or ".join(DTYPES) + _nearest(self.dtype, DTYPES))
        need("optimizer", self.optimizer in OPTIMIZERS, " or ".join(OPTIMIZERS) + _nearest(self.optimizer, OPTIMIZERS))
        need("recompute", self.recompute in RECOMPUTE, " or ".join(RECOMPUTE) + _nearest(self.recompute, RECOMPUTE))
        need("parallel", self.parallel in PARALLEL, " or ".join(PARALLEL) + _nearest(self.parallel, PARALLEL))
        need("keep", self.keep in ("best", "last"), "best or last")
        kind = self.device.split(":")[0]
        need("device", kind in DEVICES, f"{', '.join(DEVICES)}, or cuda:N" + _nearest(kind, DEVICES))
        named = [str(block).partition(".") for block in self.drop_blocks]
        known = all(number.isdecimal() and (not dot or half in ("attn", "mlp")) for number, dot, half in named)
        need("drop_blocks", known and len({number for number, _, _ in named}) == len(named),
             "indices from 0 up, each once, or parts of these blocks such as 25.attn and 25.mlp")
        if self.optimizer == "lean" and (self.clip or self.accumulation > 1 or self.dtype == "float16"):
            found.append(f"optimizer: lean updates during the backward pass, so it needs clip=0 (given {self.clip}), "
                         f"accumulation=1 (given {self.accumulation}) and no float16 (given {self.dtype})")
        if self.patience and not self.eval_every:
            found.append(f"patience: given {self.patience}, has no effect without eval_every; set eval_every or patience=0")
        if self.revision and (isinstance(self.base, dict) or Path(self.base).exists()):
            found.append(f"revision: given {self.revision!r}, has no effect on a base that is no hub name; remove it")
        if not self.lora:
            found += [f"{f.name}: given {getattr(self, f.name)!r}, has no effect without lora; set lora=q_proj,v_proj or all"
                      for f in fields(self) if f.name in ADAPTERS and getattr(self, f.name) != f.default]
        elif isinstance(self.base, dict) or self.compile:
            found.append("lora: adapters need a trained base (a hub name, a folder or a run), and compile=false")
        if isinstance(self.base, dict) and self.drop_blocks:
            found.append("drop_blocks: a model trained from scratch has no blocks worth dropping; lower num_hidden_layers")
        return found


@dataclass(frozen=True)
class Study:
    """Every block removed and healed, beside the full model fine-tuned on the same tokens: what study.py runs."""

    name: str  # its folder is <training.runs>/<name>
    training: Config  # what all runs share: base, data, context, steps; name, seed, lr and drop_blocks are the study's
    learning_rates: tuple[float, ...]  # tried by both arms, full and reduced, on the first seed
    seeds: tuple[int, ...] = (0, 1, 2)  # of the order of documents: a run of every arm each
    blocks: tuple[int, ...] = ()  # to remove, one at a time (none named: every block)
    distill: bool = True  # heal the block that is missed least with the full model as its teacher, too, and as long without
    keep_models: bool = False  # the weights of every run

    def problems(self) -> list[str]:
        found = []
        if not isinstance(self.training, Config):
            return ["training: must be a Config"]
        if Path(str(self.name)).name != self.name or self.name in ("", ".."):
            found.append(f"name: given {self.name!r}, must be a plain folder name, without slashes")
        if not self.learning_rates or not all(type(lr) is float and 0 < lr < 1 for lr in self.learning_rates):
            found.append(f"learning_rates: given {self.learning_rates!r}, must be numbers above 0 and below 1, at least one")
        if not self.seeds or not all(type(seed) is int and seed >= 0 for seed in self.seeds):
            found.append(f"seeds: given {self.seeds!r}, must be whole numbers from 0 up, at least one")
        for name in ("learning_rates", "seeds", "blocks"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                found.append(f"{name}: given {getattr(self, name)!r}, must name each once")
        if self.training.drop_blocks or self.training.teacher or isinstance(self.training.base, dict):
            found.append("training: drop_blocks and teacher are the study's to set, and base must be a trained model")
        if self.training.lora:
            found.append(f"training: given lora={self.training.lora!r}; a study heals and measures whole models, leave it out")
        if self.training.keep != "last" or self.training.patience:
            found.append("training: set keep='last' and patience=0, so that every run takes the same steps")
        return found + [f"training.{problem}" for problem in self.training.problems()]


OPTIMIZERS = ("adamw", "lean")
FROZEN = ("stored", "float32", "bfloat16", "float16", "nf4")  # how a base beside adapters can be kept
ADAPTERS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_root", "frozen")  # settings that need `lora`
PARALLEL = ("ddp", "fsdp")
RECOMPUTE = ("none", "pointwise", "blocks")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """The config bound by a Python file, with overrides such as ["--lr=1e-5"]; ValueError lists all problems."""
    config, problems = _load_file(path, "config", Config)
    changes = {}
    for override in overrides:
        try:
            key, value = _read_override(override)
            changes[key] = value
        except ValueError as error:
            problems.append(str(error))
    if config is not None:
        config = replace(config, **changes)
        problems += config.problems()
    if problems:
        raise ValueError(f"{path}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return config


def load_study(path: str | Path, overrides: list[str] = ()) -> Study:
    """The study bound by a Python file, with overrides of its lists and of its training; ValueError lists all problems."""
    study, problems = _load_file(path, "study", Study)
    changes = {}
    for override in overrides:
        key, _, value = override.removeprefix("--").partition("=")
        try:
            if key in ("seeds", "blocks", "learning_rates"):
                kind = float if key == "learning_rates" else int
                changes[key] = tuple(kind(part) for part in value.split(",") if part.strip())
            else:
                changes.setdefault("training", {}).update([_read_override(override)])
        except ValueError as error:
            problems.append(str(error))
    if study is not None:
        if isinstance(study.training, Config):
            changes["training"] = replace(study.training, **changes.get("training", {}))
        study = replace(study, **changes)
        problems += study.problems()
    if problems:
        raise ValueError(f"{path}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return study


def _load_file(path: str | Path, name: str, kind: type) -> tuple:
    """(what a Python file binds to this name or None, problems)."""
    if not Path(path).is_file():
        raise ValueError(f"there is no config file {path}; shipped ones are in configs/, and settings are given as --key=value")
    try:
        found = runpy.run_path(str(path)).get(name)
        if isinstance(found, kind):
            return found, []
        return None, [f"binds no `{name}`; the file must end with {name} = {kind.__name__}(...) or replace(other, ...)"]
    except ValueError as error:
        return None, str(error).splitlines()
    except Exception as error:  # the user's own code: name the fault and its line rather than show our stack
        raise ValueError(f"{path}{_line_in(error, path)}: {type(error).__name__}: {error}") from error


def config_from_dict(raw: dict, where: str) -> Config:
    """A config as `to_dict` gave it (a run's config.json); lists become tuples again."""
    try:
        config = Config(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})
        problems = config.problems()
    except ValueError as error:
        problems = str(error).splitlines()
    if problems:
        raise ValueError(f"{where}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return config


def _read_override(text: str) -> tuple[str, object]:
    """`--key=value` as (key, value of the field's type)."""
    hints = typing.get_type_hints(Config)
    key, equals, value = text.removeprefix("--").partition("=")
    if not text.startswith("--") or not equals:
        raise ValueError(f"{text}: overrides are written --key=value, such as --max_steps=200")
    key = key.replace("-", "_")
    if key not in hints:
        raise ValueError(_no_such_setting(key, list(hints)))
    kind = hints[key]
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    try:
        if type(None) in options and value.lower() == "none":
            return key, None
        if typing.get_origin(kind) is tuple:
            parts = [part.strip() for part in value.strip("()").split(",") if part.strip()]
            return key, tuple(part if "." in part else int(part) for part in parts)
        if kind is bool:
            return key, {"true": True, "false": False}[value.lower()]
        return key, value if str in options else kind(value)
    except (ValueError, KeyError):
        raise ValueError(f"{key}: given {value!r}, must be {_type_name(kind)}") from None


def _is_a(value, kind) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(type(item) in (int, str) for item in value)
    if kind is float:
        return type(value) in (int, float) and value == value and abs(value) != float("inf")
    return type(value) is kind


def _type_name(kind) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "None", dict: "a dict"}
    if isinstance(kind, types.UnionType):
        return " or ".join(_type_name(option) for option in typing.get_args(kind))
    return names.get(kind, "whole numbers with commas between, such as 13,25")


def _no_such_setting(name: str, names: list[str]) -> str:
    return f"{name}: no such setting{_nearest(name, names) or '; there are ' + ', '.join(names)}"


def _nearest(name: str, names) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close and close[0] != name else ""


def _line_in(error: Exception, path: str | Path) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines, trace = [], error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f", line {lines[-1]}" if lines else ""


IGNORE = -100  # a target that is not counted, torch's convention
