"""A model's name becomes a folder, of this machine or downloaded; a folder becomes a model on the hub."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanoprune.io.files import file_hash, write_bytes
from nanoprune.io.folders import recover
from nanoprune.printing import note

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
                   "added_tokens.json", "chat_template.jinja", "chat_template.json",
                   "additional_chat_templates/*.jinja", "vocab.json", "merges.txt")
LICENCES = ("LICENSE*", "NOTICE*")
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json", "*.safetensors",
               "adapter_config.json", "nanoprune.json", "README.md", *LICENCES)
ALL_FILES = MODEL_FILES + TOKENIZER_FILES
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
OURS = ("data", "models", "runs")  # folders whose names nobody takes for an organisation's
POINTER = b"version https://git-lfs"


def locate(name: str | Path, revision: str | None = None, files: tuple[str, ...] = ALL_FILES) -> Path:
    """The local folder of a model.

    `name` is a folder, a run folder (its `model/` is meant) or a hub name, whose `files` are downloaded once.
    `revision` is a hub branch, tag or commit. ValueError if there is no such model; it names the remedy for a
    machine without a network.
    """
    path = Path(name)
    recover(path)
    if path.is_dir():
        if revision or names_the_hub(name):
            note(f"{name} is a folder here, and hides the hub's model of that name: revisions have no effect "
                 "on it; rename the folder if the hub's is meant")
        return _model_folder(path)
    if not names_the_hub(name):
        raise ValueError(f"no folder {name!r} here; give a model's folder, a run folder or a hub name "
                         "such as Qwen/Qwen3-0.6B-Base")
    # Imported here: it is slow, and a run on local folders needs none of it.
    from huggingface_hub import snapshot_download

    began, place = time.time(), f"models/{path.name}"
    offline = (f"on a machine with a network run `hf download {name} --local-dir {place}`, copy that folder "
               f"here and give {place} instead")
    with explaining_failures(name, revision, offline):
        folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=list(files)))
    # A large file of the hub's cache has its SHA-256 for a name; what was written now must have that hash.
    blobs = [(path, path.resolve().name) for path in folder.iterdir() if path.stat().st_mtime >= began - 1]
    damaged = [path for path, name in blobs if re.fullmatch("[0-9a-f]{64}", name) and file_hash(path) != name]
    for path in damaged:
        path.resolve().unlink()
    if damaged:
        raise ValueError(f"{damaged[0]} arrived damaged, and is removed; run the same command again")
    return folder


def _model_folder(path: Path) -> Path:
    """The folder of a model's files in a folder or a run's; ValueError if there are none."""
    folder = path / "model" if (path / "model" / "config.json").is_file() else path
    if folder == path and (path / "env.json").is_file():
        raise ValueError(f"{path} is a run without a finished model/; "
                         f"finish it with: python train.py --resume {path}")
    marks = "config.json", "tokenizer.json", "adapter_config.json"
    if not any((folder / file).is_file() for file in marks):
        raise ValueError(f"{path} holds no config.json: it is neither a model's folder nor a run with a "
                         "finished model/. If the hub's model of that name is meant, rename the folder")
    for file in filter(Path.is_file, folder.iterdir()):
        with open(file, "rb") as content:
            if content.read(len(POINTER)) == POINTER:
                raise ValueError(f"{file} is a git LFS pointer, and not the file that it stands for: run "
                                 "`git lfs pull` where it was cloned, or fetch it by `hf download`")
    return folder


@contextmanager
def explaining_failures(name: str | Path, revision: str | None, offline: str) -> Iterator[None]:
    """Raise whatever fails in the `with` block as a ValueError that says what to do.

    `offline`: what to do without the network.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise ValueError(f"{name} is gated: accept the licence at https://huggingface.co/{name}, then run "
                         "`hf auth login` here") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(f"no folder {str(name)!r} here and no such model on the hub{at}; check the "
                         "spelling. If it is private, run `hf auth login`") from error
    except ValueError:
        raise
    except Exception as error:  # any failure of the network, the hub or the cache's disk
        cause = error
        while cause.__cause__ and not hasattr(cause, "response"):
            cause = cause.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            raise ValueError(f"the hub refuses this machine's token for {name} ({status}): run `hf auth "
                             "login` with one that has the right to it") from error
        reason = (str(cause).strip().splitlines() or [""])[0]
        raise ValueError(f"no folder {str(name)!r} here, and the hub cannot be reached "
                         f"({type(cause).__name__}: {reason}). Offline: {offline}") from error


def names_the_hub(name: str | Path) -> bool:
    """True for a name such as Qwen/Qwen3-0.6B-Base, which no folder of ours has."""
    return bool(HUB_NAME.fullmatch(str(name))) and str(name).split("/")[0] not in OURS


def matching_files(folder: Path, patterns: tuple[str, ...] = TOKENIZER_FILES) -> list[Path]:
    """The files of a folder that match any of the patterns."""
    return [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]


def copy_tokenizer(source: Path, target: Path, patterns: tuple[str, ...] = TOKENIZER_FILES) -> None:
    """Copy the tokenizer's files, so that other libraries can load the target folder as it is."""
    for path in matching_files(source, patterns):
        if source.resolve() != target.resolve():
            write_bytes(target / path.relative_to(source), path.read_bytes())


def push(folder: Path, repository: str, revision: str | None, public: bool, send: bool) -> None:
    """List the files of a model's folder that go to a repository of the hub, and send them if asked to.

    What is there already is not sent again. ValueError where the hub refuses, or has another file then.
    """
    files = {str(path.relative_to(folder)): path for path in matching_files(folder, ALL_FILES)}
    for name, path in files.items():
        print(f"{path.stat().st_size / 1e6:12,.3f} MB  {name}")
    print(f"{len(files)} files of {folder} to {repository}, {'public' if public else 'private'}")
    if not send:
        print("a dry run: nothing was sent; --yes sends them")
        return
    from huggingface_hub import HfApi

    hub = HfApi()
    with explaining_failures(repository, revision, "run the same command later: it sends what is missing"):
        hub.create_repo(repository, private=not public, exist_ok=True)
        if hub.model_info(repository).private == public:
            raise ValueError(f"{repository} is there already, and {'private' if public else 'public'}: give "
                             "another name, or change --public")
        hub.upload_folder(repo_id=repository, folder_path=folder, revision=revision, allow_patterns=[*files])
        for file in hub.list_repo_tree(repository, recursive=True, revision=revision):
            if file.path in files and file.lfs and file.lfs.sha256 != file_hash(files[file.path]):
                raise ValueError(f"{file.path} arrived damaged: its hash on the hub is another. Remove it "
                                 "there, and run the same command again")
    print(f"sent to https://huggingface.co/{repository}")
