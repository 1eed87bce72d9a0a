"""eval.py: its numbers by transformers, its files as named, its mistakes."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import transformers
from adapters import adapted_model
from small import ROOT, make_data, make_model, read_rows

from model import Decoder
from nanoprune.data.dataset import Dataset
from nanoprune.io.jsonl import read_jsonl, write_jsonl
from nanoprune.nn.lora import save_quantised
from nanoprune.nn.peft import save_adapter
from nanoprune.statistics import mean
from prune import drop_blocks


@pytest.fixture
def result(world, tmp_path, evaluate):
    """results/ of a base, the same less a block, and other weights; and what was printed."""
    folder = tmp_path
    model = Decoder.from_pretrained(world.model)
    drop_blocks(model, [1])
    model.save_pretrained(folder / "base-less-1")
    other = make_model(folder / "other", world.data, seed=1)
    models = [world.model, folder / "base-less-1", other]
    code, out, _ = evaluate(*models, "--data", world.data, "--out", folder / "out")
    assert code == 0
    return folder / "out", out


def test_the_files_and_their_content(result, world):
    out, text = result
    assert {p.name for p in out.iterdir()} == {
        "results.json", "results.md", "models.csv", "accuracy.csv", "documents.csv", "slices.csv",
        "questions.csv", "agreement.csv", "samples.jsonl", "comparison.png", "slices.png", "tradeoff.png",
        "categories.png", "scores"}
    assert "wrote" in text and (out / "results.md").read_text() in text
    found = json.loads((out / "results.json").read_text())
    base, less, other = found["models"]
    assert (base["name"], less["name"], less["blocks"]) == ("base", "base-less-1", 2)
    assert less["original"] == [0, 2]
    assert set(base) == {"name", "path", "blocks", "original", "params", "tokenizer", "seed", "like", "test",
                         "general", "qa", "written", "cost"}
    assert base["params"] - less["params"] == sum(
        p.numel() for p in Decoder.from_pretrained(world.model).model.layers[1].parameters())
    assert base["test"]["perplexity"] == pytest.approx(math.exp(base["test"]["nll"]))
    low, high = base["test"]["perplexity_interval"]
    assert low < base["test"]["perplexity"] < high
    assert base["qa"]["places"]["n"] == 8 and base["qa"]["places"]["sources"] == 4
    assert base["qa"]["places"]["chance"] == 0.25 and base["qa"]["counts"]["chance"] == 0.5
    assert [c["models"] for c in found["comparisons"]] == [
        ["base", "base-less-1"], ["base", "other"], ["base-less-1", "other"]]
    first = found["comparisons"][0]
    assert first["nll"]["difference"] == pytest.approx(less["test"]["nll"] - base["test"]["nll"])
    assert first["places accuracy"]["difference"] == pytest.approx(
        less["qa"]["places"]["accuracy"] - base["qa"]["places"]["accuracy"])
    general = len(read_jsonl(ROOT / "qa" / "general.jsonl"))
    assert len(read_rows(out / "documents.csv")) == 3 * (6 + general)
    assert len(read_rows(out / "questions.csv")) == 3 * 12
    general = [row for row in read_rows(out / "slices.csv") if row["slice"] == "general"]
    documents = [row for row in read_rows(out / "documents.csv") if row["set"] == "general"]
    assert {(row["model"], row["value"]) for row in general} == {(row["model"], row["category"])
                                                                 for row in documents}
    assert sum(int(row["tokens"]) for row in general) == sum(int(row["tokens"]) for row in documents)
    verdicts = {c[measure]["shown"] for c in found["comparisons"] for measure in ("nll", "places accuracy")}
    assert ("no difference shown" in (out / "results.md").read_text()) == (False in verdicts)


def test_perplexity_is_that_of_transformers(result, world):
    """Token by token over each test document, in its own forward pass."""
    theirs, data = transformers.AutoModelForCausalLM.from_pretrained(world.model).eval(), Dataset(world.data)
    nll, count, size = 0.0, 0, 0
    split = data.split("test")
    for i, document in enumerate(data.documents("test")):
        ids = torch.tensor([[*data.tokenizer.encode(document["text"]).ids, 0]])
        assert split[i].tokens.tolist() == ids[0].tolist()
        with torch.no_grad():
            logits = theirs(ids[:, :-1]).logits
        nll += float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
        count, size = count + ids.shape[1] - 1, size + len(document["text"].encode()) - 1
    test = json.loads((result[0] / "results.json").read_text())["models"][0]["test"]
    assert test["nll"] == pytest.approx(nll / count, rel=1e-5) and test["tokens"] == count
    assert test["bits_per_byte"] == pytest.approx(nll / math.log(2) / test["bytes"], rel=1e-5)
    assert test["bytes"] == size


def test_without_questions(world, tmp_path, evaluate):
    data = shutil.copytree(world.data, tmp_path / "data")
    shutil.rmtree(data / "qa")
    code, out, _ = evaluate(world.model, "--data", data, "--out", tmp_path / "out")
    assert code == 0 and (tmp_path / "out" / "comparison.png").is_file()


@pytest.mark.parametrize("spoil, message", [
    ("choice", "choices must be two or more different texts"),
    ("test", "has an empty test split"), ("model", "no folder"),
    ("run", "neither a model's folder nor a run"),
    ("out", "choose another place to write to"), ("device", "device: given cuda:9"),
    ("context", "--context must be at least 2"),
    ("general", "--general nowhere.jsonl: there is no such file"),
    ("general empty", "no line has any text; give a JSONL file"),
    ("general texts", "no line has any text; give a JSONL file"),
    ("general key", "line 1: lacks text; it has words"),
    ("prompts", "--prompts nowhere.txt: no such file, or an empty one"),
    ("prompts empty", "no such file, or an empty one"),
    ("stride", "--stride 9 is for --protocol documents, and at most --context (8)"),
    ("prefix", "--prefix-token must be from 0 to"),
    ("stream", "tokens, less than one cut of 128: lower --context"),
    ("unfinished", "is a run without a finished model/; finish it with"),
    ("answer", "line 1: lacks answer"),
])
def test_mistakes(world, tmp_path, evaluate, spoil, message):
    data, model, out = shutil.copytree(world.data, tmp_path / "data"), world.model, tmp_path / "out"
    if spoil == "choice":
        (data / "qa" / "one.jsonl").write_text('{"question": "?", "choices": ["a"], "answer": 0}\n')
    elif spoil == "test":
        shutil.rmtree(data)
        make_data(data, test=0)
    elif spoil == "stream":
        shutil.rmtree(data)
        make_data(data, test=1)
    elif spoil == "model":
        model = tmp_path / "none"
    elif spoil == "run":
        model = tmp_path / "run"
        model.mkdir()
    elif spoil == "unfinished":
        model = tmp_path / "run"
        (model / "state").mkdir(parents=True)
        for name in ("config.json", "env.json"):
            (model / name).write_text("{}")
    elif spoil == "answer":
        (data / "qa" / "one.jsonl").write_text('{"question": "?", "choices": ["a", "b"]}\n')
    elif spoil.endswith((" empty", " texts", " key")):
        lines = {"texts": '{"text": ""}\n', "key": '{"words": "Bees."}\n'}
        (tmp_path / "file").write_text(lines.get(spoil.split()[1], ""))
    elif spoil == "out":
        out = "/dev/null/out"
    more = {"device": ["--device", "cuda:9"], "context": ["--context", "0"],
            "general": ["--general", "nowhere.jsonl"], "prompts": ["--prompts", "nowhere.txt"],
            "prompts empty": ["--prompts", tmp_path / "file"], "prefix": ["--prefix-token", "99999"],
            "stream": ["--protocol", "stream"], "stride": ["--stride", "9", "--context", "8"]}.get(spoil, [])
    more = ["--general", tmp_path / "file"] if spoil.startswith("general ") else more
    code, _, err = evaluate(model, "--data", data, "--out", out, *more)
    assert code == 2 and message in err and "Traceback" not in err


def test_products_in_bf16_give_nearly_the_losses_of_fp32(world, tmp_path, evaluate):
    """Document by document, and of choices, written answers and adapters; the page names the type."""
    data = shutil.copytree(world.data, tmp_path / "data")
    shutil.copy(data / "pairs.jsonl", data / "pairs_test.jsonl")
    models = [world.model, tmp_path / "adapter", tmp_path / "nf4"]
    save_adapter(adapted_model(world.model, "all", rank=4), models[1])
    models[2].mkdir()
    save_quantised(Decoder.from_pretrained(world.model, frozen="nf4"), models[2])
    shutil.copy(world.model / "tokenizer.json", models[2])
    losses, choices = {}, {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / "out"  # the same: scores of one type are not those of the other
        code, page, err = evaluate(*models, "--data", data, "--out", out, "--answers", "3", "--dtype", dtype)
        assert code == 0 and f"products in {dtype} on cpu" in page, err
        losses[dtype] = {(row["model"], row["set"], row["id"]): float(row["nll"]) / int(row["tokens"])
                         for row in read_rows(out / "documents.csv")}
        choices[dtype] = np.array([value for row in read_rows(out / "questions.csv")
                                   for value in json.loads(row["loglikelihoods"])])
    gains = np.array([losses["bfloat16"][key] - loss for key, loss in losses["float32"].items()])
    low, high = mean(gains).interval()
    assert 0 < np.abs(gains).max() < 0.02 and low < gains.mean() < high and abs(gains.mean()) < 0.005
    assert 0 < np.abs(choices["bfloat16"] - choices["float32"]).max() < 0.2


def test_prompts_of_ones_own_are_continued(world, tmp_path, evaluate):
    prompts = (ROOT / "qa" / "continue.txt").read_text().splitlines()
    (tmp_path / "prompts").write_text("\n\n".join(prompts))
    assert len(set(prompts)) == 8
    code, out, _ = evaluate(world.model, "--data", world.data, "--out", tmp_path / "out", "--prompts",
                            tmp_path / "prompts")
    samples = read_jsonl(tmp_path / "out" / "samples.jsonl")
    assert code == 0 and [row["prompt"] for row in samples] == prompts
    assert all(f"> {prompt}" in out for prompt in prompts)


def test_a_broken_model_answers_nothing_and_costs_the_others_nothing(world, tmp_path, evaluate):
    model = Decoder.from_pretrained(world.model)
    model.model.norm.weight.data[3] = float("inf")
    model.save_pretrained(tmp_path / "broken")
    shutil.copy(world.model / "tokenizer.json", tmp_path / "broken")
    code, out, _ = evaluate(world.model, tmp_path / "broken", "--data", world.data,
                            "--out", tmp_path / "out")
    whole, broken = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    assert code == 0 and broken["test"]["nll"] is None and math.isfinite(whole["test"]["nll"])
    assert broken["qa"]["places"]["accuracy"] == broken["qa"]["places"]["accuracy_norm"] == 0


def test_what_was_measured_before_a_damaged_model_is_written(world, tmp_path, evaluate):
    broken = shutil.copytree(world.model, tmp_path / "broken")
    with open(broken / "model.safetensors", "rb+") as file:
        file.truncate(5000)
    arguments = ["--data", world.data, "--out", tmp_path / "out"]
    code, _, err = evaluate(world.model, broken, *arguments)
    assert code == 2 and f"{broken}: " in err and "truncated" in err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [m["name"] for m in results["models"]] == ["base"]
    code, _, err = evaluate(broken, "--data", world.data, "--out", tmp_path / "none")
    assert code == 2 and "truncated" in err


def test_answers_to_held_out_instructions(world, tmp_path, evaluate):
    data = shutil.copytree(world.data, tmp_path / "data")
    lines = (data / "pairs.jsonl").read_text().splitlines()[:5]
    write_jsonl(data / "pairs_test.jsonl", [json.loads(line) | {"task": "place"} for line in lines])
    other = make_model(tmp_path / "other", world.data, seed=1)
    code, out, _ = evaluate(world.model, other, "--data", data, "--out", tmp_path / "out",
                            "--answer-tokens", "5")
    assert code == 0 and "Answers written" in out and "| base | other | written f1 |" in out
    rows = read_rows(tmp_path / "out" / "answers.csv")
    assert len(rows) == 10 and rows[0]["reference"] == json.loads(lines[0])["messages"][1]["content"]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    first, second = (m["written"]["place"] for m in found["models"])
    assert first["n"] == 5 and first["f1_interval"][0] <= first["f1"] <= first["f1_interval"][1]
    gain = found["comparisons"][0]["written f1"]
    assert gain["difference"] == pytest.approx(second["f1"] - first["f1"])
    assert gain["freedom"] == pytest.approx(4)
    # Into the same folder, without answers: none of others stay.
    code, *_ = evaluate(other, "--data", world.data, "--out", tmp_path / "out")
    assert code == 0
    assert not list((tmp_path / "out").glob("answers.*"))
