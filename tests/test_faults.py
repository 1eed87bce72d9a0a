"""What can go wrong while a run trains, and what it promises then: docs/faults.md is the table of these tests.

NANOPRUNE_KILLS=50 kills as many processes as that, instead of a handful.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import ROOT, TIMING, read_rows, run_main

import train as train_module
from model import Decoder
from nanoprune.nn.model_config import ModelConfig
from nanoprune.training import budget
from nanoprune.training.budget import adapter_memory, training_memory
from nanoprune.training.run_folder import Log, lock_folder
from train import OVERFLOWS, train

KILLS = int(os.environ.get("NANOPRUNE_KILLS", "6"))
# Runs train.py in this process and ends it by SIGKILL at the nth time that it is about to do something to a file.
KILLER = """
import os, runpy, signal, sys
left, sys.argv = int(sys.argv[1]), sys.argv[2:]
def killing(function):
    def wrapped(*args, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return wrapped
for name in ("replace", "fsync", "rename", "rmdir", "unlink"):
    setattr(os, name, killing(getattr(os, name)))
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Runs train.py with steps that take a while.
SLOW = """
import os, runpy, sys, time
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import model
forward = model.Decoder.forward
def slow(self, *args, **options):
    time.sleep(0.3 if self.training else 0)
    return forward(self, *args, **options)
model.Decoder.forward = slow
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script(code: str | None, *arguments) -> list[str]:
    return [sys.executable, *(["-c", code] if code else []), *map(str, arguments)]


def assert_same_run(a, b) -> None:
    """Weights, optimizer state and every logged number, bit by bit."""
    for name in ("model/model.safetensors", *(f"state/{s.name}/training.safetensors" for s in (a / "state").iterdir())):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    for name in ("train.csv", "eval.csv"):
        assert read_rows(a / name, TIMING) == read_rows(b / name, TIMING)


def train_here(config, resume: bool = False) -> None:
    """In this process, with the config's threads."""
    before = torch.get_num_threads()
    train(config, resume)
    torch.set_num_threads(before)


def go_on(config) -> None:
    """Resume, or begin anew where nothing was saved yet, as the messages say."""
    saved = any((config.folder / "state").glob("step-*/state.json"))
    if config.folder.exists() and not saved:
        shutil.rmtree(config.folder)
    train_here(config, resume=saved)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_run_killed_at_any_moment_is_the_run_that_was_not(world, tmp_path, dtype):
    """Between any two changes of files, and in between: with accumulation, across epochs, with validation and pairs."""
    settings = dict(max_steps=8, accumulation=2, save_every=3, eval_every=2, keep="best", pair_repeats=1, dtype=dtype,
                    threads=1)
    whole = world.config(tmp_path / "runs", name="whole", **settings)
    train_here(whole)
    draw = random.Random(dtype)
    for number in range(-(-KILLS // 3)):
        path = world.config_file(tmp_path / f"{number}.py", name=f"killed-{number}", **settings)
        run, left = tmp_path / "runs" / f"killed-{number}", draw.randrange(1, 60)
        code = subprocess.run(script(KILLER, left, ROOT / "train.py", path), capture_output=True).returncode
        assert code in (0, -signal.SIGKILL)
        if code and number % 2:  # and once more while it goes on
            subprocess.run(script(KILLER, draw.randrange(1, 30), ROOT / "train.py", "--resume", run), capture_output=True)
        go_on(replace(whole, name=f"killed-{number}"))
        assert_same_run(whole.folder, run)


@pytest.mark.parametrize("number, twice", [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGINT, True)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(world, tmp_path, number, twice):
    """After the step, with an exit code of its own; asked twice, at once, and the last good state is still there."""
    settings = dict(max_steps=6, save_every=2, keep="best", log_every=1, threads=1)
    whole = world.config(tmp_path / "runs", name="whole", **settings)
    train_here(whole)
    path, run = world.config_file(tmp_path / "c.py", **settings), tmp_path / "runs" / "run"
    process = subprocess.Popen(script(SLOW, ROOT / "train.py", path), text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("step     3"):
            process.send_signal(number)
            if twice:
                time.sleep(0.1)
                process.send_signal(number)
            break
    out, err = process.communicate()
    states = sorted(state.name for state in (run / "state").iterdir())
    if twice:
        assert process.returncode == 130 and "Traceback" not in err and states == ["step-00000002"]
    else:
        assert process.returncode == 3 and states[-1] == "step-00000004", (out, err)
        assert f"go on with python train.py --resume {run}" in out and "once more, and it ends at once" in err
    go_on(replace(whole, name="run"))
    assert_same_run(whole.folder, run)


def test_one_process_a_folder(world, tmp_path, monkeypatch, capsys):
    path = world.config_file(tmp_path / "c.py")
    held = lock_folder(tmp_path / "runs" / "run")
    code, _, err = run_main(monkeypatch, capsys, "train.py", path)
    assert code == 2 and f"another process (process {os.getpid()}) is writing to" in err
    held.close()
    assert run_main(monkeypatch, capsys, "train.py", path)[0] == 0


@pytest.mark.parametrize("what, now", [("device", "cpu of another kind"), ("threads", 99), ("torch", "1.0"), ("numpy", "1.0")])
def test_a_run_goes_on_elsewhere_only_if_told_to(world, tmp_path, monkeypatch, what, now):
    config = world.config(tmp_path, max_steps=3, save_every=2)
    train(config)
    shutil.rmtree(config.folder / "state" / "step-00000003")
    environment = train_module.environment
    monkeypatch.setattr(train_module, "environment", lambda device: environment(device) | {what: now})
    with pytest.raises(ValueError, match=rf"{what} \(.* then, {now} now\).*--anyway"):
        train(config, resume=True)
    train(config, resume=True, anyway=True)
    env = json.loads((config.folder / "env.json").read_text())
    assert env[what] == now and env["began"][what] == environment(torch.device("cpu"))[what]


def test_other_code_is_told(world, tmp_path, monkeypatch, capsys):
    config = world.config(tmp_path, max_steps=3, save_every=2)
    train(config)
    shutil.rmtree(config.folder / "state" / "step-00000003")
    environment = train_module.environment
    monkeypatch.setattr(train_module, "environment", lambda device: environment(device) | {"git": "another"})
    train(config, resume=True)
    assert "the code is another than when" in capsys.readouterr().out


def test_a_changed_config_is_no_resume(world, tmp_path):
    config = world.config(tmp_path, max_steps=3, save_every=2)
    train(config)
    with pytest.raises(ValueError, match="config.json is not what the run began with: seed, lr changed"):
        train(replace(config, lr=1e-3, seed=3), resume=True)


def damage(path, how: int) -> None:
    """A file cut to `how` tenths, or (from 10 on) with one bit flipped, at the first, middle or last byte."""
    data = bytearray(path.read_bytes())
    if how < 10:
        data = data[: len(data) * how // 10]
    else:
        data[(0, len(data) // 2, len(data) - 2)[how - 10]] ^= 4
    path.write_bytes(data)


def test_a_damaged_state_gives_way_to_the_one_before(world, tmp_path, capsys):
    """Cut at every tenth, or with a bit flipped, in the tensors and in the JSON."""
    config = world.config(tmp_path, max_steps=4, save_every=2)
    train(config)
    kept = shutil.copytree(config.folder, tmp_path / "kept")
    for name in ("training.safetensors", "state.json"):
        for how in range(13):
            shutil.rmtree(config.folder)
            shutil.copytree(kept, config.folder)
            damage(config.folder / "state" / "step-00000004" / name, how)
            capsys.readouterr()
            train(config, resume=True)
            assert "trying the state before it" in capsys.readouterr().out, (name, how)
            assert_same_run(kept, config.folder)


def test_no_state_is_whole(world, tmp_path):
    config = world.config(tmp_path, max_steps=4, save_every=2)
    train(config)
    for state in (config.folder / "state").iterdir():
        damage(state / "training.safetensors", 5)
    with pytest.raises(ValueError, match="no complete state to resume from; start the run anew under another name"):
        train(config, resume=True)


def test_a_full_disk_at_every_write(world, tmp_path, monkeypatch):
    """Whatever was the last write that worked, the run goes on from its last state to the same bytes."""
    config = world.config(tmp_path / "runs", max_steps=4, save_every=2, eval_every=2, keep="best")
    train(config)
    whole = shutil.move(config.folder, tmp_path / "whole")
    fsync = os.fsync
    for number in count(1):
        left = [number]

        def full(function, *args, left=left, **options):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            return function(*args, **options)

        monkeypatch.setattr(os, "fsync", lambda *args: full(fsync, *args))  # noqa: B023
        failed = False
        try:
            train(config)
        except ValueError as error:
            failed = True
            assert "No space left on device" in str(error)
        monkeypatch.undo()
        if not failed:
            break
        if any((config.folder / "state").glob("step-*/state.json")):
            train(config, resume=True)
            assert_same_run(whole, config.folder)
        shutil.rmtree(config.folder)
    assert number > 10


def test_a_full_disk_leaves_no_half_line(tmp_path):
    class Full:
        """A raw file that takes half of what it is given once, as write(2) does on a full disk."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[: len(data) // 2])

        def __getattr__(self, name):
            return getattr(self.file, name)

    log = Log(tmp_path / "a.csv", ("step", "loss"), None)
    log.write(step=1, loss=2.5)
    log.file = Full(log.file)
    with pytest.raises(ValueError, match="No space left on device.*go on from the last saved state"):
        log.write(step=2, loss=123456789)
    assert (tmp_path / "a.csv").read_text() == "step,loss\n1,2.5\n"


def never_finite(monkeypatch) -> None:
    forward = Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda self, *args, **options: (
        forward(self, *args, **options) * (float("nan") if self.training else 1)))


def test_a_loss_that_is_not_finite_names_its_documents(world, tmp_path, monkeypatch):
    config = world.config(tmp_path, max_steps=3, pair_repeats=1)
    never_finite(monkeypatch)
    with pytest.raises(ValueError, match=r"step 1: the loss is nan.*rows 0 to 1 of seed 0, from (train|pairs).jsonl line \d"):
        train(config)


def test_fp16_counts_what_it_leaves_out_and_gives_up_in_the_end(world, tmp_path, monkeypatch, capsys):
    big = shutil.copytree(world.model, tmp_path / "big")
    tensors = load_file(big / "model.safetensors")
    tensors["model.norm.weight"] *= 50
    save_file(tensors, big / "model.safetensors", {"format": "pt"})
    config = world.config(tmp_path, base=str(big), dtype="float16", max_steps=12)
    train(config)
    left_out = sum(not float(row["grad_norm"]) < float("inf") for row in read_rows(config.folder / "train.csv"))
    assert left_out and f"{left_out} steps were left out, because their gradients" in capsys.readouterr().out
    never_finite(monkeypatch)
    with pytest.raises(ValueError, match=f"step {OVERFLOWS}: the loss is nan"):
        train(replace(config, name="never", max_steps=100))


def test_clocks_may_run_backwards(world, tmp_path, monkeypatch):
    config = world.config(tmp_path, max_steps=3)
    train(config)
    ticks = count(2e9, -1000)
    monkeypatch.setattr(time, "time", lambda: next(ticks))
    other = replace(config, name="backwards")
    train(other)
    assert_same_run(config.folder, other.folder)


def test_a_dry_run_checks_and_leaves_nothing(world, tmp_path, monkeypatch, capsys):
    path = world.config_file(tmp_path / "c.py")
    code, out, _ = run_main(monkeypatch, capsys, "train.py", path, "--dry-run")
    assert code == 0 and "memory some" in out and "disk" in out and "nothing is wrong" in out
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(budget, "memory_left", lambda device: 1e6)
    with pytest.raises(ValueError, match=r"will need some \d.* GB of memory.*0.0 are left: set recompute=blocks.*--anyway"):
        train(world.config(tmp_path), dry_run=True)
    train(world.config(tmp_path), dry_run=True, anyway=True)
    monkeypatch.undo()
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(ValueError, match="will grow to .* GB, .* has 0.0 left: make room"):
        train(world.config(tmp_path))


QWEN3 = dict(model_type="qwen3", vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_attention_heads=16,
             num_key_value_heads=8, head_dim=128, max_position_embeddings=32_768, tie_word_embeddings=True)


@pytest.mark.parametrize("layers, changes, measured", [
    (28, {}, 12.63e9), (28, {"recompute": "pointwise"}, 11.94e9), (7, {}, 5.62e9), (7, {"recompute": "pointwise"}, 5.46e9),
    (28, {"optimizer": "lean", "recompute": "blocks", "clip": 0.0}, 6.41e9)])
def test_the_memory_that_is_foretold_is_what_was_measured(world, tmp_path, layers, changes, measured):
    """Peaks of train.py at Qwen3-0.6B's shape, 1 x 1,024 tokens, fp32 on a CPU."""
    shape = ModelConfig.from_dict(QWEN3 | {"num_hidden_layers": layers})
    config = world.config(tmp_path, context=1024, batch_size=1, **changes)
    assert sum(training_memory(config, shape, torch.device("cpu")).values()) == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("changes, measured", [
    ({"frozen": "stored"}, 4.02e9), ({"frozen": "nf4", "recompute": "blocks"}, 1.49e9)])
def test_the_memory_of_adapters_is_foretold(world, tmp_path, changes, measured):
    """As benchmarks.adapters measured them: the same shape, stored in bf16, rank 8 on q and v."""
    shape = ModelConfig.from_dict(QWEN3 | {"num_hidden_layers": 28})
    config = world.config(tmp_path, context=1024, batch_size=1, lora="q_proj,v_proj", **changes)
    need = adapter_memory(config, shape, torch.device("cpu"), stored=1.192e9)
    assert sum(need.values()) == pytest.approx(measured, rel=0.15)


def test_the_peak_of_a_run_is_its_own():
    """Not that of the process which started it, as getrusage would have it."""
    large = torch.ones(2**28)  # 1.1 GB
    code = "import torch; from nanoprune.device import peak_memory; print(peak_memory(torch.device('cpu')))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.05 < float(found.stdout) < 0.9 and large.sum() > 0
