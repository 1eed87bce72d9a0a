"""sample.py: the command, and how mistakes are answered."""

import shutil

import pytest
import torch
from small import CHATML, byte_tokenizer, make_model, run_main

import sample
from model import Decoder
from nanoprune.data.chat_format import chat_form
from nanoprune.data.conversations import encode_pairs
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.io.files import write_json


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
                           (["--out", world.model / "config.json"], "config.json would be replaced"),
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


def test_a_chat_prompt_is_the_beginning_of_a_training_example(tmp_path, monkeypatch):
    """By the model's template, whose end of a turn ends the answer; without --chat it is the text alone."""
    turns = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% "
             "endfor %}"
             "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    data = byte_tokenizer(tmp_path / "t", CHATML, chat_template="<|endoftext|>Be brief.\n" + turns)
    write_json(data / "meta.json", {"vocab_size": 259, "end_token": 256})
    model, prompts = make_model(tmp_path / "m", data), []
    monkeypatch.setattr(sample, "generate", lambda model, ids, most, stop, **how: prompts.append(
        (ids[0].tolist(), stop)) or [[65]])
    for chat in (False, True):
        [row] = sample.complete("m", model, ["Why?"], 2, torch.device("cpu"), chat=chat)
        assert row["text"] == "b"
    tokenizer = load_tokenizer(data)
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    [example] = encode_pairs([{"messages": messages}], tokenizer, 256, chat_form(data, tokenizer))
    (plain, _), (chat, stop) = prompts
    assert plain == tokenizer.encode("Why?").ids
    assert chat == example.tokens[: example.learned.argmax()].tolist() and 258 in stop
