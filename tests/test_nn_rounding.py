"""Matrices rounded and put back."""

import pytest
import torch
from small import random_base

from model import Decoder
from nanoprune.nn.lora import frozen_layers
from nanoprune.nn.rounding import round_matrices, stored_bytes


def test_a_base_in_four_bits_is_stored_in_four_bits(tmp_path):
    base = random_base(tmp_path / "base")
    whole, quantised = Decoder.from_pretrained(base), Decoder.from_pretrained(base, frozen="nf4")
    assert stored_bytes(quantised) == round_matrices(whole, "nf4")


def test_int8_by_rows_is_the_nearest_of_255_multiples_of_a_rows_scale(tmp_path):
    model = Decoder.from_pretrained(random_base(tmp_path / "base"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = round_matrices(model, "int8")
    expected = 0
    for name, tensor in model.state_dict().items():
        if ".layers." in name and tensor.dim() == 2:
            scale = before[name].abs().amax(1, keepdim=True) / 127
            steps = tensor / scale
            assert torch.allclose(steps, steps.round(), atol=1e-3) and steps.abs().max() <= 127.001
            assert ((tensor - before[name]).abs() <= scale / 2 * 1.001).all()
            assert not torch.equal(tensor, before[name])
            expected += tensor.numel() + 4 * len(tensor)
        else:
            assert torch.equal(tensor, before[name]), name
            expected += 2 * tensor.numel()
    assert size == expected < stored_bytes(model)


def test_nf4_rounds_as_the_quantised_model_does(tmp_path):
    base = random_base(tmp_path / "base")
    model, frozen = Decoder.from_pretrained(base), Decoder.from_pretrained(base, frozen="nf4")
    size = round_matrices(model, "nf4")
    layers = frozen_layers(frozen)
    for name, layer in layers.items():
        assert torch.equal(model.get_submodule(name).weight, layer.as_type(torch.float32)), name
    bits = sum(part.numel() * part.itemsize for layer in layers.values() for part in layer.quantised)
    matrices = sum(model.get_submodule(name).weight.numel() for name in layers)
    assert size == stored_bytes(model) - 2 * matrices + bits
    assert 8 * bits / matrices == pytest.approx(4.2, abs=0.2)
