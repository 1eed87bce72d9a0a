"""study.py: the same steps for everybody, resumable, and a table that follows from the runs."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from small import make_model, read_rows, run_main

import study as study_module
from model import Decoder
from nanoprune.config import Study, load_study
from nanoprune.data.dataset import Dataset
from nanoprune.evaluation import cost, multiple_choice
from nanoprune.evaluation.block_scores import score_blocks
from nanoprune.evaluation.measured import RunResult
from nanoprune.evaluation.multiple_choice import encode_questions, loglikelihoods
from nanoprune.evaluation.perplexity import Protocol, score_text
from nanoprune.evaluation.removal_losses import Calibration
from nanoprune.evaluation.study_tables import exchange_rows, predict_healed_loss, study_rows
from nanoprune.io.hub import copy_tokenizer
from nanoprune.io.jsonl import write_jsonl
from nanoprune.nn.lora import save_quantised
from nanoprune.nn.model_config import Part
from prune import drop_blocks
from study import Stopped, kept_speed, run_study
from train import train


def make_study(world, folder, **changes) -> Study:
    training = world.config(folder, max_steps=4, eval_every=2, save_every=2)
    return Study(**({"name": "which", "training": training, "learning_rates": (1e-2, 1e-3), "seeds": (0, 1),
                     "general": little_text(world.folder)} | changes))


def short(world, folder, **changes) -> Study:
    """Few runs: one seed, one learning rate, one block."""
    few = {"seeds": (0,), "learning_rates": (1e-3,), "distill": False, "blocks": (0,), "rounded": False}
    return make_study(world, folder, **few | changes)


def little_text(folder) -> str:
    """A file of general text that is scored at once."""
    write_jsonl(folder / "little.jsonl", [{"text": f"Rivers are {i} km long."} for i in range(5)])
    return str(folder / "little.jsonl")


def record_runs(monkeypatch) -> list[str]:
    """The names of the runs that are trained from now on."""
    names = []
    monkeypatch.setattr(
        study_module, "train", lambda config, **given: (names.append(config.name), train(config, **given))[1]
    )
    return names


@pytest.fixture(scope="module", autouse=True)
def timed():
    """The names of all models whose speed was measured; no processes are started for it."""
    names = []

    def measure_speed(open_model, sources, device, dtype):
        names.extend(sources)
        return {arm: {"note": ""} | {f"decode_tokens_per_s{end}": 7.0 for end in ("", "_low", "_high")}
                for arm in sources}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "measure_speed", measure_speed)
        yield names


@pytest.fixture(autouse=True)
def undrawn(monkeypatch) -> None:
    """The figures of `done` alone are rendered; elsewhere an empty file stands for each."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: path.touch())


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    folder, blocks = tmp_path_factory.mktemp("study"), (0, 1, 2, "1.attn", "0+2")
    once = tuple(block for block in blocks if block != study_best(world, (0, 1, 2)))
    study = make_study(world, folder / "runs", keep_models=True, results=str(folder / "results"),
                       blocks=blocks, once=once, longer=(2.0,), general="qa/general.jsonl",
                       adapters={"lora": "all", "lora_rank": 2, "lr": 1e-2})
    run_study(study)
    return study


def test_the_table_follows_from_the_runs(world, done):
    rows = {row["block"]: row for row in read_rows(done.folder / "study.csv")}
    assert list(rows)[:6] == ["none", "0", "1", "2", "1.attn", "0+2"]
    split = Dataset(world.data).split("test")
    batches = list(Protocol(context=32).windows(split))
    lr = json.loads((done.folder / "study.json").read_text())["learning_rates"]
    best = next(arm for arm in lr if arm != "none")

    def mean_loss(model: Decoder) -> float:
        losses = score_text(model, batches, len(split))
        return losses.nll.sum() / losses.tokens.sum()

    full = []
    for block in ("none", "0", "1", "2", "1.attn", "0+2"):
        row, dropped = rows[block], [] if block == "none" else block.split("+")
        before = Decoder.from_pretrained(world.model).eval()
        drop_blocks(before, dropped)
        assert float(row["before"]) == pytest.approx(mean_loss(before), rel=1e-6)
        seeds, rate = [], lr["none" if block == "none" else best]
        for seed in (0, 1) if block in ("none", best) else (0,):
            run = done.runs_folder / f"{block}-lr{rate:g}-s{seed}"
            model = Decoder.from_pretrained(run).eval()
            assert model.config.blocks == before.config.blocks
            assert model.config.without == before.config.without
            seeds.append(mean_loss(model))
        assert row["runs"] == str(len(seeds)) and row["diverged"] == "0"
        assert float(row["after"]) == pytest.approx(np.mean(seeds), rel=1e-6)
        assert (float(row["seed_low"]), float(row["seed_high"])) == pytest.approx(
            (min(seeds), max(seeds)), rel=1e-6
        )
        assert float(row["after_low"]) <= float(row["after"]) <= float(row["after_high"])
        full = full or seeds  # of the first row
        expected = {"before": float(row["before"]) - float(rows["none"]["before"]),
                    "after": np.mean([ours - theirs for ours, theirs in zip(seeds, full, strict=False)])}
        for when in ("before", "after"):
            lost = float(row[f"lost_{when}"])
            assert lost == pytest.approx(expected[when], abs=1e-6)
            assert float(row[f"lost_{when}_low"]) <= lost <= float(row[f"lost_{when}_high"])
    text = (done.folder / "study.md").read_text()
    first = text.partition("\n## ")[0]
    for told in ("base, 3 blocks, weights ", f"block {best} | chosen by loss on the validation split",
                 "**Before healing:** ", "**After healing:** ",
                 f"fine-tuned without block {best}, 2 times as long |", "fine-tuned full, NF4 |",
                 "**All 3 blocks, after healing:** from ", "![Each block, before healing and after]("):
        assert told in first, told
    assert len(first.splitlines()) < 50 and "no difference shown" in text
    for figure in ("study.png", "exchange.png", "blocks.png", "blocks_general.png"):
        assert (done.folder / figure).stat().st_size > 10_000
    longer = rows[f"{best}, 2 times as long"]
    steps = read_rows(done.runs_folder / f"{best}-8-steps-lr{lr[best]:g}-s0" / "train.csv")
    assert longer["runs"] == "1" and len(steps) >= 8
    assert len(read_rows(done.runs_folder / "none-adapters-lr0.01-s0" / "train.csv")) == 4


def test_ranks_compare_runs_of_the_same_seeds(done, monkeypatch):
    """A seed that is worse for the full and the best block's model alike changes nothing."""
    found = []
    monkeypatch.setattr(study_module, "write_study", found.append)
    run_study(done)
    results, = found

    def ranks():
        rows = study_rows(results)
        after = {row["block"]: row["rank_after"] for row in rows if "rank_after" in row}
        return after, [found["spearman"] for found in predict_healed_loss(results, rows)]

    before = ranks()
    for shift in (1000, -3000):  # of each document's sum: worse, then better
        for row in ("none", results.best):
            measures = results.runs[row][1].measures["trained"]
            measures["test"] = [nll + shift for nll in measures["test"]]
        full = study_rows(results)[0]
        assert full["seed_high"] > full["seed_low"] + 1
        assert ranks() == before


def test_what_is_kept_suffices_for_other_statistics(world, done):
    """Sums by document and log-likelihoods of every choice are those of the model."""
    path, = (done.folder / "measured").glob("1-lr0.001-s0-*.json")
    kept = json.loads(path.read_text())["result"]
    items = json.loads((done.folder / "measured" / "items.json").read_text())
    model = Decoder.from_pretrained(done.runs_folder / "1-lr0.001-s0").eval()
    split = Dataset(world.data).split("test")
    losses = score_text(model, list(Protocol(context=32).windows(split)), len(split))
    assert kept["measures"]["trained"]["test"] == pytest.approx(losses.nll.tolist(), abs=1e-5)
    assert [document["tokens"] for document in items["test"]] == losses.tokens.tolist()
    questions, _ = encode_questions(Dataset(world.data).tokenizer, Dataset(world.data).questions()["places"],
                                    128)
    values = loglikelihoods(model, [question.choices for question in questions])
    assert np.allclose(kept["measures"]["trained"]["questions"]["places"], values, atol=1e-5)
    assert [question["answer"] for question in items["questions"]["places"]] == [0, 1, 2, 3] * 2
    marks = kept["validation"]
    assert [mark["tokens"] for mark in marks] == [0, 128, 256]
    logged = read_rows(done.runs_folder / "1-lr0.001-s0" / "eval.csv")
    for mark, row in zip(marks, logged, strict=True):
        assert sum(mark["nll"]) / sum(mark["predicted"]) == pytest.approx(float(row["nll"]), rel=1e-5)
    text = path.read_text() + (done.folder / "measured" / "items.json").read_text()
    assert "Plant" not in text and str(done.training.runs) not in text


def test_rounding_costs_what_it_costs(done):
    rows = {row["what"]: row for row in read_rows(done.folder / "exchange.csv")}
    full, nf4, int8 = (rows[f"fine-tuned full{form}"] for form in ("", ", NF4", ", int8"))
    assert int(nf4["bytes"]) < int(int8["bytes"]) < int(full["bytes"])
    assert abs(float(int8["lost"])) < abs(float(nf4["lost"])) < 1
    assert float(full["lost"]) == 0 and float(full["decode_tokens_per_s"]) == 7


def test_a_study_resumes_where_it_was(world, done, monkeypatch):
    """What was measured is not measured again; what was half done is."""
    before = read_rows(done.folder / "study.csv", ("seconds",))
    path, = (done.folder / "measured").glob("1.attn-lr*-s0-*.json")
    name = path.name.rpartition("-")[0]
    path.unlink()
    shutil.rmtree(done.runs_folder / name)
    names = record_runs(monkeypatch)
    run_study(done)
    assert names == [name]
    assert read_rows(done.folder / "study.csv", ("seconds",)) == before


def test_results_are_found_by_what_decides_them(world, tmp_path, monkeypatch):
    """Under other paths, names and settings that change no number; never under other data, base or settings.
    """
    study = short(world, tmp_path / "a", results=str(tmp_path / "results"))
    run_study(study)
    base, data = tmp_path / "moved" / "base", tmp_path / "moved" / "data"
    shutil.copytree(world.model, base)
    shutil.copytree(world.data, data)
    moved = replace(study, training=replace(
        study.training, name="other", base=str(base), data=str(data), runs=str(tmp_path / "b"),
        batch_size=study.training.rows_per_step, accumulation=1, recompute="blocks", log_every=7))
    names = record_runs(monkeypatch)
    run_study(moved)
    assert names == []
    kept = sorted(path.name for path in (tmp_path / "results" / "which" / "measured").iterdir())
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="2 run.s. of another base, .*base: weights"):
        run_study(moved)
    shutil.copy(world.model / "model.safetensors", base)
    lines = (data / "qa" / "places.jsonl").read_text().replace("plant 1?", "plant 99?")
    (data / "qa" / "places.jsonl").write_text(lines)
    with pytest.raises(ValueError, match="data: qa/places.*give this study another name"):
        run_study(moved)
    with pytest.raises(ValueError, match="settings: beta1 0.9, now 0.8; settings: context 32, now 16"):
        run_study(replace(study, training=replace(study.training, context=16, beta1=0.8)))
    assert sorted(path.name for path in (tmp_path / "results" / "which" / "measured").iterdir()) == kept
    assert names == []
    with pytest.raises(ValueError, match="once: given 7; allowed are 'none' and what is removed: 0"):
        run_study(replace(study, once=(7,)))
    run_study(replace(study, blocks=(0, 1)))
    assert names == ["1-lr0.001-s0"]
    monkeypatch.setattr(multiple_choice, "VERSION", multiple_choice.VERSION + 1)
    run_study(study)
    assert names == ["1-lr0.001-s0", "none-lr0.001-s0", "0-lr0.001-s0"]


def test_a_run_of_another_base_is_no_run_of_this_study(world, tmp_path, monkeypatch):
    """Its folder has the same name; what was measured was moved away, as the message says."""
    base = shutil.copytree(world.model, tmp_path / "base")
    study = short(world, tmp_path / "runs", results=str(tmp_path / "results"), keep_models=True)
    study = replace(study, training=replace(study.training, base=str(base)))
    run_study(study)
    names = record_runs(monkeypatch)
    shutil.move(tmp_path / "results" / "which" / "measured", tmp_path / "moved")
    run_study(study)  # finds the models, and measures them
    assert names == []
    make_model(base, world.data, seed=9)
    with pytest.raises(ValueError, match="holds 2 run.s. of another base"):
        run_study(study)
    shutil.move(tmp_path / "results" / "which" / "measured", tmp_path / "moved again")
    with pytest.raises(ValueError, match="which/none-lr0.001-s0 holds a run of another base, dataset"):
        run_study(study)
    assert names == []
    shutil.move(tmp_path / "runs" / "which", tmp_path / "old runs")
    run_study(study)
    assert names == ["none-lr0.001-s0", "0-lr0.001-s0"]
    shutil.rmtree(tmp_path / "results" / "which" / "measured")
    with pytest.raises(ValueError, match="holds a run of another base, dataset or other settings"):
        run_study(replace(study, training=replace(study.training, weight_decay=0.2)))


def test_what_a_study_measures_later_is_measured(world, tmp_path, monkeypatch, timed):
    """Rounded forms of a full model that was measured without them; the speed of another model."""
    study = short(world, tmp_path)
    run_study(study)
    names = record_runs(monkeypatch)
    timed.clear()
    run_study(study)
    assert names == timed == []
    run_study(replace(study, rounded=True))
    assert names == ["none-lr0.001-s0"]
    rows = {row["what"] for row in read_rows(tmp_path / "which" / "exchange.csv")}
    assert {"fine-tuned full, NF4", "fine-tuned full, int8"} <= rows
    run_study(replace(study, rounded=True))
    run_study(study)
    assert names == ["none-lr0.001-s0"]
    monkeypatch.setattr(cost, "VERSION", cost.VERSION + 1)
    run_study(study)
    assert timed == ["none", "0"]


def test_a_process_can_time_a_model_without_a_block(world):
    opened = pickle.loads(pickle.dumps(study_module.open_without))
    model = opened((world.model, (Part(1, "mlp"), Part(2))), device="cpu")
    assert model.config.blocks == (0, 1) and model.config.without == ("", "mlp")


def test_a_speed_that_could_not_be_measured_is_not_kept(world, tmp_path, monkeypatch):
    """And after a stop none is measured, but a kept one is there."""
    failed, known = {"none": {}}, {"none": {"decode_tokens_per_s": 5.0}}
    measured = iter([failed, known])
    monkeypatch.setattr(cost, "measure_speed", lambda *_: next(measured))
    speeds = [kept_speed(world.model, {"none": ()}, world.config(tmp_path), torch.device("cpu"),
                         tmp_path / "speed.json", stopped) for stopped in (True, False, False, True)]
    assert speeds == [{}, failed, known, known]


def test_a_study_needs_general_text(world, tmp_path):
    write_jsonl(tmp_path / "blank.jsonl", [{"text": ""}, {"text": " \n"}])
    with pytest.raises(ValueError, match="blank.jsonl: no line has any text; give a JSONL file"):
        run_study(short(world, tmp_path, general=str(tmp_path / "blank.jsonl")))
    assert not (tmp_path / "which").exists()


@pytest.mark.parametrize("name", ["study.csv", "exchange.png"])
def test_a_study_replaces_no_users_file(world, tmp_path, name):
    study = short(world, tmp_path)
    study.folder.mkdir()
    (study.folder / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} would be replaced, and was not written there as a study"):
        run_study(study)
    assert (study.folder / name).read_text() == "mine"


def test_a_stopped_study_says_so(world, tmp_path, monkeypatch):
    study = make_study(world, tmp_path, seeds=(0,), learning_rates=(1e-3,), distill=False)
    monkeypatch.setattr(study_module, "catch_signals", lambda: ["SIGINT"])
    with pytest.raises(Stopped, match="the same command resumes it"):
        run_study(study)
    monkeypatch.undo()
    run_study(study)
    rows = read_rows(tmp_path / "which" / "study.csv")
    assert [row["runs"] for row in rows] == ["1"] * 4
    assert not any((tmp_path / "which").glob("*/state")) and not any((tmp_path / "which").glob("*/model"))


def test_a_signal_between_two_runs_stops_the_study(world, tmp_path, monkeypatch):
    """One that comes while a run is measured, when no loop is there to see it."""
    signals = []
    monkeypatch.setattr(study_module, "catch_signals", lambda: signals)
    measure = study_module.measure_model
    monkeypatch.setattr(study_module, "measure_model",
                        lambda *given: (signals.append("SIGINT"), measure(*given))[1])
    names = record_runs(monkeypatch)
    with pytest.raises(Stopped, match="stopped between two runs"):
        run_study(short(world, tmp_path))
    assert names == ["none-lr0.001-s0"] and len(list((tmp_path / "which" / "measured").glob("none-*"))) == 1


def test_a_stopped_study_has_a_page_of_what_is_measured(world, tmp_path, monkeypatch):
    signals, best = [], study_best(world, (0, 1))
    monkeypatch.setattr(study_module, "catch_signals", lambda: signals)
    measure = study_module.measure_model

    def signal_at_the_third(*given):
        if len(names) == 3:
            signals.append("SIGTERM")
        return measure(*given)

    monkeypatch.setattr(study_module, "measure_model", signal_at_the_third)
    names = record_runs(monkeypatch)
    with pytest.raises(Stopped, match="stopped between two runs"):
        run_study(short(world, tmp_path, blocks=(0, 1, 2)))
    assert len(names) == 3
    rows = [row["block"] for row in read_rows(tmp_path / "which" / "study.csv")]
    assert rows[0] == "none" and str(best) in rows and len(rows) == 3
    assert (tmp_path / "which" / "study.md").is_file() and (tmp_path / "which" / "exchange.png").is_file()


def test_the_page_after_a_stop_leaves_out_what_is_not_measured(world, tmp_path, monkeypatch):
    """A seed without its earlier one, too: rows are paired by their place."""
    study = short(world, tmp_path, blocks=(0, 1, 2), seeds=(0, 1))
    run_study(study)
    missing = min({0, 1, 2} - {study_best(world, (0, 1, 2))})
    for path in (tmp_path / "which" / "measured").glob(f"{missing}-*-s0-*"):
        path.unlink()
    monkeypatch.setattr(study_module, "catch_signals", lambda: ["SIGTERM"])
    with pytest.raises(Stopped, match="stopped between two runs"):
        run_study(study)
    rows = {row["block"]: row["runs"] for row in read_rows(tmp_path / "which" / "study.csv")}
    assert rows == {row: "2" for row in ("none", "0", "1", "2") if row != str(missing)}


def break_runs(monkeypatch, broken: set[str]) -> None:
    """Let runs of these names diverge in their first step, before anything is logged."""
    forward = Decoder.forward

    def diverging(config, **given):
        with monkeypatch.context() as patch:
            if config.name in broken:
                patch.setattr(Decoder, "forward", lambda self, *args, **options: (
                    forward(self, *args, **options) * (float("nan") if self.training else 1)))
            return train(config, **given)

    monkeypatch.setattr(study_module, "train", diverging)


def test_a_run_that_diverges_ranks_last(world, tmp_path, monkeypatch):
    study = make_study(world, tmp_path, seeds=(0,), learning_rates=(1e-3,), distill=False, blocks=(0, 2))
    best = "2" if study_best(world, (0, 2)) == 2 else "0"
    other = "0" if best == "2" else "2"
    break_runs(monkeypatch, {f"{other}-lr0.001-s0"})
    run_study(study)
    rows = {row["block"]: row for row in read_rows(tmp_path / "which" / "study.csv")}
    assert rows[other]["after"] == "nan" and rows[other]["rank_after"] == "2"
    assert rows[best]["rank_after"] == "1" and rows[other]["diverged"] == "1"
    break_runs(monkeypatch, {"none-lr0.001-s0"})
    with pytest.raises(ValueError, match="none diverged with every learning rate of .0.001,.: give lower "
                                         "ones"):
        run_study(replace(study, name="all"))


def study_best(world, blocks) -> int:
    """The block whose removal costs least on the validation split."""
    model = Decoder.from_pretrained(world.model).eval()
    rows = score_blocks(model, Calibration.of_split(model, Dataset(world.data).split("val"), 32)).rows
    return min(blocks, key=lambda block: rows[1 + block]["nll"])


def test_one_diverged_seed_does_not_keep_a_study_from_its_report(world, tmp_path, monkeypatch):
    """Of the full model, which is also a teacher: its other seed counts, and teaches."""
    study = short(world, tmp_path, seeds=(0, 1), distill=True)
    break_runs(monkeypatch, {"none-lr0.001-s1"})
    run_study(study)
    rows = {row["block"]: row for row in read_rows(tmp_path / "which" / "study.csv")}
    assert rows["none"]["diverged"] == "1" and float(rows["none"]["after"]) > 0
    assert np.isfinite(float(rows["0"]["lost_after"]))
    for row in ("0, distilled", "0, as long without"):
        assert (rows[row]["runs"], rows[row]["diverged"]) == ("2", "1")


def test_a_full_model_with_one_seed_teaches_that_seed_alone(world, tmp_path):
    run_study(short(world, tmp_path, seeds=(0, 1), distill=True, once=("none",)))
    rows = {row["block"]: row for row in read_rows(tmp_path / "which" / "study.csv")}
    assert {name: row["runs"] for name, row in rows.items()} == {
        "none": "1", "0": "2", "0, distilled": "1", "0, as long without": "1"}


def test_epochs_are_steps_that_a_longer_arm_exceeds(world, tmp_path, monkeypatch):
    """`epochs` would decide on the steps of every arm anew."""
    study = short(world, tmp_path, longer=(2.0,))
    study = replace(study, training=replace(study.training, epochs=1, warmup_steps=1))
    names = record_runs(monkeypatch)
    run_study(study)
    steps = {name: len(read_rows(tmp_path / "which" / name / "train.csv")) for name in names}
    (longer,) = (name for name in names if "-steps-" in name)
    assert steps[longer] == 2 * steps["0-lr0.001-s0"] == 2 * steps["none-lr0.001-s0"]


def test_models_of_other_runs_in_its_folder_are_kept(world, tmp_path):
    other = world.config(tmp_path / "which", name="mine", max_steps=1)
    train(other)
    study = short(world, tmp_path)
    run_study(study)
    assert (other.folder / "model" / "model.safetensors").is_file()
    assert not list(tmp_path.glob("which/*-s0/model"))


def test_a_base_whose_weights_cannot_change_is_refused(world, tmp_path):
    save_quantised(Decoder.from_pretrained(world.model, frozen="nf4"), tmp_path / "nf4")
    copy_tokenizer(world.model, tmp_path / "nf4")
    study = short(world, tmp_path)
    with pytest.raises(ValueError, match="is quantised: its weights cannot be changed"):
        run_study(replace(study, training=replace(study.training, base=str(tmp_path / "nf4"))))


def test_a_first_seed_that_diverged_leaves_the_option_in_the_table(done, monkeypatch):
    """And a form that not all seeds were measured in is left out."""
    found = []
    monkeypatch.setattr(study_module, "write_study", found.append)
    run_study(done)
    results, = found
    full, second = results.runs["none"]
    results.runs["none"][1] = replace(second, measures={"trained": second.measures["trained"]})
    results.runs[results.best][0] = RunResult(diverged=True)
    options = [option["what"] for option in exchange_rows(results, study_rows(results))]
    assert options[0] == "fine-tuned full" and "fine-tuned full, NF4" not in options
    assert results.name(results.best) in options


def test_a_study_heals_by_adapters(world, tmp_path):
    study = short(world, tmp_path, keep_models=True)
    training = replace(study.training, lora="q_proj,v_proj", lora_rank=2)
    run_study(replace(study, training=training))
    assert (tmp_path / "which" / "0-lr0.001-s0" / "model" / "adapter_config.json").is_file()
    rows = {row["block"]: row for row in read_rows(tmp_path / "which" / "study.csv")}
    assert np.isfinite(float(rows["0"]["lost_after"]))


def test_mistakes_are_named_together(world, tmp_path, monkeypatch, capsys):
    path = tmp_path / "s.py"
    training = world.config(tmp_path, keep="best", drop_blocks=(1,), context=0)
    path.write_text("from configs import Config, Study\n\n"
                    f"study = Study('a/b', Config(**{training.to_dict()!r}), (), (0, 0))\n")
    with pytest.raises(ValueError) as caught:
        load_study(path)
    for message in (
        "name: given 'a/b'",
        "learning_rates: given ()",
        "seeds: given (0, 0)",
        "drop_blocks and teacher",
        "training.context: given 0",
        "keep='last'",
    ):
        assert message in str(caught.value)
    code, _, err = run_main(monkeypatch, capsys, "study.py", path)
    assert code == 2 and "6 problem(s)" in err
    path.write_text("from configs import Config, Study\n\n"
                    f"study = Study('a', Config(**{world.config(tmp_path).to_dict()!r}), (1e-3,))\n")
    study = load_study(path, ["--seeds=3", "--blocks=0,2", "--learning_rates=1e-2,2e-2", "--max_steps=7",
                              "--name=b"])
    assert study.name == "b"
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
        ("--blocks=1+1", "blocks: given ('1+1',)"),
        ("--blocks=1.attn,0+1", "name at least one whole block"),
        ("--longer=1", "longer: given (1.0,), must be numbers above 1"),
        ("--lr=1e-3", "lr: no such setting"),
        ("--seed=1", "seed: no such setting (did you mean seeds?)"),
    ):
        with pytest.raises(ValueError) as caught:
            load_study(path, [given])
        assert message in str(caught.value)
    path.write_text("config = 3\n")
    code, _, err = run_main(monkeypatch, capsys, "study.py", path)
    assert code == 2 and "binds no `study`" in err
