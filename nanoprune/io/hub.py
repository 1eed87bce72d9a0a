"""A model's name becomes a folder: a folder on this machine, a run's model, or a download from the hub."""

import shutil
from pathlib import Path

from nanoprune.io.files import replace_file
from nanoprune.io.folders import recover

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
                   "added_tokens.json", "chat_template.jinja", "chat_template.json", "vocab.json",
                   "merges.txt")
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json", "*.safetensors",
               "adapter_config.json", "nanoprune.json")
ALL_FILES = MODEL_FILES + TOKENIZER_FILES


def locate(name: str | Path, revision: str | None = None, files: tuple[str, ...] = ALL_FILES) -> Path:
    """The local folder of a model.

    `name` is a folder, a run folder (its `model/` is meant) or a hub name, whose `files` are downloaded once.
    `revision` is a hub branch, tag or commit. ValueError if there is no such model; it names the remedy for a
    machine without a network.
    """
    path = Path(name)
    recover(path)
    if path.is_dir():
        if (path / "model" / "config.json").is_file():
            return path / "model"
        if (path / "env.json").is_file():
            raise ValueError(f"{name} is a run without a finished model/; "
                             f"finish it with: python train.py --resume {name}")
        if any((path / file).is_file() for file in ("config.json", "tokenizer.json", "adapter_config.json")):
            return path
        raise ValueError(f"{name} holds no config.json: it is neither a model's folder "
                         "nor a run with a finished model/")
    parts = str(name).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~") or _holds_runs(Path(parts[0])):
        raise ValueError(f"no folder {name!r} here; give a model's folder, a run folder or a hub name "
                         "such as Qwen/Qwen3-0.6B-Base")
    # Imported here: it is slow, and a run on local folders needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise ValueError(f"{name} is gated: accept the licence at https://huggingface.co/{name}, then run "
                         "`hf auth login` here") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(f"no folder {name!r} here and no such model on the hub{at}; "
                         "check the spelling") from error
    except Exception as error:  # any failure of the network, the hub or the cache's disk
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"no folder {name!r} here, and the hub cannot be reached ({type(error).__name__}: {reason}). "
            f"Offline: on a machine with a network run `hf download {name} --local-dir models/{parts[1]}`, "
            f"copy that folder here and give models/{parts[1]} instead"
        ) from error


def _holds_runs(folder: Path) -> bool:
    """True for a folder of runs, in which a name that is not there is a slip, and none of the hub's."""
    return any(next(folder.glob(f"*/{mark}"), None) for mark in ("env.json", "model"))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files, so that other libraries can load the target folder as it is."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and source.resolve() != target.resolve():
            replace_file(target / name, lambda beside, name=name: shutil.copyfile(source / name, beside))
