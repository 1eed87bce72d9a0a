"""Adapters for tests: as if trained, on a small random base."""

from pathlib import Path

import torch
from small import IDS, random_base

from model import Decoder
from nanoprune.nn.lora import LoraSettings, add_lora, frozen_layers
from nanoprune.nn.model_config import read_parts
from nanoprune.nn.peft import save_adapter

DOCUMENTS = torch.zeros(2, 16, dtype=torch.int64)


def shake(model: Decoder, scale: float = 0.1) -> None:
    """Give the adapters values as if they were trained: B is no longer zero."""
    generator = torch.Generator().manual_seed(9)
    for layer in frozen_layers(model).values():
        if layer.adapted:
            layer.lora_B.data.copy_(torch.randn(layer.lora_B.shape, generator=generator) * scale)


def adapted_model(base: Path, pattern: str, frozen: str = "stored", drop: tuple = (), **settings) -> Decoder:
    """A frozen base without some blocks, with adapters as if trained."""
    model = Decoder.from_pretrained(base, frozen=frozen)
    model.drop_blocks(read_parts(drop, model.config))
    model.base.dropped = list(drop)
    add_lora(model, pattern, LoraSettings(**settings))
    shake(model)
    return model


def adapter_of_reduced_base(folder: Path) -> tuple[Path, Path, Decoder]:
    """(base, adapter, its model) where the adapter was trained without block 1."""
    model = adapted_model(random_base(folder / "base"), "q_proj,v_proj", drop=(1,), rank=4)
    save_adapter(model, folder / "adapter")
    return folder / "base", folder / "adapter", model.eval()


def loss_of(model: Decoder) -> torch.Tensor:
    return model(IDS[:, :-1], IDS[:, 1:], DOCUMENTS)
