"""LoRA and QLoRA by train.py beside PEFT: the same weights, adapters and tokens, in turn, each in a fresh
process.

    python -m benchmarks.adapters                       # Qwen3-0.6B's shape, 1 x 1,024 tokens, rank 8
    python -m benchmarks.adapters --layers 4 --rounds 3

The base is random and stored in bf16. PEFT is a plain loop of its model, AdamW and clipping, with the base
in bf16, in fp32 or in four bits by bitsandbytes, as it comes or with glibc told to keep freed memory, as
train.py tells it; with checkpointing AdamW has eight bits. Rates leave the first step out, memory is the
peak of the process. The first losses of PEFT and of LoRA or QLoRA must agree to 1e-3. A PEFT run without a
second step after --limit seconds is ended; its rate is given as below that of the first. Writes
results/adapters.csv and results/adapters.md. Compare ratios, not seconds, as machines are noisy. """

import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import (
    KEEP_FREED_MEMORY,
    QWEN3,
    machine,
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
from benchmarks.tables import markdown
from nanoprune import command_line
from nanoprune.config import Config, replace

CONTEXT = 1024
OURS = {"LoRA": {"frozen": "stored"}, "QLoRA": {"frozen": "nf4", "recompute": "blocks"}}


@dataclass(frozen=True)
class Peft:
    """A setting of the plain loop of PEFT."""

    dtype: torch.dtype  # of the base
    environment: dict = field(default_factory=dict)
    autocast: bool = False
    four_bits: bool = False
    checkpointing: bool = False  # and AdamW in eight bits


PEFT = {
    "PEFT, bf16 base": Peft(torch.bfloat16),
    "PEFT, bf16 base, allocator": Peft(torch.bfloat16, KEEP_FREED_MEMORY),
    "PEFT, bf16 base, autocast, allocator": Peft(torch.bfloat16, KEEP_FREED_MEMORY, autocast=True),
    "PEFT, bf16 base, 8 bits, checkpointing, allocator": Peft(
        torch.bfloat16, KEEP_FREED_MEMORY, checkpointing=True),
    "PEFT, NF4 base, 8 bits, checkpointing, allocator": Peft(
        torch.bfloat16, KEEP_FREED_MEMORY, four_bits=True, checkpointing=True),
    "PEFT, fp32 base": Peft(torch.float32),
    "PEFT, fp32 base, allocator": Peft(torch.float32, KEEP_FREED_MEMORY),
    "PEFT, fp32 base, 8 bits, checkpointing, allocator": Peft(
        torch.float32, KEEP_FREED_MEMORY, checkpointing=True),
    "PEFT, NF4 base, fp32, 8 bits, checkpointing, allocator": Peft(
        torch.float32, KEEP_FREED_MEMORY, four_bits=True, checkpointing=True),
}


def make(layers: int, work: Path) -> None:
    """The base, the data and an adapter, once."""
    from model import Decoder
    from nanoprune.nn.lora import LoraSettings, add_lora
    from nanoprune.nn.peft import save_adapter

    base, data, adapter = base_folder(layers, work), work / "data-adapters", adapter_folder(layers, work)
    random_model(QWEN3 | {"num_hidden_layers": layers}, base, torch.bfloat16)
    if not data.is_dir():
        vocab_size = QWEN3["vocab_size"] - 300
        documents = random_documents(np.random.default_rng(0), [CONTEXT + 1] * 16, vocab_size)
        write_dataset(data, {"train": documents, "val": [[1, 2]]}, vocab_size)
    if not adapter.is_dir():
        config, model = make_config(layers, 1, work), Decoder.from_pretrained(base, frozen="stored")
        add_lora(model, config.lora, LoraSettings(config.lora_rank, config.lora_alpha), config.seed)
        save_adapter(model, adapter)


def base_folder(layers: int, work: Path) -> Path:
    return work / f"bf16-{layers}"


def adapter_folder(layers: int, work: Path) -> Path:
    return work / f"adapter-{layers}"


def make_config(layers: int, steps: int, work: Path) -> Config:
    return Config(
        name="adapter", base=str(base_folder(layers, work)), data=str(work / "data-adapters"),
        runs=str(work / f"runs-{os.getpid()}"), context=CONTEXT, batch_size=1, accumulation=1,
        max_steps=steps, warmup_steps=0, lr=1e-4, weight_decay=0.0, eval_every=0, save_every=0, keep="last",
        lora="q_proj,v_proj", lora_rank=8, lora_alpha=16.0)


def train_ours(config: Config) -> dict:
    """train.py itself, less the writing of its state."""
    train_without_saving(config)
    losses, ends, memory = read_columns(config.folder / "train.csv", "loss", "seconds", "memory_gb")
    return {"seconds": np.diff([0.0, *ends]).tolist(), "losses": losses, "memory": memory[-1]}


def train_peft(config: Config, adapter: Path, setting: Peft) -> Iterator[dict]:
    """PEFT on the same adapters and tokens; yields the measurement so far after each step."""
    import transformers
    from peft import PeftModel

    from nanoprune.data.dataset import Dataset
    from train import learning_rate

    four_bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=setting.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        config.base, dtype=setting.dtype, quantization_config=four_bits if setting.four_bits else None)
    if setting.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    if setting.checkpointing:
        from bitsandbytes.optim import AdamW8bit  # here: its memory is not that of the other settings

        optimizer = AdamW8bit(trainable, lr=config.lr, weight_decay=0.0)
    else:
        optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=0.0, fused=True)
    rows = Dataset(config.data).rows(CONTEXT, config.seed, 0, 0.0)
    seconds, losses = [], []
    for step in range(1, config.max_steps + 1):
        ids, targets, _ = rows.batch(step - 1, 1)
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        sequence = torch.cat([ids, targets[:, -1:]], dim=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.autocast):
            loss = model(input_ids=sequence, labels=sequence).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
        losses.append(float(loss.detach()))
        yield {"seconds": seconds, "losses": losses, "memory": peak()}


def main() -> None:
    parser = make_parser(__doc__, work="data/benchmark")
    parser.add_argument("--layers", type=int, default=28, help="blocks of Qwen3-0.6B's 28")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1800, help="seconds for a setting of PEFT")
    parser.add_argument("--settings", nargs="+", default=[*OURS, *PEFT], choices=[*OURS, *PEFT])
    args = parser.parse_args()
    if args.steps < 2 or args.rounds < 1 or not 1 <= args.layers <= 28:
        raise ValueError("--steps must be at least 2, --rounds at least 1, --layers from 1 to 28; given "
                         f"{args.steps}, {args.rounds} and {args.layers}")
    work, path = args.work.resolve(), args.out / "adapters.csv"
    if args.side:
        config = make_config(args.layers, args.steps, work)
        if args.side in OURS:
            results = [train_ours(replace(config, **OURS[args.side]))]
        else:
            results = train_peft(config, adapter_folder(args.layers, work), PEFT[args.side])
        for result in results:
            print(json.dumps(result), flush=True)
        return
    make(args.layers, work)
    name = f"{args.layers} blocks"
    measurements = [row for row in read_measurements(path) if row["row"] != name]
    for turn, setting in product(range(args.rounds), args.settings):
        environment, limit = (PEFT[setting].environment, args.limit) if setting in PEFT else ({}, None)
        began = time.perf_counter()
        result = run_fresh("benchmarks.adapters", "--side", setting, "--work", work, "--layers", args.layers,
                           "--steps", args.steps, environment=environment, limit=limit)
        row = {"row": name, "round": turn, "setting": setting} | summary(result, time.perf_counter() - began)
        record(measurements, row, path)
    measurements = read_measurements(path)
    report(tabulate(measurements), args.out, "adapters")
    check_losses(select(measurements, row=name))


def summary(result: dict, waited: float) -> dict:
    """The columns of a measurement; `waited` is the time after which a run without any step was ended."""
    seconds, losses = result.get("seconds", []), result.get("losses", [])
    step = statistics.median(seconds[1:]) if len(seconds) > 1 else (seconds or [waited])[0]
    return {"rate": CONTEXT / step, "below": int(len(seconds) < 2), "memory_gb": result.get("memory", 0.0),
            "steps": len(seconds), "first_loss": (losses or [""])[0], "last_loss": (losses or [""])[-1],
            "machine": machine(),
            "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "peft", "transformers"))}


def check_losses(measurements: list[dict]) -> None:
    """ValueError if PEFT and LoRA, or QLoRA, did not compute the same."""
    first = {row["setting"]: row["first_loss"] for row in measurements if row["first_loss"] != ""}
    for setting in first.keys() & PEFT.keys():
        ours = "QLoRA" if PEFT[setting].four_bits else "LoRA"
        if ours in first and abs(first[setting] / first[ours] - 1) > 1e-3:
            raise ValueError(f"the two sides did not compute the same: {ours} {first[ours]}, {setting} "
                             f"{first[setting]}")


def tabulate(measurements: list[dict]) -> list[str]:
    rows = []
    for name, setting in dict.fromkeys((row["row"], row["setting"]) for row in measurements):
        runs = select(measurements, row=name, setting=setting)
        rates, below = [row["rate"] for row in runs], any(row["below"] for row in runs)
        lora = select(measurements, row=name, setting="LoRA")
        ratios = [ours["rate"] / row["rate"] for ours in lora for row in runs
                  if ours["round"] == row["round"]]
        ratio = median_and_range(ratios, ".2f") if ratios else ""
        memory = median_and_range([row["memory_gb"] for row in runs], ".2f")
        rows.append([name, setting, ("below " if below else "") + median_and_range(rates, ".3g"),
                     ("above " if below else "") + ratio, memory, runs[0]["first_loss"], len(runs)])
    header = ["model", "setting", "tokens a second", "LoRA's to it", "peak memory, GB", "first loss",
              "rounds"]
    machines = dict.fromkeys(f"{row['machine']}; {row['versions']}" for row in measurements)
    return [*markdown(header, rows), "", *machines]


if __name__ == "__main__":
    command_line.run(main)
