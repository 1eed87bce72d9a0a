"""A model's name becomes a folder: one of this machine, a run's model, or a download."""

import shutil

import pytest
from hub import Hub

from nanoprune.io.hub import copy_tokenizer, locate


def test_locate(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world.model, "runs/full/model")
    assert str(locate("runs/full")) == "runs/full/model"
    assert locate(world.model) == world.model
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no config.json"):
        locate("empty")
    # a slip in a run's name is no hub name
    with pytest.raises(ValueError, match="no folder 'runs/fulll' here"):
        locate("runs/fulll")
    for wrong in ("no-such-thing", "a/b/c", "../x/y"):
        with pytest.raises(ValueError, match="no folder"):
            locate(wrong)


ASK = """
from model import Decoder
names = ("Qwen/Tiny", None), ("Qwen/Tinny", None), ("Qwen/Tiny", "nope"), ("Qwen/Other", None)
for name, revision in names:
    try:
        print(Decoder.from_pretrained(name, revision=revision).config.num_hidden_layers)
    except ValueError as error:
        print(error)
"""


def test_hub(world, tmp_path):
    """A hub name is downloaded once; errors tell a wrong name from a network that is away."""
    with Hub({"Qwen/Tiny": world.model}, tmp_path / "cache") as hub:
        layers, wrong, revision, _ = hub.run(ASK).stdout.splitlines()
        assert layers == "3"
        assert "no such model on the hub" in wrong
        assert "no such model on the hub at revision 'nope'" in revision
        assert sum("model.safetensors" in path and "/resolve/" in path for path in hub.requests) == 1
    layers, _, _, gone = hub.run(ASK).stdout.splitlines()
    assert layers == "3"  # what was downloaded serves without the network
    assert "the hub cannot be reached" in gone and "hf download Qwen/Other --local-dir models/Other" in gone


def test_a_gated_model_and_a_folder_of_its_organisation(world, tmp_path):
    """Models of an organisation may lie in a folder of its name beside the one that is asked for."""
    models = {"Qwen/Tiny": world.model, "Qwen/Gated": world.model}
    with Hub(models, tmp_path / "cache", gated=("Qwen/Gated",)) as hub:
        shutil.copytree(world.model, tmp_path / "here" / "Qwen" / "Qwen3-0.6B")
        ask = f"import os, sys; sys.path.insert(0, os.getcwd()); os.chdir({str(tmp_path / 'here')!r})" + ASK
        layers, _, _, _ = hub.run(ask).stdout.splitlines()
        assert layers == "3"
        gated = hub.run(ask.replace("Qwen/Tinny", "Qwen/Gated")).stdout.splitlines()[1]
    assert gated == ("Qwen/Gated is gated: accept the licence at https://huggingface.co/Qwen/Gated, then run "
                     "`hf auth login` here")


def test_a_tokenizers_files_are_taken_along(world, tmp_path):
    source, target = shutil.copytree(world.model, tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    names = ("tokenizer.model", "chat_template.jinja", "chat_template.json", "added_tokens.json")
    for name in names:
        (source / name).write_text(name)
    copy_tokenizer(source, target)
    assert [(target / name).read_text() for name in names] == list(names)
