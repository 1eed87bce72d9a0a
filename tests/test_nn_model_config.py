"""nanoprune/nn/model_config.py: config.json in both forms of transformers, and what is refused."""

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from small import SHAPE
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from model import Decoder
from nanoprune.nn.model_config import (
    DECIDED,
    HARMLESS,
    OFF,
    ONE,
    ModelConfig,
    Part,
    part_name,
    read_parts,
)
from nanoprune.nn.pointwise import rope_table

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
    (dict(model_type="gpt2"), "model_type 'gpt2' is not supported; allowed: qwen2, qwen3, llama"),
    (dict(model_type=None), "model_type 'None'"),
    (dict(hidden_act="gelu"), "hidden_act: given 'gelu', must be silu"),
    (dict(num_hidden_layers=0), "num_hidden_layers: given 0, must be from 1 to 1,000"),
    (dict(num_hidden_layers=10**6), "num_hidden_layers: given 1000000, must be from 1 to 1,000"),
    (dict(hidden_size=None), "hidden_size: given None, must be a whole number"),
    (dict(rms_norm_eps=None, rope_scaling="linear"),
     "rms_norm_eps: given None, must be a number; rope_scaling: given 'linear', must be a dict or None"),
    (dict(tie_word_embeddings="false"), "tie_word_embeddings: given 'false', must be true or false"),
    (dict(is_causal=False), "is_causal False is not supported; supported is 1 (true)"),
    (dict(residual_multiplier=0.22), "residual_multiplier 0.22 is not supported"),
    (dict(final_logit_softcapping=30.0), "final_logit_softcapping 30.0 is not supported; remove it"),
    (dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}), "rope scaling"),
    (dict(rope_parameters={"rope_theta": "high"}), "rope_theta: given 'high', must be a number or None"),
    (dict(rope_parameters=LLAMA3 | {"high_freq_factor": 1.0}), "the second below the third"),
    (dict(model_type="llama", use_sliding_window=True, sliding_window=5), "sliding_window 5"),
    (dict(layer_types=["sliding_attention"] * 3), "names sliding_attention, and no sliding_window is in use"),
    (dict(num_key_value_heads=3), "key/value heads"),
    (dict(head_dim=7), "even head_dim"),
    (dict(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope scaling"),
    (dict(layer_types=["full_attention"]), "layer_types has 1 entries for 3 blocks"),
    (dict(use_sliding_window=True, sliding_window=5,
          layer_types=["full_attention", "chunked", "full_attention"]),
     "layer_types: given ('full_attention', 'chunked', 'full_attention'), must be full_attention or "
     "sliding_attention, each"),
])
def test_unsupported_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig.from_dict(SHAPE | {"vocab_size": 9} | change)


ROPES = [
    dict(rope_theta=1e4, rope_parameters={"rope_theta": 1e6, "rope_type": "default"}),
    dict(rope_theta=1e4, rope_scaling=LLAMA3), dict(rope_parameters={"rope_type": "default"}, rope_theta=5e4),
    dict(rope_scaling={"type": "default"}, rope_parameters={"rope_theta": 1e6, "rope_type": "default"}),
    dict(rope_parameters=LLAMA3, original_max_position_embeddings=64),
    dict(rope_parameters={k: v for k, v in LLAMA3.items() if not k.startswith("original")}), dict()]


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_positions_are_transformers(rope):
    """Of what is given twice or not at all, transformers decides which counts."""
    raw = SHAPE | dict(model_type="llama", vocab_size=61)
    raw = {k: v for k, v in raw.items() if k != "rope_theta"} | rope
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**copy.deepcopy(raw)))
    positions = torch.arange(100)[None]
    cos, sin = theirs(torch.zeros(1), positions)
    sin[..., : sin.shape[-1] // 2] *= -1
    for ours, table in zip(rope_table(ModelConfig.from_dict(raw), positions), (cos, sin), strict=True):
        torch.testing.assert_close(ours, table, rtol=0, atol=1e-5)


SISTERS = ("apertus arcee cohere cohere2 cwm diffllama ernie4_5 exaone4 falcon gemma gemma2 gemma3 glm glm4 "
           "granite helium hunyuan_v1_dense llama llama4 ministral mistral mixtral nemotron olmo olmo2 olmo3 "
           "persimmon phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2").split()
# of an image's parts, of a class's methods, or another name of a key on a list
ELSEWHERE = {"get_text_config", "image_token_id", "mm_tokens_per_image", "image_size", "patch_size",
             "num_channels", "pixel_shuffle_ratio", "projector_dropout", "projector_input_dim",
             "projector_output_dim", "json", "_is_quantized"}


def test_every_key_that_transformers_reads_is_on_a_list():
    """Of the sister architectures, and of what they share."""
    folder = Path(transformers.__file__).parent
    files = [folder / "models" / name / f"modeling_{name}.py" for name in SISTERS]
    code = "".join(path.read_text() for path in files if path.is_file())
    found = set(re.findall(r"config(?:\.|, *\")([a-z_0-9]+)", code))
    assert len(found) > 60 and found - {*DECIDED, *OFF, *ONE, *HARMLESS} <= ELSEWHERE


def test_keys_without_effect_are_kept_and_named_once(tmp_path, capsys):
    """As SmolLM2's and Unsloth's published configs have them."""
    unread = {"is_llama_config": True, "rope_interleaved": False, "unsloth_fixed": True,
              "transformers.js_config": {"dtype": "q4"}, "attention_chunk_size": None,
              "residual_multiplier": 1.0}
    raw = SHAPE | {"vocab_size": 9, "eos_token_id": [1, 2], "use_cache": True} | unread
    for _ in range(2):
        config = ModelConfig.from_dict(raw, str(tmp_path))
    assert config.to_dict(torch.float32).items() >= (unread | {"eos_token_id": [1, 2]}).items()
    assert capsys.readouterr().err == (f"note: {tmp_path}: kept, and not read by any library for this model: "
                                       "is_llama_config, transformers.js_config, unsloth_fixed\n")


@pytest.mark.parametrize("blocks", [[0, 1], [0, 1, 2, 3], [0, 1, 10**12], [2, 1, 0], [0, 1, 1], [-1, 0, 1],
                                    []])
def test_numbers_of_blocks_that_another_tool_removed_are_dropped(blocks, capsys):
    raw = SHAPE | {"vocab_size": 9, "nanoprune_blocks": blocks, "nanoprune_history": [{"original": "1"}]}
    config = ModelConfig.from_dict(raw)
    assert config.blocks == (0, 1, 2) and "nanoprune_history" not in config.extra
    assert "does not fit 3 blocks, which another tool changed" in capsys.readouterr().err
    config = ModelConfig.from_dict(raw | {"nanoprune_blocks": [0, 2, 3]})
    assert config.blocks == (0, 2, 3) and config.extra["nanoprune_history"] == [{"original": "1"}]


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-0.6B-Base", "Qwen2.5-0.5B-Instruct"])
def test_published_configs_have_the_published_size(name, real):
    config = ModelConfig.read(real / "checkpoints" / name)
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
