"""Measurements of benchmarks/gpu.sh, each in a process of its own.

    python -m benchmarks.gpu_measures full --device cuda --size whole --work data/gpu

Every line of output is a JSON object; the last one is the measurement, so what is measured before a kill
counts. Weights are random: speed and memory do not depend on their values.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import older_torch
from benchmarks.common import ROOT, SMALL, WHOLE, processor, read_columns, train_without_saving, write_dataset
from model import Decoder
from nanoprune import command_line
from nanoprune.config import Config
from nanoprune.data.dataset import Dataset
from nanoprune.device import environment, memory_left, pick_device, synchronize
from nanoprune.evaluation.perplexity import score_text
from nanoprune.evaluation.removal_losses import Calibration, losses_without
from nanoprune.io.jsonl import read_jsonl, write_jsonl
from nanoprune.nn.losses import HEAD_CHUNK, head_loss, plain_loss
from nanoprune.nn.model_config import ModelConfig, Part
from nanoprune.nn.sampling import generate
from nanoprune.training.base import find_base
from nanoprune.training.budget import training_memory

PACKAGES = ("numpy", "transformers", "accelerate", "trl", "peft", "triton", "pytest")
RELEASES = 200  # articles that are prepared
WARM_UP = 2  # steps that do not count


@dataclass(frozen=True)
class Size:
    """How large everything is that is measured."""

    shape: dict
    rows: int  # a step
    context: int
    steps: int
    windows: int  # of `context` tokens that blocks are scored on
    prompt: int  # tokens
    new_tokens: int
    matrix: int  # rows and columns of a product whose rate is measured


SIZES = {
    "whole": Size(WHOLE, rows=8, context=2048, steps=16, windows=8, prompt=64, new_tokens=128, matrix=8192),
    "small": Size(SMALL, rows=4, context=256, steps=6, windows=4, prompt=16, new_tokens=16, matrix=1024),
}


@dataclass(frozen=True)
class Job:
    """What a measurement is asked for."""

    device: torch.device
    size: Size
    work: Path  # for weights, data and runs

    @property
    def base(self) -> Path:
        return self.work / "base"

    @property
    def releases(self) -> Path:
        """The dataset of whole press releases, several in a row."""
        return self.work / "releases"

    @property
    def rows(self) -> Path:
        """The dataset of the same tokens, cut so that a document fills a row."""
        return self.work / "rows"

    @property
    def dtype(self) -> torch.dtype:
        """The type of products that is measured: half of fp32's width where the device is fast in it."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def config(self, name: str, data: Path, **settings) -> Config:
        """A training run of this size."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Config(**dict(
            name=f"{name}-{os.getpid()}", base=str(self.base), data=str(data), runs=str(self.work / "runs"),
            context=self.size.context, batch_size=self.size.rows, accumulation=1, max_steps=self.size.steps,
            warmup_steps=1, lr=1e-5, device=self.device.type, dtype=dtype, log_every=100, eval_every=0,
            eval_documents=1, save_every=0, keep="last") | settings)


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int, warm_up: int = 2) -> float:
    """The median time of a call, with all that the device does in it."""
    seconds = []
    for _ in range(warm_up + repeats):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[warm_up:])


def matrix_rate(job: Job, dtype: torch.dtype) -> float:
    """FLOP/s of a square product of random values: on equal values a GPU draws less power and runs faster."""
    n = job.size.matrix
    a, b = (torch.randn(n, n, device=job.device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / median_seconds(lambda: a @ b, job.device, repeats=20)


# ---------------------------------------------------------------- what is there, and what is needed
def describe(job: Job) -> Iterator[dict]:
    """The card, versions, and the rates that the other measurements are held against."""
    found = environment(job.device)
    card = found["device"] if job.device.type == "cuda" else f"{job.device.type}: {processor()}"
    facts = {"card": card, "commit": found["git"], "python": found["python"],
             "torch": found["torch"], "threads": found["threads"], "system": platform.system(),
             "memory_gb": memory_left(job.device) / 1e9,
             "packages": {name: installed for name in PACKAGES if (installed := package_version(name))}}
    dtypes = {"fp32": torch.float32}
    if job.device.type == "cuda":
        about = torch.cuda.get_device_properties(job.device)
        facts |= {"memory_gb": about.total_memory / 1e9, "capability": f"{about.major}.{about.minor}",
                  "cuda": torch.version.cuda, "bridged": older_torch.bridge()}
        dtypes |= {"fp16": torch.float16, "bf16": torch.bfloat16}
    yield facts
    facts["tflops"] = {name: matrix_rate(job, dtype) / 1e12 for name, dtype in dtypes.items()}
    if job.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        facts["tflops"]["tf32"] = matrix_rate(job, torch.float32) / 1e12
    source = torch.randn(2**28 if job.device.type == "cuda" else 2**24, device=job.device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), job.device, repeats=5)
    yield facts | {"copy_gb_s": 2 * source.nbytes / seconds / 1e9}


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def make(job: Job) -> Iterator[dict]:
    """The datasets and the base, from real releases if they are at hand, else from the demo's newsroom."""
    shutil.rmtree(job.work, ignore_errors=True)
    real = Path(os.environ.get("NANOPRUNE_REAL") or "no-such-folder")
    articles, tokenizer = real / "bmw" / "articles.jsonl", real / "checkpoints" / "Qwen3-0.6B"
    if articles.is_file():
        found, source = read_jsonl(articles, ("id", "text")), "press releases of a real newsroom"
    else:
        from nanoprune.demo.__main__ import build_world

        job.work.mkdir(parents=True)
        found, source = build_world(0, job.work)[0], "press releases of the demo's newsroom"
    write_jsonl(job.work / "articles.jsonl", found[:RELEASES])
    whole = job.size.shape == WHOLE and (tokenizer / "tokenizer.json").is_file()
    how = ["--tokenizer", str(tokenizer)] if whole else ["--train-tokenizer", "1024"]
    command = [sys.executable, "prepare.py", job.work / "articles.jsonl", "--out", job.releases, *how,
               "--no-generated"]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, stdout=sys.stderr)
    split = Dataset(job.releases).split("train")
    tokens = np.concatenate([split[i].tokens for i in range(len(split))])
    length = job.size.context + 1
    rows = np.resize(tokens, (max(len(tokens) // length, job.size.rows), length)).tolist()
    write_dataset(job.rows, {"train": rows, "val": rows[:1]}, job.size.shape["vocab_size"])
    torch.manual_seed(0)
    with torch.device(job.device):
        model = Decoder(ModelConfig.from_dict(job.size.shape))
    model.to(torch.bfloat16).save_pretrained(job.base)
    yield {"source": source, "documents": len(split), "tokens": len(tokens), "tokenizer": "Qwen3" if whole
           else "trained on these releases, 1,024 tokens",
           "parameters": sum(parameter.numel() for parameter in model.parameters()),
           "blocks": job.size.shape["num_hidden_layers"], "rows": job.size.rows, "context": job.size.context}


# ---------------------------------------------------------------- training
def measure_training(job: Job, name: str, data: Path, **settings) -> dict:
    """train.py itself, less the writing of models: rates after the warm-up, memory, and what was foretold."""
    import train

    config = job.config(name, data, **settings)
    train.matmul_rate = lambda *_: 1.0  # the column `mfu` then holds FLOP/s
    ranks = train.join(config.device)
    stored = sum(path.stat().st_size for path in job.base.glob("*.safetensors"))
    base = find_base(config, Dataset(config.data), ranks)
    foretold = sum(training_memory(config, base.config, job.device, stored=stored).values()) / 1e9
    train_without_saving(config)
    speeds, flops, memory, losses = read_columns(config.folder / "train.csv", "tokens_per_s", "mfu",
                                                 "memory_gb", "loss")
    seconds = [config.tokens_per_step / speed for speed in speeds]
    result = summary(config, seconds, memory[-1], losses)
    rate = matrix_rate(job, job.dtype)
    result |= {"mfu": statistics.median(flops[WARM_UP:]) / rate, "tflops": rate / 1e12,
               "foretold_gb": foretold, "first_step_s": seconds[0]}
    shutil.rmtree(config.folder, ignore_errors=True)
    return result


def summary(config: Config, seconds: list[float], memory: float, losses: list[float]) -> dict:
    """The columns that all sides of a training comparison have."""
    step = statistics.median(seconds[WARM_UP:] or seconds[-1:])
    return {"tokens_s": config.tokens_per_step / step, "step_s": step, "memory_gb": memory,
            "steps": len(seconds), "first_loss": losses[0], "last_loss": losses[-1]}


def full(job: Job) -> Iterator[dict]:
    yield measure_training(job, "full", job.rows)


def packed(job: Job) -> Iterator[dict]:
    yield measure_training(job, "packed", job.releases)


def lean(job: Job) -> Iterator[dict]:
    yield measure_training(job, "lean", job.rows, optimizer="lean", clip=0.0)


def recompute(job: Job) -> Iterator[dict]:
    yield measure_training(job, "recompute", job.rows, recompute="blocks")


def lora(job: Job) -> Iterator[dict]:
    yield measure_training(job, "lora", job.rows, lora="all", lr=1e-4)


def qlora(job: Job) -> Iterator[dict]:
    yield measure_training(job, "qlora", job.rows, lora="all", lr=1e-4, frozen="nf4", recompute="blocks")


def compiled(job: Job) -> Iterator[dict]:
    yield measure_training(job, "compiled", job.rows, compile=True)


# ---------------------------------------------------------------- parts
def head_steps(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
) -> dict[str, Callable[[], torch.Tensor]]:
    """The head's loss with its gradients, products in `dtype`: ours, torch's and the plain form."""
    labels = targets.to(x.device).flatten()

    def of_torch(**options) -> torch.Tensor:
        hidden, rows = (part.to(dtype) for part in (x.flatten(0, 1), weight))
        return F.linear_cross_entropy(hidden, rows, labels, **options)

    forms = {"nanoprune": lambda: head_loss(x.to(dtype), weight, targets)}
    if hasattr(F, "linear_cross_entropy"):
        chunked, size = torch.nn.LinearCrossEntropyOptions, HEAD_CHUNK // len(weight)
        for name, options in {
            "chunked": {"options": chunked()},
            "our chunks": {"options": chunked(batch_chunk_size=size, chunking_method=None)},
            "as it comes": {},
        }.items():
            forms[f"F.linear_cross_entropy, {name}"] = partial(of_torch, **options)
    forms["plain"] = lambda: plain_loss(F.linear(x.to(dtype), weight.to(dtype)), targets)

    def step(form: Callable) -> torch.Tensor:
        x.requires_grad_().grad = weight.requires_grad_().grad = None
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            value = form()
        value.backward()
        return value.detach()

    return {name: partial(step, form) for name, form in forms.items()}


def head(job: Job) -> Iterator[dict]:
    """Loss and gradients of the vocabulary head for a step's tokens: ours, torch's and the plain form."""
    tokens, shape = job.size.rows * job.size.context, job.size.shape
    torch.manual_seed(0)
    x = torch.randn(1, tokens, shape["hidden_size"], device=job.device)
    weight = torch.randn(shape["vocab_size"], shape["hidden_size"], device=job.device) * 0.02
    results, loss = {}, None
    for name, step in head_steps(x, weight, torch.randint(0, len(weight), (1, tokens)), job.dtype).items():
        try:
            x.grad = weight.grad = None
            if job.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            seconds = median_seconds(step, job.device, repeats=5)
            value = float(step())
        except torch.OutOfMemoryError:
            results[name] = {"error": "out of memory"}
            continue
        loss = value if loss is None else loss
        results[name] = {"ms": seconds * 1e3, "loss_differs": abs(value / loss - 1)}
        if job.device.type == "cuda":
            results[name]["memory_gb"] = (torch.cuda.max_memory_allocated() - before) / 1e9
        yield {"tokens": tokens, "vocabulary": len(weight), "forms": results}


def scores(job: Job) -> Iterator[dict]:
    """The loss without each block in turn, beside as many whole forward passes."""
    model = Decoder.from_pretrained(job.base, device=job.device).eval()
    blocks, split = model.config.num_hidden_layers, Dataset(job.rows).split("train")
    documents = [split[i] for i in range(min(job.size.windows, len(split)))]
    calibration = Calibration.of_split(model, documents, job.size.context)
    removals = [(Part(i),) for i in range(blocks)]
    losses_without(model, removals[:1], calibration)  # warms up
    seconds = {}
    for name, call in (
            ("shared prefixes", lambda: losses_without(model, removals, calibration)),
            ("one forward pass", lambda: score_text(model, calibration.windows, calibration.documents))):
        seconds[name] = median_seconds(call, job.device, repeats=1, warm_up=0)
    forwards = blocks * seconds["one forward pass"]
    yield {"blocks": blocks, "tokens": calibration.tokens, "seconds": seconds["shared prefixes"],
           "forwards_s": forwards, "to_forwards": seconds["shared prefixes"] / forwards}


def prompts(job: Job, rows: int) -> torch.Tensor:
    return torch.randint(0, 1000, (rows, job.size.prompt), generator=torch.Generator().manual_seed(0))


def decode(job: Job) -> Iterator[dict]:
    """New tokens a second of sample.py's loop, greedy, from a model in half precision."""
    model = Decoder.from_pretrained(job.base, device=job.device, dtype=job.dtype).eval()
    rates = {}
    for rows in (1, 32):
        ids, count = prompts(job, rows), job.size.new_tokens
        call = partial(generate, model, ids, count)
        seconds = median_seconds(call, job.device, repeats=2, warm_up=1)
        rates[rows] = rows * count / seconds
        yield {"tokens_s": rates, "prompt": job.size.prompt, "new_tokens": count}


MEASURES = {measure.__name__: measure for measure in (
    describe, make, full, packed, lora, qlora, lean, recompute, compiled, head, scores, decode)}


def main() -> None:
    from benchmarks import gpu_peers, gpu_profile

    measures = MEASURES | gpu_peers.MEASURES | gpu_profile.MEASURES
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=measures)
    parser.add_argument("--device", required=True)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    older_torch.bridge()
    job = Job(pick_device(args.device), SIZES[args.size], args.work.resolve())
    try:
        for result in measures[args.measure](job):
            print(json.dumps(result), flush=True)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"out of memory: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    command_line.run(main)
