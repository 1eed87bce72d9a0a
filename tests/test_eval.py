"""eval.py: its numbers by transformers and by hand, its intervals by theory, its files as named."""

import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from small import SHAPE, make_data, make_model, read_rows, run_main

from eval import of_each_task
from model import Decoder
from nanoprune.data.chat_format import question_prompt
from nanoprune.data.dataset import Dataset
from nanoprune.evaluation.multiple_choice import encode_questions, loglikelihoods, score_questions
from nanoprune.evaluation.perplexity import Protocol, text_losses
from nanoprune.nn.model_config import ModelConfig
from prune import drop_blocks
from train import train


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
    assert {p.name for p in out.iterdir()} == {
        "results.json", "results.md", "models.csv", "accuracy.csv", "documents.csv", "slices.csv", "questions.csv",
        "samples.jsonl", "comparison.png", "slices.png", "tradeoff.png", "categories.png", "scores"}
    assert "wrote" in text and (out / "results.md").read_text() in text
    found = json.loads((out / "results.json").read_text())
    base, less, other = found["models"]
    assert (base["name"], less["name"], less["blocks"], less["original"]) == ("base", "base-less-1", 2, [0, 2])
    assert set(base) == {"name", "path", "blocks", "original", "params", "tokenizer", "seed", "like", "test", "general", "qa",
                         "written", "cost"}
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
    assert len(read_rows(out / "documents.csv")) == 3 * (6 + 12) and len(read_rows(out / "questions.csv")) == 3 * 12
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
        groups, _ = encode_questions(data.tokenizer, questions, 128)
        asked = list(zip(range(len(questions)), questions, groups, strict=True))
        answers = score_questions(Decoder.from_pretrained(world.model).eval(), asked)
        for question, found in zip(questions, answers, strict=True):
            scores = []
            prompt = question_prompt(question["question"], question.get("context"))
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
            assert found["margin"] == pytest.approx(scores[right] - max(np.delete(scores, right)), abs=1e-3)


@pytest.mark.parametrize("window", [None, 6])
def test_trees_give_the_plain_loglikelihoods(world, window):
    """Of questions with contexts in common, whatever the trees' size: each row by itself, as transformers has it."""
    shape = dict(use_sliding_window=True, sliding_window=6, max_window_layers=1) if window else {}
    torch.manual_seed(3)
    model = Decoder(ModelConfig.from_dict(SHAPE | {"vocab_size": 90, "initializer_range": 0.3} | shape)).eval()
    rng = np.random.default_rng(0)
    contexts = [rng.integers(0, 90, n).tolist() for n in (30, 30, 1)]
    groups = []
    for i in range(9):
        prompt = contexts[i % 3] + rng.integers(0, 90, i % 4).tolist()
        groups.append([(prompt + rng.integers(0, 5, n).tolist(), len(prompt)) for n in (1, 2, 2, 5)])
    groups.append([groups[0][0], groups[0][0]])  # the same twice
    expected = []
    for rows in groups:
        one = []
        for tokens, n in rows:
            with torch.no_grad():
                logs = model(torch.tensor([tokens]))[0].log_softmax(-1)
            one.append(sum(float(logs[t - 1, tokens[t]]) for t in range(n, len(tokens))))
        expected.append(one)
    for most in (1, 40, 10**6):
        for found, one in zip(loglikelihoods(model, groups, most), expected, strict=True):
            assert found == pytest.approx(one, rel=1e-5)


def rolled(tokens: list[int], prefix: int, length: int) -> list[tuple[list[int], list[int]]]:
    """What lm-evaluation-harness makes of a text that is longer than its window: (context, predicted), disjoint."""
    windows, predicted = [([prefix, *tokens[: length - 1]], tokens[:length])], min(length, len(tokens))
    windows[0] = ([prefix, *tokens[: len(windows[0][1]) - 1]], windows[0][1])
    while predicted < len(tokens):
        size = min(len(tokens) - predicted, length)
        end = predicted + size
        windows.append((tokens[end - length - 1 : end - 1], tokens[end - size : end]))
        predicted += size
    return windows


@pytest.mark.parametrize("protocol", [Protocol(context=8), Protocol(context=8, prefix=3), Protocol(context=8, stride=3),
                                      Protocol("rolling", 8, prefix=0), Protocol("stream", 8)])
def test_protocols_predict_what_they_say(world, protocol):
    """Each prediction in a forward pass of its own, from exactly what the protocol lets it see."""
    model, split = Decoder.from_pretrained(world.model).eval(), Dataset(world.data).split("test")
    documents = [split[i] for i in range(3)]
    nll, counts = text_losses(model, protocol.units(documents), protocol, 0, batch_tokens=20)
    expected = []  # (document, what is seen, what is predicted)
    if protocol.name == "stream":
        joined = np.concatenate(documents).tolist()
        for k in range(len(joined) // 8):
            expected += [(k, joined[8 * k : 8 * k + t], joined[8 * k + t]) for t in range(1, 8)]
    for i, tokens in enumerate(documents if protocol.name != "stream" else []):
        tokens = tokens.tolist()
        if protocol.name == "rolling":
            for seen, predicted in rolled(tokens[:-1], 0, 8):
                for t, token in enumerate(predicted):
                    expected.append((i, seen[: len(seen) - len(predicted) + 1 + t], token))
            continue
        tokens = tokens if protocol.prefix is None else [protocol.prefix, *tokens]
        for t in range(1, len(tokens)):
            step = protocol.stride or 8
            window = 0 if t <= 8 else -(-(t - 8) // step)
            expected.append((i, tokens[window * step : t], tokens[t]))
    sums = np.zeros(len(nll))
    for i, seen, token in expected:
        with torch.no_grad():
            sums[i] -= float(model(torch.tensor([seen]))[0, -1].log_softmax(-1)[token])
    assert nll.sum(1) == pytest.approx(sums, rel=1e-5)
    assert counts.sum() == len(expected)
    if protocol.name == "documents":  # by position
        first = sum(len(range(0 if protocol.prefix is not None else 1, min(16, len(d)))) for d in documents)
        assert counts[:, 0].sum() == first
    if protocol.name == "documents" and protocol.prefix is None:  # and of conversations what is learned, each token once
        learned = [np.arange(len(d)) % 3 > 0 for d in documents]
        parts = [text_losses(model, [np.stack([d, mask == said]) for d, mask in zip(documents, learned, strict=True)], protocol, 0,
                        batch_tokens=20) for said in (True, False)]
        assert parts[0][1].sum(1).tolist() == [int(mask[1:].sum()) for mask in learned]
        assert (parts[0][1] + parts[1][1] == counts).all()
        assert parts[0][0] + parts[1][0] == pytest.approx(nll, rel=1e-5)


def test_as_many_of_each_task_are_asked_as_may_be():
    rows = [{"task": task, "i": i} for i, task in enumerate(["SPEC"] * 50 + ["WIRING"] * 3 + ["PROCEDURE"] * 20)]
    chosen = of_each_task(rows, 12)
    assert Counter(row["task"] for row in chosen) == {"SPEC": 5, "WIRING": 3, "PROCEDURE": 4}
    assert [row["i"] for row in chosen] == sorted(row["i"] for row in chosen)
    assert of_each_task(rows, 100) == rows and not of_each_task(rows, 0)


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
    ("choice", "choices must be two or more different texts"),
    ("test", "has an empty test split"), ("model", "no folder"), ("run", "neither a model's folder nor a run"),
    ("out", "choose another place to write to"), ("device", "device: given cuda:9"),
    ("context", "--context must be at least 2"), ("general", "--general nowhere.jsonl: there is no such file"),
    ("stride", "--stride 9 is for --protocol documents, and at most --context (8)"),
    ("prefix", "--prefix-token must be from 0 to"), ("stream", "tokens, less than one cut of 128: lower --context"),
    ("unfinished", "is a run without a finished model/; finish it with"),
    ("answer", "line 1: lacks answer"),
])
def test_mistakes(world, tmp_path, monkeypatch, capsys, spoil, message):
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
    elif spoil == "out":
        out = "/dev/null/out"
    more = {"device": ["--device", "cuda:9"], "context": ["--context", "0"],
            "general": ["--general", "nowhere.jsonl"], "prefix": ["--prefix-token", "99999"],
            "stream": ["--protocol", "stream"], "stride": ["--stride", "9", "--context", "8"]}.get(spoil, [])
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
    assert code == 0 and broken["test"]["nll"] is None and math.isfinite(whole["test"]["nll"])
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


def test_what_was_scored_is_kept_and_never_mixed(world, tmp_path, monkeypatch, capsys):
    """A second run scores nothing; another protocol and another model do; a damaged file is measured again, with a warning."""
    from nanoprune.evaluation import multiple_choice as choices
    from nanoprune.evaluation import perplexity as predict

    calls = []
    for module, name in ((predict, "to_device"), (choices, "to_device")):
        real_send = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real_send=real_send: (calls.append(1), real_send(*a))[1])

    def run(*more, model=world.model):
        calls.clear()
        code, out, _ = run_main(monkeypatch, capsys, "eval.py", model, "--data", world.data, "--out", tmp_path / "out", *more)
        assert code == 0
        test = json.loads((tmp_path / "out" / "results.json").read_text())["models"][0]["test"]
        return len(calls), out, test

    first, _, test = run()
    assert first > 0
    again, _, same = run()
    assert again == 0 and same == test
    assert run("--context", "16")[0] > 0 and run("--prefix-token", "0")[0] > 0
    (tmp_path / "g.jsonl").write_text('{"text": "Rivers are long."}\n')
    assert run("--general", tmp_path / "g.jsonl")[0] > 0  # other text under the same name
    assert [row["set"] for row in read_rows(tmp_path / "out" / "documents.csv")].count("general") == 1
    other = make_model(tmp_path / "base", world.data, seed=9)
    found = run(model=other)
    assert found[0] > 0 and found[2]["nll"] != test["nll"]
    assert run()[0] == 0
    for ending, message in (("csv", "does not match its checksum; measuring it again"), ("json", "measuring it again")):
        for path in (tmp_path / "out" / "scores").glob(f"base-test-*.{ending}"):
            path.write_text(path.read_text().replace("1", "{2", 1))
        damaged, out, same = run()
        assert damaged > 0 and message in out and same == test


def test_a_stopped_evaluation_goes_on_where_it_was(world, tmp_path, monkeypatch, capsys):
    """Killed among the questions: the documents and the pieces before are there, and the results are those of a whole run."""
    from nanoprune.evaluation import multiple_choice as choices

    arguments = ["eval.py", world.model, "--data", world.data, "--out"]
    assert run_main(monkeypatch, capsys, *arguments, tmp_path / "whole")[0] == 0
    scored, calls, real = [], [], choices.loglikelihoods

    def dies(model, groups, **options):
        calls.append(len(groups))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, groups, **options)

    with monkeypatch.context() as patch:
        patch.setattr(choices, "loglikelihoods", dies)
        code, _, err = run_main(monkeypatch, capsys, *arguments, tmp_path / "out")
        assert code == 130 and "the same command goes on" in err
    monkeypatch.setattr(choices, "loglikelihoods", lambda *a, **k: (scored.append(len(a[1])), real(*a, **k))[1])
    assert run_main(monkeypatch, capsys, *arguments, tmp_path / "out")[0] == 0
    assert len(calls) == 2 and scored == calls[1:]
    for name in ("documents.csv", "questions.csv", "accuracy.csv", "slices.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_answer_that_comes_to_no_token_is_named():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate("Question:Awr? \nhtab")}, []))
    question = {"question": "what?", "choices": ["that", "é"], "answer": 0}
    with pytest.raises(ValueError, match="the choice 'é' comes to no token of its own; reword it"):
        encode_questions(tokenizer, [question], 100)


def test_different_tokenizers_are_compared_in_bits_per_byte_only(world, tmp_path, monkeypatch, capsys):
    data = make_data(tmp_path / "other", text="zebra quagga okapi")
    other = make_model(tmp_path / "model", data)
    code, out, _ = run_main(monkeypatch, capsys, "eval.py", world.model, other, "--data", world.data, "--out", tmp_path / "out")
    assert code == 0 and "compared in bits per byte only" in out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    (comparison,) = found["comparisons"]
    measures = {name for name, d in comparison.items() if isinstance(d, dict)}
    assert measures == {"bits_per_byte", "general bits_per_byte"}
    a, b = (m["test"]["bits_per_byte"] for m in found["models"])
    assert comparison["bits_per_byte"]["difference"] == pytest.approx(b - a)
    code, _, err = run_main(monkeypatch, capsys, "eval.py", world.model, other, "--data", world.data, "--out", tmp_path / "out",
                            "--protocol", "stream")
    assert code == 2 and "these models have several: take --protocol documents" in err


def test_long_prompts_are_cut_at_the_left_if_told_to(world, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(world.data, tmp_path / "data")
    questions = [json.loads(line) for line in (data / "qa" / "places.jsonl").read_text().splitlines()]
    questions[3]["context"] = "word " * 300
    (data / "qa" / "places.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    code, out, _ = run_main(monkeypatch, capsys, "eval.py", world.model, "--data", data, "--out", tmp_path / "out", "--cut")
    assert code == 0 and "1 of places were cut at the left" in out
    tokenizer = Dataset(data).tokenizer
    groups, _ = encode_questions(tokenizer, questions[3:4], 128, cut=True)
    for (tokens, n), choice in zip(groups[0], questions[3]["choices"], strict=True):
        whole = tokenizer.encode(question_prompt(questions[3]["question"], "word " * 300) + " " + choice).ids
        assert whole[-len(tokens):] == tokens and len(tokens) <= 128
        assert tokenizer.decode(tokens[n:]) == " " + choice


def test_seeds_are_put_together(world, tmp_path, monkeypatch, capsys):
    """Runs that differ in nothing but seed and name: the spread between them stands beside the documents' error."""
    for seed in (0, 1, 2):
        for name, drop in (("full", ()), ("less", (1,))):
            train(world.config(tmp_path / "runs", name=f"{name}-s{seed}", seed=seed, drop_blocks=drop))
    runs = sorted((tmp_path / "runs").iterdir())
    code, out, _ = run_main(monkeypatch, capsys, "eval.py", *runs, "--data", world.data, "--out", tmp_path / "out")
    assert code == 0 and "## Over seeds" in out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["config"]: row for row in found["over_seeds"]["configs"]}
    nll = {m["name"]: m["test"]["nll"] for m in found["models"]}
    for name in ("full", "less"):
        each = [nll[f"{name}-s{seed}"] for seed in (0, 1, 2)]
        assert rows[name]["nll"] == pytest.approx(np.mean(each)) and rows[name]["seeds"] == pytest.approx(np.std(each, ddof=1))
    (comparison,) = found["over_seeds"]["comparisons"]
    assert comparison["difference"] == pytest.approx(rows["less"]["nll"] - rows["full"]["nll"])
    width = comparison["interval"][1] - comparison["interval"][0]
    assert width >= 2 * 1.96 * comparison["documents"] and (tmp_path / "out" / "curves.png").is_file()


def test_answers_to_held_out_instructions(world, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(world.data, tmp_path / "data")
    lines = (data / "pairs.jsonl").read_text().splitlines()[:5]
    (data / "pairs_test.jsonl").write_text("".join(json.dumps(json.loads(line) | {"task": "place"}) + "\n" for line in lines))
    other = make_model(tmp_path / "other", world.data, seed=1)
    code, out, _ = run_main(monkeypatch, capsys, "eval.py", world.model, other, "--data", data, "--out", tmp_path / "out",
                            "--answer-tokens", "5")
    assert code == 0 and "Answers written" in out and "| base | other | written f1 |" in out
    rows = read_rows(tmp_path / "out" / "answers.csv")
    assert len(rows) == 10 and rows[0]["reference"] == json.loads(lines[0])["messages"][1]["content"]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    first, second = (m["written"]["place"] for m in found["models"])
    assert first["n"] == 5 and first["f1_interval"][0] <= first["f1"] <= first["f1_interval"][1]
    gain = found["comparisons"][0]["written f1"]
    assert gain["difference"] == pytest.approx(second["f1"] - first["f1"]) and gain["groups"] == 5
    # Into the same folder, without answers: none of others stay.
    code, *_ = run_main(monkeypatch, capsys, "eval.py", other, "--data", world.data, "--out", tmp_path / "out")
    assert code == 0 and not (tmp_path / "out" / "answers.csv").exists() and not (tmp_path / "out" / "answers.jsonl").exists()
