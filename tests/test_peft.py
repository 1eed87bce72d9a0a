"""nn/peft.py: PEFT reads our adapters, we read PEFT's, with equal logits and equal steps."""

import re

import pytest
import torch
from small import IDS, random_base, run_main
from test_lora import loss_of, shake
from torch import nn

from nanoprune.io.files import read_json
from nanoprune.nn.lora import add_lora, frozen_layers, load_frozen, matching_layers
from nanoprune.nn.peft import load_adapted, load_model, save_adapter


def in_transformers(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("pattern, root, kind", [("q_proj,v_proj", False, "qwen3"), ("all", True, "llama"),
                                                 ("model.layers.1.*,down_proj", False, "qwen2")])
def test_peft_reads_ours(tmp_path, pattern, root, kind):
    from peft import PeftModel

    model = load_frozen(random_base(tmp_path / "b", model_type=kind))
    add_lora(model, pattern, rank=4, alpha=6.0, root=root)
    shake(model)
    save_adapter(model, tmp_path / "a")
    theirs = PeftModel.from_pretrained(in_transformers(tmp_path / "b"), tmp_path / "a").eval()
    names = {n.removeprefix("base_model.model.").rpartition(".lora_A")[0] for n, _ in theirs.named_parameters()}
    assert names - {""} == set(matching_layers(model, pattern))
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model.eval()(IDS), rtol=0, atol=1e-5)
        assert not torch.allclose(model(IDS), load_frozen(tmp_path / "b")(IDS), atol=1e-3)


def test_we_read_pefts(tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    theirs = get_peft_model(in_transformers(random_base(tmp_path / "b")), config).eval()
    theirs.save_pretrained(tmp_path / "a")
    ours = load_model(tmp_path / "a").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)
    assert "does not say what weights" in capsys.readouterr().out
    full = random_base(tmp_path / "full", num_hidden_layers=4)
    with pytest.raises(ValueError, match="for 21 layers, its settings name 28 in this base: it was trained on another one"):
        load_adapted(tmp_path / "a", base=str(full))


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
    config = LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", init_lora_weights=False, use_rslora=True, **chosen)
    theirs = get_peft_model(in_transformers(random_base(tmp_path / "b")), config).eval()
    theirs.save_pretrained(tmp_path / "a")
    ours = load_model(tmp_path / "a").eval()
    assert sum(layer.rank > 0 for layer in frozen_layers(ours).values()) == layers
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)


def test_pefts_adapter_wherever_a_model_is_named(world, tmp_path, monkeypatch, capsys):
    """Its folder has neither config.json nor a tokenizer: they are its base's."""
    model = load_frozen(world.model)
    add_lora(model, "q_proj", rank=4)
    shake(model)
    save_adapter(model, tmp_path / "a")
    for name in ("config.json", "nanoprune.json"):
        (tmp_path / "a" / name).unlink()
    code, out, err = run_main(monkeypatch, capsys, "sample.py", tmp_path / "a", "--prompt", "The plant", "--tokens", "3")
    assert code == 0 and "does not say what weights" in out, err
    code, _, err = run_main(monkeypatch, capsys, "eval.py", tmp_path / "a", world.model, "--data", world.data, "--out",
                            tmp_path / "results")
    assert code == 0, err
    found = {m["name"]: m for m in read_json(tmp_path / "results" / "results.json")["models"]}
    assert found["a"]["test"]["nll"] != found["base"]["test"]["nll"] and found["a"]["cost"]["trained_params"] == 3 * 4 * 64
    path = world.config_file(tmp_path / "c.py", base=str(tmp_path / "a"))
    code, _, err = run_main(monkeypatch, capsys, "train.py", path)
    assert code == 2 and re.search("base: .* is an adapter on another model; .* nanoprune merge", err)


def test_a_step_is_pefts(tmp_path):
    """Equal losses and equal adapters after some steps of the same optimizer."""
    from peft import PeftModel

    model = load_frozen(random_base(tmp_path / "b"))
    add_lora(model, "q_proj,v_proj", rank=4)
    save_adapter(model, tmp_path / "a")
    theirs = PeftModel.from_pretrained(in_transformers(tmp_path / "b"), tmp_path / "a", is_trainable=True)
    sides = [(m, torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2)) for m in (model, theirs)]
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
