"""Safetensors: what is written is what the library reads; damaged, missing and misfit files are named."""

import json
import os
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import IDS

from model import Decoder
from nanoprune.io.files import read_json, write_json
from nanoprune.io.tensors import (
    SAFETENSORS_TYPES,
    open_tensors,
    stored_types,
    weights_hash,
    write_tensors,
)

DTYPES = list(SAFETENSORS_TYPES)


def test_empty_tensors(tmp_path):
    write_tensors(tmp_path / "t.safetensors", {"t": torch.empty_strided((0,), (0,)), "u": torch.ones(2)})
    assert load_file(tmp_path / "t.safetensors")["t"].shape == (0,)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6))
@settings(max_examples=40, deadline=None)
def test_written_tensors_are_what_the_library_reads(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("tensors") / "t.safetensors"
    tensors = {f"t{i}": torch.randint(0, 2, shape).to(dtype) for i, (dtype, shape) in enumerate(kinds)}
    write_tensors(path, tensors)
    with open_tensors(path) as file:
        ours = {name: file.get_tensor(name).clone() for name in file.keys()}
    found, data = load_file(path), path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(found) == set(ours) == set(tensors)
    for name, tensor in tensors.items():
        start = header[name]["data_offsets"][0]
        assert start % tensor.element_size() == 0, "readers that map the file want aligned tensors"
        for other in (found[name], ours[name]):
            assert other.dtype == tensor.dtype and other.shape == tensor.shape and torch.equal(other, tensor)


def test_a_transposed_tensor_is_written_by_rows(tmp_path):
    tensor = torch.arange(6.0).view(2, 3).T
    write_tensors(tmp_path / "t.safetensors", {"t": tensor})
    assert torch.equal(load_file(tmp_path / "t.safetensors")["t"], tensor)
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses a file without it


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"t": torch.ones(2)})

    def full(_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left on device.*What was there before is unharmed"):
        write_tensors(path, {"t": torch.zeros(9)})
    assert torch.equal(load_file(path)["t"], torch.ones(2)) and os.listdir(tmp_path) == ["t.safetensors"]


def test_files_that_are_no_safetensors(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.arange(70)})
    for size in (4, 100, path.stat().st_size - 1):
        os.truncate(path, size)
        with pytest.raises(ValueError, match="t.safetensors is truncated or damaged"), open_tensors(path):
            pass
        write_tensors(path, {"a": torch.arange(70)})
    path.unlink()
    with pytest.raises(ValueError, match="t.safetensors is missing"), open_tensors(path):
        pass


@pytest.fixture
def base(world, tmp_path):
    return shutil.copytree(world.model, tmp_path / "base")


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9999])
def test_truncated_weights(base, share):
    path = base / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated or damaged"):
        Decoder.from_pretrained(base)


def test_missing_weights(base):
    (base / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        Decoder.from_pretrained(base)


def test_a_missing_shard_is_named(base):
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors",
                            "x": "model-00001-of-00002.safetensors"}}
    os.rename(base / "model.safetensors", base / "model-00001-of-00002.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks model-00002-of-00002.safetensors"):
        Decoder.from_pretrained(base)
    index = {"weight_map": {"x": "../../secret.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="in the model's own folder, given .*secret.safetensors"):
        Decoder.from_pretrained(base)


@pytest.mark.parametrize("weight_map", [[], {}, None, 5, {"x": 5}, {"x": None}, {"x": ["a"]}])
def test_a_damaged_index_is_named(base, weight_map):
    (base / "model.safetensors").unlink()
    write_json(base / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(ValueError, match="weight_map must name a file for each tensor"):
        Decoder.from_pretrained(base)


@pytest.mark.parametrize("kind", ["frozen", ""])
def test_names_that_others_write(base, kind):
    """Without `model.`, and a tied embedding that stands under the head's name alone."""
    path, frozen = base / "model.safetensors", "stored" if kind else ""
    weights, logits = load_file(path), Decoder.from_pretrained(base)(IDS)
    save_file({name.removeprefix("model."): tensor for name, tensor in weights.items()}, path)
    assert torch.equal(Decoder.from_pretrained(base, frozen=frozen)(IDS), logits)
    embedding = weights.pop("model.embed_tokens.weight")
    save_file(weights | {"lm_head.weight": embedding}, path)
    assert torch.equal(Decoder.from_pretrained(base, frozen=frozen)(IDS), logits)
    assert stored_types(base)["model.embed_tokens.weight"] == torch.float32
    save_file(weights, path)
    with pytest.raises(ValueError, match="model.embed_tokens.weight: missing"):
        Decoder.from_pretrained(base, frozen=frozen)


def test_a_head_that_config_json_ties_to_another_embedding(base):
    """transformers leaves both apart then; an equal one is redundant."""
    path = base / "model.safetensors"
    weights, logits = load_file(path), Decoder.from_pretrained(base)(IDS)
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, path)
    assert torch.equal(Decoder.from_pretrained(base)(IDS), logits)
    head[3, 4] += 1
    save_file(weights | {"lm_head.weight": head}, path)
    with pytest.raises(ValueError, match="lm_head.weight: differs from the embedding, config.json ties both"):
        Decoder.from_pretrained(base)
    write_json(base / "config.json", read_json(base / "config.json") | {"tie_word_embeddings": False})
    assert not torch.equal(Decoder.from_pretrained(base)(IDS), logits)


def test_misfit_tensors_are_named_all_at_once(base):
    path = base / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 4)
    del weights["model.layers.2.self_attn.q_norm.weight"]
    weights["model.layers.9.input_layernorm.weight"] = torch.zeros(2)
    save_file(weights, path)
    with pytest.raises(ValueError) as error:
        Decoder.from_pretrained(base)
    for expected in (r"model.layers.1.mlp.up_proj.weight: has shape (3, 4), config.json asks for (48, 32)",
                     "model.layers.2.self_attn.q_norm.weight: missing",
                     "model.layers.9.input_layernorm.weight: not part of this model"):
        assert expected in str(error.value)


def test_the_hash_of_weights_is_of_tensors_and_not_of_files(tmp_path):
    """Of one file or of shards, with any header; another name, type, shape or value is another hash."""
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}

    def hash_of(name: str, *files: dict) -> str:
        folder = tmp_path / name
        folder.mkdir()
        if len(files) == 1:
            save_file(files[0], folder / "model.safetensors", {"format": "pt", "made": name})
        else:
            weight_map = {}
            for number, part in enumerate(files):
                save_file(part, folder / f"part-{number}.safetensors")
                weight_map |= dict.fromkeys(part, f"part-{number}.safetensors")
            write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
        return weights_hash(folder)

    whole = hash_of("whole", tensors)
    shards = [{name: tensor} for name, tensor in reversed(tensors.items())]
    assert hash_of("again", tensors) == hash_of("shards", *shards) == whole
    changes = ({"c": tensors["b"].clone()}, {"b": tensors["b"].half()}, {"b": tensors["b"] * 2},
               {"a.weight": tensors["a.weight"].view(3, 2)})
    others = {hash_of(str(number), tensors | change) for number, change in enumerate(changes)}
    assert len(others) == 4 and whole not in others
