"""sample.py: the command, and how mistakes are answered."""

import shutil

import pytest
from small import run_main

from model import Decoder


def test_the_command(world, tmp_path, monkeypatch, capsys):
    prompts = ["--prompt", "Munich.", "--prompt", "Oxford."]
    arguments = [world.model, world.folder / "base", *prompts, "--tokens", "12"]
    code, out, _ = run_main(monkeypatch, capsys, "sample.py", *arguments, "--out", tmp_path / "s.jsonl")
    assert code == 0 and out.count("> Munich.") == 1 and out.count(f"[{world.model}]") == 4 and "wrote" in out
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 4
    first = out
    assert run_main(monkeypatch, capsys, "sample.py", *arguments, "--out", tmp_path / "s.jsonl")[1] == first
    for extra, message in ((["--tokens", "0"], "--tokens must be at least 1"),
                           (["--temperature", "-1"], "--temperature"),
                           (["--temperature", "nan"], "--temperature"),
                           (["--top-p", "0"], "--top-p above 0"),
                           (["--tokens", "128"], "was made for 128 tokens"),
                           ([world.folder / "none"], "no folder")):
        code, _, err = run_main(monkeypatch, capsys, "sample.py", world.model, *extra, "--prompt", "Munich.")
        assert code == 2 and message in err and "Traceback" not in err


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_broken_model_writes_nothing(world, tmp_path, monkeypatch, capsys, temperature):
    model = Decoder.from_pretrained(world.model)
    model.model.norm.weight.data[3] = float("inf")
    model.save_pretrained(tmp_path)
    shutil.copy(world.model / "tokenizer.json", tmp_path)
    code, out, err = run_main(monkeypatch, capsys, "sample.py", world.model, tmp_path, "--prompt", "Munich.",
                              "--temperature", temperature)
    assert code == 2 and "logits are not finite" in err
    assert f"[{world.model}]" in out and f"[{tmp_path}]" not in out  # the other model's text is not lost
