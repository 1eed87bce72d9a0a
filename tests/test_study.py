"""study.py: the same steps for everybody, resumable, and a table that follows from the runs."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from small import read_rows, run_main

import study as study_module
from model import Decoder
from nanoprune.config import Study, load_study
from nanoprune.data.dataset import Dataset
from nanoprune.evaluation.perplexity import Protocol, score_text
from prune import drop_blocks
from study import Stopped, run_study
from train import train


def make_study(world, folder, **changes) -> Study:
    training = world.config(folder, max_steps=4, eval_every=0, save_every=2)
    return Study(
        **({"name": "which", "training": training, "learning_rates": (1e-2, 1e-3), "seeds": (0, 1)} | changes)
    )


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    study = make_study(world, tmp_path_factory.mktemp("study"), keep_models=True)
    run_study(study)
    return study


def test_the_table_follows_from_the_runs(world, done):
    folder = done.training.folder.parent / "which"
    rows = {row["block"]: row for row in read_rows(folder / "study.csv")}
    assert list(rows) == ["none", "0", "1", "2"]
    split = Dataset(world.data).split("test")
    batches = list(Protocol(context=32).windows(split))

    def mean_loss(model: Decoder) -> float:
        losses = score_text(model, batches, len(split))
        return losses.nll.sum() / losses.tokens.sum()

    for block, row in rows.items():
        before = Decoder.from_pretrained(world.model).eval()
        drop_blocks(before, [] if block == "none" else [int(block)])
        assert float(row["before"]) == pytest.approx(mean_loss(before), rel=1e-6)
        arm = "full" if block == "none" else f"less-{block}"
        seeds = []
        for seed in (0, 1):
            model = Decoder.from_pretrained(folder / f"{arm}-s{seed}").eval()
            assert model.config.num_hidden_layers == (3 if block == "none" else 2)
            seeds.append(mean_loss(model))
        assert float(row["after"]) == pytest.approx(np.mean(seeds), rel=1e-6)
        assert (float(row["seed_low"]), float(row["seed_high"])) == pytest.approx(
            (min(seeds), max(seeds)), rel=1e-6
        )
        assert float(row["after_low"]) <= float(row["after"]) <= float(row["after_high"])
        for when in ("before", "after"):
            lost = float(row[f"lost_{when}"])
            assert lost == pytest.approx(float(row[when]) - float(rows["none"][when]), abs=1e-9)
            assert float(row[f"lost_{when}_low"]) <= lost <= float(row[f"lost_{when}_high"])
    found = json.loads((folder / "study.json").read_text())
    assert set(found["learning_rates"].values()) <= {1e-2, 1e-3}
    assert "loss before healing" in found["predicts_the_healed_loss"]
    text = (folder / "study.md").read_text()
    assert (
        "Distilled" in text and "as long without" in text and (folder / "study.png").stat().st_size > 10_000
    )
    best = min(
        (row for row in read_rows(folder / "blocks.csv") if row["rank"]), key=lambda row: float(row["rank"])
    )["block"]
    with open(folder / f"longer-{best}-s0" / "train.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) >= 4


def test_a_study_resumes_where_it_was(world, done, tmp_path, monkeypatch):
    """What was measured is not measured again; what was half done is; another study of this name is refused.
    """
    folder = done.training.folder.parent / "which"
    before = (folder / "study.csv").read_bytes()
    (folder / "measured" / "less-1-s1.json").unlink()
    shutil.rmtree(folder / "less-1-s1")
    names = []
    monkeypatch.setattr(
        study_module, "train", lambda config, **given: (names.append(config.name), train(config, **given))[1]
    )
    run_study(done)
    assert names == ["less-1-s1"]
    timed = ("seconds",)
    after = folder / "study.csv"
    assert read_rows(after, timed) == [
        {k: v for k, v in row.items() if k not in timed}
        for row in csv.DictReader(before.decode().splitlines())
    ]
    with pytest.raises(ValueError, match="holds another study of this name"):
        run_study(make_study(world, done.training.folder.parent, seeds=(0, 1, 2), keep_models=True))


def test_a_stopped_study_says_so(world, tmp_path, monkeypatch, capsys):
    study = make_study(world, tmp_path, seeds=(0,), learning_rates=(1e-3,), distill=False)
    monkeypatch.setattr(study_module, "catch_signals", lambda: ["SIGINT"])
    with pytest.raises(Stopped, match="the same command resumes it"):
        run_study(study)
    monkeypatch.undo()
    run_study(study)
    rows = read_rows(tmp_path / "which" / "study.csv")
    assert [row["runs"] for row in rows] == ["1"] * 4
    assert not any((tmp_path / "which").glob("*/state")) and not any((tmp_path / "which").glob("*/model"))


def test_a_run_that_diverges_ranks_last(world, tmp_path, monkeypatch):
    study = make_study(world, tmp_path, seeds=(0,), learning_rates=(1e-3,), distill=False, blocks=(0, 2))

    forward = Decoder.forward

    def diverging(config, **given):  # in its first step, before anything is logged
        with monkeypatch.context() as patch:
            if config.name in broken:
                patch.setattr(Decoder, "forward", lambda self, *args, **options: (
                    forward(self, *args, **options) * (float("nan") if self.training else 1)))
            return train(config, **given)

    broken = {"less-0-s0"}
    monkeypatch.setattr(study_module, "train", diverging)
    run_study(study)
    rows = {row["block"]: row for row in read_rows(tmp_path / "which" / "study.csv")}
    assert rows["0"]["after"] == "nan" and rows["0"]["rank_after"] == "2" and rows["2"]["rank_after"] == "1"
    broken = {"sweep-full-lr0.001"}
    with pytest.raises(ValueError, match="full diverged with every learning rate of .0.001,.: give lower "
                                         "ones"):
        run_study(replace(study, name="all"))


def test_mistakes_are_named_together(world, tmp_path, monkeypatch, capsys):
    path = tmp_path / "s.py"
    training = world.config(tmp_path, keep="best", drop_blocks=(1,), lora="q_proj")
    path.write_text("from configs import Config, Study\n\n"
                    f"study = Study('a/b', Config(**{training.to_dict()!r}), (), (0, 0))\n")
    with pytest.raises(ValueError) as caught:
        load_study(path)
    for message in (
        "name: given 'a/b'",
        "learning_rates: given ()",
        "seeds: given (0, 0)",
        "drop_blocks and teacher",
        "given lora='q_proj'; a study heals and measures whole models",
        "keep='last'",
    ):
        assert message in str(caught.value)
    code, _, err = run_main(monkeypatch, capsys, "study.py", path)
    assert code == 2 and "6 problem(s)" in err
    path.write_text("from configs import Config, Study\n\n"
                    f"study = Study('a', Config(**{world.config(tmp_path).to_dict()!r}), (1e-3,))\n")
    study = load_study(path, ["--seeds=3", "--blocks=0,2", "--learning_rates=1e-2,2e-2", "--max_steps=7"])
    assert (study.seeds, study.blocks, study.learning_rates, study.training.max_steps) == (
        (3,),
        (0, 2),
        (1e-2, 2e-2),
        7,
    )
    for given, message in (
        ("--seeds=one", "one"),
        ("--sedes=1", "no such setting"),
        ("--blocks=1,1", "blocks: given (1, 1)"),
    ):
        with pytest.raises(ValueError) as caught:
            load_study(path, [given])
        assert message in str(caught.value)
    path.write_text("config = 3\n")
    code, _, err = run_main(monkeypatch, capsys, "study.py", path)
    assert code == 2 and "binds no `study`" in err
