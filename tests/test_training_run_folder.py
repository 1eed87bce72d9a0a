"""A run folder: what a run leaves, and that a stop, a kill, a full disk or a damaged file changes none of its
numbers.

docs/faults.md is the table of these tests. NANOPRUNE_KILLS=50 kills as many processes as that, instead of a
handful.
"""

import errno
import fcntl
import json
import math
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from itertools import count

import pytest
import torch
import transformers
from processes import Script, run_script
from safetensors.torch import load_file
from small import TIMING, make_model, read_rows, run_main

from model import Decoder
from nanoprune.config import load_config
from nanoprune.device import environment
from nanoprune.distributed import ALONE
from nanoprune.training.run_folder import Log, RunFolder
from train import train

TRAIN_COLUMNS = ("step", "tokens", "epoch", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_gb",
                 "seconds")
EVAL_COLUMNS = ("step", "tokens", "split", "nll", "perplexity", "bits_per_byte", "documents")
KILLS = int(os.environ.get("NANOPRUNE_KILLS", "6"))


# Ends the process by SIGKILL at the nth time that it is about to do something to a file.
KILLER = """
import os, signal
left = {}
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
"""


# Makes steps take a while.
SLOW = """
import model, time
forward = model.Decoder.forward
def slow(self, *args, **options):
    time.sleep(0.3 if self.training else 0)
    return forward(self, *args, **options)
model.Decoder.forward = slow
"""


def assert_same_run(a, b) -> None:
    """Weights, optimizer state and every logged number, bit by bit."""
    for name in ("model/model.safetensors", *(f"state/{s.name}/training.safetensors"
                                              for s in (a / "state").iterdir())):
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


def test_what_a_run_leaves(world, tmp_path, capsys):
    config = world.config(tmp_path, drop_blocks=(1,))
    train(config)
    out, run = capsys.readouterr().out, config.folder
    assert f"wrote {run}/model" in out and "2 blocks" in out
    assert {p.name for p in run.iterdir()} == {".lock", "config.json", "env.json", "train.csv", "eval.csv",
                                               "eval_documents.csv", "model", "state"}
    assert json.loads((run / "config.json").read_text())["drop_blocks"] == [1]
    env = json.loads((run / "env.json").read_text())
    assert env["torch"] == torch.__version__ and "train.safetensors" in env["data"]
    assert len(env["base"]["model.safetensors"]) == 64
    assert tuple(read_rows(run / "train.csv")[0]) == TRAIN_COLUMNS
    assert [int(row["step"]) for row in read_rows(run / "train.csv")] == [1, 2, 3, 4]
    rows = read_rows(run / "eval.csv")
    assert tuple(rows[0]) == EVAL_COLUMNS and [int(row["step"]) for row in rows] == [0, 4]
    assert float(rows[1]["perplexity"]) == pytest.approx(math.exp(float(rows[1]["nll"])))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "model")  # with the tokenizer, as it is
    assert theirs.config.num_hidden_layers == 2 and (run / "model" / "tokenizer.json").is_file()
    assert Decoder.from_pretrained(run).config.blocks == (0, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_resumed_run_is_the_same_run(world, tmp_path, dtype):
    config = world.config(tmp_path / "whole", max_steps=7, save_every=2, eval_every=3, dtype=dtype,
                          keep="best", accumulation=2)
    train(config)
    stopped = replace(config, runs=str(tmp_path / "stopped"))
    shutil.copytree(config.folder, stopped.folder)
    (stopped.folder / "config.json").write_text(json.dumps(stopped.to_dict()))
    # as if killed after step 6, in the middle of an epoch
    shutil.rmtree(stopped.folder / "state" / "step-00000007")
    (stopped.folder / "train.csv").open("a").write("7,448")  # and half a line
    (stopped.folder / "model" / "model.safetensors").unlink()
    shutil.copy(world.model / "model.safetensors", stopped.folder / "model")
    train(stopped, resume=True)
    rows = read_rows(stopped.folder / "train.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 8))
    assert read_rows(stopped.folder / "train.csv", TIMING) == read_rows(config.folder / "train.csv", TIMING)
    assert read_rows(stopped.folder / "eval.csv") == read_rows(config.folder / "eval.csv")
    a, b = ((run.folder / "state" / "step-00000007" / "training.safetensors").read_bytes()
            for run in (config, stopped))
    assert a == b


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_run_killed_at_any_moment_is_the_run_that_was_not(world, tmp_path, dtype):
    """Between any two changes of files, and in between: with accumulation, across epochs, with validation and
    pairs.
    """
    settings = dict(max_steps=8, accumulation=2, save_every=3, eval_every=2, keep="best", pair_repeats=1,
                    dtype=dtype,
                    threads=1)
    whole = world.config(tmp_path / "runs", name="whole", **settings)
    train_here(whole)
    draw = random.Random(dtype)
    for number in range(-(-KILLS // 3)):
        path = world.config_file(tmp_path / f"{number}.py", name=f"killed-{number}", **settings)
        run = tmp_path / "runs" / f"killed-{number}"
        left = draw.randrange(42, 80) if number % 2 else draw.randrange(1, 42)  # the first state is the 42nd
        code = run_script("train.py", path, before=KILLER.format(left)).returncode
        assert code == -signal.SIGKILL
        if number % 2:  # and once more while it goes on
            run_script("train.py", "--resume", run, before=KILLER.format(draw.randrange(1, 30)))
        go_on(replace(whole, name=f"killed-{number}"))
        assert_same_run(whole.folder, run)


def test_a_run_that_broke_in_its_first_step_keeps_the_validation_before_it(world, tmp_path, monkeypatch):
    config, forward = world.config(tmp_path), Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda self, *args, **options: (
        forward(self, *args, **options) * (math.nan if self.training else 1)))
    with pytest.raises(ValueError, match="step 1: the loss is nan"):
        train(config)
    monkeypatch.undo()
    train(config, resume=True)
    assert [row["step"] for row in read_rows(config.folder / "eval.csv")] == ["0", "4"]


def test_what_a_kill_left_of_a_state_is_removed(world, tmp_path):
    config = world.config(tmp_path, save_every=2)
    left = config.folder / "state" / ".step-00000003.1.new"
    left.mkdir(parents=True)
    train(config)
    assert not left.exists()
    assert sorted(state.name for state in left.parent.iterdir()) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("number, twice", [(signal.SIGTERM, False), (signal.SIGINT, False),
                                           (signal.SIGINT, True)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(world, tmp_path, number, twice):
    """After the step, with an exit code of its own; asked twice, at once, and the last good state is still
    there.
    """
    settings = dict(max_steps=6, save_every=2, keep="best", log_every=1, threads=1)
    whole = world.config(tmp_path / "runs", name="whole", **settings)
    train_here(whole)
    path, run = world.config_file(tmp_path / "c.py", **settings), tmp_path / "runs" / "run"
    script = Script("train.py", path, before=SLOW)
    script.wait_for("step     3")
    os.kill(script.process.pid, number)
    if twice:
        time.sleep(0.1)
        os.kill(script.process.pid, number)
    done = script.end()
    out, err = done.stdout, done.stderr
    states = sorted(state.name for state in (run / "state").iterdir())
    if twice:
        assert done.returncode == 130 and "Traceback" not in err and states == ["step-00000002"]
    else:
        assert done.returncode == 3 and states[-1] == "step-00000004", (out, err)
        assert f"resume with python train.py --resume {run}" in out
        assert "once more, and it ends at once" in err
    go_on(replace(whole, name="run"))
    assert_same_run(whole.folder, run)


def test_one_process_a_folder(world, tmp_path, monkeypatch, capsys):
    path = world.config_file(tmp_path / "c.py")
    holder = RunFolder(load_config(path), ALONE, resume=False)
    holder.lock()
    code, _, err = run_main(monkeypatch, capsys, "train.py", path)
    assert code == 2 and f"another process (process {os.getpid()}) is writing to" in err
    del holder
    assert run_main(monkeypatch, capsys, "train.py", path)[0] == 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_other_process(world, tmp_path, monkeypatch, capsys, number):
    def refuse(*_) -> None:
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, "flock", refuse)
    config = world.config(tmp_path)
    assert train(config)
    assert "warning" in (out := capsys.readouterr().out) and "lies on a file system without locks" in out


@pytest.mark.parametrize("name", ["train.csv", "model/model.safetensors", "notes.txt", "state/x/mine"])
def test_a_run_begins_in_no_users_folder(world, tmp_path, name):
    config = world.config(tmp_path)
    mine = config.folder / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match=rf"holds a run already, or other files \({name}\): give this one"):
        train(config)
    assert mine.read_text() == "mine"
    assert [path for path in config.folder.rglob("*") if path.is_file()] == [mine]


def test_a_run_writes_through_no_users_link(world, tmp_path):
    config = world.config(tmp_path / "runs")
    theirs = shutil.copytree(world.model, tmp_path / "theirs")
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    config.folder.mkdir(parents=True)
    (config.folder / "model").symlink_to(theirs)
    with pytest.raises(ValueError, match=r"or other files \(model\)"):
        train(config)
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before


def move(run) -> None:
    run.rename(run.with_name("moved"))


def remove_a_log(run) -> None:
    (run / "eval.csv").unlink()


@pytest.mark.parametrize("log, step", [("eval_documents", 0), ("train", 2), ("train", 4),
                                       ("eval_documents", 5)])
@pytest.mark.parametrize("remove", [shutil.rmtree, move, remove_a_log])
def test_a_run_whose_folder_is_removed_says_so(world, tmp_path, monkeypatch, capsys, log, step, remove):
    """What memory holds is written again: all but earlier states, and a best model that was saved before."""
    settings = dict(save_every=2, max_steps=5, keep="last", threads=1)
    whole = world.config(tmp_path / "runs", name="whole", **settings)
    train_here(whole)
    config = world.config(tmp_path / "runs", **settings)
    write = Log.write

    def write_and_remove(self, **row) -> None:
        write(self, **row)
        if self.path == config.folder / f"{log}.csv" and row["step"] == step:
            monkeypatch.undo()
            remove(config.folder)

    monkeypatch.setattr(Log, "write", write_and_remove)
    with pytest.raises(ValueError, match="was removed or moved while it trained, up to step 5. Written "
                       "again: settings, logs, model, state"):
        train_here(config)
    assert "settings and logs are written again" in capsys.readouterr().out
    for name in ("train.csv", "eval.csv"):
        assert read_rows(whole.folder / name, TIMING) == read_rows(config.folder / name, TIMING)
    names = {path.relative_to(whole.folder) for path in whole.folder.rglob("*")}
    assert {path.relative_to(config.folder) for path in config.folder.rglob("*")} | {
        path.relative_to(whole.folder) for path in whole.folder.glob("state/**/*")} == names


def test_a_run_whose_folder_is_removed_in_the_end_says_so(world, tmp_path, monkeypatch):
    save = RunFolder.save_state

    def save_and_remove(self, *arguments) -> None:
        save(self, *arguments)
        shutil.rmtree(self.path)

    monkeypatch.setattr(RunFolder, "save_state", save_and_remove)
    with pytest.raises(ValueError, match="Written again: settings, logs; what else was in it is lost"):
        train(world.config(tmp_path))


def test_a_run_goes_on_with_its_own_data_and_base_only(world, tmp_path):
    base, data = shutil.copytree(world.model, tmp_path / "base"), shutil.copytree(world.data,
                                                                                  tmp_path / "data")
    config = world.config(tmp_path, base=str(base), data=str(data), max_steps=2)
    train(config, listen=lambda: ["SIGTERM"])
    kept = (data / "train.safetensors").read_bytes()
    shutil.copy(data / "val.safetensors", data / "train.safetensors")
    expected = r"began with other files or another machine: {} \({}.safetensors\)"
    with pytest.raises(ValueError, match=expected.format("data", "train")):
        train(config, resume=True)
    (data / "train.safetensors").write_bytes(kept)
    make_model(base, data, seed=9)
    with pytest.raises(ValueError, match=expected.format("base", "model")):
        train(config, resume=True)


def test_a_run_whose_base_was_moved_says_what_to_do(world, tmp_path):
    base = shutil.copytree(world.model, tmp_path / "base")
    config = world.config(tmp_path, base=str(base), save_every=1, lora="q_proj")
    assert not train(config, listen=lambda: ["SIGTERM"])
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="no folder .*base.* A run resumes with its own base: restore it, "
                       "or put a link in its place"):
        train(config, resume=True)


@pytest.mark.parametrize("what, now", [("device", "cpu of another kind"), ("threads", 99), ("torch", "1.0"),
                                       ("numpy", "1.0")])
def test_a_run_goes_on_elsewhere_only_if_told_to(world, tmp_path, monkeypatch, what, now):
    config = world.config(tmp_path, max_steps=3, save_every=2)
    train(config)
    shutil.rmtree(config.folder / "state" / "step-00000003")
    monkeypatch.setattr("train.environment", lambda device: environment(device) | {what: now})
    with pytest.raises(ValueError, match=rf"{what} \(.* then, {now} now\).*--ignore-changes"):
        train(config, resume=True)
    train(config, resume=True, ignore_changes=True)
    env = json.loads((config.folder / "env.json").read_text())
    assert env[what] == now and env["began"][what] == environment(torch.device("cpu"))[what]


def test_a_finished_run_says_so_whatever_changed(world, tmp_path, monkeypatch, capsys):
    """It is asked for neither its machine nor its files, nor for memory."""
    base = shutil.copytree(world.model, tmp_path / "base")
    data = shutil.copytree(world.data, tmp_path / "data")
    path = world.config_file(tmp_path / "c.py", base=str(base), data=str(data), max_steps=2, epochs=0)
    assert run_main(monkeypatch, capsys, "train.py", path)[0] == 0
    run = tmp_path / "runs" / "run"
    env = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps(env | {"threads": 99, "torch": "1.0"}))
    monkeypatch.setattr("nanoprune.training.budget.memory_left", lambda device: 0)
    make_model(base, data, seed=9)
    code, out, err = run_main(monkeypatch, capsys, "train.py", "--resume", run)
    assert code == 0 and f"{run} is finished, at step 2" in out, err
    shutil.rmtree(base)
    monkeypatch.setattr("nanoprune.device.pick_device", None)  # as where its device is not
    assert "is finished" in run_main(monkeypatch, capsys, "train.py", "--resume", run)[1]
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"max_steps": 9}))
    code, _, err = run_main(monkeypatch, capsys, "train.py", "--resume", run)
    assert code == 2 and "began with other settings: max_steps changed" in err


def test_a_run_of_epochs_goes_on_by_its_config(world, tmp_path):
    """As torchrun starts it again: the config does not say how many steps its epochs come to, nor its dtype.
    """
    config = world.config(tmp_path, epochs=1, warmup_steps=1, dtype="auto")
    assert not train(config, listen=lambda: ["SIGTERM"])
    assert train(config, resume=True)


def change_rope(base) -> None:
    shape = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(shape | {"rope_theta": 999.0}))


def test_a_state_belongs_to_the_bases_config_and_to_the_code(world, tmp_path, monkeypatch):
    """The same weights with another rope, and steps of another version, would give other numbers."""
    base = shutil.copytree(world.model, tmp_path / "base")
    config = world.config(tmp_path, base=str(base))
    train(config, listen=lambda: ["SIGTERM"])
    with monkeypatch.context() as patch:
        patch.setattr("train.VERSION", 2)
        with pytest.raises(ValueError, match=r"began with .*: version \(1 then, 2 now\)"):
            train(config, resume=True)
    change_rope(base)
    with pytest.raises(ValueError, match=r"began with .*: base_config \(.* then, .* now\)"):
        train(config, resume=True)
    env = json.loads((config.folder / "env.json").read_text())
    for name in ("version", "base_config"):  # an older run, which did not record them
        del env[name]
    (config.folder / "env.json").write_text(json.dumps(env))
    assert train(config, resume=True)


def test_memory_and_changes_are_waived_apart(world, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(world.data, tmp_path / "data")
    config = world.config(tmp_path, data=str(data))
    train(config, listen=lambda: ["SIGTERM"])
    shutil.copy(data / "val.safetensors", data / "train.safetensors")
    with pytest.raises(ValueError, match="data .train.safetensors.*--ignore-changes"):
        train(config, resume=True, ignore_budget=True)
    monkeypatch.setattr("nanoprune.training.budget.memory_left", lambda device: 0)
    with pytest.raises(ValueError, match="too little memory.*--ignore-budget"):
        train(config, resume=True, ignore_changes=True)
    assert train(config, resume=True, ignore_budget=True, ignore_changes=True)
    env = json.loads((config.folder / "env.json").read_text())
    assert env["data"]["train.safetensors"] != env["began"]["data"]["train.safetensors"]
    code, _, err = run_main(monkeypatch, capsys, "train.py", world.config_file(tmp_path / "c.py"),
                            "--ignore-changes")
    assert code == 2 and "--ignore-changes goes with --resume or --from-state" in err


# ---------------------------------------------------------------- another run's state
def test_a_run_that_diverged_goes_on_with_a_lower_lr(world, tmp_path, monkeypatch, capsys):
    """As its message says. With nothing changed it is the run that did not diverge, bit by bit."""
    whole = world.config(tmp_path / "whole", max_steps=6)
    train_here(whole)
    forward, calls = Decoder.forward, []

    def fail_at_fourth(self, *given, **options):
        calls.append(1) if self.training else None
        return forward(self, *given, **options) * (math.nan if self.training and len(calls) == 4 else 1)

    path = world.config_file(tmp_path / "c.py", max_steps=6)
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "forward", fail_at_fourth)
        code, _, err = run_main(monkeypatch, capsys, "train.py", path)
    run = tmp_path / "runs" / "run"
    assert code == 2
    assert f"under another name (--name=run-2), from the start or, with --from-state {run}, from there" in err
    told = ["--name=run-2", "--from-state", run]
    code, out, err = run_main(monkeypatch, capsys, "train.py", path, *told)
    assert code == 0, err
    same = tmp_path / "runs" / "run-2"
    assert [row["step"] for row in read_rows(same / "train.csv")] == ["4", "5", "6"]
    assert read_rows(same / "train.csv", TIMING) == read_rows(whole.folder / "train.csv", TIMING)[3:]
    for name in ("model/model.safetensors", "state/step-00000006/training.safetensors"):
        assert (same / name).read_bytes() == (whole.folder / name).read_bytes()
    assert json.loads((same / "env.json").read_text())["from"] == str(run)
    told = ["--name=low", "--lr=1e-4", "--from-state", run]
    assert run_main(monkeypatch, capsys, "train.py", path, *told)[0] == 0
    rows = read_rows(tmp_path / "runs" / "low" / "train.csv")
    assert rows[0]["step"] == "4" and float(rows[0]["lr"]) < 1e-4
    assert rows[0]["loss"] == read_rows(same / "train.csv")[0]["loss"]  # of the weights before the step
    assert rows[2]["loss"] != read_rows(same / "train.csv")[2]["loss"]


@pytest.mark.parametrize("changes, message", [
    ({"drop_blocks": (2,)}, "drop_blocks changed. Only these may: .* lr,"),
    ({"seed": 1, "optimizer": "lean", "clip": 0.0}, "seed, optimizer changed"),
    ({"max_steps": 2, "warmup_steps": 0}, "that after step 2: set max_steps above it, given 2"),
    ({"name": "run"}, "holds a run already")])
def test_a_state_of_other_settings_is_refused(world, tmp_path, changes, message):
    config = world.config(tmp_path, max_steps=2, drop_blocks=(1,))
    train(config)
    with pytest.raises(ValueError, match=message):
        train(replace(config, **{"name": "other", "max_steps": 4} | changes), from_state=config.folder)
    assert not (tmp_path / "other" / "config.json").exists()


def test_a_state_of_another_base_or_model_is_refused(world, tmp_path):
    base = shutil.copytree(world.model, tmp_path / "base")
    config = world.config(tmp_path, base=str(base), max_steps=2)
    train(config)
    other = replace(config, name="other", max_steps=4)
    make_model(base, world.data, seed=9)
    with pytest.raises(ValueError, match="base .model.safetensors"):
        train(other, from_state=config.folder)
    make_model(base, world.data, hidden_size=16)
    with pytest.raises(ValueError, match="is the state of another model or optimizer"):
        train(other, from_state=config.folder, ignore_changes=True)
    with pytest.raises(ValueError, match="holds no complete state"):
        train(other, from_state=tmp_path / "no-such")


def test_other_code_is_told(world, tmp_path, monkeypatch, capsys):
    config = world.config(tmp_path, max_steps=3, save_every=2)
    train(config)
    shutil.rmtree(config.folder / "state" / "step-00000003")
    monkeypatch.setattr("train.environment", lambda device: environment(device) | {"git": "another"})
    train(config, resume=True)
    assert "the code changed since" in capsys.readouterr().out


def test_a_changed_config_is_no_resume(world, tmp_path):
    config = world.config(tmp_path, max_steps=3, save_every=2)
    train(config)
    with pytest.raises(ValueError, match="began with other settings: seed, lr changed"):
        train(replace(config, lr=1e-3, seed=3), resume=True)


def test_a_damaged_state_is_recognised(world, tmp_path, capsys):
    config = world.config(tmp_path, max_steps=6, save_every=2)
    train(config)
    states = sorted((config.folder / "state").iterdir())
    assert [s.name for s in states] == ["step-00000004", "step-00000006"]
    data = bytearray((states[1] / "training.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (states[1] / "training.safetensors").write_bytes(data)
    before = load_file(config.folder / "model" / "model.safetensors")
    train(config, resume=True)  # from step 4
    assert "its checksum is wrong" in capsys.readouterr().out
    after = load_file(config.folder / "model" / "model.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


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
    with pytest.raises(ValueError, match="no complete state to resume from; start the run anew under "
                       "another name"):
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

    log = Log(tmp_path / "a.csv", None)
    log.write(step=1, loss=2.5)
    log.file = Full(log.file)
    with pytest.raises(ValueError, match="No space left on device.*resume from the last saved state"):
        log.write(step=2, loss=123456789)
    assert (tmp_path / "a.csv").read_text() == "step,loss\n1,2.5\n"


def test_clocks_may_run_backwards(world, tmp_path, monkeypatch):
    config = world.config(tmp_path, max_steps=3)
    train(config)
    ticks = count(2e9, -1000)
    monkeypatch.setattr(time, "time", lambda: next(ticks))
    other = replace(config, name="backwards")
    train(other)
    assert_same_run(config.folder, other.folder)
    rows = read_rows(other.folder / "train.csv")
    assert all(float(row["seconds"]) > 0 and float(row["tokens_per_s"]) > 0 for row in rows)


def test_validation_by_document_adds_up_to_its_mean(world, tmp_path):
    """Also in a run that was stopped and resumed, and with some of the documents alone."""
    config = world.config(tmp_path, max_steps=4, eval_every=2, save_every=2, eval_documents=3)
    train(config)
    once = read_rows(config.folder / "eval_documents.csv")
    for row in read_rows(config.folder / "eval.csv"):
        documents = [document for document in once if document["step"] == row["step"]]
        total = sum(float(document["nll"]) for document in documents)
        assert len(documents) == 3 and len({document["document"] for document in documents}) == 3
        predicted = sum(int(document["predicted"]) for document in documents)
        assert total / predicted == pytest.approx(float(row["nll"]), rel=1e-9)
    again = replace(config, name="resumed")
    train(again, listen=lambda: ["SIGTERM"])
    assert len(read_rows(again.folder / "eval_documents.csv")) == 3
    train(again, resume=True)
    assert read_rows(again.folder / "eval_documents.csv") == once
