"""nanoprune/nn/lora.py: adapters against plain autograd, alone and in a run of train.py."""

import re

import pytest
import torch
from adapters import adapted_model, loss_of
from safetensors import safe_open
from small import IDS, TIMING, random_base, read_rows, run_main
from torch import nn

from model import Decoder
from nanoprune.config import IGNORE
from nanoprune.io.files import file_hash
from nanoprune.nn.lora import (
    FrozenLinear,
    LoraSettings,
    add_lora,
    count_parameters,
    frozen_layers,
    matching_layers,
    merge,
)
from nanoprune.nn.losses import head_logits, head_loss
from nanoprune.nn.model_config import read_parts
from nanoprune.nn.peft import save_adapter
from nanoprune.nn.scratch import SavedActivations
from nanoprune.training import run_folder
from train import train


# ---------------------------------------------------------------- adapters
@pytest.mark.parametrize("shape", [
    {}, {"model_type": "qwen2", "tie_word_embeddings": False}, {"model_type": "llama"}])
def test_gradients_are_those_of_autograd_on_merged_weights(tmp_path, shape):
    """d loss / d A = s B^T G and d loss / d B = s G A^T, with autograd's G of the merged weight in fp64."""
    base = random_base(tmp_path / "b", **shape)
    model, oracle = (adapted_model(base, "all", rank=3, alpha=5.0) for _ in range(2))
    with SavedActivations():
        loss_of(model).backward()
    merge(oracle)
    oracle = oracle.double().requires_grad_(True)
    logits = oracle(IDS[:, :-1])
    nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten()).backward()
    for name, layer in frozen_layers(model).items():
        G, s = oracle.get_submodule(name).weight.grad, 5.0 / 3
        for got, want in ((layer.lora_A.grad, s * layer.lora_B.double().t() @ G),
                          (layer.lora_B.grad, s * G @ layer.lora_A.double().t())):
            torch.testing.assert_close(got.double(), want, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("recompute", ["none", "pointwise", "blocks"])
def test_an_adapter_adds_nothing_until_it_is_trained(tmp_path, recompute):
    plain = Decoder.from_pretrained(random_base(tmp_path / "b"))
    model = Decoder.from_pretrained(tmp_path / "b", frozen="stored")
    add_lora(model, "q_proj,v_proj", LoraSettings())
    model.recompute = recompute
    torch.testing.assert_close(loss_of(model), loss_of(plain), rtol=1e-6, atol=0)
    loss_of(model).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    layers = matching_layers(model, "q_proj,v_proj")
    assert trained == {f"{name}.lora_{part}" for name in layers for part in "AB"}
    total = sum(p.numel() for p in model.parameters())
    assert count_parameters(model) == (total, 3 * 8 * (32 + 32 + 32 + 16))


def test_names_choose_the_layers(tmp_path):
    model = Decoder.from_pretrained(random_base(tmp_path / "b"), frozen="stored")
    assert len(matching_layers(model, "all")) == 21
    both = [f"model.layers.{i}.self_attn.{name}" for i in range(3) for name in ("q_proj", "v_proj")]
    assert matching_layers(model, "v_proj, q_proj") == both
    assert matching_layers(model, "mlp.up_proj") == [f"model.layers.{i}.mlp.up_proj" for i in range(3)]
    assert len(matching_layers(model, "model.layers.1.*")) == 7
    assert matching_layers(model, "model.layers.1.mlp.up_proj") == ["model.layers.1.mlp.up_proj"]
    assert matching_layers(model, "q_proj,") == matching_layers(model, "q_proj")
    with pytest.raises(ValueError, match="'q_prok' names no layer of this model; there are q_proj, k_proj, "
                                         "v_proj, o_proj, gate_proj, up_proj, down_proj"):
        matching_layers(model, "v_proj,q_prok")
    for nothing in ("", " ", ","):
        with pytest.raises(ValueError, match="names no layer of this model; there are q_proj"):
            matching_layers(model, nothing)
    with pytest.raises(ValueError, match="'lm_head' names no layer .* embedding and head get no adapters"):
        matching_layers(model, "lm_head")
    with pytest.raises(ValueError, match="open the model with frozen='stored'"):
        add_lora(Decoder.from_pretrained(tmp_path / "b"), "all", LoraSettings())
    add_lora(model, "q_proj", LoraSettings())
    for again in ("all", "o_proj"):
        with pytest.raises(ValueError, match="has an adapter already"):
            add_lora(model, again, LoraSettings())


def test_the_type_of_a_frozen_base_is_one_of_five(tmp_path):
    with pytest.raises(ValueError, match="frozen: given 'nf5'; there are stored, float32"):
        Decoder.from_pretrained(random_base(tmp_path / "b"), frozen="nf5")


def test_dropout_is_of_an_adapters_input_alone():
    """Its mean and its share are kept, and without training nothing is dropped."""
    layer = FrozenLinear(10 * torch.eye(400), None, (400, 400))
    layer.add_adapter(torch.eye(400), scale=1.0, dropout=0.25)
    layer.lora_B.data.copy_(torch.eye(400))
    x = torch.ones(2, 50, 400)
    with torch.no_grad():
        y = layer(x) - 10
        assert y.unique().tolist() == pytest.approx([0, 4 / 3], abs=1e-5)
        assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.01) and not torch.equal(y[0], y[1])
        assert torch.equal(layer.eval()(x), 11 * x)


# ---------------------------------------------------------------- a run
@pytest.mark.parametrize("frozen", ["stored", "nf4", "bfloat16"])
@pytest.mark.parametrize("extra", [
    {}, {"drop_blocks": (1,), "lora_root": True}, {"optimizer": "lean", "clip": 0.0}])
def test_a_run_trains_adapters_alone(world, tmp_path, frozen, extra):
    """The base keeps every bit, in its file and in memory, the loss falls, adapters are read as written."""
    config = world.config(tmp_path, lora="all", frozen=frozen, lora_rank=4, max_steps=12, lr=0.02, **extra)
    before = file_hash(world.model / "model.safetensors")
    began = Decoder.from_pretrained(world.model, frozen=frozen)
    trained = []

    def save_and_remember(model, folder):
        trained.append(model)
        save_adapter(model, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "save_adapter", save_and_remember)
        assert train(config)
    model = trained[-1]
    began.drop_blocks(read_parts(config.drop_blocks, began.config))
    frozen_now = {key: value for key, value in model.state_dict().items() if "lora_" not in key}
    assert frozen_now.keys() == began.state_dict().keys()
    assert all(torch.equal(value, began.state_dict()[key]) for key, value in frozen_now.items())
    assert file_hash(world.model / "model.safetensors") == before
    losses = [float(row["loss"]) for row in read_rows(config.folder / "train.csv")]
    assert losses[-1] < losses[0] - 0.1
    files = {path.name for path in (config.folder / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "nanoprune.json", "config.json"} <= files
    assert "model.safetensors" not in files
    again = Decoder.from_pretrained(config.folder / "model")
    assert again.config.num_hidden_layers == 3 - len(config.drop_blocks) == len(again.model.layers)
    assert again.config.blocks == model.config.blocks
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(IDS), model.eval()(IDS), rtol=0, atol=1e-5)
    state = next((config.folder / "state").glob("step-*")) / "training.safetensors"
    with safe_open(state, "pt") as file:
        assert all("lora_" in name for name in file.keys())


def test_dropout_resumes_bit_by_bit(world, tmp_path):
    """And recomputing changes nothing that is left out."""
    settings = dict(lora="all", lora_dropout=0.3, max_steps=6, accumulation=2)
    whole, stopped = (world.config(tmp_path, name=name, **settings) for name in ("whole", "stopped"))
    assert train(whole)
    assert not train(stopped, listen=lambda: ["SIGTERM"])
    assert len(read_rows(stopped.folder / "train.csv")) == 1
    assert train(stopped, resume=True)
    assert file_hash(whole.folder / "model/adapter_model.safetensors") == file_hash(
        stopped.folder / "model/adapter_model.safetensors")
    assert read_rows(whole.folder / "train.csv", TIMING) == read_rows(stopped.folder / "train.csv", TIMING)

    def losses_with(name, **changes):
        config = world.config(tmp_path, name=name, **settings | changes)
        assert train(config)
        return [float(row["loss"]) for row in read_rows(config.folder / "train.csv")]

    expected = [float(row["loss"]) for row in read_rows(whole.folder / "train.csv")]
    assert losses_with("blocks", recompute="blocks") == pytest.approx(expected, abs=1e-5)
    assert losses_with("without", lora_dropout=0.0) != pytest.approx(expected, abs=1e-3)
    assert losses_with("seed", seed=1) != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("settings, message", [
    ({"lora": "q_prok"}, "names no layer of this model; there are q_proj"),
    ({"lora": "all", "lora_rank": 0}, "lora_rank: given 0"),
    ({"lora": "all", "lora_dropout": 1.0}, "lora_dropout"),
    ({"frozen": "nf4"}, "frozen: given 'nf4', has no effect without lora"),
    ({"lora_rank": 4}, "lora_rank: given 4, has no effect"),
    ({"lora": "all", "frozen": "nf5"}, r"\(did you mean nf4\?\)"),
    ({"lora": "all", "compile": True}, "adapters need a trained base"),
    ({"lora": "all", "lora_alpha": 0.0}, "lora_alpha"),
])
def test_bad_settings(world, tmp_path, monkeypatch, capsys, settings, message):
    path = world.config_file(tmp_path / "c.py", **settings)
    code, _, err = run_main(monkeypatch, capsys, "train.py", path)
    assert code == 2 and re.search(message, err), err


def test_an_adapter_file_is_the_same_every_time(world, tmp_path):
    hashes = set()
    for name in "ab":
        config = world.config(tmp_path, name=name, lora="q_proj", frozen="nf4")
        assert train(config)
        hashes.add(file_hash(config.folder / "model" / "adapter_model.safetensors"))
    assert len(hashes) == 1


# ---------------------------------------------------------------- head and saved activations of a frozen base
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_frozen_head(dtype):
    """Loss, gradient and logits of a weight in another type, in slices, equal the cast weight's."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 24, generator=draw, requires_grad=True)
    weight = torch.randn(9001, 24, generator=draw).to(dtype)
    targets = torch.randint(0, 9001, (2, 9), generator=draw)
    targets[0, :3] = IGNORE
    loss = head_loss(x, weight, targets)
    [got] = torch.autograd.grad(loss, x)
    wide = x.detach().double().requires_grad_(True)
    logits = (wide @ weight.double().t()).flatten(0, 1)
    plain = nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE)
    [want] = torch.autograd.grad(plain, wide)
    assert float(loss) == pytest.approx(float(plain), rel=1e-6)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-7)
    each = head_loss(x, weight, targets, reduction="none")
    assert float(each.sum() / (targets != IGNORE).sum()) == pytest.approx(float(plain), rel=1e-6)
    torch.testing.assert_close(head_logits(x, weight), x @ weight.float().t(), rtol=0, atol=1e-4)


def test_saved_activations_change_no_gradient(tmp_path):
    base = random_base(tmp_path / "b", hidden_size=1024, num_attention_heads=16, head_dim=64)
    model = adapted_model(base, "q_proj,v_proj")
    ids = torch.randint(0, 256, (1, 513), generator=torch.Generator().manual_seed(1))

    def gradients():
        model.zero_grad()
        model(ids[:, :-1], ids[:, 1:]).backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    expected, saved = gradients(), SavedActivations()
    with saved:
        assert all(map(torch.equal, gradients(), expected))
        assert saved.segments
