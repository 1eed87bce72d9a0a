"""evaluation/comparison.py: differences between models, tokenizers and seeds."""

import json

import numpy as np
import pytest
from small import make_data, make_model

from train import train


def test_one_group_has_no_interval_and_shows_nothing(world, tmp_path, evaluate):
    data, other = make_data(tmp_path / "data", test=1), make_model(tmp_path / "other", world.data, seed=1)
    assert evaluate(world.model, other, "--data", data, "--out", tmp_path / "out")[0] == 0
    report = (tmp_path / "out" / "results.md").read_text()
    assert "Over fewer than 3 documents" in report
    assert [line for line in report.splitlines() if "test nll" in line and "no difference shown" in line]


def test_different_tokenizers_are_compared_in_bits_per_byte_only(world, tmp_path, evaluate):
    data = make_data(tmp_path / "other", text="zebra quagga okapi")
    other = make_model(tmp_path / "model", data)
    code, out, _ = evaluate(world.model, other, "--data", world.data, "--out", tmp_path / "out")
    assert code == 0 and "compared in bits per byte only" in out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    (comparison,) = found["comparisons"]
    measures = {name for name, d in comparison.items() if isinstance(d, dict)}
    assert measures == {"bits_per_byte", "general bits_per_byte"}
    a, b = (m["test"]["bits_per_byte"] for m in found["models"])
    assert comparison["bits_per_byte"]["difference"] == pytest.approx(b - a)
    code, _, err = evaluate(world.model, other, "--data", world.data, "--out", tmp_path / "out",
                            "--protocol", "stream")
    assert code == 2 and "these models have several: take --protocol documents" in err


def test_seeds_are_put_together(world, tmp_path, evaluate):
    """Of runs that differ in seed and name alone, the spread stands beside the documents' error."""
    for seed in (0, 1, 2):
        for name, drop in (("full", ()), ("less", (1,))):
            train(world.config(tmp_path / "runs", name=f"{name}-s{seed}", seed=seed, drop_blocks=drop))
    runs = sorted((tmp_path / "runs").iterdir())
    code, out, _ = evaluate(*runs, "--data", world.data, "--out", tmp_path / "out")
    assert code == 0 and "## Over seeds" in out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["config"]: row for row in found["over_seeds"]["configs"]}
    nll = {m["name"]: m["test"]["nll"] for m in found["models"]}
    for name in ("full", "less"):
        each = [nll[f"{name}-s{seed}"] for seed in (0, 1, 2)]
        assert rows[name]["nll"] == pytest.approx(np.mean(each))
        assert rows[name]["seeds"] == pytest.approx(np.std(each, ddof=1))
    (comparison,) = found["over_seeds"]["comparisons"]
    assert comparison["difference"] == pytest.approx(rows["less"]["nll"] - rows["full"]["nll"])
    width = comparison["interval"][1] - comparison["interval"][0]
    assert comparison["seeds"] == 3 and width > 2 * 1.96 * comparison["error"] and comparison["freedom"] < 5
    assert (tmp_path / "out" / "curves.png").is_file()
