"""evaluation/results_page.py: what somebody reads who was not there."""

import csv
import html.parser
import json
import math
import re
import shutil

import numpy as np
import pytest
from small import ROOT, make_data, make_model, read_rows, run_main

from model import Decoder
from nanoprune.evaluation.arms import REDUCED
from nanoprune.evaluation.results_page import COVERAGE, plan_table
from nanoprune.io.markdown import with_interval
from train import train


@pytest.fixture(scope="module")
def experiment(world, tmp_path_factory):
    """Base, base without block 1, full and reduced run; a folder of results."""
    folder = tmp_path_factory.mktemp("experiment")
    data = make_data(folder / "data", train=24, test=16)
    base = make_model(folder / "base", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["prune.py"])
    return folder, data, base


@pytest.fixture
def models(experiment, monkeypatch, capsys, world):
    folder, data, base = experiment
    if not (folder / "less").exists():
        run_main(monkeypatch, capsys, "prune.py", base, "--drop", "1", "--out", folder / "less")
        for name, drop in (("full", ()), ("reduced", ("1",))):
            train(world.config(folder / "runs", name=name, base=str(base), data=str(data), drop_blocks=drop,
                               max_steps=20, lr=1e-2))
    return [base, folder / "less", folder / "runs" / "full", folder / "runs" / "reduced"]


@pytest.fixture
def page(experiment, models, evaluate, tmp_path):
    code, _, err = evaluate(*models, "--data", experiment[1], "--out", tmp_path / "out")
    assert code == 0, err
    return (tmp_path / "out" / "results.md").read_text(encoding="utf-8")


def test_one_model_has_no_differences(world, tmp_path, evaluate):
    evaluate(world.model, "--data", world.data, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "results.md").read_text()
    assert "scored tokens" in page and "The steps" not in page
    assert (tmp_path / "out" / "differences.csv").read_text().strip() == ""


def test_the_first_screen(page, tmp_path):
    first = page.partition("\n## ")[0]
    assert first.startswith("# What block 1 was worth\n")
    for told in ("base, 3 blocks, weights ", "chosen by hand", "20 steps, 1,280 tokens, learning rate 0.01",
                 "commit ", "**Before healing:** ", "**Fine-tuning:** ", "**After healing:** ",
                 "**Against the untouched base:** the test perplexity of fine-tuned without block 1 is ",
                 "(this pair of runs)", "One seed: the intervals leave out", "saves ",
                 "% of the parameters", "On general text"):
        assert told in first, told
    assert len(first.splitlines()) < 45 and max(map(len, first.splitlines())) < 260
    rows = read_rows(tmp_path / "out" / "differences.csv")
    steps = [row["step"] for row in rows if row["measure"] == "test perplexity"]
    assert steps == ["take the block out", "fine-tune the full model", "heal the reduced model",
                     "reduced against full", "reduced against the base", ""]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    nll = {model["name"]: model["test"]["nll"] for model in found["models"]}
    for row in rows:
        if row["measure"] == "test perplexity":
            change = 100 * (np.exp(nll[row["second"]] - nll[row["first"]]) - 1)
            assert float(row["difference"]) == pytest.approx(change)


def test_each_number_of_the_overview_stands_once(page):
    """Perplexities with their intervals are in the first table alone."""
    overview = re.findall(r"^\| (?:base|fine-tuned)[^|]*\| ([\d.,]+ \[[^]]+\])", page, re.M)[:4]
    assert len(overview) == 4 and all(page.count(f"| {number} |") == 1 for number in overview)


def test_one_file_to_send(page, tmp_path):
    """Every heading, cell and figure of the page, well-formed, no script and no link."""
    text = (tmp_path / "out" / "results.html").read_text(encoding="utf-8")

    class Checker(html.parser.HTMLParser):
        opened, seen = [], []

        def handle_starttag(self, tag, attrs):
            self.seen.append(tag)
            if tag not in ("meta", "img", "br"):
                self.opened.append(tag)
            assert not {"href", "onclick"} & {key for key, _ in attrs}
            assert all(value.startswith("data:image/png;base64,") for key, value in attrs if key == "src")

        def handle_endtag(self, tag):
            assert self.opened.pop() == tag

    checker = Checker()
    checker.feed(text)
    assert not checker.opened and "script" not in checker.seen and "http" not in text
    assert checker.seen.count("img") == page.count("\n![") >= 1
    assert checker.seen.count("td") + checker.seen.count("th") == sum(
        len(line[2:-2].split(" | ")) for line in page.splitlines() if line.startswith("| ")
        and not line.startswith("| ---"))


def test_equal_models_are_identical(world, tmp_path, evaluate):
    copy = shutil.copytree(world.model, tmp_path / "copy")
    code, out, _ = evaluate(world.model, copy, "--data", world.data, "--out", tmp_path / "out")
    assert code == 0 and "base (copy) predicts exactly as base (base) does." in out
    rows = read_rows(tmp_path / "out" / "differences.csv")
    assert all(row["identical"] == "True" and row["shown"] == "False" for row in rows)


def test_a_loss_that_is_not_finite_is_told(world, tmp_path, evaluate):
    model = Decoder.from_pretrained(world.model)
    model.model.norm.weight.data[3] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    shutil.copy(world.model / "tokenizer.json", tmp_path / "broken")
    code, out, _ = evaluate(world.model, tmp_path / "broken", "--data", world.data, "--out", tmp_path / "out")
    assert code == 0 and "broken against base: a loss is not finite." in out
    assert "broken: the loss of 6 test documents is not finite." in out


def test_the_plan_stands_beside_what_was_seen(experiment, models, evaluate, tmp_path):
    arguments = ["--data", experiment[1], "--out", tmp_path / "out"]
    code, out, _ = evaluate(*models[:2], *arguments, "--plan")
    assert code == 0 and f"note: --plan measures the first model alone, {models[0]}" in out
    assert evaluate(*models, *arguments)[0] == 0
    page = (tmp_path / "out" / "results.md").read_text()
    section = page.partition("## Planned and seen")[2].partition("\n## ")[0]
    planned = json.loads((tmp_path / "out" / "plan.json").read_text())["text"]
    assert f"| test perplexity, % | {planned['detectable_perplexity_percent']:.2g} |" in section


def test_a_plan_of_another_protocol_is_not_compared():
    about = {"plan": {"protocol": "windows of 16 tokens"}, "protocol": "Text: windows of 32 tokens."}
    (line,) = plan_table(about, [{"step": REDUCED, "measure": "test perplexity", "detectable": 2.0}])
    assert "of another protocol (windows of 16 tokens): run `eval.py --plan` again" in line
    assert plan_table(about, []) == []


def test_an_interval_without_width_is_none():
    """Twelve questions that all became right are no proof that the next one does."""
    assert with_interval(100, (100, 100), "+") == "+100 [all equal]" and with_interval(
        1, (math.nan, math.nan)) == "1 [-]"


def test_the_line_of_coverage_is_of_the_simulation():
    """Of the intervals that are taken, from 12 units on: over ordinary cases, and over the most skewed."""
    with open(ROOT / "docs" / "results" / "coverage.csv", newline="") as file:
        taken = [row for row in csv.DictReader(file) if int(row["n"]) >= 12 and row["interval"] == (
            "jackknife t, Satterthwaite") and row["kind"] in ("level", "difference")]
    skewed = [float(row["coverage"]) for row in taken if "most" in row["case"] and int(row["n"]) <= 60]
    others = [float(row["coverage"]) for row in taken if "most" not in row["case"]]
    told = [int(number) / 100 for number in re.findall(r"(\d\d) (?:to|%)", COVERAGE)][1:]
    assert told == [round(min(others), 2), round(max(others), 2), round(min(skewed), 2),
                    round(max(skewed), 2)]
