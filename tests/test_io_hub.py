"""A model's name becomes a folder: one of this machine, a run's model, or a download. A folder is pushed."""

import shutil

import pytest
from hub import Hub
from small import random_base

from nanoprune.io.files import file_hash
from nanoprune.io.hub import copy_tokenizer, locate, push


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


def test_a_folder_that_hides_a_hub_name(world, tmp_path, monkeypatch, capsys):
    """It is taken, and said; a folder without a model says what to do; our own folders hide nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("No-Such/Tiny", "models/tiny"):
        shutil.copytree(world.model, name)
        assert str(locate(name)) == name
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: No-Such/Tiny is a folder here, and hides the hub's model of that name")
    locate("models/tiny", revision="v1")
    assert "revisions have no effect on it" in capsys.readouterr().err
    (tmp_path / "No-Such" / "Other").mkdir()
    with pytest.raises(ValueError, match="If the hub's model of that name is meant, rename the folder"):
        locate("No-Such/Other")


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_no_file(world, tmp_path, file):
    folder = shutil.copytree(world.model, tmp_path / "model")
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=f"{file} is a git LFS pointer.*run `git lfs pull` .* `hf download`"):
        locate(folder)


LOCATE = """
import json, sys
from nanoprune.io.hub import locate
for name, revision in {names}:
    try:
        print(json.loads((locate(name, revision) / "config.json").read_text())["num_hidden_layers"])
    except ValueError as error:
        print(error)
"""


def located(hub: Hub, *names: str | tuple, **environment: str) -> list[str]:
    """For each name, or name and revision, the number of blocks of what was found, or the error."""
    pairs = [name if isinstance(name, tuple) else (name, None) for name in names]
    process = hub.run(LOCATE.format(names=pairs), **environment)
    assert len(lines := process.stdout.splitlines()) == len(pairs), process.stderr
    return lines


def test_hub(world, tmp_path):
    """A hub name is downloaded once; errors tell a wrong name from a network that is away."""
    names = "Qwen/Tiny", "Qwen/Tinny", ("Qwen/Tiny", "nope"), "Qwen/Other"
    with Hub({"Qwen/Tiny": world.model}, tmp_path / "cache") as hub:
        layers, wrong, revision, _ = located(hub, *names)
        assert layers == "3"
        assert "no such model on the hub; check the spelling" in wrong
        assert "no such model on the hub at revision 'nope'" in revision
        assert sum("model.safetensors" in path and "/resolve/" in path for path in hub.requests) == 1
        asked = len(hub.requests)
        layers, offline = located(hub, "Qwen/Tiny", "Qwen/Other", HF_HUB_OFFLINE="1")
        assert layers == "3" and "hf download Qwen/Other --local-dir models/Other" in offline
        assert len(hub.requests) == asked
    layers, _, _, gone = located(hub, *names)
    assert layers == "3"  # what was downloaded serves without the network
    assert "the hub cannot be reached" in gone and "hf download Qwen/Other --local-dir models/Other" in gone


def test_refused_and_damaged_downloads(world, tmp_path):
    """Each says what to do, a gated model is not a misspelt one, and no damaged file stays."""
    faults = {"Qwen/Gated": "gated", "Qwen/Private": 401, "Qwen/Forbidden": 403, "Qwen/Down": 500,
              "Qwen/Damaged": "damaged", "Qwen/Short": "short"}
    with Hub(dict.fromkeys(faults, world.model), tmp_path / "cache", faults) as hub:
        gated, private, forbidden, down, damaged, short = located(hub, *faults)
        assert gated == ("Qwen/Gated is gated: accept the licence at https://huggingface.co/Qwen/Gated, then "
                         "run `hf auth login` here")
        for line, status, name in ((private, 401, "Private"), (forbidden, 403, "Forbidden")):
            assert line == (f"the hub refuses this machine's token for Qwen/{name} ({status}): run `hf auth "
                            "login` with one that has the right to it")
        assert "the hub cannot be reached (HfHubHTTPError" in down
        assert "model.safetensors arrived damaged, and is removed; run the same command again" in damaged
        assert "cannot be reached" in short
        hub.faults.clear()
        assert located(hub, "Qwen/Damaged", "Qwen/Short") == ["3", "3"]


def test_a_folder_of_an_organisation_hides_no_other_model(world, tmp_path):
    """Models of an organisation may lie in a folder of its name beside the one that is asked for."""
    with Hub({"Qwen/Tiny": world.model}, tmp_path / "cache") as hub:
        shutil.copytree(world.model, tmp_path / "here" / "Qwen" / "Qwen3-0.6B")
        here = str(tmp_path / "here")
        ask = f"import os, sys; sys.path.insert(0, os.getcwd()); os.chdir({here!r})" + LOCATE
        assert hub.run(ask.format(names=[("Qwen/Tiny", None)])).stdout == "3\n"


PUSH = """
from pathlib import Path
from nanoprune.io.hub import push
for name, revision, public in {names}:
    try:
        push(Path({folder!r}), name, revision, public, True)
    except ValueError as error:
        print("refused:", error)
"""


def test_push(tmp_path, capsys):
    """Fresh, again, resumed; refused and damaged; of another revision; with nobody there."""
    folder = random_base(tmp_path / "m")
    shutil.copy(folder / "model.safetensors", folder / "second.safetensors")
    (folder / "second.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (folder / "notes.txt").write_text("mine")
    (folder / ".hidden").write_text("mine")
    names = ["config.json", "model.safetensors", "second.safetensors",
             "additional_chat_templates/tools.jinja"]
    push(folder, "me/fresh", None, False, send=False)
    *lines, summary, advice = capsys.readouterr().out.splitlines()
    assert [line.split("MB  ")[1] for line in lines] == names
    assert summary == f"4 files of {folder} to me/fresh, private"
    assert advice == "a dry run: nothing was sent; --yes sends them"
    faults = {"me/breaks": "breaks", "me/public": "public", "me/damaged": "damaged", "me/none": 401,
              "me/forbidden": 403}
    cases = [("me/fresh", None, False), ("me/fresh", None, False), ("me/fresh", "v2", False),
             ("me/fresh", None, True), ("me/public", None, False), ("me/damaged", None, False),
             ("me/none", None, False), ("me/forbidden", None, False), ("no name", None, False)]
    breaks = [("me/breaks", None, False)] * 2
    with Hub({}, tmp_path / "cache", faults) as hub:
        process = hub.run(PUSH.format(names=breaks, folder=str(folder)))
        first, second = [line for line in process.stdout.splitlines() if "MB  " not in line][1::2]
        assert first.startswith("refused: ") and "the same command later: it sends what is missing" in first
        assert second == "sent to https://huggingface.co/me/breaks" and hub.uploads == ["me/breaks"] * 3
        process = hub.run(PUSH.format(names=cases, folder=str(folder)))
        lines = [line for line in process.stdout.splitlines() if "MB  " not in line][1::2]
        there = hub.models["me/fresh"]
        sent = [str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()]
        assert hub.private["me/fresh"] and sorted(sent) == sorted(names)
        assert [file_hash(there / name) for name in names] == [file_hash(folder / name) for name in names]
        assert len(hub.uploads) == 3  # large files are known by their hash, in any repository
    process = hub.run(PUSH.format(names=cases[:1], folder=str(folder)))
    for line, expected in zip([*lines, process.stdout.splitlines()[-1]], (
            "sent to https://huggingface.co/me/fresh", "sent to https://huggingface.co/me/fresh",
            "no such model on the hub at revision 'v2'", "me/fresh is there already, and private",
            "me/public is there already, and public", "arrived damaged: its hash on the hub is another",
            "the hub refuses this machine's token for me/none (401)",
            "the hub refuses this machine's token for me/forbidden (403)", "Repo id must",
            "the hub cannot be reached (ConnectError"), strict=True):
        assert expected in line


def test_a_tokenizers_files_are_taken_along(world, tmp_path):
    source, target = shutil.copytree(world.model, tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    (source / "additional_chat_templates").mkdir()
    names = ("tokenizer.model", "chat_template.jinja", "chat_template.json", "added_tokens.json",
             "additional_chat_templates/tools.jinja")
    for name in names:
        (source / name).write_text(name)
    copy_tokenizer(source, target)
    assert [(target / name).read_text() for name in names] == list(names)
