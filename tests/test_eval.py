"""eval.py: its numbers by transformers, its files as named, its mistakes."""

import json
import math
import shutil

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from adapters import adapted_model
from small import ROOT, make_data, make_model, read_rows

from model import Decoder
from nanoprune import statistics
from nanoprune.data.dataset import Dataset
from nanoprune.evaluation.plan import describe_plan, text_plan
from nanoprune.evaluation.results_files import FILES
from nanoprune.io.files import json_hash
from nanoprune.io.folders import LIST
from nanoprune.io.jsonl import read_jsonl, write_jsonl
from nanoprune.io.markdown import with_interval
from nanoprune.nn.identity import model_identity
from nanoprune.nn.lora import save_quantised
from nanoprune.nn.peft import save_adapter
from nanoprune.statistics import mean
from nanoprune.training.model_card import write_card
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
        "results.json", "results.md", "results.html", "models.csv", "differences.csv", "accuracy.csv",
        "documents.csv", "slices.csv", "questions.csv", "agreement.csv", "samples.jsonl", "comparison.png",
        "slices.png", "scores", LIST}
    assert {p.name for p in out.iterdir()} - {"scores", LIST} <= set(FILES)
    assert "Speed and memory were not measured: `eval.py --cost` measures them." in text
    assert not {"peak_mb", "prefill_tokens_per_s", "decode_tokens_per_s"} & set(
        read_rows(out / "models.csv")[0])
    assert "wrote" in text and (out / "results.md").read_text() in text
    found = json.loads((out / "results.json").read_text())
    base, less, other = found["models"]
    assert (base["name"], less["name"], less["blocks"]) == ("base", "base-less-1", 2)
    assert less["original"] == [0, 2]
    assert base["identities"] == [json_hash(model_identity(world.model))]
    carded = shutil.copytree(world.model, out.parent / "carded")
    assert write_card(carded, results=out)
    low, high = base["test"]["perplexity_interval"]
    row = f"| `perplexity, test split` | {with_interval(base['test']['perplexity'], (low, high))} |"
    assert row in (carded / "README.md").read_text()
    assert set(base) == {"name", "paths", "identities", "seeds", "removed", "blocks", "original", "params",
                         "tokenizer", "test", "general", "qa", "written", "cost"}
    assert base["params"] - less["params"] == sum(
        p.numel() for p in Decoder.from_pretrained(world.model).model.layers[1].parameters())
    assert base["test"]["perplexity"] == pytest.approx(math.exp(base["test"]["nll"]))
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


@pytest.mark.parametrize("name", ["results.json", "answers.csv", "curves.png"])
def test_a_users_own_results_are_left_alone(world, tmp_path, evaluate, name):
    """Also those that an evaluation only removes."""
    (tmp_path / name).write_text("mine")
    code, _, err = evaluate(world.model, "--data", world.data, "--out", tmp_path)
    assert code == 2 and f"{name} would be replaced, and was not written there as a result" in err
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_prompts_among_the_results_are_left_alone(result, world, tmp_path, evaluate):
    prompts = tmp_path / "out" / "samples.jsonl"
    code, _, err = evaluate(world.model, "--data", world.data, "--out", prompts.parent, "--prompts", prompts)
    assert code == 2 and "is read by this command" in err


def test_without_questions(world, tmp_path, evaluate):
    data = shutil.copytree(world.data, tmp_path / "data")
    shutil.rmtree(data / "qa")
    code, out, _ = evaluate(world.model, "--data", data, "--out", tmp_path / "out")
    assert code == 0 and "![Text](slices.png)" in out and not (tmp_path / "out" / "comparison.png").exists()


@pytest.mark.parametrize("spoil, message", [
    ("choice", "choices must be two or more different texts"),
    ("test", "has an empty test split"), ("model", "no folder"),
    ("run", "neither a model's folder nor a run"),
    ("out", "choose another place to write to"), ("device", "device: given cuda:9"),
    ("context", "--context must be at least 2"),
    ("general", "cannot read nowhere.jsonl: No such file or directory"),
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
    ("documents", "--documents must be at least 1, given 0"),
    ("questions", "--questions must be at least 1, given -1"),
    ("changed", "--changed goes with --plan, above 0 and up to 1; given 0.2"),
    ("changed share", "--changed goes with --plan, above 0 and up to 1; given 0.0"),
    ("plan block", "cannot drop block 3: this model has 3 blocks"),
    ("plan cost", "--plan measures no model's cost"),
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
    more = {"documents": ["--documents", "0"], "questions": ["--questions", "-1"],
            "changed": ["--changed", "0.2"], "changed share": ["--plan", "--changed", "0"],
            "plan block": ["--plan", "3"], "plan cost": ["--plan", "--cost"]}.get(spoil, [])
    more = more or {"device": ["--device", "cuda:9"], "context": ["--context", "0"],
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
    assert code == 0 and "Answers written" in out
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


def test_fewer_documents_and_questions(world, tmp_path, evaluate):
    """Documents are evenly spaced, questions spread over their sources; each is scored as among all."""
    arguments = [world.model, "--data", world.data, "--general", ""]
    code, *_ = evaluate(*arguments, "--out", tmp_path / "all")
    assert code == 0
    code, page, _ = evaluate(*arguments, "--out", tmp_path / "few", "--documents", "3", "--questions", "4")
    assert code == 0 and "3 of the test documents are not scored (--documents, evenly spaced)" in page
    assert "4 of places are not asked (--questions, drawn at random, spread over their sources)" in page
    assert "of counts are not asked" not in page  # there are four
    few, everything = (read_rows(tmp_path / name / "documents.csv") for name in ("few", "all"))
    assert [row["id"] for row in few] == ["test0", "test2", "test5"]  # of six
    for row in few:
        (other,) = [other for other in everything if other["id"] == row["id"]]
        assert float(row["nll"]) == pytest.approx(float(other["nll"]), rel=1e-5)
    rows = read_rows(tmp_path / "few" / "questions.csv")
    places = [row for row in rows if row["set"] == "places"]
    assert len({row["source"] for row in places}) == 4 == len(places) and len(rows) == 8
    asked = {(row["set"], row["question"]): row["loglikelihoods"] for row in read_rows(
        tmp_path / "all" / "questions.csv")}
    for row in rows:
        assert json.loads(row["loglikelihoods"]) == pytest.approx(
            json.loads(asked[row["set"], row["question"]]), rel=1e-4)
    before = sorted(path.name for path in (tmp_path / "few" / "scores").iterdir())
    evaluate(*arguments, "--out", tmp_path / "few", "--documents", "99", "--questions", "99")  # all there are
    assert len(read_rows(tmp_path / "few" / "documents.csv")) == 6
    after = sorted(path.name for path in (tmp_path / "few" / "scores").iterdir())
    assert set(before) < set(after)  # other items, other files


def test_the_plan_by_hand(world, tmp_path, evaluate):
    """Against an evaluation of the same two models."""
    data = make_data(tmp_path / "data", test=24)
    base = make_model(tmp_path / "base", data)
    model = Decoder.from_pretrained(base)
    drop_blocks(model, [1])  # the middle of three
    model.save_pretrained(tmp_path / "less")
    arguments = ["--data", data, "--general", "", "--out", tmp_path / "out"]
    code, out, err = evaluate(base, "no such model", *arguments, "--plan", "--changed", "0.3")
    assert code == 0, err
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["without"] == "1" and plan["changed"] == 0.3 and "block 1" in out
    assert code == 0 and f"wrote {tmp_path / 'out' / 'plan.json'}" in out
    code, *_ = evaluate(base, tmp_path / "less", *arguments)
    whole, less = ([row for row in read_rows(tmp_path / "out" / "documents.csv") if row["model"] == name]
                   for name in ("base", "less"))
    tokens = np.array([float(row["tokens"]) for row in whole])
    gains = np.array([float(b["nll"]) - float(a["nll"]) for a, b in zip(whole, less, strict=True)])
    ratio = gains.sum() / tokens.sum()
    error = math.sqrt(24 / 23 * ((gains - ratio * tokens) ** 2).sum()) / tokens.sum()
    text = plan["text"]
    assert text["documents"] == 24
    assert text["detectable_nats"] == pytest.approx((1.96 + 0.84) * error, rel=0.1)
    assert text["detectable_perplexity_percent"] == pytest.approx(
        100 * (math.exp(text["detectable_nats"]) - 1))
    assert text["documents_needed"] == math.ceil(24 * (text["detectable_nats"] / 0.01) ** 2)
    assert f"{text['documents_needed']:,} documents" in out
    correct = {name: [int(row["correct"]) for row in read_rows(tmp_path / "out" / "questions.csv")
                      if (row["model"], row["set"]) == (name, "places")] for name in ("base", "less")}
    places = plan["questions"]["places"]
    assert places["questions"] == 8 and places["sources"] == 4
    assert places["changed_without_block"] == pytest.approx(
        np.not_equal(correct["base"], correct["less"]).mean())
    quantiles = scipy.stats.t.ppf(0.975, 7) + scipy.stats.t.ppf(0.8, 7)
    assert places["detectable_points"] == pytest.approx(100 * quantiles * math.sqrt(0.3 / 8), rel=1e-5)
    assert places["questions_needed"] == math.ceil(0.3 * (quantiles / 0.05) ** 2)
    assert f"{places['questions_needed']:,}" in out


def test_a_plan_of_few_documents_says_so(monkeypatch):
    monkeypatch.setattr(statistics, "LEAST", 12)
    rows = [{"nll": float(i), "tokens": 9} for i in range(6)]
    plan = {"model": "m", "without": "1", "changed": 0.2, "questions": {},
            "text": text_plan(rows, [row | {"nll": 2 * row["nll"]} for row in rows])}
    assert describe_plan(plan)[-1] == "test: 6 documents are too few to say."


def test_a_plan_without_half_a_block(world, tmp_path, evaluate):
    """The whole model's losses, which the cache keeps, are not those without the half."""
    arguments = [world.model, "--data", world.data, "--general", "", "--out", tmp_path / "out"]
    assert evaluate(*arguments)[0] == 0
    expected = read_rows(tmp_path / "out" / "documents.csv")
    shutil.rmtree(tmp_path / "out")
    code, out, err = evaluate(*arguments, "--plan", "1.attn")
    assert code == 0 and "nats a token (0 %" not in out, err
    assert evaluate(*arguments)[0] == 0
    assert read_rows(tmp_path / "out" / "documents.csv") == expected


def test_general_text_may_have_gaps_and_odd_days(world, tmp_path, evaluate):
    """Also where a piece of the cache would hold the empty line alone."""
    lines = [{"text": f"Bees are {i} mm long.", "date": 2024} for i in range(32)] + [{"text": ""}]
    write_jsonl(tmp_path / "g.jsonl", lines)
    code, _, err = evaluate(world.model, "--data", world.data, "--out", tmp_path / "out", "--general",
                            tmp_path / "g.jsonl")
    assert code == 0, err
    rows = [row for row in read_rows(tmp_path / "out" / "documents.csv") if row["set"] == "general"]
    assert len(rows) == 32 and {row["month"] for row in rows} == {"2024"}


def test_tasks_replace_no_users_file(world, tmp_path, evaluate):
    (tmp_path / "nanoprune_test.jsonl").write_text("mine")
    for _ in range(2):  # those of ours are written again
        options = (world.model, "--data", world.data, "--export-harness", tmp_path)
        code, _, err = evaluate(*options)
        assert code == 2 and "nanoprune_test.jsonl would be replaced" in err
    assert (tmp_path / "nanoprune_test.jsonl").read_text() == "mine"
    (tmp_path / "nanoprune_test.jsonl").unlink()
    assert evaluate(*options)[0] == evaluate(*options)[0] == 0
