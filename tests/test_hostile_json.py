"""Every JSON file from outside, each of its fields of every wrong type: read, or refused by a ValueError."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapters import adapter_of_reduced_base
from small import CHATML, article, byte_tokenizer, random_base, release

from model import Decoder
from nanoprune.config import field_problems
from nanoprune.data.chat_format import chat_form
from nanoprune.data.conversations import read_pairs
from nanoprune.data.corpus import CleaningOptions, clean_chunk
from nanoprune.data.dataset import Dataset, read_questions
from nanoprune.data.tokenizer import end_token, load_tokenizer, tokenizer_hash
from nanoprune.distributed import ALONE
from nanoprune.io.files import json_hash, parse_json, read_json, write_json
from nanoprune.io.jsonl import read_log
from nanoprune.io.tensors import weight_files
from nanoprune.nn.lora import save_quantised
from nanoprune.nn.nf4 import is_quantised
from nanoprune.training.run_folder import RunFolder, load_state, saved_config
from nanoprune.web.archive import Archive
from nanoprune.web.sites import site_of
from prune import print_history
from train import train

WRONG = ["null", "true", '"x"', "1.5", "-3", "1" + "0" * 400, "NaN", "[]", "[[1]]", '[{"a": 1}]',
         '{"a": [1]}', '"\\ud800"', "[" * 10**5 + "]" * 10**5]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 1e4}
PLACE = "the place of a wrong value"


def variants(content: dict, path: tuple = ()):
    """The JSON of an object, each with another of its entries, at any depth, of another wrong type."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            for text in variants(value):
                yield json.dumps(content | {key: PLACE}).replace(f'"{PLACE}"', text, 1)
        yield from (json.dumps(content | {key: PLACE}).replace(f'"{PLACE}"', wrong, 1) for wrong in WRONG)
        yield json.dumps({other: value for other, value in content.items() if other != key})


def open_model(folder: Path) -> None:
    model = Decoder.without_weights(folder)
    assert model.stop_tokens is not None and (is_quantised(folder) or weight_files(folder))
    print_history("it", model.config)
    assert json.dumps(model.config.to_dict(torch.float32))


def model_folder(folder: Path) -> Path:
    more = {"sliding_window": None, "use_sliding_window": False, "max_window_layers": 1, "is_causal": True,
            "nanoprune_history": [{"original": "1"}], "eos_token_id": 3, "rope_scaling": LLAMA3,
            "layer_types": None, "head_dim": 8, "quantization_config": None, "residual_multiplier": 1,
            "original_max_position_embeddings": 64}
    base = random_base(folder / "base", model_type="llama", num_hidden_layers=1)
    write_json(base / "config.json", read_json(base / "config.json") | more)
    write_json(base / "generation_config.json", {"eos_token_id": [1, 2], "temperature": 0.5})
    weights = (base / "model.safetensors").rename(base / "part-1.safetensors").name
    write_json(base / "model.safetensors.index.json", {"weight_map": {"a": weights}, "metadata": {}})
    return base


def quantised_folder(folder: Path) -> Path:
    base = random_base(folder / "b", num_hidden_layers=1)
    save_quantised(Decoder.from_pretrained(base, frozen="nf4"), folder / "q")
    return folder / "q"


def adapter_folder(folder: Path) -> Path:
    adapter = adapter_of_reduced_base(folder)[1]
    more = {"layers_to_transform": None, "exclude_modules": None, "alora_invocation_tokens": None}
    write_json(adapter / "adapter_config.json", read_json(adapter / "adapter_config.json") | more)
    return adapter


def chat_tokenizer(folder: Path) -> Path:
    return byte_tokenizer(folder / "t", CHATML, eos_token={"content": "<|im_end|>"}, bos_token="x",
                          chat_template=[{"name": "default", "template": "{{ messages[1].content }}"}])


def read_tokenizer(folder: Path) -> None:
    tokenizer_hash(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.encode("abc")
    end_token(tokenizer, folder)
    chat_form(folder, tokenizer)


FOLDERS = {
    "model": (model_folder, open_model, ("config.json", "generation_config.json",
                                         "model.safetensors.index.json")),
    "quantised": (quantised_folder, Decoder.from_pretrained, ("config.json",)),
    "adapter": (adapter_folder, Decoder.from_pretrained, ("adapter_config.json", "nanoprune.json")),
    "tokenizer": (chat_tokenizer, read_tokenizer, ("tokenizer_config.json", "tokenizer.json")),
}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, (_, _, names) in FOLDERS.items()
                                        for name in names])
def test_files_of_models(tmp_path, kind, name, monkeypatch):
    make, read, _ = FOLDERS[kind]
    monkeypatch.setattr("nanoprune.data.chat_format.ChatForm", lambda *arguments: None)
    folder = make(tmp_path)
    path = folder / name
    content = read_json(path)
    if name == "tokenizer.json":
        content["model"]["vocab"] = dict(list(content["model"]["vocab"].items())[:2])
    try_all(variants(content), path.write_text, lambda: read(folder))


def try_all(texts, write, read) -> None:
    """Each text is read or refused by a ValueError of one line, and nothing else happens."""
    refused = total = 0
    for text in texts:
        write(text)
        total += 1
        try:
            read()
        except ValueError as error:
            refused += 1
            assert len(str(error)) < 2000
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} of {text[:300]}") from error
    assert total > len(WRONG) and refused > total // 10


def test_files_of_a_dataset(world, tmp_path):
    data = shutil.copytree(world.data, tmp_path / "data")
    meta = read_json(data / "meta.json") | {"conversations": False, "chat": False, "questions": {"a": 1}}

    def read() -> None:
        dataset = Dataset(data)
        dataset.rows(32, 0, 1, 0.0)
        dataset.check_model("it", world.model, 280)

    try_all(variants(meta), (data / "meta.json").write_text, read)


def ask(archive: Archive) -> None:
    archive.find("http://a/b")
    archive.has_page("http://a/b", "2")


LINES = {
    "articles.jsonl": (article(1) | {"language": "en", "dated_by": "page"},
                       lambda path: clean_chunk(path, CleaningOptions(), site_of,
                                                (1, 0, path.stat().st_size))),
    "collected.jsonl": (article(1), lambda path: read_log(path, ("id",))),
    "log.jsonl": ({"url": "http://a/b", "kind": "page", "sha256": "ab", "version": "1", "fetched": "x"},
                  lambda path: ask(Archive(path.parent))),
    "qa.jsonl": ({"question": "Where?", "choices": ["a", "b"], "answer": 0, "context": release(1),
                  "category": "place", "source": "x"}, read_questions),
    "pairs.jsonl": ({"messages": [{"role": "user", "content": "?", "weight": 0},
                                  {"role": "assistant", "content": "!", "weight": 1}], "task": "x",
                     "tools": None}, read_pairs),
    "turns.jsonl": ({"instruction": "?", "input": "x", "output": "!"}, read_pairs),
}


@pytest.mark.parametrize("name", LINES)
def test_lines(tmp_path, name):
    row, read = LINES[name]
    path = tmp_path / name
    try_all((text + "\n" for text in variants(row)), path.write_text, lambda: read(path))


def test_states(world, tmp_path):
    """A damaged state gives way to the one before, whatever is wrong with it."""
    config = world.config(tmp_path, max_steps=2, save_every=1)
    train(config)
    states = sorted((config.folder / "state").iterdir())
    content, path = read_json(states[1] / "state.json"), states[1] / "state.json"

    def read() -> None:
        progress, _ = load_state(config.folder / "state")
        if read_text() != content:
            assert progress.step == 1
            raise ValueError("given up")

    def read_text():
        try:
            return parse_json(path.read_bytes(), "")
        except ValueError:
            return None

    try_all(variants(content), path.write_text, read)

    def write_with_its_checksum(text: str) -> None:
        try:
            counters = parse_json(text.encode(), "")
            path.write_text(json.dumps({"counters": counters, "sha256": json_hash(counters)}))
        except ValueError:
            path.write_text(text)

    def read_counters() -> None:
        progress, _ = load_state(config.folder / "state")
        assert not field_problems(replace(progress, best=min(progress.best, 9.0)))
        if progress.step == 1:
            raise ValueError("given up")

    try_all(variants(content["counters"] | {"config": {}}), write_with_its_checksum, read_counters)
    path.write_text(json.dumps(content))
    run = RunFolder(config, ALONE, resume=True)
    env = read_json(config.folder / "env.json")
    try_all(variants(env), (config.folder / "env.json").write_text, lambda: run._check_unchanged(env))
    settings = read_json(config.folder / "config.json")
    write = (config.folder / "config.json").write_text
    try_all(variants(settings), write, lambda: saved_config(config.folder))


def test_depth_and_size_have_bounds(monkeypatch):
    text = f'{{"a": {"[" * 99}{"]" * 99}}}'
    assert parse_json(text.encode(), "it")
    with pytest.raises(ValueError, match="it: nested too deeply, more than 100 levels"):
        parse_json(f'{{"a": {text}}}'.encode(), "it")
    monkeypatch.setattr("nanoprune.io.files.MOST_ENTRIES", 2)
    assert parse_json(b'{"a": 1, "b": 2, "c": 3}', "it")
    with pytest.raises(ValueError, match="it: more than .* bytes or 2 entries of JSON"):
        parse_json(b'{"a": [[],[],[],{}]}', "it")
    monkeypatch.setattr("nanoprune.io.files.MOST_JSON", 30)
    with pytest.raises(ValueError, match="it: more than 30 bytes or"):
        parse_json(text.encode(), "it")


def test_lists_and_sizes_have_bounds(tmp_path, capsys):
    """Of what one small file may ask for: matrices, names, and the message about them."""
    model = model_folder(tmp_path)
    shape = read_json(model / "config.json")
    huge = dict.fromkeys(("head_dim", "num_attention_heads", "num_key_value_heads"), 2**24)
    for change in (huge, {"eos_token_id": [1] * 200_000}, {"model_type": "x" * 10**5},
                   {"nanoprune_without": ["x" * 10**5]}):
        write_json(model / "config.json", shape | change)
        with pytest.raises(ValueError, match=r"config\.json: ") as error:
            open_model(model)
        assert len(str(error.value)) < 2000
    write_json(model / "config.json", shape | {f"no_such_{i}": 1 for i in range(10**4)})
    open_model(model)
    assert len(capsys.readouterr().err) < 2000
