"""benchmarks/gpu.sh: it ends in time, continues where it stopped, and its page names no host and no path."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import ROOT

from benchmarks import gpu, older_torch

SEEN = {"card": "cpu: a processor", "commit": "abc", "python": "3.11.7", "torch": "2.13.0", "threads": 1,
        "memory_gb": 9.0, "packages": {"numpy": "2.4.6"}, "tflops": {"fp32": 0.1}, "copy_gb_s": 20.0}
STEP = {"tokens_s": 1000.0, "step_s": 1.0, "memory_gb": 0.5, "steps": 6, "first_loss": 9.0, "mfu": 0.4,
        "foretold_gb": 0.6}
MADE = {"tokens": 1000, "source": "press releases", "documents": 3, "tokenizer": "trained", "parameters": 4e6,
        "blocks": 6, "rows": 4, "context": 256}
RESULTS = {"describe": SEEN, "make": MADE, "full": STEP, "trainer": STEP | {"rows_at_once": 2}, "lora": STEP}
PYTEST = """\
tests/test_devices.py::test_logits[qwen2 windows] PASSED [ 10%]
tests/test_devices.py::test_one SKIPPED (on CUDA alone) [ 20%]
tests/test_devices.py::test_two[a - b] FAILED [ 30%]
SKIPPED [1] tests/test_devices.py:9: on CUDA alone, not on cpu
FAILED tests/test_devices.py::test_two[a - b] - AssertionError: in /no-such/folder/file.py
tests/test_devices.py::test_thr"""


def test_a_part_ends_in_time_with_all_that_it_started(tmp_path):
    code = ("import subprocess, time; child = subprocess.Popen(['sleep', '60']); "
            "print(child.pid, flush=True); time.sleep(60)")
    began = time.monotonic()
    assert gpu.run_bounded([sys.executable, "-c", code], tmp_path / "log", 1.0) is None
    assert time.monotonic() - began < 5
    child = int((tmp_path / "log.out").read_text())  # what it had said is kept
    for _ in range(50):
        state = Path(f"/proc/{child}/stat")
        if not state.is_file() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the part's own process lives on")


def test_the_command_never_exceeds_its_limit(tmp_path):
    """As it is called, with limits that the tests exceed: they are ended, and the page is there in time."""
    page = tmp_path / "gpu.md"
    for seconds in (9, 20, 40):  # on a busy machine the shortest is over before the tests begin
        command = ["sh", ROOT / "benchmarks" / "gpu.sh", "--device", "cpu", "--seconds", seconds, "--only",
                   "tests", "--out", tmp_path, "--page", page, "--work", tmp_path / "work"]
        began = time.monotonic()
        done = subprocess.run(list(map(str, command)), env=os.environ | {"PYTHON": sys.executable},
                              capture_output=True, text=True, cwd=tmp_path)
        assert time.monotonic() - began < seconds + 0.5
        if "| tests | out of time |" in done.stdout:
            break
    assert done.returncode == gpu.UNFINISHED and "| tests | out of time |" in page.read_text(), done.stderr


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """A function that calls the command with parts that take no time: (exit code, output, parts run).

    `codes` gives the exit codes of parts that do not end well: None for one that was killed.
    """
    def run(*arguments, codes: dict | None = None, seen: dict | None = None) -> tuple[int, str, list[str]]:
        ran = []

        def bounded(command: list[str], log, seconds: float) -> int | None:
            name = log.name
            ran.append(name)
            log.parent.mkdir(parents=True, exist_ok=True)
            code = (codes or {}).get(name, 0)
            found = PYTEST if name == "tests" else json.dumps(RESULTS[name] | (seen or {}))
            Path(f"{log}.out").write_text(f"a line\n{'' if code == 2 else found}\n")
            Path(f"{log}.err").write_text(f"Error: nothing at {tmp_path}/file\n")
            if name == "make":
                base = tmp_path / "work" / "cpu" / "files" / "base"
                base.mkdir(parents=True, exist_ok=True)
                (base / "model.safetensors").touch()
            return code

        monkeypatch.setattr(gpu, "run_bounded", bounded)
        monkeypatch.setattr(sys, "argv", [
            "gpu.sh", "--device", "cpu", "--out", str(tmp_path), "--page", str(tmp_path / "gpu.md"), "--work",
            str(tmp_path / "work"), *arguments])
        code = gpu.main()
        return code, capsys.readouterr().out, ran
    return run


def test_the_command_continues_where_it_stopped(call, tmp_path, monkeypatch):
    only = ["--only", "tests", "make", "full", "sft", "trainer", "lora"]
    monkeypatch.setattr(gpu, "missing_packages", lambda part: ["trl"] if part.name == "sft" else [])
    code, out, ran = call(*only, codes={"tests": 1, "trainer": 2, "lora": None})
    assert code == 1 and ran == ["describe", "tests", "make", "full", "trainer", "lora"]
    assert "| sft | skipped | 0 | trl not installed |" in out
    page = (tmp_path / "gpu.md").read_text()
    assert "1 passed, 1 failed, 1 were skipped" in page and "on CUDA alone, not on cpu" in page
    assert "failed: `test_two[a - b]`: AssertionError: in .../file.py" in page
    assert "| lora | out of time |" in page and "LoRA" in page  # what was measured before the kill counts
    assert "| trainer | failed | Error: nothing at .../file |" in page
    written = page + (tmp_path / "gpu-cpu.json").read_text() + out.partition("\nwrote")[0]
    for private in (str(tmp_path), str(ROOT), platform.node()):
        assert private not in written

    code, out, ran = call(*only)
    assert code == 0 and ran == ["describe", "tests", "trainer", "lora"] and "full: kept, of 20" in out
    assert "2 rows at a time (more did not fit)" in (tmp_path / "gpu.md").read_text()
    assert call(*only, "--again", "full")[2] == ["describe", "full"]
    (tmp_path / "work" / "cpu" / "files" / "base" / "model.safetensors").unlink()
    assert call(*only, "--again", "full")[2] == ["describe", "make", "full"]
    ran = call(*only, seen={"card": "another"})[2]
    assert ran == ["describe", "tests", "make", "full", "trainer", "lora"]


def test_what_time_does_not_reach_is_left(call):
    code, out, ran = call("--seconds", "1")
    assert code == gpu.UNFINISHED and ran == ["describe"] and "| full | not reached |" in out


def test_a_device_that_is_not_there_is_named(call):
    with pytest.raises(ValueError, match="the device cpu cannot be used: Error: nothing at .../file"):
        call(codes={"describe": 2})
    with pytest.raises(ValueError, match="there is no part no-such; there are tests, make"):
        call("--only", "tests", "no-such")


def test_an_older_torch_is_called_as_it_can_be():
    def varlen_attn(query, *, window_size=(-1, -1)):
        return query, window_size

    assert older_torch.without_flag(varlen_attn)(1, window_size=(3, 0), enable_gqa=True) == (1, (3, 0))
