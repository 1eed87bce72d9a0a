"""Numbers with intervals in the documents are those of tracked tables that a named command wrote."""

import csv
import json
import math
import re
from statistics import median

import numpy as np
import pytest
from small import ROOT

NUMBER = r"([+-]?\d[\d,]*(?:\.\d+)?)"
TRIPLE = re.compile(rf"{NUMBER}(?:\s+(?:%|tokens))?\s+\[{NUMBER},\s+{NUMBER}\]")
RATIO = re.compile(r"(\d+\.\d+) \((\d+\.\d+) to (\d+\.\d+)\)")
# The part of each document that speaks of studies; other tables name their own commands.
STUDIES = {"docs/which_block.md": ("# Which block?", "## How it is measured"),
           "README.md": ("# nanoprune", "## Two commands")}


def triples(text: str) -> list[tuple[str, str, str]]:
    """Every value with its interval, as printed."""
    return [tuple(number.replace(",", "") for number in found) for found in TRIPLE.findall(text)]


def known_triples() -> list[tuple[float, float, float]]:
    """Values with intervals of all tables, scores and pages in docs/studies."""
    known = []
    for path in (ROOT / "docs" / "studies").rglob("*.csv"):
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                known += [tuple(float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
                          for name in row if row.get(f"{name}_low")]
                if row.get("low"):
                    known += [tuple(float(row[key]) for key in (name, "low", "high"))
                              for name in ("nll", "accuracy", "difference") if row.get(name)]
    for path in (ROOT / "docs" / "studies").glob("*/*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        correlations = content.get("correlations") or {}
        known += [(found["spearman"], *found["interval"]) for found in correlations.values()]
        known += [tuple(found[key] for key in ("spearman", "spearman_low", "spearman_high"))
                  for found in content.get("predicts_the_healed_loss", ())]
    for path in (ROOT / "docs" / "studies").glob("*/study.csv"):  # nats as a share of perplexity
        with open(path, newline="", encoding="utf-8") as file:
            known += [tuple(100 * math.expm1(float(row[f"lost_after{end}"])) for end in ("", "_low", "_high"))
                      for row in csv.DictReader(file)]
    for path in (ROOT / "docs" / "studies").rglob("*.md"):
        known += [tuple(map(float, found)) for found in triples(path.read_text(encoding="utf-8"))]
    return known


def is_known(printed: tuple[str, str, str], known: list[tuple[float, float, float]]) -> bool:
    """Equal at the printed decimals."""
    decimals = [len(number.partition(".")[2]) for number in printed]
    return any(all(abs(float(text) - value) <= 0.5001 * 10**-places
                   for text, value, places in zip(printed, values, decimals, strict=True))
               for values in known)


@pytest.mark.parametrize("name", STUDIES)
def test_every_interval_comes_from_a_study(name):
    text, known = (ROOT / name).read_text(encoding="utf-8"), known_triples()
    begin, end = (text.index(heading) for heading in STUDIES[name])
    printed = triples(text[begin:end])
    assert len(printed) > 10
    assert [numbers for numbers in printed if not is_known(numbers, known)] == []


def tables_of(page: str, heading: str) -> list[list[list[str]]]:
    """The rows of cells of each table in a page whose first row begins so."""
    tables = re.findall(rf"^\| {re.escape(heading)}.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.M)
    assert tables, f"no table begins with {heading}"
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
            for table in tables]


def read_study(name: str, key: str) -> dict[str, dict[str, str]]:
    with open(ROOT / "docs" / "studies" / name, newline="", encoding="utf-8") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def test_numbers_without_an_interval_are_those_of_the_studies():
    """Ranks, shares, sizes and speeds in the tables of real models."""
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in STUDIES)
    ranks = [f"{score}rank" for score in ("", "influence_", "angular_", "taylor_", "magnitude_")]
    tables = tables_of(page, "block | nats a token more [95 %] | rank")
    for name, table in zip(("smollm2", "qwen25_coder"), tables, strict=True):
        scores = read_study(f"{name}/blocks.csv", "block")
        for block, _, *printed in table:
            assert printed == [scores[block][rank] for rank in ranks], (name, block)

    study = read_study("smollm2/study.csv", "block")
    for block, _, _, share, _, runs in tables_of(page, "block | increase before healing")[0]:
        row = study[block]
        recovered = 100 * (1 - float(row["lost_after"]) / float(row["lost_before"]))
        assert (share, runs) == (f"{recovered:.0f} %", row["runs"]), block

    sizes = [(f"{int(row['parameters']) / 1e6:.1f}", f"{int(row['bytes']) / 1e6:.1f}",
              row["decode_tokens_per_s"] and f"{1000 / float(row['decode_tokens_per_s']):.1f}")
             for row in read_study("smollm2/exchange.csv", "what").values()]
    assert [tuple(row[-3:]) for row in tables_of(page, "what | nats a token lost")[0]] == sizes

    models = read_study("smollm2/four_models/models.csv", "model")
    for name, blocks, parameters, *_ in tables_of(readme, "model | blocks")[0]:
        assert (blocks, parameters) == (models[name]["blocks"], f"{int(models[name]['params']):,}")


def test_equal_time_is_that_of_the_logs():
    """Step times without block 14, the loss at equal tokens, and at equal time, over three pairs of runs."""
    times, at_tokens, at_time = [], [], []
    for seed in ("", "_s1", "_s2"):
        seconds, losses = [], []
        for arm in ("full", "reduced"):
            folder = f"smollm2/runs/{arm}{seed}"
            steps = read_study(f"{folder}/train.csv", "step").values()
            seconds.append(median(1 / float(row["tokens_per_s"]) for row in steps))
            losses.append([(int(step), float(row["nll"]))
                           for step, row in read_study(f"{folder}/eval.csv", "step").items()])
        (full, reduced), last = losses, losses[1][-1][1]
        times.append(seconds[1] / seconds[0])
        reached = np.interp(times[-1] * reduced[-1][0], *zip(*full, strict=True))
        at_tokens.append(last - full[-1][1])
        at_time.append(last - reached)
    page = " ".join((ROOT / "docs" / "which_block.md").read_text(encoding="utf-8").split())
    assert "medians {:.3f}, {:.3f} and {:.3f}".format(*times) in page
    assert (f"{min(at_tokens):.3f} to {max(at_tokens):.3f} nats above the full model's at equal tokens, and "
            f"{min(at_time):.3f} to {max(at_time):.3f} above") in page


def test_ratios_with_a_file_are_those_of_the_results():
    known = {found for path in (ROOT / "docs" / "results").rglob("*.md")
             for found in RATIO.findall(path.read_text())}
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/benchmarks.md")]
    lines = [line for page in pages for line in page.splitlines()
             if any(name in line for name in ("SmolLM2", "avx2/", "7 of its blocks"))]
    sections = "Aims, and what is reached|The head's loss|Decoding|Start"
    lines += re.findall(rf"^## (?:{sections})\n.*?(?=^## |\Z)", pages[1], re.S | re.M)
    printed = [found for line in lines for found in RATIO.findall(line)]
    assert len(printed) > 8
    assert [found for found in printed if found not in known] == []


def test_a_wrong_number_is_seen():
    assert triples("a +0.091 [+0.081, +0.101], 1,024.5 [1,000, 1,100]") == [
        ("+0.091", "+0.081", "+0.101"), ("1024.5", "1000", "1100")]
    assert triples("4.2 % [3.5, 4.8]") == [("4.2", "3.5", "4.8")]
    known = [(0.0911, 0.0807, 0.1015)]
    assert is_known(("+0.091", "+0.081", "+0.102"), known) and is_known(("+0.09", "+0.1", "+0.1"), known)
    assert not is_known(("+0.092", "+0.081", "+0.101"), known)
