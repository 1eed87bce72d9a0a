"""python -m nanoprune check: each fault of a reduced model or a dataset is named; sound folders have none."""

import shutil

import pytest
import torch
from adapters import adapter_of_reduced_base
from safetensors.torch import load_file, save_file
from small import CHATML, byte_tokenizer, random_base, run_main

from model import Decoder
from nanoprune.evaluation.model_check import check_model
from nanoprune.io.files import read_json, write_json
from nanoprune.io.jsonl import write_jsonl
from nanoprune.nn.lora import save_quantised


def check(monkeypatch, capsys, *arguments) -> tuple[int, list[str], str]:
    """(exit code, lines, stderr) of the command."""
    code, out, err = run_main(monkeypatch, capsys, "nanoprune", "check", *arguments)
    return code, out.splitlines(), err


def zero(*names):
    def change(tensors, config):
        for name in names:
            tensors[name] = torch.zeros_like(tensors[name])
    return change


def not_finite(tensors, config):
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan


def drop_block_by_hand(tensors, config):
    """The way of many scripts: the tensors go, config.json stays."""
    for name in [name for name in tensors if name.startswith("model.layers.1.")]:
        del tensors[name]


def lower_count(tensors, config):
    config.update(num_hidden_layers=2, max_window_layers=3)


def lack_a_tensor(tensors, config):
    del tensors["model.layers.2.self_attn.q_norm.weight"]


def untied_head(tensors, config):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def without_head(tensors, config):
    config["tie_word_embeddings"] = False


def other_history(tensors, config):
    config.update(nanoprune_history=[{"original": "1,2.attn", "base": "b"}])


def other_halves(tensors, config):
    config.update(nanoprune_without=["", "attn", ""])


FAULTS = {
    "block zeroed": (
        zero("model.layers.1.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"),
        ["the MLP of block 1 is zeroed and not removed (mlp.down_proj.weight): it adds nothing, and costs "
         "what it did; prune.py --drop 1 removes the block",
         "the attention of block 1 is zeroed and not removed"]),
    "attention zeroed": (
        zero("model.layers.2.self_attn.o_proj.weight"), ["the attention of block 2 is zeroed and not"]),
    "not finite": (not_finite, [
        "model.layers.1.mlp.up_proj.weight holds no values, or values that are not finite"]),
    "block gone": (drop_block_by_hand, ["the weights have the blocks [0, 2], config.json has 3"]),
    "count lowered": (lower_count, [
        "layer_types has 3 entries for 2 blocks", "nanoprune_blocks has 3 entries for 2 blocks",
        "max_window_layers is 3, above the 2 blocks",
        "the weights have the blocks [0, 1, 2], config.json has 2"]),
    "tensor gone": (lack_a_tensor, [
        "block 2 differs from others, or from nanoprune_without, in self_attn.q_norm.weight (1 such)"]),
    "head untied": (untied_head, ["lm_head.weight differs from the embedding, and config.json ties both"]),
    "head gone": (without_head, ["lm_head.weight is missing, and config.json does not tie it"]),
    "history": (other_history, [
        "nanoprune_history has dropped the blocks [1], and nanoprune_blocks is [0, 1, 2]"]),
    "halves": (other_halves, [
        "block 1 differs from others, or from nanoprune_without, in input_layernorm.weight (7 such)"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_a_line(tmp_path, fault):
    change, expected = FAULTS[fault]
    folder = random_base(tmp_path / "m")
    tensors, config = load_file(folder / "model.safetensors"), read_json(folder / "config.json")
    change(tensors, config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    findings = list(check_model(folder))
    assert len(findings) == len(expected)
    for line, beginning in zip(findings, expected, strict=True):
        assert line.startswith(beginning)


def test_a_block_zeroed_in_four_bits(tmp_path):
    folder = random_base(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    zero("model.layers.1.self_attn.o_proj.weight")(tensors, {})
    save_file(tensors, folder / "model.safetensors")
    save_quantised(Decoder.from_pretrained(folder, frozen="nf4"), tmp_path / "q")
    (line,) = check_model(tmp_path / "q")
    assert line.startswith("the attention of block 1 is zeroed and not removed")


@pytest.mark.parametrize("kind", ["base", "pruned", "halves", "run", "adapter", "merged", "nf4"])
def test_sound_folders_have_no_finding(world, folders, kind):
    assert list(check_model(folders.get(kind, world.model))) == []


def test_a_tokenizer_larger_than_the_embedding(tmp_path, monkeypatch, capsys):
    folder = random_base(tmp_path / "m")
    byte_tokenizer(folder, CHATML)
    code, lines, _ = check(monkeypatch, capsys, folder)
    assert (code, lines) == (1, ["the tokenizer has 259 tokens, the embedding 256 rows"])


def test_an_adapter_on_another_base(tmp_path):
    """Ours knows its base by hash and blocks; of PEFT's the numbers of the blocks tell."""
    base, adapter, _ = adapter_of_reduced_base(tmp_path)
    assert not list(check_model(adapter))
    record = read_json(adapter / "nanoprune.json") | {"base_sha256": {"model.safetensors": "0"}}
    write_json(adapter / "nanoprune.json", record | {"dropped": []})
    assert list(check_model(adapter)) == [
        f"it was trained on 2 blocks, and the base, {base}, has 3 to put it on",
        f"it was trained on other weights than those of the base, {base}"]
    (adapter / "nanoprune.json").unlink()
    settings = read_json(adapter / "adapter_config.json")
    write_json(adapter / "adapter_config.json", settings | {"base_model_name_or_path": str(base)})
    assert list(check_model(adapter)) == [
        f"it was trained on 2 blocks, and the base, {base}, has 3 to put it on"]
    write_json(adapter / "adapter_config.json",
               read_json(adapter / "adapter_config.json") | {"layers_to_transform": [0, 1]})
    assert not list(check_model(adapter))


def test_test_documents_in_the_training_split(world, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(world.data, tmp_path / "data")
    long = "It opens a plant for engines in a town at the sea, and says what the plant makes in a year. " * 2
    splits = {"train": [long, "Nothing new is told here of any town or plant at all."],
              "test": [long, long + "And more.", "Another text of other words about a different thing."]}
    for name, texts in splits.items():
        rows = [{"id": f"{name}{i}", "text": text} for i, text in enumerate(texts)]
        write_jsonl(data / f"{name}.jsonl", rows)
    code, lines, _ = check(monkeypatch, capsys, world.model, "--data", data)
    assert (code, lines) == (1, [
        "test document test0 stands in the training split in the same words, as train0",
        "test document test1 stands in the training split nearly, as train0"])


def test_conversations_in_the_training_split(world, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(world.data, tmp_path / "data")
    asked = "Which plant of the company at the sea makes engines, and how many of them in a year? " * 2
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "The one in the north."}]
    (data / "train.jsonl").unlink()
    write_json(data / "meta.json", read_json(data / "meta.json") | {"conversations": True})
    write_jsonl(data / "pairs.jsonl", [{"messages": turns}])
    write_jsonl(data / "test.jsonl", [{"id": "t", "text": "\n\n".join(turn["content"] for turn in turns)}])
    code, lines, _ = check(monkeypatch, capsys, world.model, "--data", data)
    assert (code, lines) == (1, ["test document t stands in the training split in the same words, as line 1"])


@pytest.mark.parametrize("content, message", [
    ({"num_hidden_layers": "3"}, "num_hidden_layers: given '3', must be a whole number"),
    ({"layer_types": [1]}, "layer_types"), ({"nanoprune_history": "none"}, "nanoprune_history")])
def test_wrong_types_are_bad_input(tmp_path, monkeypatch, capsys, content, message):
    folder = random_base(tmp_path / "m")
    write_json(folder / "config.json", read_json(folder / "config.json") | content)
    code, lines, err = check(monkeypatch, capsys, folder)
    assert (code, lines) == (2, []) and message in err


def test_a_git_lfs_pointer_is_said(tmp_path, monkeypatch, capsys):
    folder = random_base(tmp_path / "m")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    code, lines, err = check(monkeypatch, capsys, folder)
    assert (code, lines) == (2, []) and "model.safetensors is a git LFS pointer" in err
