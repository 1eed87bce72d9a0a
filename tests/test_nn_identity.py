"""nanoprune/nn/identity.py: the same for what gives the same outputs, another for all else."""

import json
import shutil

import pytest
import torch
from adapters import adapter_of_reduced_base
from safetensors.torch import load_file, save_file
from small import random_base

from nanoprune.io.files import read_json, write_json
from nanoprune.nn.identity import model_identity


def change_json(path, **changes) -> None:
    write_json(path, read_json(path) | changes)


def change_tensor(path) -> None:
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, {"format": "pt"})


def test_a_model_is_its_weights_and_what_it_does_with_them(tmp_path):
    base = random_base(tmp_path / "base")
    identity = model_identity(base)
    shards = shutil.copytree(base, tmp_path / "shards")  # the same in two files, with a name and a history
    tensors = load_file(shards / "model.safetensors")
    (shards / "model.safetensors").unlink()
    parts = {"one.safetensors": sorted(tensors)[:5], "two.safetensors": sorted(tensors)[5:]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, shards / file)
    write_json(shards / "model.safetensors.index.json",
               {"weight_map": {name: file for file, names in parts.items() for name in names}})
    change_json(shards / "config.json", _name_or_path="no-such", nanoprune_history=[{"base": "no-such"}])
    assert model_identity(shards) == identity
    for change in ({"rope_theta": 999.0}, {"rms_norm_eps": 1e-3}, {"nanoprune_blocks": [0, 2, 4]}):
        other = shutil.copytree(base, tmp_path / "other", dirs_exist_ok=True)
        change_json(other / "config.json", **change)
        assert model_identity(other) != identity, change
    shutil.copy(base / "config.json", other)
    assert model_identity(other) == identity
    change_tensor(other / "model.safetensors")
    assert model_identity(other) != identity
    assert model_identity(random_base(tmp_path / "bf16", torch.bfloat16)) != identity


@pytest.mark.parametrize("change", [
    lambda base, adapter: change_json(adapter / "adapter_config.json", lora_alpha=99),
    lambda base, adapter: change_json(adapter / "adapter_config.json", use_rslora=True),
    lambda base, adapter: change_json(adapter / "nanoprune.json", dropped=[0], blocks=[1, 2]),
    lambda base, adapter: change_json(adapter / "nanoprune.json", frozen="nf4"),
    lambda base, adapter: change_tensor(adapter / "adapter_model.safetensors"),
    lambda base, adapter: change_tensor(base / "model.safetensors"),
    lambda base, adapter: change_json(base / "config.json", rope_theta=999.0)])
def test_an_adapter_is_its_matrices_their_scale_and_its_base(tmp_path, change):
    base, adapter, _ = adapter_of_reduced_base(tmp_path)
    identity = model_identity(adapter)
    moved = base.rename(tmp_path / "moved")
    change_json(adapter / "nanoprune.json", base=str(moved))
    assert model_identity(adapter) == identity == json.loads(json.dumps(identity))
    change(moved, adapter)
    assert model_identity(adapter) != identity
