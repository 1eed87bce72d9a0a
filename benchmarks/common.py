"""Parts that all benchmarks share: a fresh process for each side, medians with their spread, CSV and Markdown
tables.

A benchmark module runs its sides in turn, so that a slow phase of the machine meets both. Each side runs in a
process of its own: `python -m benchmarks.NAME --side SIDE ...` prints one JSON object a line, and the last
line is the measurement. """

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from nanoprune.config import Config
from nanoprune.device import fast_bfloat16, highest_memory, peak_memory, synchronize
from nanoprune.io.files import write_csv, write_json, write_text

ROOT = Path(__file__).parent.parent
QWEN3 = {"model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1e6,
         "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "tie_word_embeddings": True}
WHOLE = QWEN3 | {"num_hidden_layers": 28}  # Qwen3-0.6B
QUARTER = QWEN3 | {"num_hidden_layers": 7}
SMALL = QWEN3 | {"vocab_size": 8192, "num_hidden_layers": 6, "hidden_size": 192, "intermediate_size": 576,
                 "head_dim": 32, "num_attention_heads": 6, "num_key_value_heads": 2,
                 "max_position_embeddings": 2048}
# The settings of glibc's allocator that train.py sets itself.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}


# ---------------------------------------------------------------- one side, one process


def run_fresh(
    module: str, *arguments, environment: Mapping[str, str] | None = None, limit: float | None = None
) -> dict:
    """The last measurement that a fresh process of the module prints.

    After `limit` seconds the process is ended and the last measurement so far counts; {} if there is none.
    ValueError with the end of its messages if the process fails.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | (environment or {}), capture_output=True,
                              text=True, timeout=limit)
        if done.returncode:
            raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        output = done.stdout
    except subprocess.TimeoutExpired as timeout:
        output = (timeout.stdout or b"").decode()
    measurements = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(measurements[-1]) if measurements else {}


def clock(command: Sequence, environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """(seconds, peak memory in GB) of a script in a fresh process.

    ValueError with the end of its messages if it fails. The peak is Linux's own mark, read every 5 ms (0 on
    other systems): rusage would begin with the peak of this process.
    """
    began, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stderr=errors,
                                   env=os.environ | (environment or {}), stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, highest_memory(process.pid))
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        if process.returncode:
            errors.seek(0)
            raise ValueError(f"{' '.join(map(str, command))} failed:\n{errors.read()[-2000:]}")
    return seconds, peak


def make_parser(description: str, work: str = "") -> argparse.ArgumentParser:
    """A benchmark's command line with the options that all have; with --work if a default is given."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="for the CSV and the tables")
    if work:
        parser.add_argument("--work", type=Path, default=Path(work), help="for weights, data and runs")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser


def train_without_saving(config: Config) -> None:
    """train.py itself, less the writing of models and states."""
    import train
    from nanoprune.training.run_folder import RunFolder

    RunFolder.save_model = RunFolder.save_state = lambda *_, **__: None
    train.train(config)


def make_clock(device: torch.device):
    """A callback of Trainer that keeps each step's `seconds` and `losses`."""
    import transformers

    class Clock(transformers.TrainerCallback):
        def __init__(self):
            self.seconds, self.losses = [], []

        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            synchronize(device)
            self.seconds.append(time.perf_counter() - self.began)

        def on_log(self, args, state, control, logs=None, **__):
            if "loss" in (logs or {}):
                self.losses.append(logs["loss"])

    return Clock()


def peak() -> float:
    """Peak memory of this process in GB."""
    return peak_memory(torch.device("cpu"))


def read_columns(path: Path, *names: str) -> list[list[float]]:
    """Columns of a run's train.csv or eval.csv."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [[float(row[name]) for row in rows] for name in names]


# ---------------------------------------------------------------- random data


def random_documents(rng: np.random.Generator, lengths: Iterable[int], vocab_size: int) -> list[list[int]]:
    """Documents of random tokens."""
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def write_dataset(
    folder: Path, splits: dict[str, list[list[int]]], vocab_size: int, base: Path | None = None
) -> None:
    """A dataset folder of the splits' documents, given as tokens, for a base that may have a tokenizer."""
    from nanoprune.data.token_file import write_documents
    from nanoprune.data.tokenizer import tokenizer_hash

    for name, documents in splits.items():
        path = folder / f"{name}.safetensors"
        write_documents(path, ((tokens, 1) for tokens in documents), len(documents), vocab_size)
    write_json(folder / "tokenizer.json", {"version": "1.0", "added_tokens": [], "model": {
        "type": "BPE", "vocab": {"a": 0, "<|endoftext|>": 1}, "merges": []}})
    write_json(folder / "meta.json", {"tokenizer_hash": base and tokenizer_hash(base) or "",
                                      "vocab_size": vocab_size, "end_token": 1})


def random_model(shape: dict, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The folder of a model with random weights, always the same; made once."""
    from model import Decoder
    from nanoprune.nn.model_config import ModelConfig

    if not folder.is_dir():
        torch.manual_seed(0)
        Decoder(ModelConfig.from_dict(shape)).to(dtype).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- measurements and tables


def read_measurements(path: Path) -> list[dict]:
    """Measurements of a benchmark's CSV, numbers as numbers; [] without a file."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [{column: _number(value) for column, value in row.items()} for row in csv.DictReader(file)]


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def record(measurements: list[dict], measurement: dict, path: Path) -> None:
    """Append a measurement, print it and write all so far, so that a stop loses none."""
    measurements.append(measurement)
    print(measurement, file=sys.stderr, flush=True)
    write_csv(path, measurements)


def select(measurements: list[dict], **wanted) -> list[dict]:
    """Measurements whose columns have these values."""
    return [row for row in measurements if all(row[column] == value for column, value in wanted.items())]


def median_and_range(values: Sequence[float], form: str) -> str:
    """The median, with the lowest and highest in brackets if there are several values."""
    ends = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.median(values):{form}}{ends}"


def report(lines: Iterable[str], out: Path, name: str) -> None:
    """Write the tables to NAME.md, print them and say where the results are."""
    text = "\n".join(lines) + "\n"
    write_text(out / f"{name}.md", text)
    print(f"{text}\nwrote {out / f'{name}.csv'} and {out / f'{name}.md'}")


def machine() -> str:
    """The processor's name, its units and torch's threads."""
    units = torch.backends.cpu.get_cpu_capability()
    if fast_bfloat16(torch.device("cpu")):
        units += " with native bf16"
    return f"{processor()} ({units}), {torch.get_num_threads()} threads"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
