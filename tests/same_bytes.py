"""The bytes of whole runs, recorded on one machine, to show that a change of the code changes no result.

    python tests/same_bytes.py record     before a change: writes tests/same_bytes.json (some ten minutes)
    python tests/same_bytes.py check      after it: names every file that differs; exit code 1 if there is one

The runs are the demo (seed 0). Where NANOPRUNE_REAL names the folder of real releases, they are also the
scores and the evaluation of press-qwen3-4m, and 20 training steps of it in fp32, in bf16, with LoRA and
with QLoRA. Timings, versions and paths are left out. The last digits depend on the
processor: compare on the machine of the record.
"""

import csv
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).with_suffix(".json")
UNEQUAL = {  # keys and columns that two equal runs do not share
    "cost", "environment", "git", "sha256", "seconds", "tokens_per_s", "mfu", "memory_gb", "time_saved",
    "disk_mb", "training_s",
}
DEMO = (
    "data/demo/*.jsonl", "data/demo/others/*", "data/demo/newsroom/*", "data/demo/*/qa/*", "models/demo/*/*",
    "runs/demo/*/*.csv", "runs/demo/*/model/*", "results/demo/*.csv", "results/demo/samples.jsonl",
    "results/demo/*/*.csv", "results/demo/*/results.json",
)
REAL = (
    "data/real/*", "data/real/qa/*", "results/real/blocks.*", "results/real/eval/*.csv",
    "results/real/eval/results.json", "runs/*/*.csv", "models/less-3/*.safetensors",
)
STEPS = ["--max_steps=20", "--warmup_steps=2", "--context=256", "--batch_size=4", "--accumulation=2",
         "--eval_every=10", "--save_every=0", "--keep=last", "--lr=1e-4"]


def run(folder: Path, *command: str) -> None:
    print("$ python", *command, flush=True)
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True,
                   stdout=subprocess.DEVNULL)


def without_unequal(value):
    if isinstance(value, dict):
        return {key: without_unequal(v) for key, v in value.items() if key not in UNEQUAL}
    return [without_unequal(v) for v in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    """A hash of a file's content, its timings left out."""
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{k: v for k, v in row.items() if k not in UNEQUAL} for row in csv.DictReader(file)]
        data = json.dumps(rows).encode()
    elif path.suffix == ".json":
        data = json.dumps(without_unequal(json.loads(path.read_bytes()))).encode()
    else:
        data = re.sub(rb"http://127.0.0.1:\d+", b"", path.read_bytes())  # the demo's port is any free one
    return hashlib.sha256(data).hexdigest()[:16]


def digests(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {str(path.relative_to(folder)): digest(path) for path in found}


def demo(folder: Path) -> dict[str, str]:
    module = "nanoprune.demo" if (folder / "nanoprune").is_dir() else "demo"
    run(folder, "-m", module)
    return digests(folder, DEMO)


def real(folder: Path, data: Path) -> dict[str, str]:
    (folder / "press").symlink_to(data / "checkpoints" / "press-qwen3-4m")
    articles = str(data / "bmw" / "articles.jsonl")
    run(folder, "prepare.py", articles, "--out", "data/real", "--tokenizer", "press")
    run(folder, "prune.py", "press", "--data", "data/real", "--score", "results/real/blocks.csv", "--parts",
        "--dtype", "float32")
    run(folder, "prune.py", "press", "--drop", "3", "--out", "models/less-3")
    run(folder, "eval.py", "press", "models/less-3", "--data", "data/real", "--out", "results/real/eval",
        "--dtype", "float32")
    config = folder / "steps.py"
    settings = "name='steps', base='press', data='data/real', max_steps=20"
    config.write_text(f"from configs import Config\nconfig = Config({settings})\n")
    for name, more in {"fp32": ["--dtype=float32"], "bf16": ["--dtype=bfloat16"],
                       "lora": ["--dtype=float32", "--lora=all"],
                       "qlora": ["--dtype=bfloat16", "--lora=q_proj,v_proj", "--frozen=nf4"]}.items():
        run(folder, "train.py", "steps.py", f"--name={name}", *STEPS, *more)
    return digests(folder, REAL)


def measure() -> dict:
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    found = {"machine": machine, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "checkout"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        found["files"] = demo(folder)
        if os.environ.get("NANOPRUNE_REAL"):
            found["files"] |= real(folder, Path(os.environ["NANOPRUNE_REAL"]).resolve())
        else:
            print("NANOPRUNE_REAL is not set: the demo alone")
    return found


def main() -> int:
    if sys.argv[1:] not in (["record"], ["check"]):
        print("give record or check", file=sys.stderr)
        return 2
    found = measure()
    if sys.argv[1] == "record":
        text = io.StringIO()
        json.dump(found, text, indent=1)
        RECORD.write_text(text.getvalue() + "\n")
        print(f"wrote {RECORD}: {len(found['files'])} files")
        return 0
    before = json.loads(RECORD.read_text())
    if any(before[key] != found[key] for key in ("machine", "torch")):
        print(f"recorded on {before['machine']}, torch {before['torch']}; "
              f"this is {found['machine']}, torch {found['torch']}")
    real_too = bool(os.environ.get("NANOPRUNE_REAL"))
    known = {name: value for name, value in before["files"].items() if real_too or "demo" in name}
    different = [name for name in known if found["files"].get(name) != known[name]]
    print(f"{len(known) - len(different)} of {len(known)} files are the same")
    for name in different:
        print("differs:", name)
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
