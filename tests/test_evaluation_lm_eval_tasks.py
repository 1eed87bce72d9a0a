"""evaluation/lm_eval_tasks.py: eval.py beside lm-evaluation-harness itself, on the tasks written for it."""

import math

import pytest
import transformers
from small import run_main

from model import Decoder
from nanoprune.data.dataset import Dataset
from nanoprune.evaluation.multiple_choice import encode_questions, loglikelihoods
from nanoprune.evaluation.perplexity import Protocol, score_text
from prune import drop_blocks

lm_eval = pytest.importorskip("lm_eval")


def ask_harness(folder, dataset: Dataset, tasks, names: list[str], window: int) -> dict:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    end = dataset.tokenizer.id_to_token(dataset.meta["end_token"])
    path = str(dataset.folder / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=path, eos_token=end)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=3, max_length=window,
              device="cpu", logits_cache=False)  # it mixes up windows that end alike and score other lengths
    known = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(model=lm, tasks=names, task_manager=known, log_samples=True,
                                   bootstrap_iters=0)


def assert_agrees(folder, data, tmp_path, monkeypatch, capsys, rolled: int) -> None:
    """Every question's choices to 1e-4, every answer; perplexity in windows of `rolled` tokens."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    arguments = [folder, "--data", data, "--export-harness", tmp_path / "tasks"]
    code, out, _ = run_main(monkeypatch, capsys, "eval.py", *arguments)
    assert code == 0 and "nanoprune_test.yaml" in out
    dataset, model = Dataset(data), Decoder.from_pretrained(folder).eval()
    questions, window, tasks = dataset.questions(), model.config.max_position_embeddings, tmp_path / "tasks"
    found = ask_harness(folder, dataset, tasks, [f"nanoprune_{name}" for name in questions], window)
    compared = 0
    for name, asked in questions.items():
        encoded, _ = encode_questions(dataset.tokenizer, asked, window)
        samples = sorted(found["samples"][f"nanoprune_{name}"], key=lambda sample: sample["doc_id"])
        fits = [question.number for question in encoded]  # the harness cuts the others
        compared += len(fits)
        scores = loglikelihoods(model, [question.choices for question in encoded])
        for i, ours in zip(fits, scores, strict=True):
            assert ours == pytest.approx([response[0][0] for response in samples[i]["resps"]], abs=1e-4), name
            assert samples[i]["acc"] == (ours.argmax() == asked[i]["answer"])
            per_character = ours / [len(choice) for choice in asked[i]["choices"]]
            assert samples[i]["acc_norm"] == (per_character.argmax() == asked[i]["answer"])
    assert compared >= 10
    split, documents = dataset.split("test"), dataset.documents("test")
    end = dataset.meta["end_token"]
    examples = [split[i] for i in range(len(split))]
    protocol = Protocol("rolling", rolled, prefix=end)
    batches = protocol.windows(protocol.units(examples))
    total, text = score_text(model, batches, len(split)).nll.sum(), [row["text"] for row in documents]
    theirs = ask_harness(folder, dataset, tasks, ["nanoprune_test"], rolled)["results"]["nanoprune_test"]
    size = sum(len(t.encode()) for t in text)
    assert theirs["bits_per_byte,none"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    assert theirs["byte_perplexity,none"] == pytest.approx(math.exp(total / size), rel=1e-5)


def test_agrees_on_a_small_model_and_a_pruned_one(world, tmp_path, monkeypatch, capsys):
    assert_agrees(world.model, world.data, tmp_path, monkeypatch, capsys, 20)
    model = Decoder.from_pretrained(world.model)
    drop_blocks(model, [1])
    model.save_pretrained(tmp_path / "less")
    assert_agrees(tmp_path / "less", world.data, tmp_path / "second", monkeypatch, capsys, 128)


@pytest.mark.parametrize("name, drop", [
    ("hf_stories260K_llama", []), ("hf_stories260K_qwen2", []), ("hf_babyllama105_llama", []),
    ("press-qwen3-4m", []), ("press-qwen3-4m", [3, 4])])
def test_agrees_on_trained_models(name, drop, real, tmp_path, monkeypatch, capsys):
    data, folder = tmp_path / "data", real / "checkpoints" / name
    lines = (real / "bmw" / "articles.jsonl").read_text().splitlines()[-40:]
    (tmp_path / "some.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ["prepare.py", tmp_path / "some.jsonl", "--out", data, "--tokenizer", folder]
    assert run_main(monkeypatch, capsys, *arguments)[0] == 0
    if drop:
        model = Decoder.from_pretrained(folder)
        drop_blocks(model, drop)
        folder = model.save_pretrained(tmp_path / "less") or tmp_path / "less"
    assert_agrees(folder, data, tmp_path, monkeypatch, capsys, 100)
