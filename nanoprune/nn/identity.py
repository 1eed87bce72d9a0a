"""Everything in a model's folder that decides its outputs: what is kept on the disk is found again by it."""

from dataclasses import asdict, replace
from pathlib import Path

from nanoprune.io.files import file_hash, json_hash
from nanoprune.io.tensors import weights_hash
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.peft import base_folder, is_adapter, read_adapter


def model_identity(folder: Path) -> dict:
    """Hashes of a model's tensors and settings, without names and paths; of an adapter's and of its base's.

    The weights are hashed by tensor, so that other shards of the same are the same model.
    """
    if not is_adapter(folder):
        return {"weights": weights_hash(folder), "model": ModelConfig.read(folder).fingerprint()}
    adapter = read_adapter(folder)
    placed = replace(adapter.base, base="", revision=None, base_sha256={})
    return {"adapter": file_hash(folder / "adapter_model.safetensors"),
            "settings": json_hash([asdict(adapter.settings), asdict(placed)]),
            "base": model_identity(base_folder(adapter))}
