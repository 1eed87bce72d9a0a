"""train.py beside transformers' Trainer: the same weights, the same tokens, in turn, each in a fresh process.

    python -m benchmarks.train full-fp32 small          # some rows
    python -m benchmarks.train --rounds 3               # all of them: hours on a CPU

A row is a kind of work. Its peers are Trainer as it comes and Trainer in other ordinary settings; "best" is the fastest of
all of them. Rates leave the first step out; memory is the peak of the process, from its start. Where both sides see the same
tokens in fp32, their first losses must agree to 1e-3. Writes results/train.csv as it goes (every measurement; a row measured
again takes the place of what was there) and results/train.md (the tables). Compare ratios, not seconds, as machines are noisy.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
QWEN3 = {"model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
         "max_position_embeddings": 32_768, "tie_word_embeddings": True}
WHOLE, QUARTER = QWEN3 | {"num_hidden_layers": 28}, QWEN3 | {"num_hidden_layers": 7}
SMALL = QWEN3 | {"vocab_size": 8192, "num_hidden_layers": 6, "hidden_size": 192, "intermediate_size": 576, "head_dim": 32,
                 "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 2048}
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}  # the allocator settings that train.py gives itself
PLAIN = {"as it comes": {}, "allocator": {"env": KEEP}}
PACKED = {"as it comes": {}, "length groups": {"group": True}, "flattening": {"collator": "flattening"}}
PACKED |= {f"{name}, allocator": {"env": KEEP} | options for name, options in PACKED.items() if options}
PEERS = {  # the settings of Trainer, by row
    "full-bf16": {"as it comes": {}, "bf16 weights, allocator": {"env": KEEP, "stored": "bfloat16"},
                  "fp32, allocator": {"env": KEEP, "dtype": "float32"}},
    "full-fp32": PLAIN | {"eager attention, allocator": {"env": KEEP, "attention": "eager"}},
    "mixed": PACKED, "pairs": PACKED, "evaluate": PACKED | {"bf16": {"dtype": "bfloat16"}},
    "small": PLAIN | {"eager attention, allocator": {"env": KEEP, "attention": "eager"}},
}
ANSWER = 24  # learned tokens of a question/answer pair
POINTWISE = {"recompute": "pointwise"}
ROWS = {  # model, dtype (Trainer's), context, batch, steps, and what train.py is told besides
    "full-bf16": (WHOLE, "bfloat16", 1024, 1, 2, POINTWISE | {"dtype": "auto"}),
    "full-fp32": (WHOLE, "float32", 1024, 1, 3, POINTWISE),
    "lean": (WHOLE, "float32", 1024, 1, 3, {"optimizer": "lean", "recompute": "blocks", "clip": 0.0}),
    "mixed": (QUARTER, "float32", 2048, 1, 3, {}),
    "pairs": (QUARTER, "float32", 2048, 1, 3, {"pair_repeats": 1}),
    "evaluate": (QUARTER, "float32", 2048, 1, 2, {}),
    "small": (SMALL, "float32", 256, 8, 40, {}),
}
UNEVEN = ("mixed", "pairs", "evaluate")  # documents are spread in length as press releases are
SAME = ("full-fp32", "small", "evaluate")  # both sides see the same tokens, in the same order
SAID = {  # what a row is, for the table; ours is fp32 but where "auto" finds units for bf16
    "full-bf16": "0.6 B, 1 x 1,024 tokens, bf16; AdamW, clipped, `recompute=pointwise`",
    "full-fp32": "0.6 B, 1 x 1,024 tokens, fp32; AdamW, clipped, `recompute=pointwise`",
    "lean": "0.6 B, 1 x 1,024 tokens, fp32; `optimizer=lean`, not clipped, `recompute=blocks`",
    "mixed": "0.6 B cut to 7 blocks, releases of mixed length in rows of 2,048; *useful* tokens",
    "pairs": "0.6 B cut to 7 blocks, pairs with long contexts in rows of 2,048, loss on answers; examples",
    "evaluate": "0.6 B cut to 7 blocks, loss over releases of mixed length",
    "small": "4 M, 8 x 256 tokens",
}


# ---------------------------------------------------------------- weights and data


def lengths_of(row: str, context: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens of the documents: rows' length exactly, or spread as press releases are (median 900, a third to three times)."""
    if row in UNEVEN:
        return np.clip(np.exp(rng.normal(np.log(900), 0.6, count)), 40, context).astype(int)
    return np.full(count, context + 1)


def make(row: str, work: Path) -> tuple[Path, Path]:
    """(base, dataset), made once: random weights of the row's shape, random tokens."""
    from model import Decoder
    from nanoprune.data.token_file import write_examples
    from nanoprune.nn.model_config import ModelConfig

    shape, _, context, batch, steps, _ = ROWS[row]
    layers, size = shape["num_hidden_layers"], shape["hidden_size"]
    base, data = work / f"base-{layers}x{size}", work / f"data-{row}"
    if not base.is_dir():
        torch.manual_seed(0)
        Decoder(ModelConfig.from_dict(shape)).save_pretrained(base)
    if not data.is_dir():
        rng, tokens = np.random.default_rng(0), shape["vocab_size"] - 300
        documents = [rng.integers(0, tokens, n).tolist() for n in lengths_of(row, context, 64 * batch + steps * batch, rng)]
        parts = {"train": documents, "val": documents[: 8 if row == "evaluate" else 1]}
        if row == "pairs":
            parts["train"] = [[1, 2]]
            learned = [[0] * (len(d) - ANSWER) + [1] * ANSWER for d in documents]
            write_examples(data / "pairs.safetensors", list(zip(documents, learned, strict=True)), tokens)
        write_data(data, parts, tokens)
    return base, data


def write_data(folder: Path, parts: dict[str, list[list[int]]], tokens: int) -> None:
    """A dataset folder of these splits' documents."""
    from nanoprune.data.token_file import write_documents as write_tokens
    from nanoprune.io.files import write_json

    for name, found in parts.items():
        write_tokens(folder / f"{name}.safetensors", ((d, 1) for d in found), len(found), tokens)
    write_json(folder / "tokenizer.json", {"version": "1.0", "added_tokens": [], "model": {
        "type": "BPE", "vocab": {"a": 0, "<|endoftext|>": 1}, "merges": []}})
    write_json(folder / "meta.json", {"tokenizer_hash": None, "vocab_size": tokens, "end_token": 1})


def config_of(row: str, work: Path, **changes):
    from nanoprune.config import Config

    _, dtype, context, batch, steps, extra = ROWS[row]
    base, data = make(row, work)
    return Config(**({
        "name": row, "base": str(base), "data": str(data), "runs": str(work / f"runs-{os.getpid()}"), "context": context,
        "batch_size": batch, "accumulation": 1, "max_steps": steps, "warmup_steps": 0, "lr": 1e-5, "weight_decay": 0.0,
        "beta2": 0.999, "dtype": dtype, "device": "cpu", "eval_every": 0, "save_every": 0, "keep": "last"} | extra | changes))


# ---------------------------------------------------------------- the two sides


def ours(row: str, work: Path) -> dict:
    """train.py itself, less the writing of its last state; or its validation."""
    import train

    config = config_of(row, work)
    if row == "evaluate":
        from nanoprune.data.dataset import Dataset

        train.keep_freed_memory()
        dataset = Dataset(config.data)
        model = train.load_base(config, *train.find_base(config, dataset))
        validation = train.Validation(dataset, config)
        seconds, losses = [], []
        for _ in range(config.max_steps):
            began = time.perf_counter()
            losses.append(validation.measure(model, train.make_autocast(config, torch.device("cpu")))[0])
            seconds.append(time.perf_counter() - began)
        useful = sum(int((targets != -100).sum()) for _, targets, _ in validation.windows)
        return {"seconds": seconds, "losses": losses, "useful": [useful] * config.max_steps, "memory": peak()}
    inside = [0.0]  # seconds in what a bare step consists of; the rest is the loop's own
    for owner, name in ((train.Decoder, "forward"), (torch.Tensor, "backward"), (torch.nn.utils, "clip_grad_norm_"),
                        (torch.optim.AdamW, "step")):
        setattr(owner, name, timed(getattr(owner, name), inside))
    train.save_state = lambda *_: None
    train.Decoder.save_pretrained = lambda *_: None
    train.train(config)
    with open(config.folder / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ends = [0.0] + [float(r["seconds"]) for r in rows]
    from nanoprune.data.dataset import Dataset
    from nanoprune.data.packing import TrainingRows as Rows

    dataset = Dataset(config.data)
    pairs = dataset.split("pairs") if config.pair_repeats else None
    reader = Rows(dataset.split("train"), config.context, config.seed, pairs, config.pair_repeats)
    batches = [reader.batch(i * config.batch_size, config.batch_size) for i in range(len(rows))]
    useful = [int((targets != -100).sum()) / (ANSWER if row == "pairs" else 1) for _, targets, _ in batches]
    return {"seconds": np.diff(ends).tolist(), "losses": [float(r["loss"]) for r in rows],
            "useful": useful, "memory": float(rows[-1]["memory_gb"]), "overhead": 1 - inside[0] / ends[-1]}


def timed(function, total: list[float]):
    def wrapped(*args, **options):
        began, training = time.perf_counter(), torch.is_grad_enabled() or function.__name__ == "step"
        found = function(*args, **options)
        total[0] += (time.perf_counter() - began) * training
        return found
    return wrapped


def theirs(row: str, work: Path, setting: str) -> dict:
    """Trainer on the same weights and the same tokens; `useful` counts each step's tokens (examples in "pairs")."""
    import transformers
    from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

    from nanoprune.data.dataset import Dataset
    from nanoprune.data.packing import TrainingRows as Rows

    options, config = PEERS[row][setting], config_of(row, work)
    batch = 2 if row in UNEVEN else config.batch_size  # two releases are about as long as a row of ours
    dataset = Dataset(config.data)
    split = dataset.split({"pairs": "pairs", "evaluate": "val"}.get(row, "train"))
    if row in UNEVEN:
        examples = [{"input_ids": split[i].tolist(), "labels": split.targets(i).tolist()} for i in range(len(split))]
    else:
        rows = Rows(split, config.context, config.seed)
        given = (rows.row(r) for r in range(config.max_steps * config.batch_size))
        examples = [{"input_ids": [*ids.tolist(), int(targets[-1])]} for ids, targets, _ in given]
        examples = [example | {"labels": example["input_ids"]} for example in examples]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        config.base, dtype=getattr(torch, options.get("stored", "float32")),
        attn_implementation=options.get("attention", "sdpa"))
    times, losses, seen = [], [], []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            times.append(-time.perf_counter())

        def on_step_end(self, *_, **__):
            times[-1] += time.perf_counter()

        def on_log(self, args, state, control, logs=None, **__):
            if "loss" in (logs or {}):
                losses.append(logs["loss"])

    def pad(features: list[dict]) -> dict:
        longest = max(len(f["input_ids"]) for f in features)
        def rows(key: str, filler: int) -> torch.Tensor:
            return torch.tensor([f[key] + [filler] * (longest - len(f[key])) for f in features])
        return {"input_ids": rows("input_ids", 0), "labels": rows("labels", -100),
                "attention_mask": (rows("input_ids", -1) >= 0).long()}

    chosen = DataCollatorWithFlattening() if options.get("collator") == "flattening" else pad

    def collate(features: list[dict]) -> dict:
        seen.append(len(features) if row == "pairs" else sum(len(f["input_ids"]) - 1 for f in features))
        return chosen(features)

    sampling = "group_by_length" if options.get("group") else "random" if row in UNEVEN else "sequential"
    arguments = TrainingArguments(
        output_dir=str(work / "trainer"), max_steps=config.max_steps, per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch, learning_rate=config.lr, lr_scheduler_type="cosine", weight_decay=0.0,
        max_grad_norm=1.0, bf16=options.get("dtype", ROWS[row][1]) == "bfloat16", use_cpu=True, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False, dataloader_num_workers=0,
        train_sampling_strategy=sampling)
    trainer = Trainer(model=model, args=arguments, train_dataset=examples, eval_dataset=examples, data_collator=collate,
                      callbacks=[Clock()])
    if row == "evaluate":
        for _ in range(config.max_steps):
            began = time.perf_counter()
            losses.append(trainer.evaluate()["eval_loss"])
            times.append(time.perf_counter() - began)
        return {"seconds": times, "losses": losses, "useful": [sum(seen) / len(times)] * len(times), "memory": peak()}
    trainer.train()
    return {"seconds": times, "losses": losses, "useful": seen[: config.max_steps], "memory": peak()}


def peak() -> float:
    from nanoprune.device import peak_memory

    return peak_memory(torch.device("cpu"))


def fresh(row: str, work: Path, setting: str | None) -> dict:
    """One side in a process of its own; rate per second without the first step."""
    environment = os.environ | (PEERS[row][setting].get("env", {}) if setting else {})
    command = [sys.executable, "-m", "benchmarks.train", "--one", row, "--work", str(work)]
    command += ["--setting", setting] if setting else []
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    steady = found["seconds"][1:]
    return found | {"rate": sum(found["useful"][1:]) / sum(steady), "step": statistics.median(steady)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all without")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peers", type=int, default=9, help="settings of Trainer to measure, from the first")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--work", type=Path, default=Path("data/benchmark"), help="for weights, data and runs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = args.work.resolve()
    if args.one:
        print(json.dumps(theirs(args.one, work, args.setting) if args.setting else ours(args.one, work)))
        return
    if unknown := set(args.rows) - set(ROWS):
        raise ValueError(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    work.mkdir(parents=True, exist_ok=True)
    path, rows = args.out / "train.csv", args.rows or list(ROWS)
    found = [one for one in read(path) if one["row"] not in rows]
    for row in rows:
        make(row, work)
        for turn in range(args.rounds):
            for setting in [None, *list(PEERS.get(row, {}))[: args.peers]]:
                one = fresh(row, work, setting)
                if setting is None:
                    ours_at_first = one["losses"][:3]
                found.append({
                    "row": row, "round": turn, "setting": setting or "nanoprune", "rate": one["rate"], "step_s": one["step"],
                    "memory_gb": one["memory"], "overhead": one.get("overhead", ""),
                    "first_loss": one["losses"][0], "loss_differs": max(
                        abs(a / b - 1) for a, b in zip(ours_at_first, one["losses"][:3], strict=True)) if row in SAME else "",
                    "machine": machine(), "versions": f"torch {torch.__version__}, transformers {version('transformers')}"})
                print(found[-1], file=sys.stderr, flush=True)
                write_rows(path, found)
    found = read(path)
    table = tabulate(found)
    (args.out / "train.md").write_text(table)
    print(f"{table}\nwrote {path} and {args.out / 'train.md'}")
    if apart := [one for one in found if one["row"] in SAME and "bf16" not in one["setting"] and one["loss_differs"] > 1e-3]:
        raise ValueError("the two sides did not compute the same: the first losses differ by more than 1e-3 in " + ", ".join(
            f"{one['row']} ({one['setting']}: {one['loss_differs']:.1e})" for one in apart))


def machine() -> str:
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def write_rows(path: Path, found: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, found[0])
        writer.writeheader()
        writer.writerows(found)


def read(path: Path) -> list[dict]:
    """The measurements of a benchmark's CSV, numbers as numbers; none where there is no file."""
    if not path.is_file():
        return []
    words = ("row", "setting", "model", "kind", "machine", "versions")
    with open(path, newline="") as file:
        return [{k: v if k in words or not v else float(v) for k, v in one.items()} for one in csv.DictReader(file)]


def tabulate(found: list[dict]) -> str:
    """The ratios, a line a row, and below them every setting: medians, with the lowest and highest of several rounds.

    Ratios are of one round each. "Loop" is the time beside the model, the backward pass, clipping and the optimizer.
    """
    def values(row: str, setting: str, key: str) -> list[float]:
        return [one[key] for one in found if (one["row"], one["setting"]) == (row, setting)]

    def spread(numbers: list[float], form: str) -> str:
        ends = f" ({min(numbers):{form}} to {max(numbers):{form}})" if len(numbers) > 1 else ""
        return f"{statistics.median(numbers):{form}}{ends}"

    def ratio(row: str, setting: str, key: str) -> str:
        return spread([a / b for a, b in zip(values(row, "nanoprune", key), values(row, setting, key), strict=True)], ".2f")

    lines = ["| row | speed to Trainer as it comes | to its best setting | peak memory, GB | to Trainer's | loop | rounds |",
             "|" + "---|" * 7]
    below = ["| row | what | setting | a second | seconds a step | peak memory, GB | first losses differ by |",
             "|" + "---|" * 7]
    for row in dict.fromkeys(one["row"] for one in found):
        settings = list(dict.fromkeys(one["setting"] for one in found if one["row"] == row))
        for setting in settings:
            ours = setting == "nanoprune"
            differs = [] if ours else [d for d in values(row, setting, "loss_differs") if d != ""]
            cells = [row, SAID[row] if ours else "", setting if ours else f"Trainer, {setting}",
                     *(spread(values(row, setting, key), form) for key, form in (("rate", ".3g"), ("step_s", ".3g"),
                                                                                ("memory_gb", ".2f"))),
                     f"{max(differs):.1e}" if differs else ""]
            below.append(f"| {' | '.join(cells)} |")
        peers, cells = settings[1:], ["", "", spread(values(row, "nanoprune", "memory_gb"), ".2f"), "", ""]
        if row != "evaluate":
            cells[4] = f"{statistics.median(values(row, 'nanoprune', 'overhead')):.2%}"
        if peers:
            best = max(peers, key=lambda setting: statistics.median(values(row, setting, "rate")))
            cells[0], cells[1] = ratio(row, "as it comes", "rate"), f"{ratio(row, best, 'rate')}, {best}"
            cells[3] = ratio(row, "as it comes", "memory_gb")
        lines.append(f"| {row} | {' | '.join(cells)} | {len(values(row, 'nanoprune', 'rate'))} |")
    about = dict.fromkeys(f"{one['machine']}; {one['versions']}" for one in found)
    return "\n".join([*lines, "", *below, "", *about]) + "\n"


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"benchmarks.train: {error}", file=sys.stderr)
        sys.exit(2)
