"""evaluation/result_cache.py: nothing is measured twice, nothing is mixed, a stopped evaluation resumes."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from adapters import adapted_model
from small import make_model, read_rows

import eval as eval_script
from nanoprune.data.dataset import Dataset
from nanoprune.distributed import ALONE
from nanoprune.evaluation import multiple_choice, perplexity, written_answers
from nanoprune.evaluation.result_cache import ResultCache
from nanoprune.io.files import read_json, write_json
from nanoprune.io.hub import copy_tokenizer
from nanoprune.io.jsonl import write_jsonl
from nanoprune.nn.peft import save_adapter


def test_what_was_scored_is_kept_and_never_mixed(world, tmp_path, monkeypatch, evaluate):
    """A second run scores nothing; another protocol, another model and a damaged file do."""
    from nanoprune.evaluation import multiple_choice as choices
    from nanoprune.evaluation import perplexity as predict

    calls = []
    for module, name in ((predict, "to_device"), (choices, "to_device")):
        real_send = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real_send=real_send: (calls.append(1), real_send(*a))[1])

    def run(*more, model=world.model):
        calls.clear()
        code, out, _ = evaluate(model, "--data", world.data, "--out", tmp_path / "out", *more)
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
    for old, new, message in (('"tokens": ', '"tokens": 9', "does not match its checksum"),
                              ("{", "{{", "not valid JSON")):
        for path in (tmp_path / "out" / "scores").glob("base-test-*.json"):
            path.write_text(path.read_text().replace(old, new, 1))
        damaged, out, same = run()
        assert damaged > 0 and message in out and "measuring it again" in out and same == test


def test_a_stopped_evaluation_resumes(world, tmp_path, monkeypatch, evaluate):
    """Killed among the questions, it reuses what it had scored, for the results of a whole run."""
    from nanoprune.evaluation import multiple_choice as choices

    arguments = [world.model, "--data", world.data, "--out"]
    assert evaluate(*arguments, tmp_path / "whole")[0] == 0
    scored, calls, real = [], [], choices.loglikelihoods

    def dies(model, groups, **options):
        calls.append(len(groups))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, groups, **options)

    with monkeypatch.context() as patch:
        patch.setattr(choices, "loglikelihoods", dies)
        code, _, err = evaluate(*arguments, tmp_path / "out")
        assert code == 130 and "the same command resumes" in err

    def counts(model, groups, **options):
        scored.append(len(groups))
        return real(model, groups, **options)

    monkeypatch.setattr(choices, "loglikelihoods", counts)
    assert evaluate(*arguments, tmp_path / "out")[0] == 0
    assert len(calls) == 2 and scored == calls[1:]
    for name in ("documents.csv", "questions.csv", "accuracy.csv", "slices.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def score(monkeypatch, *arguments) -> list[dict]:
    """The results of every model that eval.py's arguments name, without its tables and figures."""
    quick = ["--dtype", "float32", "--general", "", "--answer-tokens", "2"]
    monkeypatch.setattr(sys, "argv", ["eval.py", *quick, *map(str, arguments)])
    options = eval_script.parse_options(eval_script.Options, "")
    dataset, cache = Dataset(options.data), ResultCache(Path(options.out) / "scores", ALONE)
    return [eval_script.evaluate(candidate, options, {"7"}, [], cache, ALONE)
            for candidate in eval_script.find_candidates(options, dataset, ALONE)]


def watch(monkeypatch) -> dict[str, list]:
    """The calls of each measure from now on, by the name of its module."""
    calls = {"perplexity": [], "multiple_choice": [], "written_answers": []}
    for module, name in ((perplexity, "score_text"), (multiple_choice, "loglikelihoods"),
                         (written_answers, "generate")):
        called, real = calls[module.__name__.rpartition(".")[2]], getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, called=called, real=real, **options: (
            called.append(1), real(*given, **options))[1])
    return calls


def measured(calls: dict[str, list]) -> set[str]:
    """The measures that were called since this was asked for the last time."""
    names = {name for name, called in calls.items() if called}
    for called in calls.values():
        called.clear()
    return names


@pytest.fixture
def instructed(world, tmp_path):
    """A copy of the world's dataset with held-out instructions."""
    data = shutil.copytree(world.data, tmp_path / "data")
    pairs = [{"task": "places", "messages": [{"role": "user", "content": f"Where is plant {i}?"},
                                             {"role": "assistant", "content": "Munich"}]} for i in range(3)]
    write_jsonl(data / "pairs_test.jsonl", pairs)
    return data


@pytest.mark.parametrize("module, name", [(perplexity, "text_rows"), (multiple_choice, "score_questions"),
                                          (written_answers, "write_answers")])
def test_a_new_version_of_a_measure_is_measured(instructed, world, tmp_path, monkeypatch, module, name):
    """It alone, and its rows have the column that was added."""
    arguments = [world.model, "--data", instructed, "--out", tmp_path / "out"]
    score(monkeypatch, *arguments)
    calls = watch(monkeypatch)
    score(monkeypatch, *arguments)
    assert not measured(calls)
    real = getattr(module, name)
    monkeypatch.setattr(eval_script, name, lambda *given, **options: [
        row | {"added": 0.5} for row in real(*given, **options)])
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    result, = score(monkeypatch, *arguments)
    short = module.__name__.rpartition(".")[2]
    assert measured(calls) == {short}
    rows = {"perplexity": result["test"], "multiple_choice": result["answers"]["places"],
            "written_answers": result["written"]}
    assert all(("added" in row) == (kind == short) for kind in rows for row in rows[kind])


def test_other_ends_of_an_answer_are_other_answers(instructed, world, tmp_path, monkeypatch):
    """The generation config says where an answer ends, the tokenizer how it is spelt."""
    model = shutil.copytree(world.model, tmp_path / "model")
    arguments = [model, "--data", instructed, "--out", tmp_path / "out"]
    score(monkeypatch, *arguments)
    calls = watch(monkeypatch)
    write_json(model / "generation_config.json", {"eos_token_id": [5, 6]})
    score(monkeypatch, *arguments)
    assert measured(calls) == {"written_answers"}
    for folder in (model, instructed):
        tokenizer = read_json(folder / "tokenizer.json")
        write_json(folder / "tokenizer.json", tokenizer | {"decoder": None})  # the same tokens
    score(monkeypatch, *arguments)
    assert measured(calls) == {"written_answers"}


def test_another_config_or_adapter_is_another_model(world, tmp_path, monkeypatch):
    """With the same weights; moved elsewhere it is the same."""
    model, adapter = shutil.copytree(world.model, tmp_path / "m" / "model"), tmp_path / "adapter"
    save_adapter(adapted_model(model, "q_proj", rank=2), adapter)
    copy_tokenizer(model, adapter)
    place = [model, adapter]

    def measured_models() -> int:
        calls["perplexity"].clear()
        score(monkeypatch, *place, "--data", world.data, "--out", tmp_path / "out")
        return len(calls["perplexity"])

    calls = watch(monkeypatch)
    assert measured_models() == 2 and measured_models() == 0
    settings = read_json(adapter / "adapter_config.json")
    write_json(adapter / "adapter_config.json", settings | {"lora_alpha": 99})
    assert measured_models() == 1
    write_json(adapter / "adapter_config.json", settings)
    (tmp_path / "moved").mkdir()
    place[0] = model.rename(tmp_path / "moved" / "model")
    record = read_json(adapter / "nanoprune.json")
    write_json(adapter / "nanoprune.json", record | {"base": str(place[0])})
    assert measured_models() == 0
    shape = read_json(place[0] / "config.json")
    place.pop()
    write_json(place[0] / "config.json", shape | {"rms_norm_eps": 0.1})
    assert measured_models() == 1


def test_what_a_shorter_evaluation_left_is_not_taken_for_the_whole(world, tmp_path, monkeypatch):
    write_jsonl(tmp_path / "general.jsonl", [{"text": f"Rivers are {i} km long."} for i in range(5)])

    def results(out: str, *more) -> list:
        result, = score(monkeypatch, world.model, "--data", world.data, "--out", tmp_path / out,
                        "--general", tmp_path / "general.jsonl", *more)
        return [result["test"], result["general"], result["answers"]]

    fresh = results("fresh")
    for more in (["--documents", "3", "--questions", "2"], ["--protocol", "rolling"], ["--context", "16"]):
        assert results("out", *more) != fresh, more
    assert results("out") == fresh
