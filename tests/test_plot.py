"""plot.py draws from CSVs alone, and says what it lacks."""

import csv

import pytest
from small import run_main

from nanoprune.figures.blocks import draw_blocks
from nanoprune.figures.runs import running_mean
from train import train


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def models_csv(path, count=4):
    return write_csv(path / "models.csv", [
        {"model": f"m{i}", "tokenizer": "t", "perplexity": 3 + 100 * i, "perplexity_low": 2 + 100 * i,
         "perplexity_high": 5 + 100 * i, "params": 10 * i, "bits_per_byte": 1, "bits_low": 0.9,
         "bits_high": 1.2, "decode_tokens_per_s": i}
        for i in range(count)])


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
    models_csv(tmp_path / "results")
    assert (
        run_main(monkeypatch, capsys, "plot.py", tmp_path / "results", "--out", tmp_path / "one.png")[0] == 0
    )
    write_csv(
        tmp_path / "results" / "accuracy.csv",
        [
            {
                "model": f"m{i}",
                "set": s,
                "category": c,
                "n": 5,
                "accuracy": 0.5,
                "low": 0.4,
                "high": 0.6,
                "chance": 0.25,
            }
            for i in range(4)
            for s in "xy"
            for c in ("", "when", "who")
        ],
    )
    assert (
        run_main(monkeypatch, capsys, "plot.py", tmp_path / "results", "--out", tmp_path / "two.png")[0] == 0
    )
    assert (tmp_path / "two.png").stat().st_size > (tmp_path / "one.png").stat().st_size
    write_csv(
        tmp_path / "results" / "slices.csv",
        [
            {"model": f"m{i}", "slice": kind, "value": v, "nll": 2, "low": "nan", "high": 2.1}
            for i in range(2)
            for kind, v in (("month", "2025-02"), ("month", "2025-01"), ("position", "0 to 15"))
        ],
    )
    for name in ("accuracy", "slices", "models"):
        out = tmp_path / f"{name}.png"
        assert (
            run_main(monkeypatch, capsys, "plot.py", tmp_path / "results" / f"{name}.csv", "--out", out)[0]
            == 0
        )
        assert out.stat().st_size > 5000


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
    models_csv(tmp_path / "results")
    broken = write_csv(tmp_path / "broken.csv", [{"block": "none"}])
    (tmp_path / "empty.csv").write_text("block,nll,difference\n")
    (tmp_path / "mine.png").write_text("mine")
    for sources, out, message in (
        ([tmp_path / "nothing"], "x.png", "nothing to draw from"),
        ([broken], "x.png", "lacks the column(s) nll, difference"),
        ([tmp_path / "empty.csv"], "x.png", "holds no rows"),
        ([tmp_path / "results"], "x.doc", "give a .png, .pdf or .svg"),
        ([tmp_path / "results"], "/dev/null/x.png", "choose another place to write to"),
        ([tmp_path / "results", broken], "x.png", "nothing to draw from"),
            ([tmp_path / "results"], "mine.png", "mine.png would be replaced"),
            ([tmp_path / "results"], "mine", "mine.png would be replaced"),
    ):
        code, _, err = run_main(monkeypatch, capsys, "plot.py", *sources, "--out", tmp_path / out)
        assert code == 2 and message in err and "Traceback" not in err, err


def test_running_mean():
    assert running_mean([1, 2, 3, 4], 2).tolist() == [1, 1.5, 2.5, 3.5]
