"""nanoprune/nn/nf4.py: four bits against bitsandbytes, and bases that are kept in them."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import IDS, random_base, read_rows, run_main

from model import Decoder
from nanoprune.io.files import read_json, write_json
from nanoprune.nn.lora import FrozenLinear, save_quantised
from nanoprune.nn.nf4 import NF4, STATE, dequantise, quantise
from train import train


@pytest.mark.parametrize("shape, dtype", [((1024, 2048), torch.bfloat16), ((896, 4864), torch.float32),
                                          ((96, 64), torch.float32), ((300, 1024), torch.bfloat16),
                                          ((9, 15), torch.float32),
                                          ((64, 64), torch.float16), ((129, 130), torch.bfloat16)])
def test_codes_and_values_are_bitsandbytes(shape, dtype):
    import bitsandbytes.functional as bnb

    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 0.05).to(dtype)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    q = quantise(weight)
    assert q.codes.shape == codes.shape
    same = (q.codes == codes).flatten()
    scales = (q.absmax == state.absmax.flatten())
    assert float(same.float().mean()) >= 0.9999 and scales.all()
    torch.testing.assert_close(q.offset, state.offset, rtol=1e-6, atol=0)
    state.dtype, state.offset = torch.float32, q.offset
    theirs, ours = bnb.dequantize_4bit(codes, state).flatten(), dequantise(q, shape).flatten()
    agree = same.repeat_interleave(2)[: len(ours)] & scales.repeat_interleave(64)[: len(ours)]
    assert torch.equal(theirs[agree], ours[agree]) and agree.any()


def test_four_bits_and_back():
    """Every value is at most half a gap off; what is on the grid stays."""
    weight = torch.randn(128, 96, generator=torch.Generator().manual_seed(1))
    q = quantise(weight)
    back = dequantise(q, weight.shape)
    largest = weight.view(-1, 64).abs().amax(1, keepdim=True)
    gap = max(b - a for a, b in zip(NF4, NF4[1:], strict=False)) / 2
    assert ((back - weight).view(-1, 64).abs() <= (gap + 0.02) * largest).all()
    again = quantise(back)
    assert torch.equal(again.codes, q.codes)
    assert torch.equal(dequantise(quantise(torch.zeros(64, 2)), (64, 2)), torch.zeros(64, 2))
    with pytest.raises(ValueError, match="quantised already"):
        quantise(q.codes)


def test_other_four_bits_are_refused(tmp_path):
    save_quantised(Decoder.from_pretrained(random_base(tmp_path / "b"), frozen="nf4"), tmp_path / "q")
    config = read_json(tmp_path / "q" / "config.json")
    config["quantization_config"]["bnb_4bit_quant_type"] = "fp4"
    write_json(tmp_path / "q" / "config.json", config)
    with pytest.raises(ValueError, match="quantised in another way than nanoprune reads .*'fp4'"):
        Decoder.from_pretrained(tmp_path / "q")


def test_layers_that_are_left_out_of_four_bits(tmp_path):
    """As Unsloth's folders name them in llm_int8_skip_modules."""
    from transformers import AutoModelForCausalLM

    shape = dict(hidden_size=64, intermediate_size=128, head_dim=16)
    base = random_base(tmp_path / "b", **shape)
    save_quantised(Decoder.from_pretrained(base, frozen="nf4"), tmp_path / "q")
    path, config = tmp_path / "q" / "model.safetensors", read_json(tmp_path / "q" / "config.json")
    config["quantization_config"]["llm_int8_skip_modules"] = ["lm_head", "model.layers.1.mlp", "v_proj"]
    write_json(tmp_path / "q" / "config.json", config)
    plain = {key: tensor for key, tensor in load_file(base / "model.safetensors").items()
             if "layers.1.mlp." in key or "v_proj" in key}
    four_bits = {key: tensor for key, tensor in load_file(path).items()
                 if not any(key.startswith(name) for name in plain)}
    save_file(four_bits | plain, path, {"format": "pt"})
    model = Decoder.from_pretrained(tmp_path / "q")
    assert model.model.layers[1].mlp.up_proj.weight is not None
    assert model.model.layers[0].mlp.up_proj.weight is None
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32).train()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), rtol=0, atol=1e-4)
    config["quantization_config"]["llm_int8_skip_modules"] = "lm_head"
    write_json(tmp_path / "q" / "config.json", config)
    with pytest.raises(ValueError, match="llm_int8_skip_modules: given 'lm_head', must be"):
        Decoder.from_pretrained(tmp_path / "q")


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_reads_the_quantised_base(tmp_path, dtype, kind):
    from transformers import AutoModelForCausalLM

    shape = dict(hidden_size=64, intermediate_size=128, head_dim=16, model_type=kind,
                 tie_word_embeddings=kind != "qwen2")
    model = Decoder.from_pretrained(random_base(tmp_path / "b", dtype, **shape), frozen="nf4")
    save_quantised(model, tmp_path / "q")
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    assert {tensor.dtype for key, tensor in tensors.items() if "norm.weight" in key} == {dtype}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=dtype)
    theirs.train()  # otherwise bitsandbytes multiplies in bf16 on CPUs with units for it, whatever the type
    with torch.no_grad():
        tolerance = 1e-4 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(theirs(IDS).logits.float(), model(IDS), rtol=0, atol=tolerance)


def test_training_goes_on_from_a_quantised_base(world, tmp_path, monkeypatch, capsys):
    quantise = ("nanoprune", "quantise", world.model, "--out", tmp_path / "q")
    code, _, err = run_main(monkeypatch, capsys, *quantise)
    assert code == 0, err
    losses = []
    for name, changes in (("made", {"frozen": "nf4"}), ("read", {"base": str(tmp_path / "q")})):
        config = world.config(tmp_path, name=name, lora="q_proj,v_proj", **changes)
        assert train(config)
        losses.append([row["loss"] for row in read_rows(config.folder / "train.csv")])
        model = Decoder.from_pretrained(config.folder / "model")
        assert isinstance(model.model.layers[0].self_attn.q_proj, FrozenLinear)
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="is quantised already"):
        train(replace(config, name="twice", frozen="nf4"))
    with pytest.raises(ValueError, match="is quantised: its weights cannot be changed"):
        train(world.config(tmp_path, name="whole", base=str(tmp_path / "q")))


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    folder = random_base(tmp_path / "b")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.up_proj.weight: .* not finite"):
        Decoder.from_pretrained(folder, frozen="nf4")


def described(tensors: dict, **change) -> dict:
    """The tensors with another description of one matrix."""
    name = f"model.layers.0.mlp.up_proj.{STATE}"
    state = json.loads(bytes(tensors[name].tolist())) | change
    return tensors | {name: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}


@pytest.mark.parametrize("spoil, message", [
    (lambda t, n: {f"{n}.absmax": t[f"{n}.absmax"].to(torch.int8)}, "are damaged"),
    (lambda t, n: {f"{n}.nested_absmax": t[f"{n}.nested_absmax"] * float("nan")}, "are damaged"),
    (lambda t, n: {f"{n}.nested_absmax": t[f"{n}.nested_absmax"].int()}, "are damaged"),
    (lambda t, n: {f"{n}.quant_map": t[f"{n}.quant_map"].flip(0)}, "stand for other values than NF4's"),
    (lambda t, n: described(t, nested_offset=10**400), "description of its four bits is damaged"),
    (lambda t, n: described(t, nested_offset=float("nan")), "are damaged"),
    (lambda t, n: described(t, blocksize=128), "expected nf4 in groups of 64"),
    (lambda t, n: {f"{n}.{STATE.removeprefix('weight.')}": torch.zeros(3, dtype=torch.uint8)},
     "description of its four bits"),
])
def test_damaged_four_bits_are_named(tmp_path, spoil, message):
    save_quantised(Decoder.from_pretrained(random_base(tmp_path / "b"), frozen="nf4"), tmp_path / "q")
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | spoil(tensors, "model.layers.0.mlp.up_proj.weight"), path)
    with pytest.raises(ValueError, match=message):
        Decoder.from_pretrained(tmp_path / "q")


def test_a_config_that_says_it_is_not_quantised(tmp_path):
    folder = random_base(tmp_path / "b")
    write_json(folder / "config.json", read_json(folder / "config.json") | {"quantization_config": None})
    assert torch.equal(Decoder.from_pretrained(folder)(IDS), Decoder.from_pretrained(folder)(IDS))
