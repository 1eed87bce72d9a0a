"""plot.py draws from CSVs alone, and says what it lacks."""

import csv
import json
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from small import read_rows, run_main

from model import Decoder
from nanoprune.distributed import ALONE
from nanoprune.figures.blocks import draw_blocks
from nanoprune.figures.runs import draw_curves, running_mean
from nanoprune.figures.style import draw_intervals
from nanoprune.training.run_folder import RunFolder
from plot import draw
from train import train


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


STEPS = {(0, 1): "take the block out", (0, 2): "fine-tune the full model", (1, 3): "heal the reduced model",
         (2, 3): "reduced against full"}
SETS = {"large": 66, "small": 9}  # questions
NAMES = ["base", "base without block 25", "fine-tuned full", "fine-tuned without block 25",
         *(f"model {number}" for number in range(4, 12))]


def results_folder(folder, count=4, steps=STEPS, sets=SETS, months=2, change=10, **more):
    """The tables of an evaluation; `more`: further columns of models.csv."""
    names = NAMES[:count]
    write_csv(folder / "models.csv", [
        {"model": name, "tokenizer": "t", "params": 100 - k, "bits_per_byte": 1 + k / 10, "bits_low": 0.9,
         "bits_high": 2.2} | more for k, name in enumerate(names)])
    pairs = [(i, j) for j in range(count) for i in range(j)]
    measures = [("test perplexity", "%"), ("general perplexity", "%"),
                *((f"{name} accuracy", "points") for name in sets)]
    differences = [
        {"first": names[i], "second": names[j], "step": steps.get((i, j), ""), "measure": measure,
         "unit": unit, "difference": change, "low": change - 2, "high": "" if i else change + 2,
         "shown": i == 0, "seeds": 1}
        for i, j in pairs for measure, unit in measures]
    write_csv(folder / "differences.csv", differences or [{}])
    write_csv(folder / "accuracy.csv", [
        {"model": name, "set": questions, "category": category, "n": n, "accuracy": 0.5, "low": 0.4,
         "high": 0.6, "chance": 0.25}
        for name in reversed(names) for questions, n in sets.items() for category in ("", "when", "who")
    ] or [{}])
    write_csv(folder / "slices.csv", [
        {"model": name, "slice": kind, "value": value, "nll": 2, "low": "", "high": 2.1}
        for name in reversed(names)
        for kind, value in [*(("month", f"2025-{month:02d}") for month in range(1, 1 + months)),
                            ("position", "0 to 15"), ("position", "16 to 63"), ("no-such", "a"),
                            ("no-such", "b")]])
    return folder


def run_folder(folder, losses):
    """A run with these losses of validation, by tokens."""
    write_csv(folder / "train.csv", [{"tokens": tokens, "loss": loss} for tokens, loss in losses.items()])
    write_csv(folder / "eval.csv", [{"tokens": tokens, "nll": loss} for tokens, loss in losses.items()])
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, and not written."""
    figures = []
    for module in ("blocks", "results", "runs", "study"):
        monkeypatch.setattr(f"nanoprune.figures.{module}.save",
                            lambda figure, out: figures.append(figure) or out)
    yield figures
    plt.close("all")


def styles(axes):
    """Colour, marker and line by label; a mark with an interval has no line."""
    handles, labels = axes.get_legend_handles_labels()
    lines = {label: handle[0] if isinstance(handle, tuple) else handle
             for handle, label in zip(handles, labels, strict=True)}
    return {label.replace("\n", " "): (line.get_color(), line.get_marker())
            for label, line in lines.items() if label != "chance"}


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_curves_of_runs(world, tmp_path, monkeypatch, capsys, kind):
    for name in ("a", "b"):
        train(world.config(tmp_path, name=name, max_steps=2))
    code, out, _ = run_main(
        monkeypatch, capsys, "plot.py", tmp_path / "a", tmp_path / "b", "--out", tmp_path / f"f/c.{kind}"
    )
    assert (
        code == 0
        and f"wrote {tmp_path}/f/c.{kind}" in out
        and (tmp_path / "f" / f"c.{kind}").stat().st_size > 5000
    )


def test_half_a_last_line_and_a_name_without_an_ending(world, tmp_path, monkeypatch, capsys):
    train(world.config(tmp_path, name="a", max_steps=3))
    table = tmp_path / "a" / "train.csv"
    *whole, last = table.read_text().splitlines(keepends=True)
    table.write_text("".join(whole) + last[:3])
    code, out, _ = run_main(monkeypatch, capsys, "plot.py", tmp_path / "a", "--out", tmp_path / "curves")
    assert code == 0 and f"wrote {tmp_path}/curves.png" in out and (tmp_path / "curves.png").is_file()


def test_results(tmp_path, monkeypatch, capsys):
    folder = results_folder(tmp_path / "results", decode_tokens_per_s=7)
    for source, out in (("", "comparison"), ("accuracy.csv", "categories"), ("slices.csv", "slices"),
                        ("models.csv", "tradeoff")):
        path, again = tmp_path / f"{out}.png", tmp_path / "again.png"
        assert run_main(monkeypatch, capsys, "plot.py", folder / source, "--out", path)[0] == 0
        assert run_main(monkeypatch, capsys, "plot.py", folder / source, "--out", again)[0] == 0
        assert path.stat().st_size > 5000 and path.read_bytes() == again.read_bytes()


def test_steps_are_drawn_as_differences(tmp_path, drawn):
    draw([results_folder(tmp_path)], tmp_path / "f.png")
    loss, accuracy, levels = drawn[0].axes
    assert [" ".join(label.split()) for label in tick_labels(loss.yaxis)] == [
        "take the block out base → base without block 25",
        "fine-tune the full model base → fine-tuned full",
        "heal the reduced model base without block 25 → fine-tuned without block 25",
        "reduced against full fine-tuned full → fine-tuned without block 25"]
    assert [text.get_text() for text in loss.texts] == [
        "test perplexity +10.0", "general perplexity +10.0"] * 2 + [
        "test perplexity +10.00", "general perplexity +10.00"] * 2
    assert [text.get_text().split()[0] for text in accuracy.texts] == ["large"] * 4
    assert tick_labels(levels.xaxis) == ["large\n(n = 66)"]
    for axes in (loss, accuracy):
        assert [0, 0] in [list(line.get_xdata()) for line in axes.lines]
        points = [line for line in axes.lines if line.get_marker() == "o"]
        assert [point.get_fillstyle() for point in points] == [
            "full" if point.get_ydata()[0] < 1.5 else "none" for point in points]
        right = axes.transAxes.transform((1, 0))[0]
        assert all(text.get_window_extent().x0 > right for text in axes.texts)


@pytest.mark.parametrize(("change", "scale"), [(99, "linear"), (101, "symlog"), (40000, "symlog")])
def test_a_large_change_gets_a_log_scale_that_says_so(tmp_path, drawn, change, scale):
    draw([results_folder(tmp_path, change=change - 2)], tmp_path / "f.png")
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == scale and ("log scale" in axes.get_xlabel()) == (scale == "symlog")


@pytest.mark.parametrize(("count", "pairs"), [(2, 1), (4, 6), (8, 10)])
def test_pairs_where_none_is_a_step(tmp_path, drawn, count, pairs):
    draw([results_folder(tmp_path, count, steps={})], tmp_path / "f.png")
    labels = tick_labels(drawn[0].axes[0].yaxis)
    assert len(labels) == pairs and labels[0] == "base → base without block 25"


def test_one_model_has_no_differences(tmp_path, drawn):
    draw([results_folder(tmp_path, 1)], tmp_path / "f.png")
    assert [tick_labels(axes.xaxis) for axes in drawn[0].axes] == [["large\n(n = 66)"]]


def test_nothing_to_show(tmp_path, monkeypatch, capsys):
    folder = results_folder(tmp_path, 1, sets={"small": 9})
    write_csv(folder / "slices.csv", [
        {"model": "base", "slice": "month", "value": "2025-01", "nll": 2, "low": 1, "high": 3}])
    for table in (".", "accuracy.csv", "slices.csv"):
        code, _, err = run_main(monkeypatch, capsys, "plot.py", folder / table, "--out", tmp_path / "f.png")
        assert code == 2 and "has nothing to show" in err and not (tmp_path / "f.png").exists()


@pytest.mark.parametrize("count", [1, 4, 8, 12])
def test_models_look_alike_everywhere(tmp_path, drawn, count):
    """In the order of models.csv, whatever that of the other tables."""
    folder, names = results_folder(tmp_path / "results", count), NAMES[:count]
    for table in (".", "accuracy.csv", "slices.csv", "models.csv"):
        draw([folder / table], tmp_path / "f.png")
    run = run_folder(tmp_path / "run", {0: 3, 10: 2})
    draw_curves({name: run for name in names[::-1]}, tmp_path / "f.png", names)
    first = styles(drawn[0].axes[-1])
    assert list(first) == names and len(drawn) == 5
    assert all(styles(axes) == first for figure in drawn[:4] for axes in figure.axes[-1:])
    assert styles(drawn[4].axes[1]) == first
    assert len({marker for _, marker in first.values()}) == count


def test_curves_of_some_models_look_as_in_the_folder(tmp_path, drawn):
    run = run_folder(tmp_path / "run", {0: 3, 10: 2})
    draw_curves({name: run for name in NAMES[:4]}, tmp_path / "f.png")
    draw_curves({"no-such": run, NAMES[2]: run}, tmp_path / "f.png", NAMES[:4])
    every, some = styles(drawn[0].axes[1]), styles(drawn[1].axes[1])
    assert some[NAMES[2]] == every[NAMES[2]] and some["no-such"] not in every.values()
    lines = [line.get_linestyle() for line in drawn[0].axes[1].lines]
    assert len(set(lines)) == 4


def test_the_speed_panel_only_where_it_was_measured(tmp_path, drawn):
    draw([results_folder(tmp_path / "a") / "models.csv"], tmp_path / "f.png")
    measured = {"decode_tokens_per_s": 7, "decode_tokens_per_s_low": 6, "decode_tokens_per_s_high": 9}
    draw([results_folder(tmp_path / "b", **measured) / "models.csv"], tmp_path / "f.png")
    assert [[axes.get_xlabel() for axes in figure.axes] for figure in drawn] == [
        ["parameters"], ["parameters", "written tokens/s"]]
    assert drawn[1].axes[1].dataLim.intervalx.tolist() == [6, 9]


@pytest.mark.parametrize(("months", "panels"), [(1, ["position"]), (2, ["month", "position"])])
def test_one_month_is_no_panel(tmp_path, drawn, months, panels):
    draw([results_folder(tmp_path, months=months) / "slices.csv"], tmp_path / "f.png")
    assert [axes.get_xlabel() for axes in drawn[0].axes] == [f"{panel} of the document" for panel in panels]


def test_small_sets_are_left_out(tmp_path, drawn):
    folder = results_folder(tmp_path, sets={"nine": 9, "ten": 10, "eleven": 11})
    draw([folder], tmp_path / "f.png")
    draw([folder / "accuracy.csv"], tmp_path / "f.png")
    assert tick_labels(drawn[0].axes[-1].xaxis) == ["ten\n(n = 10)", "eleven\n(n = 11)"]
    assert [axes.get_title() for axes in drawn[1].axes] == ["ten", "eleven"]


def test_curves_get_a_panel_of_the_second_less_the_first(tmp_path, drawn):
    full = run_folder(tmp_path / "full", {0: 3.5, 10: 2.5, 20: 2.25})
    reduced = run_folder(tmp_path / "reduced", {0: 4, 15: 3, 20: 2.5})
    draw([full, reduced], tmp_path / "f.png")
    draw([full], tmp_path / "f.png")
    draw([full, reduced, run_folder(tmp_path / "third", {0: 3})], tmp_path / "f.png")
    assert [len(figure.axes) for figure in drawn] == [3, 2, 2]
    axes = drawn[0].axes[2]
    curve, zero = axes.lines
    assert curve.get_xydata().tolist() == [[0, 0.5], [20, 0.25]] and list(zero.get_ydata()) == [0, 0]
    assert axes.get_title() == "Validation loss: reduced\nless full" and "log scale" in axes.get_ylabel()


def test_runs_of_one_name_are_told_apart(tmp_path, drawn):
    runs = [run_folder(tmp_path / place / "full", {0: 3, 10: 2}) for place in "ab"]
    draw(runs, tmp_path / "f.png")
    assert [label.replace("\n", "") for label in drawn[0].axes[1].get_legend_handles_labels()[1]] == [
        str(run) for run in runs]


@pytest.mark.parametrize(("last", "scale"), [(2, "linear"), (0.5, "log")])
def test_a_log_scale_has_numbers_and_says_so(tmp_path, drawn, last, scale):
    draw([run_folder(tmp_path / "run", {0: 4, 10: last})], tmp_path / "f.png")
    axes = drawn[0].axes[1]
    assert axes.get_yscale() == scale and ("log scale" in axes.get_ylabel()) == (scale == "log")
    assert len([label for label in tick_labels(axes.yaxis) if label]) > 2


def test_an_unknown_end_of_an_interval_is_not_drawn():
    axes = plt.figure().subplots()
    draw_intervals(axes, [0], [{"x": "1", "low": "", "high": "2"}], ("x", "low", "high"))
    _, (low, high), _ = axes.containers[0].lines
    assert np.isnan(low.get_ydata()).all() and high.get_ydata().tolist() == [2]
    plt.close()


def test_the_block_that_costs_least_is_ringed(tmp_path, drawn):
    rows = [{"block": block, "nll": 2, "difference": difference, "difference_low": 0, "difference_high": 9}
            for block, difference in (("none", 0), ("0", 5), ("1", 1), ("1.mlp", 0.5), ("2", 3))]
    draw([write_csv(tmp_path / "blocks.csv", rows)], tmp_path / "f.png")
    axes = drawn[0].axes[0]
    lines = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    assert list(lines) == ["costs least", "whole block", "its MLP"]
    assert lines["costs least"].get_xydata().tolist() == [[1, 1]] and not axes.texts


def test_options_of_a_study_have_marks_of_their_own(tmp_path, drawn):
    names = ["none", *(f"option {number}" for number in range(8))]
    write_csv(tmp_path / "exchange.csv", [
        {"what": name, "bytes": 10**6, "lost": 1, "lost_low": 0, "lost_high": 2} for name in names])
    write_csv(tmp_path / "curves.csv", [
        {"block": name, "seed": seed, "tokens": tokens, "nll": 3 + seed}
        for name in names[:3] for seed in range(2) for tokens in (0, 5, 10) if (name, tokens) != ("none", 5)])
    draw([tmp_path / "exchange.csv"], tmp_path / "f.png")
    left, right = (styles(axes) for axes in drawn[0].axes)
    assert list(right) == names and len({marker for _, marker in right.values()}) == len(names)
    assert left == {name: right[name] for name in names[:3]}
    lines = {line.get_label(): line.get_linestyle() for line in drawn[0].axes[0].lines}
    two_marks, *curves = (lines[name] for name in names[:3])
    assert two_marks == "None" and "None" not in curves  # the course between two marks is unknown


def test_a_folder_of_an_older_format_says_what_it_lacks(tmp_path):
    folder = results_folder(tmp_path)
    (folder / "differences.csv").unlink()
    with pytest.raises(ValueError, match="cannot read .*differences.csv"):
        draw([folder], tmp_path / "f.png")
    write_csv(folder / "differences.csv", [{"first": "a", "second": "b", "measure": "m"}])
    with pytest.raises(ValueError, match="lacks the column.*step, difference, low, high, shown"):
        draw([folder], tmp_path / "f.png")


@pytest.mark.parametrize("estimates", [[], ["no-such-score"], ["influence", "no-such-score"]])
def test_blocks_with_a_panel_for_each_estimate(tmp_path, monkeypatch, capsys, estimates):
    """An estimate needs no entry anywhere: its column of ranks is enough. A loss that is not finite is left
    out.
    """
    rows = []
    for block, nll in (("none", 2.0), (0, 7.0), (1, 1.9), (2, float("nan")), (3, 2.5), ("3.mlp", 2.2)):
        row = {
            "block": block,
            "nll": nll,
            "difference": nll - 2,
            "difference_low": nll - 2.1,
            "difference_high": "nan",
        }
        for name in estimates:
            row |= {name: "", f"{name}_rank": ""} if block == "none" else {name: 3 * nll, f"{name}_rank": 1}
        rows.append(row)
    table = write_csv(tmp_path / "blocks.csv", rows)
    assert run_main(monkeypatch, capsys, "plot.py", table, "--out", tmp_path / "blocks.png")[0] == 0
    figures = []
    monkeypatch.setattr("nanoprune.figures.blocks.save", lambda figure, out: figures.append(figure))
    draw_blocks(table, tmp_path / "blocks.png")
    names = {"influence": "block influence", "no-such-score": "no-such-score"}
    assert [axes.get_title(loc="left") for axes in figures[0].axes[1:]] == [
        f"{names[name]}: rank correlation with the loss +1.00" for name in estimates]


def test_mistakes(tmp_path, monkeypatch, capsys):
    results_folder(tmp_path / "results")
    broken = write_csv(tmp_path / "broken.csv", [{"block": "none"}])
    (tmp_path / "empty.csv").write_text("block,nll,difference\n")
    (tmp_path / "mine.png").write_text("mine")
    for sources, out, message in (
        ([tmp_path / "nothing"], "x.png", "nothing to draw from"),
        ([broken], "x.png", "lacks the column(s) nll, difference"),
        ([tmp_path / "empty.csv"], "x.png", "holds no rows"),
        ([write_csv(tmp_path / "none.csv", [{"block": "none", "nll": 1, "difference": 0, "difference_low": 0,
                                             "difference_high": 0}])], "x.png", "holds no whole block"),
        ([tmp_path / "results"], "x.doc", "give a .png, .pdf or .svg"),
        ([tmp_path / "results"], "/dev/null/x.png", "choose another place to write to"),
        ([tmp_path / "results", broken], "x.png", "nothing to draw from"),
            ([tmp_path / "results"], "mine.png", "mine.png would be replaced"),
            ([tmp_path / "results"], "mine", "mine.png would be replaced"),
    ):
        code, _, err = run_main(monkeypatch, capsys, "plot.py", *sources, "--out", tmp_path / out)
        assert code == 2 and message in err and "Traceback" not in err, err


def test_curves_of_a_run_that_is_still_going(tmp_path, drawn):
    """Wherever its logs are cut: what is drawn has been written whole."""
    run = tmp_path / "run"
    write_csv(run / "eval.csv", [{"step": s, "tokens": 64 * s, "nll": 5.25 - s} for s in range(3)])
    draw([run], tmp_path / "f.png")  # before its first step
    write_csv(run / "train.csv", [
        {"step": s, "tokens": 64 * s, "loss": 6.125 - s, "seconds": 1.5 * s} for s in range(1, 4)])
    draw([run], tmp_path / "f.png")
    drawn_before = [line.get_xydata().tolist() for axes in drawn[1].axes for line in axes.lines]
    assert drawn_before[0] == [[64, 5.125], [128, 4.125], [192, 3.125]]
    for log in ("train.csv", "eval.csv"):
        whole = (run / log).read_bytes()
        head = whole.index(b"\n") + 1
        for end in range(len(whole) - 14, len(whole)):  # the last two lines
            (run / log).write_bytes(whole[:end])
            draw([run], tmp_path / "f.png")
            lines = [line.get_xydata().tolist() for axes in drawn.pop().axes for line in axes.lines]
            assert all(point in before for line, before in zip(lines[:1] + lines[2:], drawn_before[:1]
                                                               + drawn_before[2:], strict=True)
                       for point in line)
            rows = whole[head:end].count(b"\n")
            assert len(lines[0 if log == "train.csv" else 2]) == rows
            plt.close("all")
        (run / log).write_bytes(whole)


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """A folder of runs that ended in every way, and of what is none."""
    folder = tmp_path_factory.mktemp("listed")
    config = world.config(folder, name="finished", max_steps=3, eval_every=1, save_every=1)
    train(config)
    shutil.copytree(config.folder, folder / "group" / "seed")
    settings = json.loads((config.folder / "config.json").read_text())
    (folder / "group" / "seed" / "config.json").write_text(json.dumps(settings | {"seed": 1}))
    shutil.copytree(config.folder, folder / "odd | name")
    going = replace(config, name="going", lr=0.5)
    train(going, listen=lambda: ["SIGTERM"])
    shutil.copytree(going.folder, folder / "stopped")
    forward = Decoder.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "forward", lambda self, *values, **how: forward(self, *values, **how) * (
            float("nan") if self.training else 1))
        with pytest.raises(ValueError, match="the loss is nan"):
            train(replace(config, name="diverged", lr=0.5))
    (folder / "teachers").mkdir()
    shutil.copytree(world.model, folder / "a model")
    for name, file, content in (("binary", "train.csv", b"step,\0\xff\n"), ("columns", "eval.csv", b"a\n1\n"),
                                ("words", "train.csv", b"step,tokens,seconds\na,b,c\n"),
                                ("long", "train.csv", b"step," + b"9" * 200_000 + b"\n"),
                                ("list", "config.json", b"[]"), ("state", "state/step-9/state.json", b"{}")):
        shutil.copytree(config.folder, folder / name)
        (folder / name / file).parent.mkdir(exist_ok=True)
        (folder / name / file).write_bytes(content)
    holder = RunFolder(going, ALONE, resume=True)
    holder.lock()
    yield folder
    del holder


def test_runs_as_a_table(runs, tmp_path, monkeypatch, capsys):
    code, out, err = run_main(monkeypatch, capsys, "plot.py", "--runs", runs)
    head, _, *lines = [line.strip("| ").split(" | ") for line in out.splitlines()]
    assert code == 0 and head == ["run", "seed", "lr", "best validation", "best step", "tokens", "seconds",
                                  "status"]
    ends = {line[0].removeprefix(f"{runs}/"): line[-1] for line in lines}
    assert ends == {"diverged": "diverged at step 1", "finished": "finished at step 3",
                    "going": "still going, at step 1 of 3", "group/seed": "finished at step 3",
                    "odd \\| name": "finished at step 3", "stopped": "stopped at step 1 of 3"}
    passed_over = [line.split(f"{runs}/")[1].partition(":")[0] for line in err.splitlines()]
    assert passed_over == ["a model", "binary", "columns", "list", "long", "state", "teachers", "words"]
    assert all(line.startswith("passed over ") and len(line) < 500 for line in err.splitlines())

    code, out, _ = run_main(monkeypatch, capsys, "plot.py", "--runs", runs, "--out", tmp_path / "runs.csv")
    rows = {row["run"].removeprefix(f"{runs}/"): row for row in read_rows(tmp_path / "runs.csv")}
    assert code == 0 and f"wrote {tmp_path}/runs.csv" in out and rows.keys() == {
        "odd | name" if "odd" in name else name for name in ends}
    row, last = rows["finished"], read_rows(runs / "finished" / "train.csv")[-1]
    best = min(read_rows(runs / "finished" / "eval.csv"), key=lambda validation: float(validation["nll"]))
    assert (row["best_validation"], row["best_step"]) == (best["nll"], best["step"])
    assert (row["tokens"], float(row["seconds"])) == (last["tokens"], float(last["seconds"]))
    assert rows["group/seed"]["seed"] == "1" and rows["diverged"]["tokens"] == "0"


def test_half_a_row_is_no_part_of_the_table(world, tmp_path, monkeypatch, capsys):
    config = world.config(tmp_path / "runs", max_steps=3, save_every=0)
    train(config)
    log = config.folder / "train.csv"
    rows = read_rows(log)
    log.write_text(log.read_text()[:-2])  # of the last column, the seconds
    shutil.rmtree(config.folder / "state")
    _, out, _ = run_main(monkeypatch, capsys, "plot.py", "--runs", tmp_path / "runs")
    assert out.splitlines()[-1].endswith(f"| {int(rows[1]['tokens'])} | {float(rows[1]['seconds']):.5g} | "
                                         "stopped at step 2 of 3 |")


def test_mistakes_in_listing_runs(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["--runs", tmp_path / "no-such"], "give the folder that holds the runs"),
        (["--runs", tmp_path / "empty"], "give the folder that holds the runs"),
        (["--runs", runs, "--out", tmp_path / "x.png"], "a .csv file or nothing"),
        (["--runs", runs, "--out", tmp_path / "mine.csv"], "mine.csv would be replaced"),
        (["--runs", runs, runs / "finished"], "give what to draw"),
        ([runs / "finished"], "give what to draw"), ([], "give what to draw"),
    ):
        code, _, err = run_main(monkeypatch, capsys, "plot.py", *arguments)
        assert code == 2 and message in err and "Traceback" not in err, err


def test_running_mean():
    assert running_mean([1, 2, 3, 4], 2).tolist() == [1, 1.5, 2.5, 3.5]
