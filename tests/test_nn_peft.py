"""nanoprune/nn/peft.py: an adapter knows its base; PEFT reads ours and we read PEFT's, with equal logits."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from adapters import adapted_model, adapter_of_reduced_base, loss_of
from safetensors.torch import load_file, save_file
from small import IDS, random_base, run_main
from torch import nn

from model import Decoder
from nanoprune.io.files import read_json, write_json
from nanoprune.nn.lora import LoraSettings, add_lora, frozen_layers, matching_layers
from nanoprune.nn.model_config import read_parts
from nanoprune.nn.peft import (
    HARMLESS,
    OFF,
    PREFIX,
    PeftFile,
    read_adapter,
    restore_adapter,
    save_adapter,
)


@pytest.fixture
def adapted(tmp_path):
    """(base, adapter, its model) on a base without block 1."""
    return adapter_of_reduced_base(tmp_path)


def test_a_reduced_model_stays_reduced(adapted):
    folder, adapter, model = adapted
    again = Decoder.from_pretrained(adapter).eval()
    assert len(again.model.layers) == again.config.num_hidden_layers == 2 and again.config.blocks == (0, 2)
    assert torch.equal(again(IDS), model(IDS))
    other = Decoder.from_pretrained(folder, frozen="stored")
    restore_adapter(other, read_adapter(adapter))
    assert torch.equal(other.eval()(IDS), model(IDS))


def on_base(adapter, base):
    """The adapter with another place of its base in its files."""
    ours = (adapter / "nanoprune.json").is_file()
    name, key = ("nanoprune.json", "base") if ours else ("adapter_config.json", "base_model_name_or_path")
    write_json(adapter / name, read_json(adapter / name) | {key: str(base)})
    return adapter


def test_an_adapter_knows_its_base(adapted, tmp_path):
    folder, adapter, model = adapted
    with pytest.raises(ValueError, match="was trained on .*; this base .*other.* has other weights"):
        Decoder.from_pretrained(on_base(adapter, random_base(tmp_path / "other", seed=1)))
    on_base(adapter, folder)
    moved = tmp_path / "moved"
    folder.rename(moved)
    with pytest.raises(ValueError, match="is an adapter, and its base is not to be found: no folder .* into "
                                         ".*nanoprune.json"):
        Decoder.from_pretrained(adapter)
    assert torch.equal(Decoder.from_pretrained(on_base(adapter, moved)).eval()(IDS), model(IDS))
    quantised = Decoder.from_pretrained(moved, frozen="nf4")
    with pytest.raises(ValueError, match="kept as stored; this base is kept as nf4"):
        restore_adapter(quantised, read_adapter(adapter))
    with pytest.raises(ValueError, match="is an adapter on another model; make one model of both: "
                                         "python -m nanoprune merge"):
        Decoder.from_pretrained(adapter, frozen="stored")


@pytest.mark.parametrize("change, message", [
    ({"r": 0}, "r: given 0, must be from 1 to"), ({"use_dora": True}, "use_dora True is not supported"),
    ({"bias": "all"}, "bias: given 'all', must be none or None"),
    ({"peft_type": "IA3"}, "peft_type: given 'IA3', must be LORA"),
    ({"lora_alpha": "much"}, "alpha: given 'much', must be a number"),
    ({"lora_alpha": 10**400}, "lora_alpha: given 1000.*, must be a number"),
    ({"lora_dropout": "0.1"}, "dropout: given '0.1'"),
    ({"use_rslora": "false"}, "use_rslora: given 'false', must be true or false"),
    ({"init_lora_weights": "pissa"}, "given 'pissa', must be true or false or gaussian or None"),
    ({"target_modules": 5}, "target_modules: given 5, must be text or"),
    ({"alora_invocation_tokens": [44, 7]}, r"alora_invocation_tokens \[44, 7\] is not supported"),
    ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication .* is not supported"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices .* is not supported"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora .* is not supported"),
    ({"layers_to_transform": ["0"]}, "layers_to_transform: given"), ({"r": 10**7}, "does not fit this base"),
    ({"r": 5}, "does not fit this base"),
    ({"target_modules": ["q_proj"]}, "its settings name 2 in this base"),
])
def test_what_cannot_be_read_is_named(adapted, change, message):
    _, adapter, _ = adapted
    about = read_json(adapter / "adapter_config.json")
    write_json(adapter / "adapter_config.json", about | change)
    with pytest.raises(ValueError, match=message):
        Decoder.from_pretrained(adapter)


@pytest.mark.parametrize("change", [
    {"base": 5}, {"base": None}, {"revision": 5}, {"dropped": 5}, {"dropped": [1.0]}, {"dropped": [-1]},
    {"blocks": None}, {"blocks": ["0", "2"]}, {"blocks": [0, 1]}, {"without": ["", "mlp"]},
    {"without": "x"}, {"frozen": "nf5"}, {"base_sha256": []},
    {"config_sha256": 1}, {"base": ""},
])
def test_a_damaged_record_is_named(adapted, change):
    _, adapter, _ = adapted
    write_json(adapter / "nanoprune.json", read_json(adapter / "nanoprune.json") | change)
    with pytest.raises(ValueError, match="is damaged|names no base|cannot drop block -1"):
        Decoder.from_pretrained(adapter)


def test_every_setting_of_peft_is_on_a_list(adapted, capsys):
    """A setting that PEFT reads is read, refused or harmless; one that nobody knows is named."""
    from peft import LoraConfig

    known = {*OFF, *HARMLESS, *(f.name for f in fields(PeftFile))}
    assert {f.name for f in fields(LoraConfig)} <= known
    _, adapter, _ = adapted
    about = read_json(adapter / "adapter_config.json") | {"runtime_config": {}, "no_such_setting": 1}
    write_json(adapter / "adapter_config.json", about)
    read_adapter(adapter)
    assert "and not read by any library for this model: no_such_setting\n" in capsys.readouterr().err


def test_a_revision_is_the_bases(tmp_path):
    """As PEFT's AutoPeftModel takes it."""
    about = {"peft_type": "LORA", "base_model_name_or_path": "no-such/base", "revision": "v1",
             "target_modules": ["q_proj"]}
    write_json(tmp_path / "adapter_config.json", about)
    adapter = read_adapter(tmp_path)
    assert (adapter.base.base, adapter.base.revision) == ("no-such/base", "v1")
    assert (adapter.settings.rank, adapter.settings.alpha) == (8, 8)  # PEFT's defaults


def test_a_pickled_adapter_is_refused_with_the_command_that_converts_it(adapted):
    _, adapter, model = adapted
    path = adapter / "adapter_model.safetensors"
    torch.save(load_file(path), adapter / "adapter_model.bin")
    path.unlink()
    with pytest.raises(ValueError, match="adapter_model.bin is not read, because it may run code") as error:
        Decoder.from_pretrained(adapter)
    command = str(error.value).partition("to convert it: python ")[2]
    subprocess.run([sys.executable, *shlex.split(command)], check=True)
    assert torch.equal(Decoder.from_pretrained(adapter).eval()(IDS), model(IDS))


def first_tensor(change):
    def spoil(tensors: dict) -> dict:
        first = min(tensors)
        return tensors | {first: change(tensors[first])}
    return spoil


@pytest.mark.parametrize("spoil, message", [
    (lambda tensors: {}, "has adapters for 0 layers, its settings name 4"),
    (lambda tensors: {key: value for key, value in tensors.items() if ".layers.0." in key},
     "has adapters for 2 layers, its settings name 4"),
    (lambda tensors: {key: value for key, value in tensors.items() if "lora_A" in key},
     "does not fit this base: .* is missing"),
    (lambda tensors: tensors | {f"{PREFIX}all.lora_{part}.weight": torch.ones(shape) for part, shape in
                                (("A", (4, 0)), ("B", (0, 4)))}, "does not fit this base"),
    (lambda tensors: tensors | {f"{PREFIX}lm_head.lora_A.weight": torch.ones(4, 32)},
     "embedding and head do not"),
    (first_tensor(lambda value: value * float("nan")), "holds values that are no finite numbers"),
    (first_tensor(lambda value: value.to(torch.int32)), "holds values that are no finite numbers"),
])
def test_a_damaged_adapter_is_named(adapted, spoil, message):
    _, adapter, _ = adapted
    path = adapter / "adapter_model.safetensors"
    save_file(spoil(load_file(path)), path)
    with pytest.raises(ValueError, match=message):
        Decoder.from_pretrained(adapter)


def test_the_base_may_not_change(adapted, tmp_path):
    """Neither its settings, where the weights are the same; nor may it be reduced already."""
    folder, adapter, _ = adapted
    reduced = Decoder.from_pretrained(folder)
    reduced.drop_blocks(read_parts([1], reduced.config))
    reduced.save_pretrained(tmp_path / "reduced")
    with pytest.raises(ValueError, match="reduced.* has other weights"):
        Decoder.from_pretrained(on_base(adapter, tmp_path / "reduced"))
    on_base(adapter, folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"rope_theta": 77.0})
    with pytest.raises(ValueError, match="has other settings in config.json"):
        Decoder.from_pretrained(adapter)


# ---------------------------------------------------------------- PEFT
def in_transformers(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("pattern, rslora, kind", [("q_proj,v_proj", False, "qwen3"), ("all", True, "llama"),
                                                 ("model.layers.1.*,down_proj", False, "qwen2")])
def test_peft_reads_ours(tmp_path, pattern, rslora, kind):
    from peft import PeftModel

    base = random_base(tmp_path / "b", model_type=kind)
    model = adapted_model(base, pattern, rank=4, alpha=6.0, rslora=rslora)
    save_adapter(model, tmp_path / "a")
    theirs = PeftModel.from_pretrained(in_transformers(tmp_path / "b"), tmp_path / "a").eval()
    names = {name.removeprefix(PREFIX).rpartition(".lora_A")[0] for name, _ in theirs.named_parameters()}
    assert names - {""} == set(matching_layers(model, pattern))
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model.eval()(IDS), rtol=0, atol=1e-5)
        assert not torch.allclose(model(IDS), Decoder.from_pretrained(base)(IDS), atol=1e-3)


def test_we_read_pefts(tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM",
                        init_lora_weights=False)
    theirs = get_peft_model(in_transformers(random_base(tmp_path / "b")), config).eval()
    theirs.save_pretrained(tmp_path / "a")
    ours = Decoder.from_pretrained(tmp_path / "a").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)
    assert "does not say what weights" in capsys.readouterr().out
    full = random_base(tmp_path / "full", num_hidden_layers=4)
    with pytest.raises(ValueError, match="for 21 layers, its settings name 28 in this base: it was trained "
                                         "on another one"):
        Decoder.from_pretrained(on_base(tmp_path / "a", full))


@pytest.mark.parametrize("chosen, layers", [
    ({"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 0}, 2),
    ({"target_modules": ["up_proj"], "layers_to_transform": [0, 2]}, 2),
    ({"target_modules": r".*\.layers\.[01]\.self_attn\.(q|k)_proj"}, 4),
    ({"target_modules": ["model.layers.1.mlp.up_proj"]}, 1),
    ({"target_modules": ["layers.1.self_attn.q_proj", "down_proj"]}, 4),
    ({"target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]}, 2),
])
def test_we_read_pefts_of_some_layers(tmp_path, chosen, layers):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", init_lora_weights=False, use_rslora=True,
                        **chosen)
    theirs = get_peft_model(in_transformers(random_base(tmp_path / "b")), config).eval()
    theirs.save_pretrained(tmp_path / "a")
    ours = Decoder.from_pretrained(tmp_path / "a").eval()
    assert sum(layer.adapted > 0 for layer in frozen_layers(ours).values()) == layers
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)


def test_pefts_adapter_wherever_a_model_is_named(world, tmp_path, monkeypatch, capsys):
    """Its folder has neither config.json nor a tokenizer: they are its base's."""
    save_adapter(adapted_model(world.model, "q_proj", rank=4), tmp_path / "a")
    for name in ("config.json", "nanoprune.json"):
        (tmp_path / "a" / name).unlink()
    prompt = ("--prompt", "The plant", "--tokens", "3")
    code, out, err = run_main(monkeypatch, capsys, "sample.py", tmp_path / "a", *prompt)
    assert code == 0 and "does not say what weights" in out, err
    options = ("--data", world.data, "--out", tmp_path / "results")
    code, _, err = run_main(monkeypatch, capsys, "eval.py", tmp_path / "a", world.model, *options)
    assert code == 0, err
    models = {m["name"]: m for m in read_json(tmp_path / "results" / "results.json")["models"]}
    assert models["a"]["test"]["nll"] != models["base"]["test"]["nll"]
    assert models["a"]["cost"]["trained_params"] == 3 * 4 * 64
    path = world.config_file(tmp_path / "c.py", base=str(tmp_path / "a"))
    code, _, err = run_main(monkeypatch, capsys, "train.py", path)
    assert code == 2 and re.search("a is an adapter on another model; .* nanoprune merge", err)


def test_a_step_is_pefts(tmp_path):
    """Equal losses and equal adapters after some steps of the same optimizer."""
    from peft import PeftModel

    model = Decoder.from_pretrained(random_base(tmp_path / "b"), frozen="stored")
    add_lora(model, "q_proj,v_proj", LoraSettings(rank=4))
    save_adapter(model, tmp_path / "a")
    theirs = PeftModel.from_pretrained(in_transformers(tmp_path / "b"), tmp_path / "a", is_trainable=True)
    sides = []
    for side in (model, theirs):
        trained = [p for p in side.parameters() if p.requires_grad]
        sides.append((side, torch.optim.AdamW(trained, lr=1e-2)))
    for _ in range(4):
        losses = [loss_of(model), theirs(IDS[:, :-1], labels=None).logits]
        losses[1] = nn.functional.cross_entropy(losses[1].flatten(0, 1), IDS[:, 1:].flatten())
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
        for (_, optimizer), loss in zip(sides, losses, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    got = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name, p in theirs.named_parameters():
        if p.requires_grad:
            ours = got[name.removeprefix("base_model.model.").replace(".default.weight", "")]
            torch.testing.assert_close(ours, p, rtol=0, atol=1e-4)
