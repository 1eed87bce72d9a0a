"""Every recipe's commands run as its docstring has them, on small random models of the same architectures."""

import json
import runpy
import shlex
import shutil
from datetime import date
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from small import ROOT, SHAPE, run_main, write_little
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from model import Decoder
from nanoprune.config import IGNORE, load_config
from nanoprune.data.dataset import Dataset
from nanoprune.demo.newsroom import invent, releases
from nanoprune.evaluation.written_answers import overlap_scores
from nanoprune.io.files import write_json
from nanoprune.io.jsonl import read_jsonl, write_jsonl
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.peft import is_adapter

RECIPES = sorted(path for path in (ROOT / "configs" / "recipes").glob("*.py") if path.name != "__init__.py")
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SHORTER = ["--epochs=0", "--max_steps=2", "--warmup_steps=1", "--batch_size=2", "--accumulation=1",
           "--eval_every=1", "--save_every=2", "--eval_documents=2", "--device=cpu"]
TINY = dict(hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            max_position_embeddings=4096, num_hidden_layers=2)


def commands(name: str) -> list[str]:
    text = runpy.run_path(str(ROOT / "configs" / "recipes" / f"{name}.py"))["__doc__"]
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("    python ")]


def stand_in(folder, kind: str, specials: tuple[str, ...], **shape) -> None:
    """A small random model and a tokenizer with a real one's special tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = ["The station charges a kilowatt hour. What is the torque of the part? " * 3]
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(specials), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": specials[-1]})
    settings = SHAPE | TINY | {"model_type": kind, "vocab_size": 336} | shape
    model = Decoder(ModelConfig.from_dict(settings)).bfloat16()
    model.generation_config = {"eos_token_id": tokenizer.token_to_id(specials[-1])}
    model.save_pretrained(folder)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the configs and data where the recipes look for them; answers are of a few words."""
    for name in ("configs", "qa"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    general = tmp_path / "qa" / "general.jsonl"  # a few of its texts are enough here
    general.write_text("".join(general.read_text().splitlines(keepends=True)[:5]))
    monkeypatch.chdir(tmp_path)
    write_little(monkeypatch)
    return tmp_path


def make_articles(folder, count: int) -> None:
    [company] = invent(0, companies=1, models=8, first_day=date(2025, 9, 1))
    folder.mkdir(parents=True, exist_ok=True)
    articles = releases(company, count, 1, date(2025, 9, 1))
    for article in articles:
        article["text"] = "\n\n".join(article["paragraphs"])
    write_jsonl(folder / "articles.jsonl", articles)


def run(names: list[str], monkeypatch, capsys, shorter: dict[str, list[str]]) -> dict[str, str]:
    """What each command printed, by its text; all must succeed."""
    outputs = {}
    for command in dict.fromkeys(command for name in names for command in commands(name)):
        words = [word for word in shlex.split(command)[1:] if word != "-m"]
        code, out, err = run_main(monkeypatch, capsys, *words, *shorter.get(words[0], []))
        assert code == 0, f"{command}\n{out[-2000:]}\n{err[-3000:]}"
        outputs[command] = out
    return outputs


def results(folder) -> dict[str, dict]:
    """The models of a comparison by the names of their runs or folders."""
    models = json.loads((folder / "results.json").read_text())["models"]
    return {Path(m["paths"][0].removesuffix("/model")).name: m for m in models}


def test_every_recipe_is_a_config():
    """And each can be read with the settings that its experiment names."""
    configs = {path.stem: load_config(path) for path in RECIPES}
    assert all(config.name == name for name, config in configs.items())
    full, lora = configs["pairs_full"], configs["pairs_lora"]
    assert (full.lr, full.context) == (2e-5, 2048)
    assert (lora.lr, lora.context, lora.lora_rank, lora.lora_alpha) == (1e-4, 2048, 8, 16)
    assert configs["qlora_reduced"].drop_blocks == (27,) and configs["qlora_full"].epochs == 1
    manual = configs["manual"]
    assert (manual.frozen, manual.lora_rank, manual.lora_alpha) == ("nf4", 16, 32.0)
    assert manual.lora_dropout == 0.05
    assert (manual.batch_size, manual.accumulation, manual.lr, manual.epochs) == (8, 2, 2e-4, 3)
    assert configs["full_replay"].replay == configs["reduced_replay"].replay > 0
    assert configs["reduced_replay"].drop_blocks


def test_full_against_lora_on_pairs(checkout, monkeypatch, capsys):
    make_articles(checkout / "data" / "raw", 40)
    stand_in(checkout / "Qwen" / "Qwen2.5-0.5B", "qwen2", CHATML)
    outputs = run(["pairs_full", "pairs_lora"], monkeypatch, capsys, {
        "train.py": SHORTER, "eval.py": ["--answers", "3", "--context", "500", "--dtype", "float32"],
        "prepare.py": ["--generated-documents", "8"]})
    assert any("training pairs by task" in out for out in outputs.values())
    data = Dataset("data/pairs")
    assert data.conversations and data.chat
    assert all(split["documents"] > 0 for split in data.meta["splits"].values())
    text = data.tokenizer.decode(data.split("pairs")[0].tokens.tolist(), skip_special_tokens=False)
    assert text.startswith("<|im_start|>user\n") and text.endswith("<|im_end|>\n") and "\n\n" in text
    models = results(checkout / "results" / "pairs")
    full, lora = models["pairs_full"], models["pairs_lora"]
    assert full["cost"]["trained_params"] == full["params"] > 10 * lora["cost"]["trained_params"] > 0
    assert lora["cost"]["disk_mb"] < full["cost"]["disk_mb"] / 2 and lora["cost"]["training_s"] > 0
    assert models["Qwen2.5-0.5B"]["cost"]["trained_params"] is None
    assert all(m["test"]["perplexity"] > 1 and "exact_match" in m["written"]["all"] for m in models.values())
    longest = int(np.diff(data.split("test").offsets).max()) - 1
    page = (checkout / "results" / "pairs" / "results.md").read_text()
    assert longest > 500 and f"in windows of {longest} tokens" in page
    lines = read_jsonl(checkout / "results" / "pairs" / "answers.jsonl")
    assert len(lines) == 3 and all(
        set(line["answers"]) == {model["name"] for model in models.values()} for line in lines)


def test_qlora_full_against_reduced(checkout, monkeypatch, capsys):
    make_articles(checkout / "data" / "raw", 14)
    stand_in(checkout / "Qwen" / "Qwen3-0.6B", "qwen3", CHATML, num_hidden_layers=28,
             max_position_embeddings=256)
    run(["qlora_full", "qlora_reduced"], monkeypatch, capsys, {
        "train.py": [*SHORTER, "--context=64"], "prepare.py": ["--generated-documents", "4"]})
    models = results(checkout / "results" / "qlora")
    assert [model["blocks"] for model in models.values()] == [28, 27, 28, 27]
    assert all(model["test"]["perplexity"] > 1 for model in models.values())
    assert (checkout / "results" / "qlora" / "curves.png").stat().st_size > 10_000
    assert all(is_adapter(checkout / "runs" / name / "model") for name in ("qlora_full", "qlora_reduced"))


def test_the_service_manual(checkout, monkeypatch, capsys):
    (checkout / "data" / "raw").mkdir(parents=True)
    corpora.manual(checkout / "data" / "raw" / "manual.jsonl")
    stand_in(checkout / "meta-llama" / "Llama-3.2-3B-Instruct", "llama", LLAMA)
    run(["manual"], monkeypatch, capsys, {
        "train.py": [*SHORTER, "--context=300"], "eval.py": ["--answers", "4", "--dtype", "float32"]})
    data = Dataset("data/manual")
    tasks = data.meta["tasks"]
    assert set(tasks) == set(corpora.TASKS) and max(tasks.values()) <= 2 * min(tasks.values())
    rows = data.rows(300, 0, 1, 0.0)
    for r in range(6):  # every row is whole conversations
        ids, targets, documents = rows.row(r)
        for number in set(documents.tolist()) - {300}:
            text = data.tokenizer.decode(ids[documents == number].tolist(), skip_special_tokens=False)
            assert text.startswith("<|begin_of_text|><|start_header_id|>system") and "[" in text
        learned = data.tokenizer.decode(targets[targets != IGNORE].tolist(), skip_special_tokens=False)
        assert learned.endswith("<|eot_id|>") and "manual" not in learned
    test_tasks = {row["task"] for row in read_jsonl(checkout / "data" / "manual" / "test.jsonl")}
    written = results(checkout / "results" / "manual")["manual"]["written"]
    assert set(written) == {"all"} | test_tasks
    model = Decoder.from_pretrained(checkout / "runs" / "manual").eval()
    split, nll, count = data.split("test"), 0.0, 0
    for i in range(len(split)):  # the answers alone are predicted
        with torch.no_grad():
            log_p = model(torch.from_numpy(split[i].tokens)[None, :-1])[0].log_softmax(-1)
        for k, token in enumerate(split[i].targets[1:]):
            if token != IGNORE:
                nll, count = nll - float(log_p[k, token]), count + 1
    measured = results(checkout / "results" / "manual")["manual"]["test"]
    assert measured["tokens"] == count and measured["nll"] == pytest.approx(nll / count, abs=1e-5)
    measures = {"exact_match", "f1"} | ({"rougeL"} if "rougeL" in overlap_scores("", "") else set())
    assert all(measures <= set(row) for row in written.values())


def test_the_charging_stations(checkout, monkeypatch, capsys):
    pytest.importorskip("pypdf")
    raw = checkout / "data" / "raw"
    corpora.charging(raw / "charging", raw / "charging_questions.jsonl")
    stand_in(checkout / "meta-llama" / "Llama-3.1-8B-Instruct", "llama", LLAMA, hidden_size=64,
             tie_word_embeddings=False)
    run(["charging"], monkeypatch, capsys, {
        "train.py": [*SHORTER, "--context=128"], "prepare.py": ["--min-chars", "100"]})
    models = results(checkout / "results" / "charging")
    assert set(models) == {"llama-3.1-8b-nf4", "charging"}
    for model in models.values():
        written = model["written"]
        assert written["all"]["n"] == 104
        assert written["category tariff"]["n"] == 52 and written["difficulty hard"]["n"] == 52
        assert model["cost"]["token_mflop"] > 0
    pairs = read_jsonl(checkout / "data" / "charging" / "pairs.jsonl")
    trained = {pair["messages"][0]["content"] for pair in pairs}
    assert trained and not any("kilowatt hour at Station" in text for text in trained)
    articles = read_jsonl(raw / "charging.jsonl")
    assert len(articles) == 26 and sum(a["id"].endswith(".pdf") for a in articles) == 8


def test_replay(checkout, monkeypatch, capsys):
    make_articles(checkout / "data" / "raw", 14)
    write_jsonl(checkout / "data" / "raw" / "general.jsonl", [
        {"text": f"Plain words about subject {i}, which has nothing to do with cars. " * 4}
        for i in range(30)])
    stand_in(checkout / "Qwen" / "Qwen3-0.6B-Base", "qwen3", CHATML, num_hidden_layers=26,
             max_position_embeddings=256)
    run(["full_replay", "reduced_replay"], monkeypatch, capsys, {
        "train.py": [*SHORTER, "--context=64"], "prepare.py": ["--generated-documents", "4"]})
    models = results(checkout / "results" / "replay")
    assert [model["blocks"] for model in models.values()] == [26, 26, 25, 26, 25]
    assert all(model["general"]["nll"] > 0 for model in models.values())
    report = (checkout / "results" / "replay" / "results.md").read_text()
    assert {model["name"] for model in models.values()} == {
        "base", "fine-tuned full (replay 0.0)", "fine-tuned full (replay 0.1)",
        "fine-tuned without block 25 (replay 0.0)", "fine-tuned without block 25 (replay 0.1)"}
    assert report.count("| reduced against full |") == 2
