"""evaluation/comparison.py: differences between models, tokenizers and seeds."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from small import make_data, make_model, read_rows

from nanoprune.evaluation.arms import TUNED, Arm
from nanoprune.evaluation.comparison import compare, compare_answers, summarize_questions, summarize_text
from nanoprune.evaluation.results_summary import answers_sentence, conclusions, forgotten
from nanoprune.io.jsonl import read_jsonl
from train import train


def test_one_group_has_no_interval_and_shows_nothing(world, tmp_path, evaluate):
    data, other = make_data(tmp_path / "data", test=1), make_model(tmp_path / "other", world.data, seed=1)
    assert evaluate(world.model, other, "--data", data, "--out", tmp_path / "out")[0] == 0
    report = (tmp_path / "out" / "results.md").read_text()
    assert "Too few: 1 test documents" in report and "too few documents to tell base from other" in report
    (comparison,) = json.loads((tmp_path / "out" / "results.json").read_text())["comparisons"]
    assert comparison["nll"]["interval"] == [None, None] and not comparison["nll"]["shown"]


def test_different_tokenizers_are_compared_in_bits_per_byte_only(world, tmp_path, evaluate):
    data = make_data(tmp_path / "other", text="zebra quagga okapi")
    other = make_model(tmp_path / "model", data)
    code, out, _ = evaluate(world.model, other, "--data", world.data, "--out", tmp_path / "out")
    assert code == 0 and "compared in bits per byte only" in out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    (comparison,) = found["comparisons"]
    measures = {name for name, d in comparison.items() if isinstance(d, dict)}
    assert measures == {"log_bits_per_byte", "general log_bits_per_byte"}
    a, b = (m["test"]["bits_per_byte"] for m in found["models"])
    assert comparison["log_bits_per_byte"]["difference"] == pytest.approx(math.log(b / a))
    rows = read_rows(tmp_path / "out" / "differences.csv")
    assert [row["measure"] for row in rows] == ["test bits per byte", "general bits per byte"]
    assert float(rows[0]["difference"]) == pytest.approx(100 * (b / a - 1))
    code, _, err = evaluate(world.model, other, "--data", world.data, "--out", tmp_path / "out",
                            "--protocol", "stream")
    assert code == 2 and "these models have several: take --protocol documents" in err


def test_answers_that_were_not_compared_show_no_equality():
    set_ = {"sources": 20, "n": 40, "chance": 0.25}
    models = [{"qa": {"q": set_ | {"accuracy": share, "accuracy_interval": (share - 0.1, share + 0.1)}}}
              for share in (0.2, 0.9)]
    assert answers_sentence("q", models, []) == "not compared, as the models' tokenizers differ."
    row = {"shown": False, "step": "another", "first": "a", "second": "b"}
    assert answers_sentence("q", models, [row]) == "no difference shown."


def test_sets_named_like_the_texts_are_no_texts():
    row = {"measure": "general_facts accuracy", "step": TUNED, "first": "a", "second": "b", "shown": True}
    assert forgotten([row]) == []
    assert conclusions([{"name": "a", "qa": {}}], [row | {"measure": "test_facts accuracy"}]) == []


def test_seeds_are_put_together(world, tmp_path, evaluate):
    """Runs that differ in seed and name alone are one model; its interval is that of a new seed, too."""
    for seed in (0, 1, 2):
        for name, drop in (("full", ()), ("less", (1,))):
            train(world.config(tmp_path / "runs", name=f"{name}-s{seed}", seed=seed, drop_blocks=drop))
    runs = sorted((tmp_path / "runs").iterdir())
    code, out, _ = evaluate(*runs, "--data", world.data, "--out", tmp_path / "out")
    assert code == 0 and "## Training" in out and "(3 seeds)" in out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    full, less = found["models"]
    assert (full["name"], less["name"]) == ("fine-tuned full", "fine-tuned without block 1")
    assert full["seeds"] == less["seeds"] == [0, 1, 2]
    rows = [row for row in read_rows(tmp_path / "out" / "documents.csv") if row["set"] == "test"]
    nll = {(model["name"], seed): np.array([
        [float(row["nll"]), float(row["tokens"])] for row in rows
        if (row["model"], row["seed"]) == (model["name"], str(seed))]).sum(0)
        for model in (full, less) for seed in (0, 1, 2)}
    for model in (full, less):
        each = [nll[model["name"], seed][0] / nll[model["name"], seed][1] for seed in (0, 1, 2)]
        assert model["test"]["nll_by_seed"] == pytest.approx(each)
        assert model["test"]["nll"] == pytest.approx(np.mean(each))
    (comparison,) = found["comparisons"]
    assert comparison["seeds"] == 3 and comparison["step"] == "reduced against full"
    assert comparison["nll"]["difference"] == pytest.approx(less["test"]["nll"] - full["test"]["nll"])
    assert comparison["nll"]["freedom"] < 5
    assert (tmp_path / "out" / "curves.png").is_file()
    sample = read_jsonl(tmp_path / "out" / "samples.jsonl")[0]
    assert set(sample["texts"]) == {full["name"], less["name"]}
    assert set(sample["other_seeds"]) == {
        f"{name}, seed {seed}" for name in sample["texts"] for seed in (1, 2)}


def test_one_run_beside_several_is_one_pair():
    """The seeds that one side lacks would make its interval that of new seeds, which it does not know."""
    def arm(name: str, *losses: float) -> Arm:
        runs = [{"run": {"seed": seed}, "tokenizer": "t", "general": [], "written": [], "answers": {},
                 "test": [{"nll": loss + k % 3, "tokens": 1, "bytes": 2} for k in range(12)]}
                for seed, loss in enumerate(losses)]
        return Arm(name, name, runs)

    base = replace(arm("base", 4.0), runs=[arm("base", 4.0).first | {"run": None}])
    one, three = arm("full", 2.0), arm("reduced", 3.0, 9.0, 9.0)
    alone = compare(one, three)
    assert alone["seeds"] == 1 and alone["nll"]["difference"] == pytest.approx(1)
    assert compare(base, three)["seeds"] == 3  # a model that no run made has no other seeds
    assert compare(three, three)["seeds"] == 3


def answers(*right: int, sources: int = 0) -> list[dict]:
    """Rows of four-choice questions: the true choice likeliest where 1; a category for every two."""
    rows = []
    for number, correct in enumerate(right):
        scores = [-1.0, -3.0, -3.0, -3.0] if correct else [-3.0, -1.0, -3.0, -3.0]
        rows.append({"source": str(number % sources if sources else number), "answer": 0, "answer_bytes": 4,
                     "category": f"kind {number // 8}", "difficulty": "", "loglikelihoods": scores,
                     "chance": 0.25, "longest": 0.25,
                     **dict.fromkeys(("correct", "correct_norm", "correct_bytes"), correct)})
    return rows


def test_losses_that_no_perplexity_can_say():
    """A float ends near exp(709); a loss that is not finite has no perplexity of words either."""
    def rows(nll: float) -> list[dict]:
        return [{"nll": nll, "tokens": 10, "bytes": 40, "words": 8}] * 3

    large, broken = summarize_text([rows(1e5)]), summarize_text([rows(math.nan)])
    assert large["perplexity"] == large["word_perplexity"] == math.inf and large["nll"] == pytest.approx(1e4)
    assert math.isnan(broken["perplexity"]) and math.isnan(broken["word_perplexity"])


def test_measures_of_answers_by_hand():
    right = [1, 1, 1, 0] * 4
    summary = summarize_questions([answers(*right)])
    assert summary["accuracy"] == 0.75
    bits = np.where(right, 1, 3).sum() / math.log(2) / (4 * len(right))
    assert summary["true_bits_per_byte"] == pytest.approx(bits)
    confidence = math.exp(-1) / (math.exp(-1) + 3 * math.exp(-3))
    assert summary["calibration_error"] == pytest.approx(abs(confidence - 0.75))
    assert set(summary["by_category"]) == {"kind 0", "kind 1"}


def test_kinds_have_adjusted_p_values():
    """McNemar's of scipy's binomial, and Holm's by hand: the smaller of two is doubled."""
    before, after = answers(*[0] * 8, *[0] * 8), answers(*[1] * 8, 1, 1, 1, *[0] * 5)
    found = compare_answers("facts", [before], [after])
    kinds = found["facts by category"]
    p = [scipy.stats.binomtest(k, k, 0.5).pvalue for k in (8, 3)]
    assert [kinds[kind]["p"] for kind in kinds] == pytest.approx(p)
    assert [kinds[kind]["p_holm"] for kind in kinds] == pytest.approx([2 * p[0], max(2 * p[0], p[1])])
    assert found["facts accuracy"]["p"] == pytest.approx(scipy.stats.binomtest(11, 11, 0.5).pvalue)


@pytest.mark.parametrize("after, identical, interval", [
    ([1, 0] * 8, True, [0, 0]), ([0, 1] * 8, False, None)])
def test_equal_answers_are_identical_and_equal_shares_are_not(after, identical, interval):
    found = compare_answers("facts", [answers(*[1, 0] * 8)], [answers(*after)])["facts accuracy"]
    assert found["identical"] == identical and found["difference"] == 0 and not found["shown"]
    assert found["interval"] == interval or not identical and found["interval"][0] < 0 < found["interval"][1]


def test_one_source_has_no_interval():
    found = compare_answers("facts", [answers(*[1, 0] * 8, sources=1)], [answers(*[0, 1] * 8, sources=1)])
    assert math.isnan(found["facts accuracy"]["interval"][0]) and not found["facts accuracy"]["shown"]
    assert summarize_questions([answers(*[1] * 16, sources=1)])["accuracy_interval"] == pytest.approx(
        tuple(scipy.stats.binomtest(1, 1).proportion_ci(method="exact")))
