"""A folder of each kind that nanoprune writes."""

import contextlib
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from small import World

from model import Decoder
from nanoprune.io.files import write_json
from nanoprune.io.hub import TOKENIZER_FILES
from nanoprune.nn.model_config import Part
from prune import write_reduced
from train import train


def complete_base(folder: Path, model: Path) -> Path:
    """A copy of a model with all that a folder may hold beside its weights: as downloaded."""
    shutil.copytree(model, folder)
    for name in TOKENIZER_FILES:
        path = folder / name.replace("*", "tools")
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            path.write_text("{}" if path.suffix == ".json" else name)
    write_json(folder / "generation_config.json", {"eos_token_id": 0, "temperature": 0.7})
    (folder / "LICENSE").write_text("Do as you like.")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_link: LICENSE\nlanguage:\n- en\n- de\n"
                                      "base_model: no-such/older\ntags: [x]\n---\n# A base\n")
    return folder


def written_folders(folder: Path, world: World) -> dict[str, Path]:
    """By kind, a folder of each that nanoprune writes, all from one complete base in `folder`."""
    base = complete_base(folder / "base", world.model)
    folders = {name: folder / name for name in ("pruned", "halves", "merged", "nf4")}
    parts = {"pruned": [Part(1)], "halves": [Part(0), Part(1, "attn"), Part(2, "mlp")]}
    for name, dropped in parts.items():
        model, history = Decoder.from_pretrained(base), {"method": "by hand"}
        write_reduced(model, dropped, str(base), base, folders[name], history)
    for name, changes in (("run", {}), ("adapter", {"lora": "q_proj"})):
        config = world.config(folder / "runs", name=name, base=str(base), drop_blocks=(1,), max_steps=1,
                              warmup_steps=0, **changes)
        assert train(config)
        folders[name] = config.folder / "model"
    bare = shutil.copytree(folders["adapter"], folder / "bare")  # as others write adapters
    (bare / "tokenizer.model").unlink()
    with pytest.MonkeyPatch.context() as patch:
        for command, source, out in (("merge", bare, "merged"), ("quantise", folders["pruned"], "nf4")):
            patch.setattr(sys, "argv", ["", command, str(source), "--out", str(folders[out])])
            with contextlib.suppress(SystemExit):
                runpy.run_module("nanoprune", run_name="__main__", alter_sys=True)
    return folders
