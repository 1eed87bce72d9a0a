"""evaluation/cost.py: exact numbers by hand, speeds from processes of their own."""

import json
import os

import pytest
import torch
from small import SHAPE, read_rows

from model import Decoder
from nanoprune.evaluation import cost
from nanoprune.nn.model_config import ModelConfig
from prune import drop_blocks


@pytest.mark.parametrize("tied", [True, False])
def test_operations_and_bytes_of_a_token_by_hand(tmp_path, tied):
    shape = SHAPE | {"vocab_size": 50, "tie_word_embeddings": tied}
    model = Decoder(ModelConfig.from_dict(shape))
    drop_blocks(model, ["0.attn", "1.mlp"])
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    row = cost.model_cost(model, tmp_path, "float32")
    attention, mlp = 32 * (32 + 16 + 16 + 32), 3 * 32 * 48
    matrices = 2 * attention + 2 * mlp + 32 * 50  # of what is left of three blocks, and the head
    seen = 2 * 4 * 4 * 8 * 256  # two attentions, 4 heads of 8: queries by keys, weights by values
    assert row["token_mflop"] == (2 * matrices + seen) / 1e6 and row["token_context"] == 256
    vectors = 2 * (32 + 8 + 8) + 2 * 32 + 32  # norms
    assert row["token_mb"] == 4 * (matrices + vectors) / 1e6
    everything = matrices + vectors + (0 if tied else 32 * 50)
    assert row["bf16_mb"] == 2 * everything / 1e6 and row["disk_dtype"] == "BF16"
    assert row["disk_mb"] == (tmp_path / "model.safetensors").stat().st_size / 1e6 > row["bf16_mb"]
    assert cost.model_cost(model, tmp_path, "bfloat16")["token_mb"] == row["token_mb"] / 2


def rows(*speeds: float) -> dict[str, dict]:
    return {name: {"prefill_tokens_per_s": 10 * speed, "decode_tokens_per_s": speed, "peak_mb": speed}
            for name, speed in zip("abc", speeds, strict=False)}


def test_rounds_become_medians_and_ratios_within_a_round():
    """The machine is half as fast in the second round: no model's ratio changes by it."""
    rounds = [rows(10, 20), rows(5, 10), rows(11, 24)]
    row = cost.summarize_speed("b", "a", rounds)
    assert [row[f"decode_tokens_per_s{end}"] for end in ("", "_low", "_high")] == [20, 10, 24]
    assert [row[f"prefill_ratio{end}"] for end in ("", "_low", "_high")] == [2, 2, 24 / 11]
    assert row["peak_mb"] == 24 and row["note"] == "machine busy"
    assert cost.summarize_speed("a", "a", [rows(10), rows(11.9), rows(10)])["note"] == ""
    assert cost.summarize_speed("a", "a", [rows(10), rows(12.1), rows(10)])["note"] == "machine busy"


def process(*_, device: str = "cpu") -> Decoder:
    """A model, and a file named after its process."""
    folder = _[0]
    (folder / str(os.getpid())).touch()
    if folder.name == "dies":
        os._exit(9)
    return Decoder.from_pretrained(folder, device=device)


def test_a_process_for_each_model_and_round_one_at_a_time(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "ROUNDS", 2)
    monkeypatch.setattr(cost, "SECONDS", 0.1)
    folders = {name: tmp_path / name for name in ("a", "dies")}
    for folder in folders.values():
        Decoder.from_pretrained(world.model).save_pretrained(folder)
    rows = cost.measure_speed(process, folders, "cpu", "float32")
    own = [{int(path.name) for path in folder.iterdir() if path.name.isdecimal()}
           for folder in folders.values()]
    assert [len(ids) for ids in own] == [2, 2] and os.getpid() not in own[0] | own[1]
    assert rows["a"]["decode_ratio"] == 1 and rows["a"]["peak_mb"] > 1
    assert rows["a"]["decode_tokens_per_s_low"] <= rows["a"]["decode_tokens_per_s"]
    assert set(rows["dies"]) == {"note"} and "BrokenProcessPool" in rows["dies"]["note"]
    order = [line.split(": ")[1].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert order == ["a", "dies", "dies", "a"]


def test_the_page_with_the_cost(world, tmp_path, monkeypatch, evaluate):
    monkeypatch.setattr(cost, "ROUNDS", 1)
    monkeypatch.setattr(cost, "SECONDS", 0.1)
    out = tmp_path / "out"
    code, page, err = evaluate(world.model, "--data", world.data, "--out", out, "--general", "", "--cost")
    assert code == 0, err
    (row,) = read_rows(out / "models.csv")
    assert float(row["decode_tokens_per_s"]) > 0 and float(row["prefill_ratio_high"]) == 1
    assert "written tokens/s" in page and "writing, to the first model" in page
    assert "| 1.000 (1.000 to 1.000) |" in page
    assert "were not measured" not in page and (out / "tradeoff.png").is_file()
    assert json.loads((out / "results.json").read_text())["models"][0]["cost"]["peak_mb"] > 1
