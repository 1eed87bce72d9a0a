"""Files on disk: a name becomes a folder, reading is checked, writing is all or nothing.

JSON and safetensors only; nothing is unpickled. Every error says which file and what to do about it.
"""

import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ranks import whole

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
                   "vocab.json", "merges.txt")
SAFETENSORS_TYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
    torch.int8: "I8", torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32", torch.bool: "BOOL"}
MAPPED_TYPES = {"F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1", "U16": "<u2", "U32": "<u4"}
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


# ---------------------------------------------------------------- reading


def read_json(path: str | Path) -> dict:
    """The object in a JSON file; ValueError where it is missing, damaged or something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found {type(content).__name__}")
    return content


@contextmanager
def open_tensors(path: str | Path) -> Iterator[safe_open]:
    """A safetensors file to take tensors from, one by one; ValueError where it is missing or damaged."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch or make it again") from error


def map_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """A safetensors file's tensors as read-only arrays on the file itself: only what is used is ever read."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is missing")
    try:
        with safe_open(path, framework="np"):  # checks the header against the file's size
            pass
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch or make it again") from error
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            if about["dtype"] not in MAPPED_TYPES:
                raise ValueError(f"{path}: {name} is of type {about['dtype']}; a dataset holds {', '.join(MAPPED_TYPES)}")
            kind, shape = np.dtype(MAPPED_TYPES[about["dtype"]]), tuple(about["shape"])
            start = 8 + size + about["data_offsets"][0]
            found[name] = np.memmap(path, kind, "r", start, shape) if math.prod(shape) else np.empty(shape, kind)
    return found


def read_weights(folder: Path, wanted: dict[str, tuple[int, ...] | None], device, convert: Callable) -> dict:
    """convert(name, tensor) of the tensors that a model wants, by name and shape, from a folder's safetensors.

    The file is mapped for one tensor at a time: what is given must be read or copied, and the whole is never in memory twice.
    A shape of None fits any. A redundant tied `lm_head.weight` is left out (published Qwen3 files have one). ValueError names
    the shard that is missing and the tensors that are missing, unexpected or of another shape.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} is an adapter on another model; make one model of both: python lora.py merge {folder} "
                         "--out FOLDER")
    if (folder / "model.safetensors").is_file() or not index.is_file():
        shards = ["model.safetensors"]
        if not (folder / shards[0]).is_file():
            raise ValueError(f"{folder} holds no model.safetensors and no model.safetensors.index.json: its weights "
                             "are missing (other formats, such as pytorch_model.bin, are not read)")
    else:
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        if outside := [shard for shard in shards if Path(shard).name != shard]:
            raise ValueError(f"{index} names {outside[0]!r}: a shard must lie in the model's own folder")
        if absent := [shard for shard in shards if not (folder / shard).is_file()]:
            raise ValueError(f"{folder} lacks {', '.join(absent)}, named by {index.name}; fetch the missing shard(s)")
    found, problems = {}, []
    for shard in shards:
        try:
            with safe_open(folder / shard, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            for name, shape in shapes.items():
                if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and name not in wanted):
                    continue
                if name not in wanted:
                    problems.append(f"{name}: not part of this model")
                elif wanted[name] is not None and shape != tuple(wanted[name]):
                    problems.append(f"{name}: has shape {shape}, config.json asks for {tuple(wanted[name])}")
                else:
                    with safe_open(folder / shard, framework="pt", device=str(device)) as file:
                        found[name] = convert(name, file.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{folder / shard} is truncated or damaged ({error}); fetch or make it again") from error
    wrong = {problem.split(":")[0] for problem in problems}
    problems += [f"{name}: missing" for name in wanted if name not in found and name not in wrong]
    if problems:
        more = f"\n  ... and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"the weights in {folder} do not fit its config.json:\n  " + "\n  ".join(problems[:8]) + more)
    return found


def file_hash(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- writing


def make_folder(folder: str | Path) -> Path:
    """The folder, made where it was missing; ValueError where it cannot be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}; choose another place to write to") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write into {folder}: permission denied; choose another place to write to")
    return Path(folder)


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, put it on the disk and rename it: readers see the old or the new, never half."""
    path = Path(path)
    make_folder(path.parent)
    beside = path.with_name(path.name + ".tmp")
    try:
        write(beside)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ValueError(f"cannot write {path}: {error}. What was there before is unharmed; "
                         "free some space or write elsewhere") from error


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends well; otherwise what was there stays whole."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another place to write to")
    parent = make_folder(folder.parent)
    beside, before = (parent / f".{folder.name}.{os.getpid()}.{state}" for state in ("new", "old"))
    shutil.rmtree(beside, ignore_errors=True)  # of a killed process that had the same number
    try:
        yield make_folder(beside)
        if folder.exists():
            os.replace(folder, before)
        os.replace(beside, folder)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error}. What was there before is unharmed; "
                         "free some space or write elsewhere") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if before.exists() and not folder.exists():
            os.replace(before, folder)
        shutil.rmtree(before, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_csv(path: str | Path, rows: list[dict], columns: Iterable[str] = ()) -> None:
    """Under `columns`, or under all that the rows have in the order of their appearance; empty where a row has none."""
    table, columns = io.StringIO(), list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())


def finite(value):
    """The same with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def safetensors_header(layout: dict[str, tuple[str, tuple[int, ...], int]], size: int = 0) -> bytes:
    """The bytes in front of tensors that follow each other as in `layout`: name to (type, shape, bytes).

    The header's length in 8 bytes, then the header in JSON, with spaces to a multiple of 8 or to `size` bytes
    (https://huggingface.co/docs/safetensors). transformers wants the `format` entry.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (kind, shape, nbytes) in layout.items():
        start, end = end, end + nbytes
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (size - 8 - len(text) if size else -len(text) % 8)
    assert not size or len(text) + 8 == size
    return len(text).to_bytes(8, "little") + text


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor]) -> str:
    """A safetensors file, written one tensor at a time: the library's own writer holds a copy of them all. Its SHA-256."""
    ordered = in_order(tensors)
    layout = {name: (SAFETENSORS_TYPES[t.dtype], tuple(t.shape), t.numel() * t.element_size()) for name, t in ordered.items()}

    digest = hashlib.sha256()

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            for part in chain([safetensors_header(layout)], (
                whole(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                for tensor in ordered.values() if tensor.numel()
            )):
                file.write(part)
                digest.update(part)

    replace_file(path, write)
    return digest.hexdigest()


def in_order(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As they are written: the largest element types come first, so that all are aligned."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Take the tokenizer's files along, so that the target folder is complete for whoever loads it."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and source.resolve() != target.resolve():
            replace_file(target / name, lambda beside, name=name: shutil.copyfile(source / name, beside))
