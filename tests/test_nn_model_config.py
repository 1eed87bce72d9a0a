"""nanoprune/nn/model_config.py: config.json in both forms of transformers, and what is refused."""

import re

import pytest
import torch
import transformers
from small import SHAPE

from model import Decoder
from nanoprune.nn.model_config import ModelConfig, Part, part_name, read_parts

LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=100.0)


@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_v4_config_form(scaling):
    """transformers 4 wrote rope_theta, rope_scaling and torch_dtype; what is missing takes the family's
    default.
    """
    llama = SHAPE | dict(vocab_size=61, model_type="llama")
    old = dict(llama, rope_theta=100.0, torch_dtype="bfloat16", rms_norm_eps=1e-5,
               rope_scaling=scaling and {k: v for k, v in scaling.items() if k != "rope_theta"})
    new = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
    rope = LLAMA3 if scaling else dict(rope_type="default", rope_theta=100.0)
    new |= dict(dtype="bfloat16", rope_parameters=rope)
    assert ModelConfig.from_dict(old) == ModelConfig.from_dict(new)
    assert ModelConfig.from_dict(dict(llama, rope_theta=None)).rope_theta == 10_000


def test_a_window_that_is_switched_off_is_inert():
    """As published Qwen configs have it; transformers writes such a window as absent."""
    raw = SHAPE | dict(vocab_size=50, sliding_window=5, max_window_layers=0)
    for config in (ModelConfig.from_dict(raw), ModelConfig.from_dict(raw | {"use_sliding_window": False})):
        assert config.sliding_window is None and set(config.layer_types) == {"full_attention"}
    assert ModelConfig.from_dict(raw | {"use_sliding_window": True}).layer_types == ("sliding_attention",) * 3


@pytest.mark.parametrize("change, message", [
    (dict(model_type="gpt2"), "model_type 'gpt2' is not supported; allowed: 'qwen2', 'qwen3', 'llama'"),
    (dict(model_type=None), "model_type None"),
    (dict(hidden_act="gelu"), "hidden_act 'gelu'"),
    (dict(num_hidden_layers=0), "num_hidden_layers must be a whole number of at least 1, given 0"),
    (dict(hidden_size=None), "hidden_size must be a whole number"),
    (dict(num_key_value_heads=3), "key/value heads"),
    (dict(head_dim=7), "even head_dim"),
    (dict(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope scaling"),
    (dict(layer_types=["full_attention"]), "layer_types has 1 entries for 3 blocks"),
    (dict(use_sliding_window=True, sliding_window=5,
          layer_types=["full_attention", "chunked", "full_attention"]),
     "layer_types 'chunked' is not supported; allowed: 'full_attention', 'sliding_attention'"),
])
def test_unsupported_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig.from_dict(SHAPE | {"vocab_size": 9} | change)


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-0.6B-Base", "Qwen2.5-0.5B-Instruct"])
def test_published_configs_have_the_published_size(name, real):
    config = Decoder.read_config(real / "checkpoints" / name)
    with torch.device("meta"):
        size = sum(p.numel() for p in Decoder(config).parameters())
    assert size == {"Qwen2.5-0.5B-Instruct": 494_032_768}.get(name, 596_049_920)
    theirs = transformers.AutoConfig.from_pretrained(real / "checkpoints" / name)
    back = ModelConfig.from_dict(theirs.to_dict())  # as transformers 5 writes it
    for name in ("rope_theta", "head_dim", "layer_types"):
        assert getattr(back, name) == getattr(config, name)


def test_parts_and_their_names():
    config = ModelConfig.from_dict(SHAPE | {"vocab_size": 9})
    parts = read_parts(["2", "0.mlp", 1], config)
    assert parts == [Part(0, "mlp"), Part(1), Part(2)]
    assert [part_name(part) for part in parts] == ["0.mlp", "1", "2"]
