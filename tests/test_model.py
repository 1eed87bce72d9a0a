"""model.py against transformers, and its fast paths against plain ones."""

import json
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small import ROOT, SHAPE

from model import Decoder
from nanoprune.io.files import write_json
from nanoprune.nn.attention import KeyValueCache, document_positions
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.pointwise import rope_table

BASE = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64)
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16,
              rope_theta=100.0)
WINDOW = dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)
VARIANTS = {
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen2 tied": (transformers.Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen2 sliding": (transformers.Qwen2Config, WINDOW),
    "qwen2 one head each": (transformers.Qwen2Config, dict(num_key_value_heads=4)),
    "qwen3": (transformers.Qwen3Config, dict(head_dim=16)),
    "qwen3 tied": (transformers.Qwen3Config, dict(head_dim=6, tie_word_embeddings=True)),
    "qwen3 biased": (transformers.Qwen3Config, dict(head_dim=16, attention_bias=True)),
    "qwen3 sliding": (transformers.Qwen3Config, dict(head_dim=16) | WINDOW),
    "qwen3 window off": (transformers.Qwen3Config, dict(head_dim=16, sliding_window=5, use_sliding_window=False)),
    "qwen3 mixed layers": (transformers.Qwen3Config, dict(head_dim=16) | WINDOW | dict(
        layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "llama": (transformers.LlamaConfig, {}),
    "llama tied": (transformers.LlamaConfig, dict(tie_word_embeddings=True, num_key_value_heads=1)),
    "llama biased": (transformers.LlamaConfig, dict(attention_bias=True, mlp_bias=True)),
    "llama free head_dim": (transformers.LlamaConfig, dict(head_dim=12)),
    "llama3 rope": (transformers.LlamaConfig, dict(rope_parameters=LLAMA3)),
    "theta": (transformers.LlamaConfig, dict(rope_parameters=dict(rope_type="default", rope_theta=123.0))),
}


def reference(variant: str) -> transformers.PreTrainedModel:
    """transformers' own model, all weights random: initial biases of zero and norms of one would hide mistakes."""
    kind, changes = VARIANTS[variant]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**(BASE | changes)), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (1 if "norm" in name else 0))
    return model


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the reference's scale."""
    assert ours.shape == theirs.shape
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error < tolerance, f"off by {error:.1e} of the scale"


IDS = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_equals_transformers(variant, tmp_path):
    theirs = reference(variant)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Decoder.from_pretrained(tmp_path / "theirs")
    assert_close(ours(IDS), theirs(IDS).logits)
    loss = F.cross_entropy(theirs(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    assert float(ours(IDS[:, :-1], IDS[:, 1:])) == pytest.approx(float(loss), rel=1e-5)
    # and back, written by us
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(again) is type(theirs)
    assert_close(again(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_cache_equals_full_forward(variant, tmp_path):
    reference(variant).save_pretrained(tmp_path)
    model = Decoder.from_pretrained(tmp_path)
    full, cache = model(IDS), KeyValueCache(model.config, 2, 20)
    steps = [model(IDS[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 12), (12, 13), (13, 20))]
    assert_close(torch.cat(steps, 1), full)
    assert_close(model.last_logits(IDS, KeyValueCache(model.config, 2, 20)), full[:, -1])


@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_v4_config_form(scaling, tmp_path):
    """transformers 4 wrote rope_theta, rope_scaling and torch_dtype; what is missing takes the family's default."""
    old = dict(BASE, model_type="llama", rope_theta=100.0, torch_dtype="bfloat16", rms_norm_eps=1e-5,
               rope_scaling=scaling and {k: v for k, v in scaling.items() if k != "rope_theta"})
    new = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
    new |= dict(dtype="bfloat16", rope_parameters=LLAMA3 if scaling else dict(rope_type="default", rope_theta=100.0))
    assert ModelConfig.from_dict(old) == ModelConfig.from_dict(new)
    assert ModelConfig.from_dict(dict(BASE, model_type="llama")).rope_theta == 10_000


def test_a_window_that_is_switched_off_is_inert():
    """As published Qwen configs have it; transformers writes such a window as absent."""
    raw = SHAPE | dict(vocab_size=50, sliding_window=5, max_window_layers=0)
    for config in (ModelConfig.from_dict(raw), ModelConfig.from_dict(raw | {"use_sliding_window": False})):
        assert config.sliding_window is None and set(config.layer_types) == {"full_attention"}
    assert ModelConfig.from_dict(raw | {"use_sliding_window": True}).layer_types == ("sliding_attention",) * 3


@torch.no_grad()
def test_layouts_of_weights(tmp_path):
    """Sharded, bf16 and with a redundant tied head: all give the same model."""
    theirs = reference("qwen3 tied")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    theirs.save_pretrained(tmp_path / "single")
    for folder in ("sharded", "single"):
        assert_close(Decoder.from_pretrained(tmp_path / folder)(IDS), theirs(IDS).logits)
    path = tmp_path / "single" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, path)
    assert_close(Decoder.from_pretrained(tmp_path / "single")(IDS), theirs(IDS).logits)
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, path)
    rounded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "single", dtype=torch.float32)
    assert_close(Decoder.from_pretrained(tmp_path / "single")(IDS), rounded(IDS).logits)
    half = Decoder.from_pretrained(tmp_path / "single", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_close(Decoder.from_pretrained(tmp_path / "half")(IDS), rounded(IDS).logits)


@pytest.mark.parametrize("name", ["hf_stories260K_llama", "hf_stories260K_qwen2", "hf_babyllama105_llama", "press-qwen3-4m"])
@torch.no_grad()
def test_trained_checkpoints_equal_transformers(name, real):
    folder = real / "checkpoints" / name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, theirs.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    assert_close(Decoder.from_pretrained(folder)(ids), theirs(ids).logits)


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-0.6B-Base", "Qwen2.5-0.5B-Instruct"])
def test_published_configs_have_the_published_size(name, real):
    config = Decoder.read_config(real / "checkpoints" / name)
    with torch.device("meta"):
        size = sum(p.numel() for p in Decoder(config).parameters())
    assert size == {"Qwen2.5-0.5B-Instruct": 494_032_768}.get(name, 596_049_920)
    theirs = transformers.AutoConfig.from_pretrained(real / "checkpoints" / name)
    back = ModelConfig.from_dict(theirs.to_dict())  # as transformers 5 writes it
    assert (back.rope_theta, back.head_dim, back.layer_types) == (config.rope_theta, config.head_dim, config.layer_types)


def test_rope_of_llama_3_equals_transformers():
    """At the published values, where all three ranges of wavelengths occur."""
    scaling = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=8192, rope_theta=500000.0)
    raw = dict(BASE, hidden_size=256, max_position_embeddings=131072, rope_parameters=scaling)
    rope = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**raw))
    positions = torch.tensor([[0, 1, 77, 8191, 100_000]])
    cos, sin = rope(torch.zeros(1), positions)
    ours = rope_table(ModelConfig.from_dict(raw | {"model_type": "llama"}), positions)
    torch.testing.assert_close(ours[0], cos, rtol=0, atol=2e-2)  # fp32 angles of 100,000 radians
    torch.testing.assert_close(ours[0][:, :3], cos[:, :3], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[1][:, :3], sin[:, :3], rtol=0, atol=1e-5)


def tiny(**changes) -> Decoder:
    torch.manual_seed(0)
    return Decoder(ModelConfig.from_dict(SHAPE | {"vocab_size": 50, "initializer_range": 0.3} | changes))


@pytest.mark.parametrize("window", [None, 3])
def test_packed_documents_equal_separate_ones(window):
    """Loss and gradients of a packed row are those of its documents alone, in fp64."""
    model = tiny(use_sliding_window=window is not None, sliding_window=window, max_window_layers=1).double()
    lengths = [5, 1, 9, 2]
    rows = [torch.randint(0, 50, (1, n + 1), generator=torch.Generator().manual_seed(n)) for n in lengths]
    apart = sum(model(row[:, :-1], row[:, 1:], reduction="sum") for row in rows)
    expected = torch.autograd.grad(apart, list(model.parameters()))
    ids, targets = (torch.cat([row[:, part] for row in rows], 1) for part in (slice(None, -1), slice(1, None)))
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    packed = model(ids, targets, documents, reduction="sum")
    assert packed.item() == pytest.approx(apart.item(), rel=1e-12)
    for found, wanted in zip(torch.autograd.grad(packed, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_positions_restart_with_each_document(rows):
    width = max(map(len, rows))
    documents = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows])
    for row, positions in zip(documents.tolist(), document_positions(documents).tolist(), strict=True):
        expected = [0]
        for before, now in zip(row, row[1:], strict=False):
            expected.append(expected[-1] + 1 if now == before else 0)
        assert positions == expected


def test_nothing_counted_is_a_loss_of_zero():
    assert tiny()(torch.zeros(1, 4, dtype=torch.int64), torch.full((1, 4), -100)).item() == 0


def test_model_under_autocast_stays_close():
    model, ids = tiny(), torch.randint(0, 50, (2, 30))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids[:, :-1], ids[:, 1:], torch.zeros(2, 29, dtype=torch.int64))
    assert loss.item() == pytest.approx(model(ids[:, :-1], ids[:, 1:]).item(), rel=0.05)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("change, message", [
    (dict(model_type="gpt2"), "model_type 'gpt2' is not supported; supported are qwen2, qwen3 and llama"),
    (dict(model_type=None), "model_type None"),
    (dict(hidden_act="gelu"), "hidden_act 'gelu'"),
    (dict(num_hidden_layers=0), "num_hidden_layers must be a whole number of at least 1, given 0"),
    (dict(hidden_size=None), "hidden_size must be a whole number"),
    (dict(num_key_value_heads=3), "key/value heads"),
    (dict(head_dim=7), "even head_dim"),
    (dict(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope scaling"),
    (dict(layer_types=["full_attention"]), "layer_types has 1 entries for 3 blocks"),
    (dict(WINDOW, layer_types=["full_attention", "chunked", "full_attention"]), "layer_types ['chunked'] not supported"),
])
def test_unsupported_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig.from_dict(SHAPE | {"vocab_size": 9} | change)


def test_unknown_entries_of_a_config_survive(tmp_path):
    model = tiny(bos_token_id=1, eos_token_id=[2, 3], house="of cards")
    model.generation_config = {"eos_token_id": 4}
    model.save_pretrained(tmp_path)
    again = Decoder.from_pretrained(tmp_path)
    assert again.config == model.config and again.stop_tokens == {2, 3, 4}
    assert json.loads((tmp_path / "config.json").read_text())["house"] == "of cards"
    write_json(tmp_path / "generation_config.json", {})
    assert Decoder.from_pretrained(tmp_path).stop_tokens == {2, 3}


def test_loading_does_not_import_the_compiler(tmp_path):
    """It takes longer than all the rest of torch, and every script would wait for it."""
    tiny().save_pretrained(tmp_path)
    code = (f"import sys; from model import Decoder; Decoder.from_pretrained({str(tmp_path)!r})\n"
            "print('torch._dynamo' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
