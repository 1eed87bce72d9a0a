"""A name becomes a folder: a model's folder, a run, or a download from the hub."""

import shutil
from pathlib import Path

from nanoprune.io.files import replace_file

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
                   "vocab.json", "merges.txt")
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json", "*.safetensors", "adapter_config.json",
               "nanoprune.json")


def locate(name: str | Path, revision: str | None = None, files: tuple[str, ...] = MODEL_FILES + TOKENIZER_FILES) -> Path:
    """The local folder of a model: a folder, a run folder (its `model/`), or a hub name, downloaded once and kept.

    `revision` is a hub branch, tag or commit. ValueError where nothing is found, with what to do without a network.
    """
    path = Path(name)
    if path.is_dir():
        if (path / "model" / "config.json").is_file():
            return path / "model"
        if (path / "env.json").is_file():
            raise ValueError(f"{name} is a run without a finished model/; finish it with: python train.py --resume {name}")
        if any((path / file).is_file() for file in ("config.json", "tokenizer.json", "adapter_config.json")):
            return path
        raise ValueError(f"{name} holds no config.json: it is neither a model's folder nor a run with a finished model/")
    parts = str(name).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~") or Path(parts[0]).is_dir():
        raise ValueError(f"no folder {name!r} here; give a model's folder, a run folder or a hub name "
                         "such as Qwen/Qwen3-0.6B-Base")
    # Imported here: it is slow, and a run on local folders needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(files)))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(f"no folder {name!r} here and no such model on the hub{at}; check the spelling") from error
    except Exception as error:  # whatever the network, the hub or the cache's disk came up with
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"no folder {name!r} here, and the hub cannot be reached ({type(error).__name__}: {reason}). Offline: "
            f"on a machine with a network run `hf download {name} --local-dir models/{parts[1]}`, "
            f"copy that folder here and give models/{parts[1]} instead"
        ) from error


def copy_tokenizer(source: Path, target: Path) -> None:
    """Take the tokenizer's files along, so that the target folder is complete for whoever loads it."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and source.resolve() != target.resolve():
            replace_file(target / name, lambda beside, name=name: shutil.copyfile(source / name, beside))


def check_out(out: Path, *sources: Path) -> None:
    """ValueError where writing a model to this folder would take the place of something else, or of what it is made from."""
    strange = {path.name for path in out.glob("*") if not any(map(path.match, MODEL_FILES + TOKENIZER_FILES))}
    if strange or out.resolve() in [source.resolve() for source in sources]:
        what = f"holds more than a model ({', '.join(sorted(strange)[:3])})" if strange else "is what the model is made from"
        raise ValueError(f"--out {out} {what}; write it to another folder")
