"""The dataset folder: rows it does not have, damaged files, other tokenizers, wrong questions."""

import shutil

import pytest
import torch
from small import make_data

from nanoprune.data.dataset import Dataset, read_questions
from nanoprune.io.files import read_json, write_json
from nanoprune.io.jsonl import write_jsonl
from nanoprune.io.tensors import write_tensors


def test_rows_that_the_dataset_does_not_have(world, tmp_path):
    with pytest.raises(ValueError, match="replay: given 0.1, .* holds no general text; prepare with "
                                         "--replay"):
        Dataset(world.data).rows(16, 0, 0, 0.1)
    shutil.copytree(world.data, tmp_path / "d")
    write_json(tmp_path / "d" / "meta.json", Dataset(world.data).meta | {"conversations": True})
    with pytest.raises(ValueError, match=r"holds conversations alone: set pair_repeats to at least 1 \(given "
                                         r"0\)"):
        Dataset(tmp_path / "d").rows(16, 0, 0, 0.0)


def test_another_tokenizer_is_refused(world, tmp_path):
    other = Dataset(make_data(tmp_path / "other", text="zebra quagga okapi"))
    with pytest.raises(ValueError, match="was tokenized with another tokenizer .* than that of base"):
        other.check_model("base", world.model, 1000)
    with pytest.raises(ValueError, match="base knows 9 tokens"):
        Dataset(world.data).check_model("base", world.model, 9)
    Dataset(world.data).check_model("base", world.model, 1000)


def test_damaged_datasets_are_named(world, tmp_path):
    with pytest.raises(ValueError, match="is not a dataset folder .*python prepare.py ARTICLES --out"):
        Dataset(tmp_path)
    folder = shutil.copytree(world.data, tmp_path / "data")
    (folder / "train.safetensors").write_bytes((folder / "train.safetensors").read_bytes()[:-5])
    with pytest.raises(ValueError, match="train.safetensors is truncated or damaged"):
        Dataset(folder).split("train")
    tensors = {"tokens": torch.zeros(5, dtype=torch.int64), "offsets": torch.tensor([0, 3, 9])}
    write_tensors(folder / "train.safetensors", tensors)
    with pytest.raises(ValueError, match="document offsets do not fit"):
        Dataset(folder).split("train")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer file"):
        Dataset(folder)


def test_a_damaged_folder_is_named(world, tmp_path):
    data = shutil.copytree(world.data, tmp_path / "data")
    write_tensors(data / "val.safetensors", {"offsets": torch.zeros(1, dtype=torch.int64)})
    with pytest.raises(ValueError, match="val.safetensors lacks tokens; run prepare.py again"):
        Dataset(data).split("val")
    (data / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match="meta.json lacks end_token, tokenizer_hash, vocab_size"):
        Dataset(data)


@pytest.mark.parametrize("change, message", [
    ({"vocab_size": 200}, "train.safetensors: tokens from .* are beyond the vocabulary of 200"),
    ({"end_token": 280}, "end_token 280 is beyond the vocabulary"),
])
def test_tokens_beyond_the_vocabulary_are_named(world, tmp_path, change, message):
    data = shutil.copytree(world.data, tmp_path / "data")
    write_json(data / "meta.json", read_json(data / "meta.json") | {"end_token": 0} | change)
    with pytest.raises(ValueError, match=message):
        Dataset(data).split("train")


@pytest.mark.parametrize("pair_repeats, replay, message", [
    (10**12, 0.0, "pairs.safetensors 1,000,000,000,000 times, 12,000,000,000,000 documents .* pair_repeats"),
    (1, 1 - 1e-12, "replay.safetensors .* times, .*, at most 67,108,864 are allowed"),
])
def test_an_epoch_has_a_bound(world, tmp_path, pair_repeats, replay, message):
    data = shutil.copytree(world.data, tmp_path / "data")
    shutil.copy(data / "val.safetensors", data / "replay.safetensors")
    with pytest.raises(ValueError, match=message):
        Dataset(data).rows(32, 0, pair_repeats, replay)


@pytest.mark.parametrize("change, message", [
    (dict(choices=["one"]), "two or more"), (dict(choices=["one", ""]), "two or more"),
    (dict(choices="ab"), "two or more"), (dict(choices=["a", "a"]), "different texts"),
    (dict(answer=2), "index from 0 to 1, given 2"), (dict(answer=-1), "given -1"),
    (dict(answer="0"), "given '0'"),
    (dict(question=5), "question must be text, given 5"), (dict(question=" "), "question .* must be a text"),
    (dict(context=7), "context.* must be a text"), (dict(category=[1]), "category, where.* must be a text"),
])
def test_wrong_questions_are_named(tmp_path, change, message):
    good = {"question": "?", "choices": ["a", "b"], "answer": 0}
    write_jsonl(tmp_path / "q.jsonl", [good, good | change])
    with pytest.raises(ValueError, match=f"q.jsonl, line 2: .*{message}"):
        read_questions(tmp_path / "q.jsonl")
