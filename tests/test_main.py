"""python -m nanoprune: adapters merged with their bases, and bases quantised."""

import pytest
import torch
from adapters import adapted_model, adapter_of_reduced_base
from small import IDS, make_data, make_model, random_base, run_main

from model import Decoder
from nanoprune.io.files import file_hash, read_json, write_json
from nanoprune.nn.lora import count_parameters
from nanoprune.nn.peft import save_adapter


@pytest.mark.parametrize("frozen", ["stored", "nf4"])
def test_merge_gives_a_plain_model_with_equal_logits(tmp_path, monkeypatch, capsys, frozen):
    base = random_base(tmp_path / "b", model_type="qwen2")
    model = adapted_model(base, "all", frozen, drop=(0,), rank=4, alpha=8.0, rslora=True)
    save_adapter(model, tmp_path / "adapter")
    tokenizer = make_model(tmp_path / "t", make_data(tmp_path / "data")) / "tokenizer.json"
    (tmp_path / "adapter" / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    merge = ("nanoprune", "merge", tmp_path / "adapter", "--out", tmp_path / "m")
    code, out, err = run_main(monkeypatch, capsys, *merge)
    assert code == 0 and "2 blocks" in out, err
    merged = Decoder.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(merged(IDS), model.eval()(IDS), rtol=0, atol=1e-5)
    assert (tmp_path / "m" / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    code, _, err = run_main(monkeypatch, capsys, "nanoprune", "merge", base, "--out", tmp_path / "x")
    assert code == 2 and "is no adapter" in err


def test_merge_takes_a_moved_base_and_a_type(tmp_path, monkeypatch, capsys):
    base, adapter, model = adapter_of_reduced_base(tmp_path)
    config = read_json(base / "config.json")
    write_json(base / "config.json", config | {"nanoprune_history": [{"original": "9", "base": "older"}]})
    moved = base.rename(tmp_path / "moved")
    merge = ("nanoprune", "merge", adapter, "--out", tmp_path / "m", "--dtype", "bfloat16")
    code, _, err = run_main(monkeypatch, capsys, *merge)
    assert code == 2 and "its base is not to be found" in err and not (tmp_path / "m").exists()
    write_json(adapter / "nanoprune.json", read_json(adapter / "nanoprune.json") | {"base": str(moved)})
    code, out, err = run_main(monkeypatch, capsys, *merge)
    assert code == 0 and f"wrote {tmp_path / 'm'}: 2 blocks" in out, err
    merged = Decoder.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(merged.float()(IDS), model(IDS), rtol=0, atol=0.05)
    history = merged.config.extra["nanoprune_history"]  # the base's, and what the adapter is without
    assert [entry["original"] for entry in history] == ["9", "1"] and history[1]["base"] == str(moved)
    size = sum(p.numel() for p in merged.parameters())
    assert 2 * size < (tmp_path / "m" / "model.safetensors").stat().st_size < 2 * size + 5000


def test_merge_spares_the_base(tmp_path, monkeypatch, capsys):
    base, adapter, _ = adapter_of_reduced_base(tmp_path)
    before = file_hash(base / "model.safetensors")
    code, _, err = run_main(monkeypatch, capsys, "nanoprune", "merge", adapter, "--out", base)
    assert code == 2 and "lies in it; write to another folder" in err
    assert file_hash(base / "model.safetensors") == before


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_quantise_saves_what_is_read(tmp_path, monkeypatch, capsys, kind):
    folder, quantised = random_base(tmp_path / "b", torch.bfloat16, model_type=kind), tmp_path / "q"
    code, out, err = run_main(monkeypatch, capsys, "nanoprune", "quantise", folder, "--out", quantised)
    assert code == 0 and "wrote" in out, err
    made, read = Decoder.from_pretrained(folder, frozen="nf4"), Decoder.from_pretrained(quantised)
    assert torch.equal(made(IDS), read(IDS)) and read.head_weight.dtype == torch.bfloat16
    plain = Decoder.from_pretrained(folder)
    assert count_parameters(read).total == sum(p.numel() for p in plain.parameters())


def test_quantised_bases_and_adapters_are_refused(tmp_path, monkeypatch, capsys):
    base, adapter, _ = adapter_of_reduced_base(tmp_path)
    quantised = tmp_path / "q"
    assert run_main(monkeypatch, capsys, "nanoprune", "quantise", base, "--out", quantised)[0] == 0
    for words, message in ((["quantise", quantised], "is quantised already"),
                           (["merge", quantised], "is no adapter"),
                           (["quantise", adapter], "is an adapter on another model; make one model of both")):
        code, _, err = run_main(monkeypatch, capsys, "nanoprune", *words, "--out", tmp_path / "qq")
        assert code == 2 and message in err and not (tmp_path / "qq").exists()
    for model, message in ((quantised, "is quantised: its weights cannot be changed"),
                           (adapter, "is an adapter on another model")):
        drop = ("prune.py", model, "--drop", "1", "--out", tmp_path / "r")
        code, _, err = run_main(monkeypatch, capsys, *drop)
        assert code == 2 and message in err


def test_help_names_the_command(monkeypatch, capsys):
    code, out, _ = run_main(monkeypatch, capsys, "nanoprune", "--help")
    assert code == 0 and out.startswith(
        "usage: python -m nanoprune [-h] {merge,quantise,check,card,push}")


def test_push_lists_what_would_go(tmp_path, monkeypatch, capsys):
    """Without --yes nothing is asked of the hub, and with it what is wrong is one line."""
    folder = random_base(tmp_path / "b")
    code, out, _ = run_main(monkeypatch, capsys, "nanoprune", "push", folder, "me/x", "--public")
    assert code == 0 and out.endswith(f"2 files of {folder} to me/x, public\n"
                                      "a dry run: nothing was sent; --yes sends them\n")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, _, err = run_main(monkeypatch, capsys, "nanoprune", "push", folder, "me/x", "--yes")
    assert code == 2 and "the hub cannot be reached" in err and "Traceback" not in err
