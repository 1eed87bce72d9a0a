"""eval.py: its numbers by transformers and by hand, its intervals by theory, its files as named."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import transformers
from small import make_data, make_model, read_rows, run_main

from dataset import Dataset, prompt_of
from eval import answer_questions, choice_loglikelihoods
from model import Decoder
from prune import drop_blocks


@pytest.fixture
def result(world, tmp_path, monkeypatch, capsys):
    """results/ of a base, the same less a block, and other weights; and what was printed."""
    folder = tmp_path
    model = Decoder.from_pretrained(world.model)
    drop_blocks(model, [1])
    model.save_pretrained(folder / "base-less-1")
    other = make_model(folder / "other", world.data, seed=1)
    models = [world.model, folder / "base-less-1", other]
    code, out, _ = run_main(monkeypatch, capsys, "eval.py", *models, "--data", world.data, "--out", folder / "out")
    assert code == 0
    return folder / "out", out


def test_the_files_and_their_content(result, world):
    out, text = result
    assert {p.name for p in out.iterdir()} == {"results.json", "results.md", "models.csv", "accuracy.csv", "documents.csv",
                                               "questions.csv", "comparison.png"}
    assert "wrote" in text and (out / "results.md").read_text() in text
    found = json.loads((out / "results.json").read_text())
    base, less, other = found["models"]
    assert (base["name"], less["name"], less["blocks"], less["original"]) == ("base", "base-less-1", 2, [0, 2])
    assert set(base) == {"name", "path", "blocks", "original", "params", "test", "qa", "speed"}
    assert base["params"] - less["params"] == sum(
        p.numel() for p in Decoder.from_pretrained(world.model).model.layers[1].parameters())
    assert base["test"]["perplexity"] == pytest.approx(math.exp(base["test"]["nll"]))
    low, high = base["test"]["perplexity_interval"]
    assert low < base["test"]["perplexity"] < high
    assert base["qa"]["places"]["n"] == 8 and base["qa"]["places"]["sources"] == 4
    assert base["qa"]["places"]["chance"] == 0.25 and base["qa"]["counts"]["chance"] == 0.5
    assert [c["models"] for c in found["comparisons"]] == [["base", "base-less-1"], ["base", "other"], ["base-less-1", "other"]]
    first = found["comparisons"][0]
    assert first["nll"]["difference"] == pytest.approx(less["test"]["nll"] - base["test"]["nll"])
    assert first["places accuracy"]["difference"] == pytest.approx(
        less["qa"]["places"]["accuracy"] - base["qa"]["places"]["accuracy"])
    assert len(read_rows(out / "documents.csv")) == 3 * 6 and len(read_rows(out / "questions.csv")) == 3 * 12
    verdicts = {c["nll"]["shown"] for c in found["comparisons"]} | {c["places accuracy"]["shown"] for c in found["comparisons"]}
    assert ("no difference shown" in (out / "results.md").read_text()) == (False in verdicts)


def test_perplexity_is_that_of_transformers(result, world):
    """Token by token over each test document, in its own forward pass."""
    theirs, data = transformers.AutoModelForCausalLM.from_pretrained(world.model).eval(), Dataset(world.data)
    nll, count, size = 0.0, 0, 0
    split = data.split("test")
    for i, document in enumerate(data.documents("test")):
        ids = torch.tensor([[*data.tokenizer.encode(document["text"]).ids, 0]])
        assert split[i].tolist() == ids[0].tolist()
        with torch.no_grad():
            logits = theirs(ids[:, :-1]).logits
        nll += float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
        count, size = count + ids.shape[1] - 1, size + len(document["text"].encode()) - 1
    test = json.loads((result[0] / "results.json").read_text())["models"][0]["test"]
    assert test["nll"] == pytest.approx(nll / count, rel=1e-5) and test["tokens"] == count
    assert test["bits_per_byte"] == pytest.approx(nll / math.log(2) / test["bytes"], rel=1e-5)
    assert test["bytes"] == size


def test_answers_are_those_of_transformers(world):
    """Each choice by itself, one at a time; accuracy by the sum and by the sum per character."""
    theirs, data = transformers.AutoModelForCausalLM.from_pretrained(world.model).eval(), Dataset(world.data)
    for name, questions in data.questions().items():
        answers = answer_questions(Decoder.from_pretrained(world.model).eval(), questions, data.tokenizer, 128)
        for question, found in zip(questions, answers, strict=True):
            scores = []
            prompt = prompt_of(question["question"], question.get("context"))
            for choice in question["choices"]:
                ids = torch.tensor([data.tokenizer.encode(f"{prompt} {choice}").ids])
                n = len(data.tokenizer.encode(prompt).ids)
                with torch.no_grad():
                    logs = theirs(ids).logits[0].log_softmax(-1)
                scores.append(sum(float(logs[t - 1, ids[0, t]]) for t in range(n, ids.shape[1])))
            right = question["answer"]
            assert found["loglikelihood"] == pytest.approx(scores[right], rel=1e-4), name
            assert found["correct"] == (int(np.argmax(scores)) == right)
            per_character = [s / len(c) for s, c in zip(scores, question["choices"], strict=True)]
            assert found["correct_norm"] == (int(np.argmax(per_character)) == right)


def test_batches_change_nothing(world):
    model, data = Decoder.from_pretrained(world.model).eval(), Dataset(world.data)
    rows = [(data.tokenizer.encode("word " * n).ids, 2 + n) for n in range(1, 20)]
    whole = choice_loglikelihoods(model, rows)
    for batch_tokens in (1, 50, 300):
        assert choice_loglikelihoods(model, rows, batch_tokens) == pytest.approx(whole, rel=1e-5)


def test_long_questions_are_counted_and_left_out(world, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(world.data, tmp_path / "data")
    questions = [json.loads(line) for line in (data / "qa" / "places.jsonl").read_text().splitlines()]
    questions[3]["context"] = "word " * 300
    (data / "qa" / "places.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    code, out, _ = run_main(monkeypatch, capsys, "eval.py", world.model, "--data", data, "--out", tmp_path / "out")
    assert code == 0 and "1 of places are longer than 128 tokens and left out" in out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["models"][0]["qa"]["places"]["n"] == 7


def test_without_questions(world, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(world.data, tmp_path / "data")
    shutil.rmtree(data / "qa")
    code, out, _ = run_main(monkeypatch, capsys, "eval.py", world.model, "--data", data, "--out", tmp_path / "out")
    assert code == 0 and (tmp_path / "out" / "comparison.png").is_file()


@pytest.mark.parametrize("spoil, message", [
    ("tokenizer", "was tokenized with another tokenizer"), ("choice", "choices must be two or more different texts"),
    ("test", "has an empty test split"), ("model", "no folder"), ("run", "neither a model's folder nor a run"),
    ("out", "choose another place to write to"), ("device", "device: given cuda:9"),
    ("context", "--context must be at least 1"),
])
def test_mistakes(world, tmp_path, monkeypatch, capsys, spoil, message):
    data, model, out = shutil.copytree(world.data, tmp_path / "data"), world.model, tmp_path / "out"
    if spoil == "tokenizer":
        data = make_data(tmp_path / "other", text="zebra quagga okapi")
    elif spoil == "choice":
        (data / "qa" / "one.jsonl").write_text('{"question": "?", "choices": ["a"], "answer": 0}\n')
    elif spoil == "test":
        shutil.rmtree(data)
        make_data(data, test=0)
    elif spoil == "model":
        model = tmp_path / "none"
    elif spoil == "run":
        model = tmp_path / "run"
        model.mkdir()
    elif spoil == "out":
        out = "/dev/null/out"
    more = {"device": ["--device", "cuda:9"], "context": ["--context", "0"]}.get(spoil, [])
    code, _, err = run_main(monkeypatch, capsys, "eval.py", model, "--data", data, "--out", out, *more)
    assert code == 2 and message in err and "Traceback" not in err


def test_a_broken_model_answers_nothing_and_costs_the_others_nothing(world, tmp_path, monkeypatch, capsys):
    model = Decoder.from_pretrained(world.model)
    model.model.norm.weight.data[3] = float("inf")
    model.save_pretrained(tmp_path / "broken")
    shutil.copy(world.model / "tokenizer.json", tmp_path / "broken")
    code, out, _ = run_main(monkeypatch, capsys, "eval.py", world.model, tmp_path / "broken", "--data", world.data,
                            "--out", tmp_path / "out")
    whole, broken = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    assert code == 0 and math.isnan(broken["test"]["nll"]) and math.isfinite(whole["test"]["nll"])
    assert broken["qa"]["places"]["accuracy"] == broken["qa"]["places"]["accuracy_norm"] == 0


def test_one_model_has_no_differences(world, tmp_path, monkeypatch, capsys):
    run_main(monkeypatch, capsys, "eval.py", world.model, "--data", world.data, "--out", tmp_path / "out")
    report = (tmp_path / "out" / "results.md").read_text()
    assert "scored tokens" in report and "Differences" not in report


def test_one_group_has_no_interval_and_shows_nothing(world, tmp_path, monkeypatch, capsys):
    data, other = make_data(tmp_path / "data", test=1), make_model(tmp_path / "other", world.data, seed=1)
    assert run_main(monkeypatch, capsys, "eval.py", world.model, other, "--data", data, "--out", tmp_path / "out")[0] == 0
    report = (tmp_path / "out" / "results.md").read_text()
    assert "Intervals over fewer than 10" in report
    assert [line for line in report.splitlines() if "test nll" in line and "no difference shown" in line]


def test_what_was_measured_before_a_damaged_model_is_written(world, tmp_path, monkeypatch, capsys):
    broken = shutil.copytree(world.model, tmp_path / "broken")
    with open(broken / "model.safetensors", "rb+") as file:
        file.truncate(5000)
    arguments = ["--data", world.data, "--out", tmp_path / "out"]
    code, _, err = run_main(monkeypatch, capsys, "eval.py", world.model, broken, *arguments)
    assert code == 2 and f"{broken}: " in err and "truncated" in err
    assert [m["name"] for m in json.loads((tmp_path / "out" / "results.json").read_text())["models"]] == ["base"]
    code, _, err = run_main(monkeypatch, capsys, "eval.py", broken, "--data", world.data, "--out", tmp_path / "none")
    assert code == 2 and "truncated" in err
