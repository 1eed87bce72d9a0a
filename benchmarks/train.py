"""train.py beside transformers' Trainer: the same weights, the same tokens, in turn, each in a fresh process.

    python -m benchmarks.train full-fp32 small          # some rows
    python -m benchmarks.train smollm2 --models models  # the row of real weights
    python -m benchmarks.train --rounds 3               # all of them: hours on a CPU

A row is a kind of work. Its peers are Trainer as it comes and Trainer in other ordinary settings, with
`torch_compile` and an optimizer in 8 bits among them, and TRL's SFTTrainer (`pip install -r
requirements-bench.txt`); "best" is the fastest of a row's. Trainer on weights and moments in bf16 is other
work, and a row of its own: `bf16-weights --data DATASET`, 300 steps on real text. Rates leave the first step
out, compiled ones two; memory is the peak of the process, from its start. Where rows have one length, "limit"
is the time that a step's products and its optimizer's bytes alone need (benchmarks/limit.py). Where both
sides see the same tokens, their first losses must agree to 1e-3 in fp32 and to 1e-2 in bf16; "last losses"
are the mean of the last ten. Writes results/train.csv as it goes
(every measurement; a row measured again replaces its old measurements) and results/train.md (the tables).
Compare ratios, not seconds, as machines are noisy. """

import json
import math
import os
import statistics
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import (
    KEEP_FREED_MEMORY,
    QUARTER,
    SMALL,
    WHOLE,
    machine,
    make_clock,
    make_parser,
    median_and_range,
    peak,
    random_documents,
    random_model,
    read_columns,
    read_measurements,
    record,
    report,
    run_fresh,
    select,
    train_without_saving,
    write_dataset,
)
from benchmarks.limit import step_limit
from benchmarks.tables import markdown
from nanoprune import command_line
from nanoprune.config import IGNORE, Config
from nanoprune.device import make_autocast, pick_dtype, set_up
from nanoprune.io.files import read_json

ANSWER = 24  # learned tokens of a question/answer pair


@dataclass(frozen=True)
class Peer:
    """A setting of Trainer."""

    environment: dict = field(default_factory=dict)
    stored: str = "float32"  # the weights' type
    autocast: str = ""  # the products' type; the row's own if empty
    attention: str = "sdpa"
    flattening: bool = False  # transformers' own collator without padding
    by_length: bool = False  # batches of like length
    trl: bool = False  # TRL's SFTTrainer, whose loss is chunked by default
    arguments: dict = field(default_factory=dict)  # of TrainingArguments, besides
    steps: int = 0  # the row's own if 0
    warm_up: int = 1  # steps that the rate leaves out


@dataclass(frozen=True)
class Row:
    """A kind of work: the model, the tokens and what train.py is told besides."""

    about: str  # for the table; ours is fp32 except where "auto" finds units for bf16
    shape: dict | str  # a shape for random weights, or the name of a folder in --models
    context: int
    batch: int
    steps: int
    settings: dict = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    dtype: str = "float32"  # Trainer's
    uneven: bool = False  # documents are spread in length as press releases are
    same: bool = False  # both sides see the same tokens, in the same order
    real: bool = False  # the text is that of --data


ALLOCATOR = {"environment": KEEP_FREED_MEMORY}
COMPILED = Peer(**ALLOCATOR, arguments={"torch_compile": True}, steps=32, warm_up=2)
EIGHT_BITS = {"optim": "adamw_bnb_8bit", "gradient_checkpointing": True}
PLAIN = {
    "as it comes": Peer(),
    "allocator": Peer(**ALLOCATOR),
    "eager attention, allocator": Peer(**ALLOCATOR, attention="eager"),
    "compiled, allocator": COMPILED,
}
PACKED = {
    "as it comes": Peer(),
    "length groups": Peer(by_length=True),
    "flattening": Peer(flattening=True),
    "length groups, allocator": Peer(**ALLOCATOR, by_length=True),
    "flattening, allocator": Peer(**ALLOCATOR, flattening=True),
}
BFLOAT16 = {
    "as it comes": Peer(),
    "allocator": Peer(**ALLOCATOR),
    "compiled, allocator": COMPILED,
    "fp32, allocator": Peer(**ALLOCATOR, autocast="float32"),
}
STRONGEST = {
    "as it comes": Peer(),
    "allocator": Peer(**ALLOCATOR),
    "compiled, allocator": COMPILED,
    "SFTTrainer": Peer(trl=True),
    "SFTTrainer, allocator": Peer(**ALLOCATOR, trl=True),
}
ROWS = {
    "smollm2": Row(
        "SmolLM2-135M, 4 x 512 tokens, bf16; AdamW, clipped",
        "smollm2", context=512, batch=4, steps=8, settings={"dtype": "auto"}, peers=STRONGEST,
        dtype="bfloat16", same=True),
    "bf16-weights": Row(
        "the same on real text, 300 steps; Trainer's weights and moments in bf16",
        "smollm2", context=512, batch=4, steps=300, dtype="bfloat16", same=True, real=True,
        settings={"dtype": "auto", "lr": 1e-4, "min_lr": 0.0},
        peers={"bf16 weights, allocator": Peer(**ALLOCATOR, stored="bfloat16")}),
    "full-bf16": Row(
        "0.6 B, 1 x 1,024 tokens, bf16; AdamW, clipped, `recompute=pointwise`",
        WHOLE, context=1024, batch=1, steps=2, settings={"recompute": "pointwise", "dtype": "auto"},
        peers=BFLOAT16, dtype="bfloat16", same=True),
    "full-fp32": Row(
        "0.6 B, 1 x 1,024 tokens, fp32; AdamW, clipped, `recompute=pointwise`",
        WHOLE, context=1024, batch=1, steps=3, settings={"recompute": "pointwise"}, peers=PLAIN, same=True),
    "lean": Row(
        "0.6 B, 1 x 1,024 tokens, fp32; `optimizer=lean`, not clipped, `recompute=blocks`",
        WHOLE, context=1024, batch=1, steps=3,
        settings={"optimizer": "lean", "recompute": "blocks", "clip": 0.0}, same=True,
        peers={"8 bits, checkpointing": Peer(arguments=EIGHT_BITS),
               "8 bits, checkpointing, allocator": Peer(**ALLOCATOR, arguments=EIGHT_BITS)}),
    "mixed": Row(
        "0.6 B cut to 7 blocks, releases of mixed length in rows of 2,048; *useful* tokens",
        QUARTER, context=2048, batch=1, steps=3, peers=PACKED, uneven=True),
    "pairs": Row(
        "0.6 B cut to 7 blocks, pairs with long contexts in rows of 2,048, loss on answers; examples",
        QUARTER, context=2048, batch=1, steps=3, settings={"pair_repeats": 1}, peers=PACKED, uneven=True),
    "evaluate": Row(
        "0.6 B cut to 7 blocks, loss over releases of mixed length",
        QUARTER, context=2048, batch=1, steps=2, peers=PACKED | {"bf16": Peer(autocast="bfloat16")},
        uneven=True, same=True),
    "small": Row("4 M, 8 x 256 tokens", SMALL, context=256, batch=8, steps=40, peers=PLAIN, same=True),
}
TOLERANCES = {"float32": 1e-3, "bfloat16": 1e-2}  # of the first losses, by the type of the products
SPLIT = {"pairs": "pairs", "evaluate": "val"}  # that Trainer reads; train elsewhere


# ---------------------------------------------------------------- weights and data


def make(name: str, work: Path, models: Path) -> tuple[Path, Path]:
    """(base, dataset), made once: real weights or random ones of the row's shape, random tokens."""
    row, data = ROWS[name], work / f"data-{name}"
    if isinstance(row.shape, str):
        base = models / row.shape
        shape = read_json(base / "config.json")
    else:
        shape = row.shape
        base = random_model(shape, work / f"base-{shape['num_hidden_layers']}x{shape['hidden_size']}")
    if row.real and not data.is_dir():
        raise ValueError(f"{name} needs --data, the folder of a dataset by prepare.py of this base")
    if not data.is_dir():
        count, vocab_size = (64 + row.steps) * row.batch, shape["vocab_size"] - 300
        rng, lengths = np.random.default_rng(0), np.full(count, row.context + 1)
        if row.uneven:  # a median of 900 tokens, mostly from a third to three times that
            lengths = np.clip(np.exp(rng.normal(np.log(900), 0.6, count)), 40, row.context).astype(int)
        documents = random_documents(rng, lengths, vocab_size)
        splits = {"train": documents, "val": documents[: 8 if name == "evaluate" else 1]}
        if name == "pairs":
            splits["train"] = [[1, 2]]
            write_pairs(data / "pairs.safetensors", documents, vocab_size)
        write_dataset(data, splits, vocab_size, base)
    return base, data


def write_pairs(path: Path, documents: list[list[int]], vocab_size: int) -> None:
    """Documents of whose tokens only the last ones are learned."""
    from nanoprune.data.token_file import Example, write_examples

    examples = [Example(np.array(tokens), np.arange(len(tokens)) >= len(tokens) - ANSWER)
                for tokens in documents]
    write_examples(path, examples, vocab_size)


def make_config(name: str, work: Path, models: Path) -> Config:
    row, (base, data) = ROWS[name], make(name, work, models)
    config = Config(
        name=name, base=str(base), data=str(data), runs=str(work / f"runs-{os.getpid()}"),
        context=row.context, batch_size=row.batch, accumulation=1, max_steps=row.steps, warmup_steps=0,
        lr=1e-5, weight_decay=0.0, beta2=0.999, dtype="float32", device="cpu", eval_every=0, save_every=0,
        keep="last")
    return replace(config, **row.settings)


# ---------------------------------------------------------------- nanoprune's side


def train_ours(name: str, work: Path, models: Path) -> dict:
    """train.py itself, less the writing of its last state; `useful` counts each step's tokens (examples in
    "pairs")."""
    from model import Decoder
    from nanoprune.data.dataset import Dataset

    config, inside = make_config(name, work, models), Stopwatch()
    for owner, method in ((Decoder, "forward"), (torch.Tensor, "backward"),
                          (torch.nn.utils, "clip_grad_norm_"), (torch.optim.AdamW, "step")):
        setattr(owner, method, inside.watch(getattr(owner, method)))
    train_without_saving(config)
    losses, ends, memory = read_columns(config.folder / "train.csv", "loss", "seconds", "memory_gb")
    rows = Dataset(config.data).rows(config.context, config.seed, config.pair_repeats, config.replay)
    targets = [rows.batch(step * config.batch_size, config.batch_size)[1] for step in range(config.max_steps)]
    learned_tokens = ANSWER if name == "pairs" else 1
    return {"seconds": np.diff([0.0, *ends]).tolist(), "losses": losses, "memory": memory[-1],
            "useful": [int((part != IGNORE).sum()) / learned_tokens for part in targets],
            "overhead": 1 - inside.seconds / ends[-1]}


class Stopwatch:
    """Seconds inside the calls that a bare training step consists of; the rest of the time is the loop's
    own."""

    def __init__(self):
        self.seconds = 0.0

    def watch(self, function):
        def timed(*args, **options):
            began, training = time.perf_counter(), torch.is_grad_enabled() or function.__name__ == "step"
            result = function(*args, **options)
            if training:
                self.seconds += time.perf_counter() - began
            return result
        return timed


def evaluate_ours(work: Path, models: Path) -> dict:
    """The validation of train.py."""
    from model import Decoder
    from nanoprune.data.dataset import Dataset
    from nanoprune.evaluation.perplexity import Validation

    config = make_config("evaluate", work, models)
    set_up(config, torch.device("cpu"))
    model, validation = Decoder.from_pretrained(config.base), Validation(Dataset(config.data), config)
    autocast = make_autocast(config.dtype, torch.device("cpu"))
    seconds, losses = [], []
    for _ in range(config.max_steps):
        began = time.perf_counter()
        losses.append(validation.measure(model, autocast)[0].nll)
        seconds.append(time.perf_counter() - began)
    useful = sum(int((batch.targets != IGNORE).sum()) for batch in validation.windows)
    return {"seconds": seconds, "losses": losses, "useful": [useful] * config.max_steps, "memory": peak()}


# ---------------------------------------------------------------- Trainer's side


def run_trainer(name: str, work: Path, models: Path, peer: Peer) -> dict:
    """Trainer, or SFTTrainer, on the same weights and tokens; `useful` counts each step's tokens (examples in
    "pairs")."""
    import transformers

    row, config = ROWS[name], make_config(name, work, models)
    steps = peer.steps or row.steps
    model = transformers.AutoModelForCausalLM.from_pretrained(
        config.base, dtype=getattr(torch, peer.stored), attn_implementation=peer.attention)
    examples = trainer_examples(name, config, steps)
    clock, useful = make_clock(torch.device("cpu")), []
    collator = transformers.DataCollatorWithFlattening() if peer.flattening else pad

    def collate(features: list[dict]) -> dict:
        useful.append(len(features) if name == "pairs" else sum(len(f["input_ids"]) - 1 for f in features))
        return collator(features)

    batch = 2 if row.uneven else row.batch  # two releases are about as long as a row of ours
    order = "group_by_length" if peer.by_length else "random" if row.uneven else "sequential"
    settings = dict(
        output_dir=str(work / "trainer"), max_steps=steps, train_sampling_strategy=order,
        per_device_train_batch_size=batch, per_device_eval_batch_size=batch, learning_rate=config.lr,
        lr_scheduler_type="cosine", weight_decay=0.0, max_grad_norm=1.0, use_cpu=True,
        bf16=(peer.autocast or row.dtype) == "bfloat16", logging_steps=1, report_to=[], save_strategy="no",
        disable_tqdm=True, remove_unused_columns=False, dataloader_num_workers=0, **peer.arguments)
    parts = {"model": model, "train_dataset": examples, "data_collator": collate, "callbacks": [clock]}
    if peer.trl:
        trainer = sft_trainer(settings, parts, config.base)
    else:
        trainer = transformers.Trainer(args=transformers.TrainingArguments(**settings),
                                       eval_dataset=examples, **parts)
    if name == "evaluate":
        for _ in range(steps):
            began = time.perf_counter()
            clock.losses.append(trainer.evaluate()["eval_loss"])
            clock.seconds.append(time.perf_counter() - began)
        useful = [sum(useful) / steps] * steps
    else:
        trainer.train()
    return {"seconds": clock.seconds, "losses": clock.losses, "useful": useful[:steps], "memory": peak(),
            "warm_up": peer.warm_up}


def sft_trainer(settings: dict, parts: dict, base: str):
    """TRL's trainer, for rows that are tokens already."""
    import datasets
    import transformers
    import trl

    arguments = trl.SFTConfig(**settings, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    return trl.SFTTrainer(
        args=arguments, processing_class=transformers.AutoTokenizer.from_pretrained(base),
        **parts | {"train_dataset": datasets.Dataset.from_list(parts["train_dataset"])})


def trainer_examples(name: str, config: Config, steps: int) -> list[dict]:
    """The same tokens as Trainer takes them: whole documents where they are uneven, else our rows."""
    from nanoprune.data.dataset import Dataset

    dataset = Dataset(config.data)
    if ROWS[name].uneven:
        return [{"input_ids": example.tokens.tolist(), "labels": example.targets.tolist()}
                for example in dataset.split(SPLIT.get(name, "train"))]
    rows = dataset.rows(config.context, config.seed, config.pair_repeats, config.replay)
    ids, targets, _ = rows.batch(0, steps * config.batch_size)
    sequences = torch.cat([ids, targets[:, -1:]], dim=1).tolist()
    return [{"input_ids": tokens, "labels": tokens} for tokens in sequences]


def pad(features: list[dict]) -> dict:
    """A batch of the longest example's length, the rest of the others masked."""
    longest = max(len(f["input_ids"]) for f in features)

    def fill(key: str, filler: int) -> torch.Tensor:
        return torch.tensor([f[key] + [filler] * (longest - len(f[key])) for f in features])

    return {"input_ids": fill("input_ids", 0), "labels": fill("labels", IGNORE),
            "attention_mask": (fill("input_ids", -1) >= 0).long()}


# ---------------------------------------------------------------- in turn, and the tables


def main() -> None:
    parser = make_parser(__doc__, work="data/benchmark")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all without")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of real models' folders")
    parser.add_argument("--data", type=Path, help="a dataset's folder, for rows of real text")
    parser.add_argument("--peers", nargs="+", metavar="SETTING", help="of Trainer; all of a row's without")
    args = parser.parse_args()
    names = args.rows or [name for name, row in ROWS.items() if args.data or not row.real]
    work, models = args.work.resolve(), args.models.resolve()
    if unknown := set(names) - set(ROWS):
        raise ValueError(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    of_rows = dict.fromkeys(setting for name in names for setting in ROWS[name].peers)
    if unknown := set(args.peers or ()) - set(of_rows):
        raise ValueError(f"no such setting: {'; '.join(sorted(unknown))}; there are {'; '.join(of_rows)}")
    if args.side:
        print(json.dumps(measure(names[0], args.side, work, models)))
        return
    path = args.out / "train.csv"
    for name in (name for name in names if args.data and ROWS[name].real):
        work.mkdir(parents=True, exist_ok=True)
        link = work / f"data-{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(args.data.resolve())
    measurements = [row for row in read_measurements(path) if row["row"] not in names]
    for name in names:
        make(name, work, models)
        own = ["nanoprune"] if ROWS[name].uneven else ["nanoprune", "limit"]
        sides = own + [setting for setting in ROWS[name].peers if setting in (args.peers or of_rows)]
        for turn, side in product(range(args.rounds), sides):
            peer = ROWS[name].peers.get(side)
            result = run_fresh("benchmarks.train", name, "--side", side, "--work", work,
                               "--models", models, environment=peer and peer.environment)
            if side == "nanoprune":
                ours = result
            row = {"row": name, "round": turn, "setting": side} | summary(name, result, ours)
            record(measurements, row, path)
    measurements = read_measurements(path)
    report(tabulate(measurements), args.out, "train")
    check_losses(measurements)


def measure(name: str, side: str, work: Path, models: Path) -> dict:
    if side == "limit":
        config = make_config(name, work, models)
        dtype = getattr(torch, pick_dtype(config.dtype, torch.device("cpu")))
        shape = read_json(Path(config.base) / "config.json")
        seconds = sum(step_limit(shape, config, dtype).values())
        return {"seconds": [seconds] * 2, "useful": [config.tokens_per_step] * 2, "losses": [math.nan] * 3,
                "memory": math.nan}
    if side != "nanoprune":
        return run_trainer(name, work, models, ROWS[name].peers[side])
    return evaluate_ours(work, models) if name == "evaluate" else train_ours(name, work, models)


def summary(name: str, result: dict, ours: dict) -> dict:
    """The columns of a measurement: rates without the first step, and how far the first losses are from
    ours."""
    warm_up, differs = result.get("warm_up", 1), ""
    steady = result["seconds"][warm_up:]
    if ROWS[name].same:
        pairs = zip(ours["losses"][:3], result["losses"][:3], strict=True)
        differs = max(abs(a / b - 1) for a, b in pairs)
    return {"rate": sum(result["useful"][warm_up:]) / sum(steady), "step_s": statistics.median(steady),
            "memory_gb": result["memory"], "overhead": result.get("overhead", ""),
            "first_loss": result["losses"][0], "last_losses": statistics.fmean(result["losses"][-10:]),
            "loss_differs": differs, "machine": machine(),
            "versions": f"torch {torch.__version__}, transformers {version('transformers')}"}


def check_losses(measurements: list[dict]) -> None:
    """ValueError if the two sides did not compute the same."""
    apart = [f"{row['row']} ({row['setting']}: {row['loss_differs']:.1e})" for row in measurements
             if ROWS[row["row"]].same and row["setting"] != "bf16"
             and row["loss_differs"] > TOLERANCES[ROWS[row["row"]].dtype]]
    if apart:
        raise ValueError("the two sides did not compute the same: their first losses differ by more than "
                         f"they may, in {', '.join(apart)}")


def tabulate(measurements: list[dict]) -> list[str]:
    """The ratios, a line a row, and below them every setting: medians, with the lowest and highest of several
    rounds.

    Ratios are of one round each. "Loop" is the time beside the model, the backward pass, clipping and the
    optimizer. """
    def values(name: str, setting: str, column: str) -> list[float]:
        return [row[column] for row in select(measurements, row=name, setting=setting)]

    def ratio(name: str, setting: str, column: str) -> str:
        pairs = zip(values(name, "nanoprune", column), values(name, setting, column), strict=True)
        return median_and_range([a / b for a, b in pairs], ".2f")

    ratios, details = [], []
    for name in dict.fromkeys(row["row"] for row in measurements):
        settings = dict.fromkeys(row["setting"] for row in select(measurements, row=name))
        first, *peers = (setting for setting in settings if setting != "limit")
        for setting in (first, *peers):
            differs = [d for d in values(name, setting, "loss_differs") if d != "" and setting != first]
            about = ROWS[name].about if setting == first else ""
            label = setting if setting == first or "SFTTrainer" in setting else f"Trainer, {setting}"
            details.append([
                name, about, label, median_and_range(values(name, setting, "rate"), ".3g"),
                ratio(name, setting, "rate") if setting != first else "",
                median_and_range(values(name, setting, "step_s"), ".3g"),
                median_and_range(values(name, setting, "memory_gb"), ".2f"),
                f"{max(differs):.1e}" if differs else "",
                median_and_range(values(name, setting, "last_losses"), ".4f") if ROWS[name].real else ""])
        speed = best_speed = memory = best_memory = loop = limit = ""
        if "limit" in settings:
            limit = ratio(name, "limit", "rate")
        if peers:
            best = max(peers, key=lambda setting: statistics.median(values(name, setting, "rate")))
            best_speed, best_memory = f"{ratio(name, best, 'rate')}, {best}", ratio(name, best, "memory_gb")
        if "as it comes" in peers:
            speed, memory = (ratio(name, "as it comes", column) for column in ("rate", "memory_gb"))
        if name != "evaluate":
            loop = f"{statistics.median(values(name, 'nanoprune', 'overhead')):.2%}"
        own_memory, rounds = values(name, first, "memory_gb"), len(values(name, first, "rate"))
        own_memory = median_and_range(own_memory, ".2f")
        ratios.append([name, speed, best_speed, limit, own_memory, memory, best_memory, loop, rounds])
    header = ["row", "speed to Trainer as it comes", "to its best setting", "to the limit", "peak memory, GB",
              "to Trainer's as it comes", "to its best setting's", "loop", "rounds"]
    below = ["row", "what", "setting", "a second", "nanoprune's to it", "seconds a step", "peak memory, GB",
             "first losses differ by", "last losses"]
    machines = dict.fromkeys(f"{row['machine']}; {row['versions']}" for row in measurements)
    return [*markdown(header, ratios), "", *markdown(below, details), "", *machines]


if __name__ == "__main__":
    command_line.run(main)
