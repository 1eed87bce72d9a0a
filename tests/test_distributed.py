"""Several processes on the CPU, and torchrun: the same run and the same numbers for any number of them."""

import shutil
import subprocess
import sys
import time

import pytest
import torch
from processes import run_ranks
from safetensors.torch import load_file
from small import ROOT, make_model, read_rows

from nanoprune import distributed
from nanoprune.distributed import Ranks, join
from train import train

# train.py, whose rank 1 is killed in the third step of the first try
DYING = """
import os, runpy, signal, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import model
forward, calls = model.Decoder.forward, []
def dying(self, *args, **options):
    calls.append(self.training)
    if sum(calls) == 3 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, *args, **options)
model.Decoder.forward = dying
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def torchrun(processes: int, *arguments, restarts: int = 0, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               f"--max-restarts={restarts}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def assert_same_curve(a, b) -> None:
    """Losses, gradient norms and validation numbers to 1e-5, weights as near as twenty steps leave them."""
    for name, columns in (("train.csv", ("loss", "grad_norm", "tokens", "lr")),
                          ("eval.csv", ("nll", "tokens", "documents"))):
        one, other = read_rows(a / name), read_rows(b / name)
        assert len(one) == len(other)
        for row, same in zip(one, other, strict=True):
            for column in columns:
                assert float(same[column]) == pytest.approx(float(row[column]), rel=1e-5
                                                            if column != "grad_norm" else 1e-4)
    one, other = (load_file(run / "model" / "model.safetensors") for run in (a, b))
    assert one.keys() == other.keys() and all((one[name] - other[name]).abs().max() < 1e-3 for name in one)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """The run in one process: of a step's four rows each holds as many tokens to learn as it happens to."""
    folder = tmp_path_factory.mktemp("alone")
    settings = dict(batch_size=1, accumulation=4, max_steps=20, eval_every=8, save_every=8, keep="best",
                    pair_repeats=1,
                    lr=3e-3)
    train(world.config(folder, **settings))
    return settings, folder / "run"


@pytest.mark.parametrize("processes, changes", [
    (2, {}), (4, {}), (2, {"parallel": "fsdp"}),
    (2, {"parallel": "fsdp", "recompute": "blocks", "batch_size": 2, "accumulation": 2})])
def test_any_number_of_processes_is_the_same_run(world, tmp_path, alone, processes, changes):
    settings, run = alone
    done = run_ranks(processes, "train.py", world.config_file(tmp_path / "c.py", **settings | changes))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("step    20  loss") == 1 and f"{processes} processes" in done.stdout
    assert_same_curve(run, tmp_path / "runs" / "run")


@pytest.mark.parametrize("numbers", [(4, 2, 1), (1, 2)])
def test_a_state_knows_no_number_of_processes(world, tmp_path, capsys, alone, numbers):
    """Begun by so many processes and gone on with by others, from step 16 each time."""
    settings, whole = alone
    path, run = world.config_file(tmp_path / "c.py", **settings
                                  | {"parallel": "fsdp"}), tmp_path / "runs" / "run"
    config = world.config(tmp_path / "runs", **settings | {"parallel": "fsdp"})
    for i, number in enumerate(numbers):
        capsys.readouterr()
        if i:
            shutil.rmtree(run / "state" / "step-00000020")  # as if it had been stopped after step 16
        if number == 1:
            train(config, resume=i > 0)
            said = capsys.readouterr().out
        else:
            done = run_ranks(number, "train.py", *(["--resume", run] if i else [path]))
            assert done.returncode == 0, done.stderr[-2000:]
            said = done.stdout
        assert not i or f"began with {numbers[0]} processes and resumes with {number}" in said
        assert_same_curve(whole, run)


def test_a_process_that_dies_ends_the_run_and_a_restart_goes_on(world, tmp_path):
    settings = dict(batch_size=1, accumulation=2, max_steps=5, save_every=1, keep="best", log_every=1)
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    train(world.config(tmp_path / "runs", name="whole", **settings))
    started = time.monotonic()
    done = torchrun(2, script, ROOT / "train.py", world.config_file(tmp_path / "dies.py", name="dies",
                                                                    **settings))
    assert done.returncode and time.monotonic() - started < 60
    assert "another process of this run has ended" in done.stderr or "SIGKILL" in done.stderr
    run = tmp_path / "runs" / "dies"
    assert sorted(state.name for state in (run / "state").iterdir())[-1] == "step-00000002"
    assert run_ranks(2, "train.py", "--resume", run).returncode == 0
    assert_same_curve(tmp_path / "runs" / "whole", run)
    restarted = world.config_file(tmp_path / "restarts.py", name="restarts", **settings)
    done = torchrun(2, script, ROOT / "train.py", restarted, restarts=1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_curve(tmp_path / "runs" / "whole", tmp_path / "runs" / "restarts")


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    """Seen from a CPU: what torch would be told."""
    for name, value in (("RUN_ID", "x"), ("RESTART_COUNT", "0")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    for name, value in (("RANK", 0), ("WORLD_SIZE", 4), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    devices, groups = [], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url: iter([(store, 0, 4)]))
    monkeypatch.setattr(torch.distributed, "init_process_group",
                        lambda backend, **given: groups.append((backend, given["device_id"])))
    monkeypatch.setattr(distributed.atexit, "register", lambda function: None)
    assert join("cuda") == Ranks(rank=0, size=4, local=1, here=2)
    assert devices == [1] and groups == [("nccl", torch.device("cuda", 1))]
    for device, count in (("cuda:1", 2), ("cuda", 1)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        with pytest.raises(ValueError, match=f"2 processes .* {count} GPUs, given device={device}: each"):
            join(device)


def test_what_cannot_be_divided_is_said(world, tmp_path):
    for changes, message in ((dict(batch_size=3), "2 processes cannot share the 3 rows of a step"),
                             (dict(optimizer="lean", clip=0.0),
                              "optimizer=lean updates before the gradients")):
        done = run_ranks(2, "train.py", world.config_file(tmp_path / "c.py", **changes))
        assert done.returncode and message in done.stderr


def test_scores_are_the_same_whatever_the_number_of_processes(world, tmp_path):
    """Two processes share the windows: equal losses bit by bit, and Taylor importance but for the order of
    its sums.
    """
    tables = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.csv"
        done = run_ranks(processes, "prune.py", world.model, "--data", world.data, "--score", out,
                         "--parts", "--dtype", "float32")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote") == 1
        tables.append(read_rows(out, ("time_saved",)))
    for one, other in zip(*tables, strict=True):
        assert {k: v for k, v in one.items() if k != "taylor"} == {k: v for k, v in other.items()
                                                                   if k != "taylor"}
        assert not one["taylor"] or float(one["taylor"]) == pytest.approx(float(other["taylor"]), rel=1e-5)


def test_measurements_are_the_same_whatever_the_number_of_processes(world, tmp_path):
    """Every row of documents, questions, written answers and agreement, digit by digit."""
    data = shutil.copytree(world.data, tmp_path / "data")
    lines = (data / "pairs.jsonl").read_text().splitlines()[:5]
    (data / "pairs_test.jsonl").write_text("\n".join(lines) + "\n")
    other = make_model(tmp_path / "other", world.data, seed=1)
    for processes in (1, 2):
        done = run_ranks(processes, "eval.py", world.model, other, "--data", data, "--out",
                         tmp_path / str(processes), "--answer-tokens", "4", "--dtype", "float32",
                         "--documents", "12")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("models compared") == 1
    for name in ("documents.csv", "questions.csv", "answers.csv", "accuracy.csv", "slices.csv",
                 "agreement.csv"):
        one, other = ((tmp_path / str(processes) / name).read_text() for processes in (1, 2))
        assert one == other and one.count("\n") > 3
