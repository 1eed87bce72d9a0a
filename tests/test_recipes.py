"""Every recipe's commands run as its docstring has them, on small random models of the same architectures."""

import json
import runpy
import shlex
import shutil
from datetime import date

import corpora
import numpy as np
import pytest
import torch
from small import ROOT, SHAPE, run_main
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import sample
from model import Decoder
from nanoprune.config import load_config
from nanoprune.data.dataset import Dataset
from nanoprune.demo import newsroom
from nanoprune.evaluation import written_answers
from nanoprune.evaluation.written_answers import overlap_scores
from nanoprune.io.files import write_json
from nanoprune.io.jsonl import read_jsonl, write_jsonl
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.peft import is_adapter, load_model

RECIPES = sorted(path for path in (ROOT / "configs" / "recipes").glob("*.py") if path.name != "__init__.py")
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SHORTER = ["--epochs=0", "--max_steps=2", "--warmup_steps=1", "--batch_size=2", "--accumulation=1", "--eval_every=1",
           "--save_every=2", "--eval_documents=2", "--device=cpu"]
TINY = dict(hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            max_position_embeddings=4096, num_hidden_layers=2)


def commands(name: str) -> list[str]:
    text = runpy.run_path(str(ROOT / "configs" / "recipes" / f"{name}.py"))["__doc__"]
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("    python ")]


def stand_in(folder, kind: str, specials: tuple[str, ...], **shape) -> None:
    """A small random model and a tokenizer with a real one's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = ["The station charges a kilowatt hour. What is the torque of the part? " * 3]
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(specials), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": specials[-1]})
    model = Decoder(ModelConfig.from_dict(SHAPE | TINY | {"model_type": kind, "vocab_size": 336} | shape)).bfloat16()
    model.generation_config = {"eos_token_id": tokenizer.token_to_id(specials[-1])}
    model.save_pretrained(folder)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the configs, the data and the stand-ins where the recipes look for them; answers of a few words."""
    for name in ("configs", "qa"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    for module in (sample, written_answers):
        generate = module.generate
        monkeypatch.setattr(module, "generate", lambda model, ids, room, generate=generate, **how: generate(
            model, ids, min(room, 3), **how))
    return tmp_path


def make_articles(folder) -> None:
    company = newsroom.invent(0, companies=1, models=8, first_day=date(2025, 9, 1))[0]
    folder.mkdir(parents=True, exist_ok=True)
    articles = newsroom.releases(company, 40, 1, date(2025, 9, 1))
    write_jsonl(folder / "articles.jsonl", (one | {"text": "\n\n".join(one["paragraphs"])} for one in articles))


def run(names: list[str], monkeypatch, capsys, shorter: dict[str, list[str]]) -> dict[str, str]:
    """What each command printed, by its script and arguments; all must succeed."""
    said = {}
    for command in dict.fromkeys(c for name in names for c in commands(name)):
        words = shlex.split(command)[1:] + shorter.get(shlex.split(command)[1], [])
        code, out, err = run_main(monkeypatch, capsys, *words)
        assert code == 0, f"{command}\n{out[-2000:]}\n{err[-3000:]}"
        said[command] = out
    return said


def results(folder) -> dict[str, dict]:
    return {m["name"]: m for m in json.loads((folder / "results.json").read_text())["models"]}


def test_every_recipe_is_a_config():
    """And each can be read with the settings that its experiment names."""
    found = {path.stem: load_config(path) for path in RECIPES}
    assert all(config.name == name for name, config in found.items())
    assert (found["pairs_full"].lr, found["pairs_lora"].lr) == (2e-5, 1e-4)
    assert (found["pairs_lora"].lora_rank, found["pairs_lora"].lora_alpha, found["pairs_full"].context) == (8, 16, 2048)
    assert found["qlora_reduced"].drop_blocks == (27,) and found["qlora_full"].epochs == 1
    manual = found["manual"]
    assert (manual.frozen, manual.lora_rank, manual.lora_alpha, manual.lora_dropout, manual.batch_size, manual.accumulation,
            manual.lr, manual.epochs) == ("nf4", 16, 32.0, 0.05, 8, 2, 2e-4, 3)
    assert found["full_replay"].replay == found["reduced_replay"].replay > 0 and found["reduced_replay"].drop_blocks


def test_full_against_lora_on_pairs(checkout, monkeypatch, capsys):
    make_articles(checkout / "data" / "raw")
    stand_in(checkout / "Qwen" / "Qwen2.5-0.5B", "qwen2", CHATML)
    said = run(["pairs_full", "pairs_lora"], monkeypatch, capsys, {
        "train.py": SHORTER, "eval.py": ["--answers", "3", "--context", "500"], "prepare.py": ["--generated-documents", "8"]})
    assert any("training pairs by task" in out for out in said.values())
    data = Dataset("data/pairs")
    assert data.conversations and data.chat and {s["documents"] > 0 for s in data.meta["splits"].values()} == {True}
    text = data.tokenizer.decode(data.split("pairs")[0].tolist(), skip_special_tokens=False)
    assert text.startswith("<|im_start|>user\n") and text.endswith("<|im_end|>\n") and "\n\n" in text
    found = results(checkout / "results" / "pairs")
    full, lora = found["pairs_full"], found["pairs_lora"]
    assert full["cost"]["trained_params"] == full["params"] > 10 * lora["cost"]["trained_params"] > 0
    assert lora["cost"]["disk_mb"] < full["cost"]["disk_mb"] / 2 and lora["cost"]["training_s"] > 0
    assert found["Qwen2.5-0.5B"]["cost"]["trained_params"] is None
    assert all(m["test"]["perplexity"] > 1 and "exact_match" in m["written"]["all"] for m in found.values())
    longest = int(np.diff(data.split("test").offsets).max()) - 1
    assert longest > 500 and f"in windows of {longest} tokens" in (checkout / "results" / "pairs" / "results.md").read_text()
    lines = read_jsonl(checkout / "results" / "pairs" / "answers.jsonl")
    assert len(lines) == 3 and all(set(line["answers"]) == set(found) for line in lines)


def test_qlora_full_against_reduced(checkout, monkeypatch, capsys):
    make_articles(checkout / "data" / "raw")
    stand_in(checkout / "Qwen" / "Qwen3-0.6B", "qwen3", CHATML, num_hidden_layers=28)
    run(["qlora_full", "qlora_reduced"], monkeypatch, capsys, {
        "train.py": [*SHORTER, "--context=64"], "prepare.py": ["--generated-documents", "4"]})
    found = results(checkout / "results" / "qlora")
    assert [m["blocks"] for m in found.values()] == [28, 27, 28, 27]
    assert all(m["test"]["perplexity"] > 1 for m in found.values())
    assert (checkout / "results" / "qlora" / "curves.png").stat().st_size > 10_000
    assert all(is_adapter(checkout / "runs" / name / "model") for name in ("qlora_full", "qlora_reduced"))


def test_the_service_manual(checkout, monkeypatch, capsys):
    (checkout / "data" / "raw").mkdir(parents=True)
    corpora.manual(checkout / "data" / "raw" / "manual.jsonl")
    stand_in(checkout / "meta-llama" / "Llama-3.2-3B-Instruct", "llama", LLAMA)
    run(["manual"], monkeypatch, capsys, {"train.py": [*SHORTER, "--context=300"], "eval.py": ["--answers", "4"]})
    data = Dataset("data/manual")
    tasks = data.meta["tasks"]
    assert set(tasks) == set(corpora.TASKS) and max(tasks.values()) <= 2 * min(tasks.values())
    rows = data.rows(300, 0, 1, 0.0)
    for r in range(6):  # every row is whole conversations
        ids, targets, documents = rows.row(r)
        for number in set(documents.tolist()) - {300}:
            text = data.tokenizer.decode(ids[documents == number].tolist(), skip_special_tokens=False)
            assert text.startswith("<|begin_of_text|><|start_header_id|>system") and "[" in text
        learned = data.tokenizer.decode(targets[targets != -100].tolist(), skip_special_tokens=False)
        assert learned.endswith("<|eot_id|>") and "manual" not in learned
    written = results(checkout / "results" / "manual")["manual"]["written"]
    assert set(written) == {"all", *(row["task"] for row in read_jsonl(checkout / "data" / "manual" / "test.jsonl"))}
    model, split, nll, count = load_model(checkout / "runs" / "manual" / "model").eval(), data.split("test"), 0.0, 0
    for i in range(len(split)):  # the answers alone are predicted
        with torch.no_grad():
            log_p = model(torch.from_numpy(split[i])[None, :-1])[0].log_softmax(-1)
        for k, token in enumerate(split.targets(i)[1:]):
            nll, count = (nll - float(log_p[k, token]), count + 1) if token != -100 else (nll, count)
    measured = results(checkout / "results" / "manual")["manual"]["test"]
    assert measured["tokens"] == count and measured["nll"] == pytest.approx(nll / count, abs=1e-5)
    measures = {"exact_match", "f1"} | ({"rougeL"} if "rougeL" in overlap_scores("", "") else set())
    assert all(measures <= set(row) for row in written.values())


def test_the_charging_stations(checkout, monkeypatch, capsys):
    pytest.importorskip("pypdf")
    corpora.charging(checkout / "data" / "raw" / "charging", checkout / "data" / "raw" / "charging_questions.jsonl")
    stand_in(checkout / "meta-llama" / "Llama-3.1-8B-Instruct", "llama", LLAMA, hidden_size=64, tie_word_embeddings=False)
    run(["charging"], monkeypatch, capsys, {"train.py": [*SHORTER, "--context=128"], "prepare.py": ["--min-chars", "100"]})
    found = results(checkout / "results" / "charging")
    assert set(found) == {"llama-3.1-8b-nf4", "charging"}
    for model in found.values():
        written = model["written"]
        assert written["all"]["n"] == 104 and written["category tariff"]["n"] == 52 and written["difficulty hard"]["n"] == 52
        assert model["cost"]["token_p95_ms"] > 0 and model["cost"]["decode_tokens_per_s"] > 0
    trained = {pair["messages"][0]["content"] for pair in read_jsonl(checkout / "data" / "charging" / "pairs.jsonl")}
    assert trained and not any("kilowatt hour at Station" in text for text in trained)
    articles = read_jsonl(checkout / "data" / "raw" / "charging.jsonl")
    assert len(articles) == 26 and sum(a["id"].endswith(".pdf") for a in articles) == 8


def test_replay(checkout, monkeypatch, capsys):
    make_articles(checkout / "data" / "raw")
    write_jsonl(checkout / "data" / "raw" / "general.jsonl", [
        {"text": f"Plain words about subject {i}, which has nothing to do with cars. " * 4} for i in range(30)])
    stand_in(checkout / "Qwen" / "Qwen3-0.6B-Base", "qwen3", CHATML, num_hidden_layers=26)
    run(["full_replay", "reduced_replay"], monkeypatch, capsys, {
        "train.py": [*SHORTER, "--context=64"], "prepare.py": ["--generated-documents", "4"]})
    found = results(checkout / "results" / "replay")
    assert [m["blocks"] for m in found.values()] == [26, 26, 25, 26, 25]
    assert all(m["general"]["nll"] > 0 for m in found.values())
    report = (checkout / "results" / "replay" / "results.md").read_text()
    assert "| full | full_replay | general nll |" in report
