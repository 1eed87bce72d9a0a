"""One command that proves nanoprune on a device: tests, short measurements, and the page docs/gpu.md.

    PYTHON=/path/to/python benchmarks/gpu.sh --seconds 420
    benchmarks/gpu.sh --device cpu --seconds 240      (the same at a small size)

Each part runs in processes of its own. One that takes too long is killed, with all that it started; what it
had measured by then counts. Called again, the command continues: it does what was not reached, failed or ran
out of time. Results are for one machine: on another one they begin anew. Exit code 0: all is done and passed;
1: something failed; 3: something is left to do.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import gpu_page
from nanoprune import command_line
from nanoprune.io.files import read_json, write_json, write_text

ROOT = Path(__file__).parent.parent
RESERVE = 2.0  # seconds that are kept for the page
LEAST = 2.0  # seconds under which no part is begun
UNFINISHED = 3
TESTS = ("tests/test_devices.py", "tests/test_devices_runs.py")
OUTCOMES = ("PASSED", "FAILED", "SKIPPED", "ERROR", "XFAIL", "XPASS")
SAME = ("card", "torch", "size")  # entries of the environment that results of one file share


@dataclass(frozen=True)
class Part:
    """One thing to do, in a process of its own."""

    name: str
    seconds: float  # at most
    needs: tuple[str, ...] = ()  # packages, without which it is skipped


MAKE = Part("make", 60)  # weights and data of all measurements
PARTS = (  # the most telling first
    Part("tests", 120, ("pytest", "tokenizers", "safetensors")),
    MAKE,
    Part("full", 60),
    Part("packed", 60),
    Part("profile", 60),
    Part("trainer", 75, ("transformers", "accelerate")),
    Part("sft", 75, ("transformers", "trl", "datasets")),
    Part("lora", 45),
    Part("qlora", 45),
    Part("lean", 45),
    Part("head", 45),
    Part("scores", 45),
    Part("decode", 45),
    Part("generate", 60, ("transformers",)),
    Part("recompute", 45),
    Part("compiled", 90),
)
MEASURED = tuple(part.name for part in PARTS if part.name not in ("tests", "make"))


# ---------------------------------------------------------------- a part in a bounded process
def run_bounded(command: list[str], log: Path, seconds: float) -> int | None:
    """The exit code of a command, None if it was killed after so many seconds, with all of its group.

    Its messages go to `log` with the ending .err, its output to .out.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True,
                                   env=os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "250"})
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:  # also after Ctrl-C; what a part leaves running ends with it
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:  # stuck in the kernel: the time that is left matters more
                pass


def outcome(code: int | None, log: Path) -> dict:
    """The state of a part that has ended, with the reason if it is not "done"."""
    if code is None:
        return {"state": "out of time"}
    if code == 0:
        return {"state": "done"}
    lines = Path(f"{log}.err").read_text(errors="replace").strip().splitlines()
    return {"state": "failed", "why": without_paths(lines[-1] if lines else f"exit code {code}")}


def without_paths(text: str) -> str:
    """A message without the folders of this machine."""
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", ".../", text)[:300]


def measure(part: Part, options: argparse.Namespace, seconds: float) -> dict:
    """The state and the result of a measurement."""
    log = options.work / "logs" / part.name
    command = [sys.executable, "-m", "benchmarks.gpu_measures", part.name, "--device", options.device,
               "--size", options.size, "--work", str(options.work / "files")]
    found = outcome(run_bounded(command, log, seconds), log)
    lines = Path(f"{log}.out").read_text(errors="replace").splitlines()
    results = [line for line in lines if line.startswith("{") and line.endswith("}")]
    return found | ({"result": json.loads(results[-1])} if results else {})


def run_tests(part: Part, options: argparse.Namespace, seconds: float) -> dict:
    """The state of the device tests: how many passed, and by name what was skipped and what failed."""
    log = options.work / "logs" / part.name
    command = [sys.executable, "-m", "pytest", *TESTS, "--device", options.device, "-v", "-rfEs",
               "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
    code = run_bounded(command, log, seconds)
    found = outcome(code, log) | {"result": read_outcomes(Path(f"{log}.out").read_text(errors="replace"))}
    if code == 1:  # some tests failed, and their names say which
        found["why"] = f"{len(found['result']['failed'])} tests failed"
    return found


def read_outcomes(output: str) -> dict:
    """Numbers and names from pytest's lines, also of a run that was killed."""
    of = {name: [] for name in OUTCOMES}
    for test, word in re.findall(r"^\S+?::(\S.*?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b", output, re.M):
        of[word].append(test)
    reasons = {}
    for count, reason in re.findall(r"^SKIPPED \[(\d+)\] \S+: (.*)$", output, re.M):
        reasons[reason] = reasons.get(reason, 0) + int(count)
    failed = {}
    for test in of["FAILED"] + of["ERROR"]:
        message = re.search(rf"^(?:FAILED|ERROR) \S+?::{re.escape(test)} - (.*)$", output, re.M)
        failed[test] = without_paths(message[1]) if message else ""
    return {"passed": len(of["PASSED"]), "skipped": len(of["SKIPPED"]), "failed": failed,
            "reasons": reasons}


# ---------------------------------------------------------------- what was done before, and what is left
def load(path: Path, environment: dict) -> dict:
    """The results so far of this machine; empty ones where another machine or torch made the file."""
    if path.is_file():
        before = read_json(path)
        changed = [name for name in SAME if before["environment"].get(name) != environment[name]]
        if not changed:
            return before | {"environment": environment}
        print(f"{path.name} is of another {', '.join(changed)}: all is measured anew")
    return {"environment": environment, "parts": {}}


def missing_packages(part: Part) -> list[str]:
    return [name for name in part.needs if importlib.util.find_spec(name) is None]


def work_through(options: argparse.Namespace, results: dict, save, deadline: float) -> None:
    """Do the parts in their order until the deadline; `save` is called after each."""
    done, made = results["parts"], False  # whether `make` was tried in this call
    for part in PARTS:
        if options.only and part.name not in options.only:
            continue
        before = done.get(part.name, {"state": "not reached"})
        if before["state"] in ("done", "skipped") and part.name not in options.again:
            print(f"{part.name}: kept, of {before['date']}")
            continue
        if lacking := missing_packages(part):
            found = {"state": "skipped", "why": f"{', '.join(lacking)} not installed"}
            done[part.name] = stamp(found, options)
        elif part.name in MEASURED and not has_files(options) and (made or not attempt(MAKE, options, done,
                                                                                      deadline)):
            done[part.name] = before | {"why": "make is not done"}
        else:
            attempt(part, options, done, deadline)
        made = made or part is MAKE or part.name in MEASURED
        save()


def has_files(options: argparse.Namespace) -> bool:
    """True if weights and data are there; an earlier call's may be gone."""
    return (options.work / "files" / "base" / "model.safetensors").is_file()


def attempt(part: Part, options: argparse.Namespace, done: dict, deadline: float) -> bool:
    """Run a part within the time that is left; True if it is done."""
    seconds = min(part.seconds, deadline - time.monotonic())
    if seconds < LEAST:
        if part.name not in done:
            done[part.name] = {"state": "not reached"}
        return False
    print(f"{part.name} ...", end=" ", flush=True)
    began = time.monotonic()
    found = (run_tests if part.name == "tests" else measure)(part, options, seconds)
    found["seconds"] = round(time.monotonic() - began, 1)
    done[part.name] = stamp(found, options)
    print(f"{found['state']}, {found['seconds']:.0f} s" + (f": {found['why']}" if "why" in found else ""),
          flush=True)
    return found["state"] == "done"


def stamp(found: dict, options: argparse.Namespace) -> dict:
    return found | {"date": datetime.now(UTC).date().isoformat(), "commit": options.commit}


def git_commit() -> str:
    """The commit of the checkout, with -dirty if it was changed; "" without git."""
    if not shutil.which("git"):
        return ""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def main() -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=("cuda", "mps", "cpu"), default="cuda")
    add("--seconds", type=float, default=420, help="the command ends within this time")
    add("--size", choices=("whole", "small"), help="whole: Qwen3-0.6B's shape (cuda); small: else")
    add("--only", nargs="+", default=[], metavar="PART", help=f"of {', '.join(p.name for p in PARTS)}")
    add("--again", nargs="+", default=[], metavar="PART", help="parts to do although they are done")
    add("--out", type=Path, default=ROOT / "docs" / "results", help="for gpu-DEVICE.json")
    add("--page", type=Path, default=ROOT / "docs" / "gpu.md")
    add("--work", type=Path, default=ROOT / "data" / "gpu", help="for weights, data, runs and logs")
    add("--commit", default=git_commit(), help="what is proved, where there is no git")
    options = parser.parse_args()
    if unknown := {*options.only, *options.again} - {part.name for part in PARTS}:
        raise ValueError(f"there is no part {', '.join(sorted(unknown))}; there are "
                         f"{', '.join(part.name for part in PARTS)}")
    options.size = options.size or ("whole" if options.device == "cuda" else "small")
    options.work = options.work.resolve() / options.device
    deadline = began + options.seconds - RESERVE
    path = options.out / f"gpu-{options.device}.json"
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

    seen = measure(Part("describe", 60), options, min(60.0, deadline - time.monotonic()))
    if "result" not in seen:
        raise ValueError(f"the device {options.device} cannot be used: {seen.get('why', seen['state'])}")
    environment = seen["result"] | {"device": options.device, "size": options.size, "commit": options.commit}
    results = load(path, environment)

    def save() -> None:
        write_json(path, results)
        write_text(options.page, gpu_page.write(options.out))

    try:
        work_through(options, results, save, deadline)
    finally:
        save()
    print("\n" + "\n".join(gpu_page.short_table(results)))
    print(f"\nwrote {options.page} and {path}; {time.monotonic() - began:.0f} s")
    states = {results["parts"].get(part.name, {}).get("state", "not reached") for part in PARTS
              if not options.only or part.name in options.only}
    return 1 if "failed" in states else UNFINISHED if states - {"done", "skipped"} else 0


if __name__ == "__main__":
    command_line.run(main)
