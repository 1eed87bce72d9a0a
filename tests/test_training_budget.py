"""nanoprune/training/budget.py: memory against measured peaks, operations by hand."""

import shutil
from dataclasses import replace

import pytest
import torch
from small import run_main

from model import Decoder
from nanoprune.config import IGNORE
from nanoprune.nn.model_config import ModelConfig
from nanoprune.training import budget
from nanoprune.training.batches import MicroBatch
from nanoprune.training.budget import disk_space, training_flops, training_memory
from train import train

QWEN3 = dict(model_type="qwen3", vocab_size=151_936, hidden_size=1024, intermediate_size=3072,
             num_attention_heads=16,
             num_key_value_heads=8, head_dim=128, max_position_embeddings=32_768, tie_word_embeddings=True)


@pytest.mark.parametrize("layers, changes, measured", [
    (28, {}, 12.63e9), (28, {"recompute": "pointwise"}, 11.94e9), (7, {}, 5.62e9),
    (7, {"recompute": "pointwise"}, 5.46e9),
    (28, {"optimizer": "lean", "recompute": "blocks", "clip": 0.0}, 6.41e9)])
def test_the_memory_that_is_foretold_is_what_was_measured(world, tmp_path, layers, changes, measured):
    """Peaks of train.py at Qwen3-0.6B's shape, 1 x 1,024 tokens, fp32 on a CPU."""
    shape = ModelConfig.from_dict(QWEN3 | {"num_hidden_layers": layers})
    config = world.config(tmp_path, context=1024, batch_size=1, **changes)
    assert sum(training_memory(config, shape, torch.device("cpu")).values()) == pytest.approx(measured,
                                                                                              rel=0.15)


@pytest.mark.parametrize("changes, measured", [
    ({"frozen": "stored"}, 4.02e9), ({"frozen": "nf4", "recompute": "blocks"}, 1.49e9)])
def test_the_memory_of_adapters_is_foretold(world, tmp_path, changes, measured):
    """As benchmarks.adapters measured them: the same shape, stored in bf16, rank 8 on q and v."""
    shape = ModelConfig.from_dict(QWEN3 | {"num_hidden_layers": 28})
    config = world.config(tmp_path, context=1024, batch_size=1, lora="q_proj,v_proj", **changes)
    need = training_memory(config, shape, torch.device("cpu"), stored=1.192e9)
    assert sum(need.values()) == pytest.approx(measured, rel=0.15)


def test_the_plain_heads_logits_are_foretold(world, tmp_path):
    """Measured beside a small model of this vocabulary: 12.1 bytes a logit in fp32, 12.3 in bf16."""
    shape, cpu = ModelConfig.from_dict(QWEN3 | {"num_hidden_layers": 1}), torch.device("cpu")
    for changes in ({}, {"dtype": "bfloat16"}, {"lora": "all"}):
        config = world.config(tmp_path, context=1024, batch_size=1, **changes)
        need = training_memory(config, shape, cpu, stored=1e9, plain_head=True)
        assert need["logits"] == pytest.approx(12.2 * 1024 * 151_936, rel=0.02)


def test_a_dry_run_checks_and_leaves_nothing(world, tmp_path, monkeypatch, capsys):
    path = world.config_file(tmp_path / "c.py")
    code, out, _ = run_main(monkeypatch, capsys, "train.py", path, "--dry-run")
    assert code == 0 and "memory some" in out and "disk" in out and "nothing is wrong" in out
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(budget, "memory_left", lambda device: 1e6)
    expected = r"too little memory, 0.0 of \d+\.\d GB on cpu: set recompute=blocks.*--ignore-budget"
    with pytest.raises(ValueError, match=expected):
        train(world.config(tmp_path), dry_run=True)
    train(world.config(tmp_path), dry_run=True, ignore_budget=True)
    monkeypatch.undo()
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(ValueError, match="too little disk, 0.0 of .* GB in .*: make room"):
        train(world.config(tmp_path))


def test_disk_room_is_counted_once(world, tmp_path):
    """A run that stopped needs room for what it has not written yet: without adapters, with them, with a
    teacher.
    """
    shape = ModelConfig.read(world.model)
    for name, changes in (("plain", {}), ("adapters", {"lora": "all"}), ("best", {"keep": "best"})):
        config = world.config(tmp_path, name=name, save_every=1, max_steps=3, **changes)
        before = disk_space(config, shape)
        train(config, listen=lambda: ["SIGTERM"])
        written = sum(path.stat().st_size for path in config.folder.rglob("*.safetensors"))
        assert 0 < written < before and disk_space(config, shape) == pytest.approx(before - written)
    taught = replace(config, name="taught", teacher=str(world.model))
    predictions = disk_space(taught, shape) - before
    assert predictions == 8 * taught.teacher_top * 3 * taught.tokens_per_step
    shutil.copytree(config.folder, taught.folder)
    assert disk_space(taught, shape) == disk_space(config, shape)


def test_flops(world):
    """By hand for one row of two documents, all learned, and with three tokens that are not."""
    model = Decoder.from_pretrained(world.model)
    ids, documents = torch.zeros(1, 10, dtype=torch.int64), torch.tensor([[0] * 4 + [1] * 6])
    block = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 48  # q, k and v, o, mlp
    products = 6 * 10 * (3 * block + model.config.vocab_size * 32)
    # blocks x (forward, twice backward) x (scores, values) x pairs x width, halved
    attention = 3 * 3 * 4 * (16 + 36) * 32 / 2
    assert training_flops(model, [MicroBatch(0, ids, ids, documents)]) == products + attention
    targets = torch.tensor([[IGNORE] * 3 + [0] * 7])
    without_head = 6 * 3 * model.config.vocab_size * 32
    assert (training_flops(model, [MicroBatch(0, ids, targets, documents)])
            == products + attention - without_head)
