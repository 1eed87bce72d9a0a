"""lora.py and frozen.py: adapters against plain autograd, and each with its base."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import IDS, TIMING, make_model, random_base, read_rows, run_main
from torch import nn

import train as training
from model import Decoder
from nanoprune.config import IGNORE
from nanoprune.io.files import file_hash, read_json, write_json
from nanoprune.nn.lora import (
    DropoutRows,
    FrozenLinear,
    add_lora,
    count_parameters,
    frozen_layers,
    load_frozen,
    matching_layers,
)
from nanoprune.nn.losses import head_logits, head_loss
from nanoprune.nn.peft import PREFIX, add_adapter, load_adapted, load_model, merge, save_adapter
from nanoprune.nn.scratch import SavedActivations
from nanoprune.training.run_folder import Log
from prune import drop_blocks
from train import train

DOCUMENTS = torch.zeros(2, 16, dtype=torch.int64)


def shake(model: Decoder, scale: float = 0.1) -> None:
    """Adapters as if trained: B is no longer zero."""
    draw = torch.Generator().manual_seed(9)
    for layer in frozen_layers(model).values():
        if layer.rank:
            layer.lora_B.data.copy_(torch.randn(layer.lora_B.shape, generator=draw) * scale)


def loss_of(model: Decoder) -> torch.Tensor:
    return model(IDS[:, :-1], IDS[:, 1:], DOCUMENTS)


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize("shape", [{}, {"model_type": "qwen2", "tie_word_embeddings": False}, {"model_type": "llama"}])
def test_gradients_are_those_of_autograd_on_merged_weights(tmp_path, shape):
    """d loss / d A = s B^T G and d loss / d B = s G A^T, with G autograd's gradient of the merged weight in fp64."""
    model = load_frozen(random_base(tmp_path / "b", **shape))
    add_lora(model, "all", rank=3, alpha=5.0)
    shake(model)
    with SavedActivations():
        loss_of(model).backward()
    oracle = load_frozen(tmp_path / "b")
    add_lora(oracle, "all", rank=3, alpha=5.0)
    shake(oracle)
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
    model = load_frozen(tmp_path / "b")
    add_lora(model, "q_proj,v_proj")
    model.model.recompute = recompute
    torch.testing.assert_close(loss_of(model), loss_of(plain), rtol=1e-6, atol=0)
    loss_of(model).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {f"{name}.lora_{part}" for name in matching_layers(model, "q_proj,v_proj") for part in "AB"}
    assert count_parameters(model) == (sum(p.numel() for p in model.parameters()), 3 * 8 * (32 + 32 + 32 + 16))


def test_names_choose_the_layers(tmp_path):
    model = load_frozen(random_base(tmp_path / "b"))
    assert len(matching_layers(model, "all")) == 21
    both = [f"model.layers.{i}.self_attn.{name}" for i in range(3) for name in ("q_proj", "v_proj")]
    assert matching_layers(model, "v_proj, q_proj") == both
    assert matching_layers(model, "mlp.up_proj") == [f"model.layers.{i}.mlp.up_proj" for i in range(3)]
    assert len(matching_layers(model, "model.layers.1.*")) == 7 and matching_layers(model, "model.layers.1.mlp.up_proj")
    with pytest.raises(ValueError, match="'q_prok' names no layer of this model; there are q_proj, k_proj, v_proj, o_proj, "
                                         "gate_proj, up_proj, down_proj"):
        matching_layers(model, "v_proj,q_prok")
    for sizes in ({"rank": 0}, {"rank": 2.5}, {"rank": True}, {"alpha": 0}, {"alpha": float("nan")}, {"alpha": float("inf")},
                  {"alpha": "x"}, {"dropout": 1}, {"dropout": None}):
        with pytest.raises(ValueError, match="rank must be a whole number of at least 1, .*; given "):
            add_lora(model, "all", **sizes)
    with pytest.raises(ValueError, match="load the model with lora.load_frozen"):
        add_lora(Decoder.from_pretrained(tmp_path / "b"), "all")
    for nothing in ("", " ", ","):
        with pytest.raises(ValueError, match="names no layer of this model; there are q_proj"):
            matching_layers(model, nothing)
    assert matching_layers(model, "q_proj,") == matching_layers(model, "q_proj")
    with pytest.raises(ValueError, match="'lm_head' names no layer .* embedding and head get no adapters"):
        matching_layers(model, "lm_head")
    add_lora(model, "q_proj")
    for again in ("all", "o_proj"):
        with pytest.raises(ValueError, match="has an adapter already"):
            add_lora(model, again)


@pytest.mark.parametrize("frozen", ["stored", "nf4", "bfloat16"])
@pytest.mark.parametrize("extra", [{}, {"drop_blocks": (1,), "lora_root": True}, {"optimizer": "lean", "clip": 0.0}])
def test_a_run_trains_adapters_alone(world, tmp_path, frozen, extra):
    """The base's file and the frozen tensors stay bit by bit, the loss falls, and what is loaded is what was trained."""
    config = world.config(tmp_path, lora="all", frozen=frozen, lora_rank=4, max_steps=12, lr=0.02, **extra)
    before, began = file_hash(world.model / "model.safetensors"), load_frozen(world.model, frozen)
    kept = {}

    def watch(self, folder):
        kept["model"] = self
        return save_adapter(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_adapter", watch)
        assert train(config)
    model = kept["model"]
    drop_blocks(began, config.drop_blocks)
    frozen_now = {k: v for k, v in model.state_dict().items() if "lora_" not in k}
    assert frozen_now.keys() == began.state_dict().keys()
    assert all(torch.equal(value, began.state_dict()[key]) for key, value in frozen_now.items())
    assert file_hash(world.model / "model.safetensors") == before
    losses = [float(row["loss"]) for row in read_rows(config.folder / "train.csv")]
    assert losses[-1] < losses[0] - 0.1
    files = {path.name for path in (config.folder / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "nanoprune.json", "config.json"} <= files
    assert "model.safetensors" not in files
    again = load_model(config.folder / "model")
    assert again.config.num_hidden_layers == 3 - len(config.drop_blocks) == len(again.model.layers)
    assert again.config.blocks == model.config.blocks
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(IDS), model.eval()(IDS), rtol=0, atol=1e-5)
    state = next((config.folder / "state").glob("step-*")) / "training.safetensors"
    with safe_open(state, "pt") as file:
        assert all("lora_" in name for name in file.keys())


def test_dropout_resumes_bit_by_bit(world, tmp_path):
    """And neither recomputing nor the size of the micro-batches changes what is left out."""
    settings = dict(lora="all", lora_dropout=0.3, max_steps=6, save_every=3)
    whole = world.config(tmp_path, name="whole", **settings)
    assert train(whole)
    asked = []

    def stop_after_three():
        return asked

    stopped = world.config(tmp_path, name="stopped", **settings)
    with pytest.MonkeyPatch.context() as patch:
        write = Log.write

        def count(self, **row):
            write(self, **row)
            if row.get("step") == 3 and "loss" in row:
                asked.append("SIGTERM")

        patch.setattr(Log, "write", count)
        assert not train(stopped, listen=stop_after_three)
    asked.clear()
    assert train(stopped, resume=True)
    assert file_hash(whole.folder / "model/adapter_model.safetensors") == file_hash(
        stopped.folder / "model/adapter_model.safetensors")
    assert read_rows(whole.folder / "train.csv", TIMING) == read_rows(stopped.folder / "train.csv", TIMING)

    def first(name, **changes):
        config = world.config(tmp_path, name=name, **settings | changes)
        assert train(config)
        return [float(row["loss"]) for row in read_rows(config.folder / "train.csv")]

    expected = [float(row["loss"]) for row in read_rows(whole.folder / "train.csv")]
    assert first("blocks", recompute="blocks") == pytest.approx(expected, abs=1e-5)
    assert first("parts", batch_size=1, accumulation=2) == pytest.approx(expected, abs=1e-5)
    assert first("without", lora_dropout=0.0) != pytest.approx(expected, abs=1e-3)


def test_dropout_keeps_the_mean_and_its_share():
    layer = FrozenLinear(torch.zeros(2, 4000), None, (2, 4000))
    layer.add(2, 1.0, 0.25, DropoutRows(3, [7, 8]), 0)
    x = layer.drop(torch.ones(2, 5, 4000))
    assert x.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((x == 0).float().mean()) == pytest.approx(0.25, abs=0.01) and not torch.equal(x[0], x[1])
    layer.draws.rows = [8, 9]
    assert torch.equal(layer.drop(torch.ones(2, 5, 4000))[0], x[1])


# ---------------------------------------------------------------- an adapter and its base


@pytest.fixture
def adapted(tmp_path):
    """(base, adapter, its model) on a base without block 1."""
    model = load_frozen(random_base(tmp_path / "base"))
    drop_blocks(model, [1])
    model.base["dropped"] = [1]
    add_lora(model, "q_proj,v_proj", rank=4)
    shake(model)
    save_adapter(model, tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", model.eval()


def test_a_reduced_model_stays_reduced(adapted):
    folder, adapter, model = adapted
    again = load_adapted(adapter).eval()
    assert len(again.model.layers) == again.config.num_hidden_layers == 2 and again.config.blocks == (0, 2)
    assert torch.equal(again(IDS), model(IDS))
    with pytest.raises(ValueError, match=r"model of 2 blocks \(0 to 2 without 1\), this one has 3 \(0 to 2\)"):
        add_adapter(load_frozen(folder), adapter)
    other = load_frozen(folder)
    drop_blocks(other, [2])
    with pytest.raises(ValueError, match=r"0 to 2 without 1\), this one has 2 \(0 to 1\)"):
        add_adapter(other, adapter)


def test_an_adapter_knows_its_base(adapted, tmp_path):
    folder, adapter, model = adapted
    with pytest.raises(ValueError, match="was trained on .*base; this base .*other.* has other weights"):
        load_adapted(adapter, base=str(random_base(tmp_path / "other", seed=1)))
    moved = tmp_path / "moved"
    folder.rename(moved)
    with pytest.raises(ValueError, match="is an adapter, and its base is not to be found: no folder .* into .*nanoprune.json"):
        load_adapted(adapter)
    assert torch.equal(load_adapted(adapter, base=str(moved)).eval()(IDS), model(IDS))
    quantised = load_frozen(moved, "nf4")
    drop_blocks(quantised, [1])
    with pytest.raises(ValueError, match="kept as stored; this base is kept as nf4"):
        add_adapter(quantised, adapter)
    with pytest.raises(ValueError, match="is an adapter on another model; make one model of both: python -m nanoprune merge"):
        Decoder.from_pretrained(adapter)


@pytest.mark.parametrize("change, message", [
    ({"r": 0}, "rank must be a whole number"), ({"use_dora": True}, "use_dora True is not supported"),
    ({"bias": "all"}, "bias 'all' is not supported"), ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
    ({"lora_alpha": "much"}, "alpha above 0"), ({"lora_alpha": 10**400}, "alpha above 0"),
    ({"lora_dropout": "0.1"}, "dropout from 0"), ({"use_rslora": "false"}, "use_rslora 'false' is not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    ({"target_modules": 5}, "target_modules must be"), ({"r": 5}, "does not fit this base"),
    ({"target_modules": ["q_proj"]}, "its settings name 2 in this base"),
])
def test_what_cannot_be_read_is_named(adapted, change, message):
    _, adapter, _ = adapted
    about = read_json(adapter / "adapter_config.json")
    write_json(adapter / "adapter_config.json", about | change)
    with pytest.raises(ValueError, match=message):
        load_adapted(adapter)


@pytest.mark.parametrize("change", [
    {"base": 5}, {"base": None}, {"revision": 5}, {"dropped": 5}, {"dropped": [1.0]}, {"dropped": [-1]}, {"blocks": None},
    {"blocks": ["0", "2"]}, {"without": "x"}, {"frozen": "nf5"}, {"base_sha256": []}, {"config_sha256": 1}, {"base": ""},
])
def test_a_damaged_record_is_named(adapted, change):
    _, adapter, _ = adapted
    write_json(adapter / "nanoprune.json", read_json(adapter / "nanoprune.json") | change)
    with pytest.raises(ValueError, match="is damaged|names no base|cannot drop block -1"):
        load_adapted(adapter)


def some(change):
    def spoil(tensors: dict) -> dict:
        return {key: change(value) if i == 0 else value for i, (key, value) in enumerate(sorted(tensors.items()))}
    return spoil


@pytest.mark.parametrize("spoil, message", [
    (lambda tensors: {}, "has adapters for 0 layers, its settings name 4"),
    (lambda tensors: {k: v for k, v in tensors.items() if ".layers.0." in k}, "has adapters for 2 layers, its settings name 4"),
    (lambda tensors: {k: v for k, v in tensors.items() if "lora_A" in k}, "does not fit this base: .* is missing"),
    (lambda tensors: tensors | {f"{PREFIX}all.lora_{part}.weight": torch.ones(shape) for part, shape in
                                (("A", (4, 0)), ("B", (0, 4)))}, "does not fit this base"),
    (lambda tensors: tensors | {f"{PREFIX}lm_head.lora_A.weight": torch.ones(4, 32)}, "embedding and head do not"),
    (some(lambda value: value * float("nan")), "holds values that are no finite numbers"),
    (some(lambda value: value.to(torch.int32)), "holds values that are no finite numbers"),
])
def test_a_damaged_adapter_is_named(adapted, spoil, message):
    _, adapter, _ = adapted
    path = adapter / "adapter_model.safetensors"
    save_file(spoil(load_file(path)), path)
    with pytest.raises(ValueError, match=message):
        load_adapted(adapter)


def test_the_base_may_not_change(adapted, tmp_path, monkeypatch, capsys):
    """Neither its settings, where the weights are the same; nor by merging onto its place; nor may it be reduced already."""
    folder, adapter, _ = adapted
    before = file_hash(folder / "model.safetensors")
    code, _, err = run_main(monkeypatch, capsys, "nanoprune", "merge", adapter, "--out", folder)
    assert code == 2 and "is what the model is made from" in err and file_hash(folder / "model.safetensors") == before
    reduced = Decoder.from_pretrained(folder)
    drop_blocks(reduced, [1])
    reduced.save_pretrained(tmp_path / "reduced")
    with pytest.raises(ValueError, match="reduced.* has other weights"):
        load_adapted(adapter, base=str(tmp_path / "reduced"))
    write_json(folder / "config.json", read_json(folder / "config.json") | {"rope_theta": 77.0})
    with pytest.raises(ValueError, match="has other settings in config.json"):
        load_adapted(adapter)


@pytest.mark.parametrize("frozen", ["stored", "nf4"])
def test_merge_gives_a_plain_model_with_equal_logits(tmp_path, monkeypatch, capsys, frozen):
    model = load_frozen(random_base(tmp_path / "b", model_type="qwen2"), frozen)
    drop_blocks(model, [0])
    model.base["dropped"] = [0]
    add_lora(model, "all", rank=4, alpha=8.0, root=True)
    shake(model)
    save_adapter(model, tmp_path / "adapter")
    make_model(tmp_path / "t", make_tokenizer(tmp_path))
    (tmp_path / "adapter" / "tokenizer.json").write_bytes((tmp_path / "t" / "tokenizer.json").read_bytes())
    code, out, err = run_main(monkeypatch, capsys, "nanoprune", "merge", tmp_path / "adapter", "--out", tmp_path / "merged")
    assert code == 0 and "2 blocks" in out, err
    merged = Decoder.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(IDS), model.eval()(IDS), rtol=0, atol=1e-5)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    code, _, err = run_main(monkeypatch, capsys, "nanoprune", "merge", tmp_path / "b", "--out", tmp_path / "x")
    assert code == 2 and "is no adapter" in err


def make_tokenizer(folder):
    from small import make_data
    return make_data(folder / "data")


# ---------------------------------------------------------------- the head, the loop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_frozen_head(dtype):
    """Loss, gradient and logits of a weight in another type, in slices, are those of the weight cast as a whole."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 24, generator=draw, requires_grad=True)
    weight = torch.randn(9001, 24, generator=draw).to(dtype)
    targets = torch.randint(0, 9001, (2, 9), generator=draw)
    targets[0, :3] = IGNORE
    loss = head_loss(x, weight, targets)
    [got] = torch.autograd.grad(loss, x)
    wide = x.detach().double().requires_grad_(True)
    plain = nn.functional.cross_entropy((wide @ weight.double().t()).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    [want] = torch.autograd.grad(plain, wide)
    assert float(loss) == pytest.approx(float(plain), rel=1e-6)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-7)
    each = head_loss(x, weight, targets, reduction="none")
    assert float(each.sum() / (targets != IGNORE).sum()) == pytest.approx(float(plain), rel=1e-6)
    torch.testing.assert_close(head_logits(x, weight), x @ weight.float().t(), rtol=0, atol=1e-4)


def test_what_is_kept_for_the_backward_pass_changes_nothing(tmp_path):
    model = load_frozen(random_base(tmp_path / "b", hidden_size=1024, num_attention_heads=16, head_dim=64))
    add_lora(model, "q_proj,v_proj")
    shake(model)
    ids = torch.randint(0, 256, (1, 513), generator=torch.Generator().manual_seed(1))
    grads = []
    for kept in (None, SavedActivations()):
        if kept:
            kept.__enter__()
        model(ids[:, :-1], ids[:, 1:]).backward()
        if kept:
            assert kept.segments
            kept.__exit__()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
        model.zero_grad()
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("settings, message", [
    ({"lora": "q_prok"}, "names no layer of this model; there are q_proj"),
    ({"lora": "all", "lora_rank": 0}, "lora_rank: given 0"), ({"lora": "all", "lora_dropout": 1.0}, "lora_dropout"),
    ({"frozen": "nf4"}, "frozen: given 'nf4', has no effect without lora"),
    ({"lora_rank": 4}, "lora_rank: given 4, has no effect"), ({"lora": "all", "frozen": "nf5"}, r"\(did you mean nf4\?\)"),
    ({"lora": "all", "compile": True}, "adapters need a trained base"), ({"lora": "all", "lora_alpha": 0.0}, "lora_alpha"),
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
        json.loads((config.folder / "model" / "adapter_config.json").read_text())
    assert len(hashes) == 1
