"""nanoprune/nn/packed.py: packed matrices give the plain form's numbers, and leave the model as it was."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from small import SHAPE
from torch import nn

from model import Decoder
from nanoprune.device import fast_bfloat16
from nanoprune.nn import sampling
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.packed import PackedLinear, pack, packed
from nanoprune.nn.sampling import generate


@pytest.fixture(autouse=True)
def units():
    if not fast_bfloat16(torch.device("cpu")):
        pytest.skip("this CPU has no units for bf16: nothing is packed")


def random_model(dtype: torch.dtype = torch.bfloat16, **settings) -> Decoder:
    torch.manual_seed(0)
    return Decoder(ModelConfig.from_dict(SHAPE | {"vocab_size": 256} | settings)).to(dtype).eval()


@pytest.mark.parametrize("rows", [(1,), (2, 3), (70,)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_is_the_plain_one(rows, bias):
    torch.manual_seed(0)
    plain = nn.Linear(96, 80, bias=bias)
    x = torch.randn(*rows, 96)
    packed_layer = PackedLinear(plain.weight, plain.bias)
    with torch.no_grad():
        found, expected = packed_layer(x), F.linear(x.bfloat16(), plain.weight.bfloat16(),
                                                    plain.bias.bfloat16() if bias else None)
    assert found.dtype == torch.bfloat16 and found.shape == (*rows, 80)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.float(), plain(x).detach(), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_text_is_the_plain_forms(tied, autocast, monkeypatch):
    """Every matrix is packed, the head too, and afterwards none is."""
    model = random_model(torch.float32 if autocast else torch.bfloat16, tie_word_embeddings=tied)
    names, layers = list(model.state_dict()), list(model.modules())
    prompts, seen = [[5, 6, 7, 8], [9, 3]], []
    model.model.norm.register_forward_hook(lambda *_: seen.append(
        {type(m) for m in model.modules() if isinstance(m, nn.Linear | PackedLinear)}))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        text = generate(model, prompts, 12)
        ids = torch.tensor([prompts[0] * 5])
        with torch.no_grad():
            plain = model(ids)
            with packed(model):
                torch.testing.assert_close(model(ids), plain)
        assert seen[0] == {PackedLinear} and list(model.modules()) == layers
        assert list(model.state_dict()) == names and model.config.tie_word_embeddings == tied
        monkeypatch.setattr(sampling, "packed", lambda model: torch.no_grad())
        assert generate(model, prompts, 12) == text


def test_nothing_is_packed_in_fp32_nor_in_layers_of_other_kinds():
    model = random_model(torch.float32)
    with packed(model):
        assert not any(isinstance(module, PackedLinear) for module in model.modules())

    class Scaled(nn.Linear):
        """A layer with an effect of its own."""

    model = random_model()
    first, second = (block.mlp for block in model.model.layers[:2])
    first.up_proj = Scaled(8, 8)
    with packed(model):
        assert type(first.up_proj) is Scaled
        assert type(first.gate_proj) is type(first.down_proj) is PackedLinear
        assert second.gate_proj is second.up_proj is None
    assert "project" not in vars(second)


def test_a_packed_model_keeps_no_matrix_but_the_embedding():
    model = random_model()
    matrices = [weakref.ref(parameter) for name, parameter in model.named_parameters() if "proj" in name]
    expected = generate(model, [[5, 6, 7]], 8)
    pack(model)
    assert not any(matrix() for matrix in matrices) and generate(model, [[5, 6, 7]], 8) == expected
    assert type(model.lm_head) is PackedLinear


def test_a_model_is_whole_again_after_an_error():
    model = random_model()
    layers = list(model.modules())
    with pytest.raises(ZeroDivisionError), packed(model):
        raise ZeroDivisionError
    assert list(model.modules()) == layers
