"""Safetensors: read one tensor at a time, mapped or into a model; written without a copy."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from nanoprune.distributed import full_tensor
from nanoprune.io.files import read_json, replace_file

SAFETENSORS_TYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
    torch.int8: "I8", torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32", torch.bool: "BOOL"}
MAPPED_TYPES = {"F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1", "U16": "<u2", "U32": "<u4"}


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
        raise ValueError(f"{folder} is an adapter on another model; make one model of both: python -m nanoprune merge {folder} "
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
    ordered = file_order(tensors)
    layout = {name: (SAFETENSORS_TYPES[t.dtype], tuple(t.shape), t.numel() * t.element_size()) for name, t in ordered.items()}

    digest = hashlib.sha256()

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            for part in chain([safetensors_header(layout)], (
                full_tensor(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                for tensor in ordered.values() if tensor.numel()
            )):
                file.write(part)
                digest.update(part)

    replace_file(path, write)
    return digest.hexdigest()


def file_order(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As they are written: the largest element types come first, so that all are aligned."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
