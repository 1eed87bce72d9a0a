"""A run's rows reach a tracker once and in order, and nothing that a tracker does ends a run."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
from small import TIMING, read_rows

import train as script
from nanoprune.config import Config
from nanoprune.distributed import Ranks
from nanoprune.evaluation.arms import describe_config
from nanoprune.training.run_folder import RunFolder
from nanoprune.training.tracker import TRACKERS, Tracker
from train import train

SERVICES = ("wandb", "trackio")


class Service:
    """What wandb and trackio have in common; it keeps what it gets, and raises where it is told to."""

    def __init__(self, fails: str = ""):
        self.fails, self.rows, self.begun, self.finished = fails, [], [], 0

    def init(self, *_, **settings):
        self.begun.append(settings)
        return self.fail_at("init")

    def log(self, values: dict, step: int) -> None:
        self.fail_at("log")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.fail_at("finish")
        self.finished += 1

    def fail_at(self, call: str) -> "Service":
        if call == self.fails:
            raise OSError("no such network")
        return self


def install(monkeypatch, name: str, fails: str = "") -> Service:
    module, service = ModuleType(name), Service(fails)
    module.init = service.init
    monkeypatch.setitem(sys.modules, name, module)
    return service


def steps(service: Service, key: str) -> list[int]:
    return [step for step, values in service.rows if key in values]


@pytest.mark.parametrize("name", SERVICES)
def test_a_resumed_run_sends_each_row_once_and_in_order(world, tmp_path, monkeypatch, name):
    service = install(monkeypatch, name)
    config = world.config(tmp_path, log=name, max_steps=4, save_every=2, eval_every=2)
    rate = script.learning_rate
    monkeypatch.setattr(script, "learning_rate", lambda step, _: rate(step, config) if step < 4 else 1 / 0)
    with pytest.raises(ZeroDivisionError):  # as a kill after step 3, whose last state is that of step 2
        train(config)
    monkeypatch.setattr(script, "learning_rate", rate)
    assert train(config, resume=True)
    assert steps(service, "train/loss") == [1, 2, 3, 4] and steps(service, "eval/nll") == [0, 2, 4]
    losses = [float(row["loss"]) for row in read_rows(config.folder / "train.csv")]
    assert [values["train/loss"] for _, values in service.rows if "train/loss" in values] == losses
    assert all(isinstance(value, int | float) for _, values in service.rows for value in values.values())
    first, second = service.begun
    assert first == second and first["resume"] == "allow" and service.finished == 1


def test_a_run_begun_anew_in_the_same_folder_is_another_run(world, tmp_path, monkeypatch):
    service, config = install(monkeypatch, "wandb"), world.config(tmp_path, log="wandb")
    for resume in (False, True, False):
        config.folder.mkdir(exist_ok=True)
        Tracker(config).begin(config, resume)
    first, second, third = (settings["id"] for settings in service.begun)
    assert first == second != third


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_ends_no_run(world, tmp_path, monkeypatch, capsys, fails):
    service = install(monkeypatch, "wandb", fails)
    plain = world.config(tmp_path, name="plain", max_steps=2)
    tracked = replace(plain, name="tracked", log="wandb")
    assert train(plain) and train(tracked)
    assert capsys.readouterr().out.count("warning: wandb failed (no such network); the run goes on") == 1
    assert len(service.rows) == (4 if fails == "finish" else 0)
    for table in ("train.csv", "eval.csv"):
        assert read_rows(plain.folder / table, TIMING) == read_rows(tracked.folder / table, TIMING)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_before_anything_is_written(world, tmp_path, monkeypatch, name):
    """Also where a folder of its name, such as wandb leaves, is taken for the package."""
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    for absent in (None, ModuleType(module)):
        monkeypatch.setitem(sys.modules, module, absent)
        with pytest.raises(ValueError, match=f"log: given {name}, .*: pip install {name}, or leave log out"):
            train(world.config(tmp_path, log=name))
    assert not any(tmp_path.iterdir())


def test_an_unknown_tracker_is_a_problem_of_the_config(world, tmp_path):
    problem, = world.config(tmp_path, log="no-such").problems()
    assert problem == "log: given 'no-such', must be none or wandb or trackio or tensorboard"
    assert list(TRACKERS) == ["wandb", "trackio", "tensorboard"]


def test_rank_0_alone_tracks(world, tmp_path, monkeypatch):
    service, config = install(monkeypatch, "wandb"), world.config(tmp_path, log="wandb")
    run = RunFolder(config, Ranks(rank=1, size=2), resume=False)
    run._open_logs(config, None)
    run.log("train", step=1, loss=2.0)
    assert not service.begun and not service.rows


def test_runs_that_differ_in_their_tracker_are_one_model():
    config = Config(name="a", base="b", data="c")
    first, second = ({"run": config.to_dict() | {"log": log}} for log in ("none", "wandb"))
    assert describe_config(first) == describe_config(second)


def test_tensorboard_reads_what_was_logged(world, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = world.config(tmp_path, log="tensorboard", max_steps=2)
    train(config)
    events = accumulator.EventAccumulator(str(config.folder / "tensorboard")).Reload()
    rows = read_rows(config.folder / "train.csv")
    assert [(event.step, pytest.approx(event.value)) for event in events.Scalars("train/loss")] == [
        (int(row["step"]), float(row["loss"])) for row in rows]
    assert [event.step for event in events.Scalars("eval/nll")] == [0, 2]
