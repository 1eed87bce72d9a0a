"""LoRA and QLoRA by train.py beside PEFT: the same weights, adapters and tokens, in turn, each in a fresh process.

    python -m benchmarks.adapters                        # Qwen3-0.6B's shape, 1 x 1,024 tokens, rank 8 on q and v
    python -m benchmarks.adapters --layers 4 --rounds 3

The base is random and stored in bf16. PEFT is a plain loop of its model, AdamW and clipping, with the base in bf16 or in fp32,
as it comes or with glibc told to keep freed memory, as train.py tells it. Rates leave the first step out, memory is the peak of
the process. The first losses of PEFT and of LoRA must agree to 1e-3. A side that has not done a second
step within --limit seconds is ended, and its rate given as below that of the first. Writes results/adapters.csv and
results/adapters.md. Compare ratios, not seconds, as machines are noisy.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from benchmarks.train import KEEP, QWEN3, ROOT, machine, peak, read, write_data, write_rows

CONTEXT, LORA = 1024, {"lora": "q_proj,v_proj", "lora_rank": 8, "lora_alpha": 16.0}
OURS = {"LoRA": {"frozen": "stored"}, "QLoRA": {"frozen": "nf4", "recompute": "blocks"}}
PEFT = {"PEFT, bf16 base": ("bfloat16", False, {}), "PEFT, bf16 base, allocator": ("bfloat16", False, KEEP),
        "PEFT, bf16 base, autocast, allocator": ("bfloat16", True, KEEP),
        "PEFT, fp32 base": ("float32", False, {}), "PEFT, fp32 base, allocator": ("float32", False, KEEP)}


def config_of(setting: str, layers: int, steps: int, work: Path):
    from nanoprune.config import Config

    return Config(name=setting.lower(), base=str(work / f"bf16-{layers}"), data=str(work / "data-adapters"),
                  runs=str(work / "runs"), context=CONTEXT, batch_size=1, accumulation=1, max_steps=steps, warmup_steps=0,
                  lr=1e-4, weight_decay=0.0, eval_every=0, save_every=0, keep="last", **LORA, **OURS[setting])


def make(layers: int, work: Path) -> None:
    """The base and the data, once."""
    from model import Decoder
    from nanoprune.nn.model_config import ModelConfig

    base, data = work / f"bf16-{layers}", work / "data-adapters"
    if not base.is_dir():
        torch.manual_seed(0)
        Decoder(ModelConfig.from_dict(QWEN3 | {"num_hidden_layers": layers})).bfloat16().save_pretrained(base)
    if not data.is_dir():
        rng, tokens = np.random.default_rng(0), QWEN3["vocab_size"] - 300
        documents = [rng.integers(0, tokens, CONTEXT + 1).tolist() for _ in range(16)]
        write_data(data, {"train": documents, "val": [[1, 2]]}, tokens)


def ours(setting: str, layers: int, steps: int, work: Path) -> dict:
    """train.py itself, less the writing of its state."""
    import train

    config = config_of(setting, layers, steps, work)
    train.save_state = lambda *_: None
    train.save_adapter = lambda *_: None
    train.train(config)
    with open(config.folder / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ends = [0.0] + [float(r["seconds"]) for r in rows]
    return {"seconds": np.diff(ends).tolist(), "losses": [float(r["loss"]) for r in rows],
            "memory": float(rows[-1]["memory_gb"])}


def theirs(setting: str, layers: int, steps: int, work: Path):
    """PEFT on the same adapters and tokens; yields what is known after each step."""
    import transformers
    from peft import PeftModel

    from nanoprune.data.dataset import Dataset
    from nanoprune.nn.lora import add_lora as adapt
    from nanoprune.nn.lora import load_frozen
    from nanoprune.nn.peft import save_adapter

    config = config_of("LoRA", layers, steps, work)
    adapter = work / f"adapter-{layers}"
    if not adapter.is_dir():
        model = load_frozen(config.base)
        adapt(model, config.lora, config.lora_rank, config.lora_alpha, seed=config.seed)
        save_adapter(model, adapter)
        return
    dtype, autocast, _ = PEFT[setting]
    dtype = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(config.base, dtype=dtype)
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=0.0, fused=True)
    rows = Dataset(config.data).rows(CONTEXT, config.seed, 0, 0.0)
    found = {"seconds": [], "losses": [], "memory": 0.0}
    for step in range(steps):
        ids, targets, _ = rows.batch(step, 1)
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (config.min_lr + (1 - config.min_lr) * 0.5 * (1 + np.cos(np.pi * (step + 1) / steps)))
        whole = torch.cat([ids, targets[:, -1:]], dim=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=whole, labels=whole).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found["seconds"].append(time.perf_counter() - began)
        found["losses"].append(float(loss.detach()))
        yield found | {"memory": peak()}


def fresh(setting: str, args, work: Path, limit: float | None = None) -> dict:
    """One side in a process of its own: tokens a second without the first step."""
    environment = os.environ | (PEFT[setting][2] if setting in PEFT else {})
    command = [sys.executable, "-m", "benchmarks.adapters", "--one", setting, "--work", str(work), "--layers", str(args.layers),
               "--steps", str(args.steps)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    began = time.perf_counter()
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    else:
        if process.returncode:
            raise ValueError(f"{' '.join(command)} failed:\n{err[-2000:]}")
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    found = lines[-1] if lines else {"seconds": [], "losses": [], "memory": 0.0}
    steady = found["seconds"][1:]
    if not steady:
        print(f"{setting}: no second step after {time.perf_counter() - began:.0f} s", file=sys.stderr)
    longest = found["seconds"][0] if found["seconds"] else time.perf_counter() - began
    return found | {"rate": CONTEXT / statistics.median(steady) if steady else CONTEXT / longest, "below": not steady}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28, help="blocks of Qwen3-0.6B's 28")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1800, help="seconds for a setting of PEFT")
    parser.add_argument("--settings", nargs="+", default=[*OURS, *PEFT], choices=[*OURS, *PEFT])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--work", type=Path, default=Path("data/benchmark"), help="for weights, data and runs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = args.work.resolve()
    if args.one:
        told = [ours(args.one, args.layers, args.steps, work)] if args.one in OURS else theirs(
            args.one, args.layers, args.steps, work)
        for found in told:
            print(json.dumps(found), flush=True)
        return
    if args.steps < 2 or args.rounds < 1 or not 1 <= args.layers <= 28:
        raise ValueError("--steps must be at least 2, --rounds at least 1, --layers from 1 to 28; given "
                         f"{args.steps}, {args.rounds} and {args.layers}")
    work.mkdir(parents=True, exist_ok=True)
    make(args.layers, work)
    if not (work / f"adapter-{args.layers}").is_dir():
        list(theirs("PEFT, fp32 base", args.layers, args.steps, work))
    path = args.out / "adapters.csv"
    found = [one for one in read(path) if one["row"] != f"{args.layers} blocks"]
    for turn in range(args.rounds):
        for setting in args.settings:
            for run in (work / "runs").glob(setting.lower()):
                subprocess.run(["rm", "-r", str(run)], check=True)
            one = fresh(setting, args, work, args.limit if setting in PEFT else None)
            found.append({"row": f"{args.layers} blocks", "round": turn, "setting": setting, "rate": one["rate"],
                          "below": int(one["below"]), "memory_gb": one["memory"], "steps": len(one["seconds"]),
                          "first_loss": one["losses"][0] if one["losses"] else "",
                          "last_loss": one["losses"][-1] if one["losses"] else "", "machine": machine(),
                          "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "peft", "transformers"))})
            print(found[-1], file=sys.stderr, flush=True)
            write_rows(path, found)
    table = tabulate(found)
    (args.out / "adapters.md").write_text(table)
    print(f"{table}\nwrote {path} and {args.out / 'adapters.md'}")
    first = {one["setting"]: one["first_loss"] for one in found if one["row"] == f"{args.layers} blocks" and one["first_loss"]}
    for setting in first:
        if setting in PEFT and abs(first[setting] / first["LoRA"] - 1) > 1e-3:
            raise ValueError(f"the two sides did not compute the same: {first['LoRA']} and {first[setting]} ({setting})")


def tabulate(found: list[dict]) -> str:
    lines = ["| model | setting | tokens a second | LoRA's to it | peak memory, GB | first loss | rounds |", "|" + "---|" * 7]
    for row in dict.fromkeys(one["row"] for one in found):
        rates = {}
        for one in found:
            if one["row"] == row:
                rates.setdefault(one["setting"], []).append(one)
        lora = statistics.median(one["rate"] for one in rates["LoRA"]) if "LoRA" in rates else float("nan")
        for setting, ones in rates.items():
            values = [one["rate"] for one in ones]
            middle, sign = statistics.median(values), ("below " if any(one["below"] for one in ones) else "")
            ends = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
            more = "above " if sign else ""
            lines.append(f"| {row} | {setting} | {sign}{middle:.3g}{ends} | {more}{lora / middle:.2f} | "
                         f"{max(one['memory_gb'] for one in ones):.2f} | {ones[0]['first_loss']} | {len(ones)} |")
    about = dict.fromkeys(f"{one['machine']}; {one['versions']}" for one in found)
    return "\n".join([*lines, "", *about]) + "\n"


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"benchmarks.adapters: {error}", file=sys.stderr)
        sys.exit(2)
