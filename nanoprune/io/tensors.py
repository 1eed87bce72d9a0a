"""Safetensors: open, map or read them into a model one tensor at a time; write them without a copy."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from nanoprune.distributed import full_tensor
from nanoprune.io.files import read_json, replace_file

SAFETENSORS_TYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32",
    torch.bool: "BOOL"}


@contextmanager
def open_tensors(path: str | Path, device="cpu") -> Iterator[safe_open]:
    """A safetensors file to take tensors from, one by one; ValueError if it is missing or damaged."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:  # checks header and size
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch or make it again") from error


def map_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """A safetensors file's tensors as read-only arrays mapped from the disk: only what is used is read."""
    arrays = {}
    with open_tensors(path) as file:
        for name in file.keys():
            try:
                arrays[name] = file.get_tensor(name).numpy()
            except TypeError as error:  # numpy has no bf16
                raise ValueError(f"{path}: {name} is of a type that no dataset holds ({error})") from error
            arrays[name].flags.writeable = False
    return arrays


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model's folder; ValueError if it has none or lacks one that its index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise ValueError(f"{folder} holds no model.safetensors and no {index.name}: its weights are missing "
                         "(other formats, such as pytorch_model.bin, are not read)")
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise ValueError(f"{index} names {outside[0]!r}: a shard must lie in the model's own folder")
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, named by {index.name}; "
                         "fetch the missing shard(s)")
    return [folder / shard for shard in shards]


def stored_types(folder: Path) -> dict[str, torch.dtype]:
    """The element types of a model's tensors as they are stored, by name; fp32 for those we cannot write."""
    dtypes, types = {name: dtype for dtype, name in SAFETENSORS_TYPES.items()}, {}
    for path in weight_files(folder):
        with open_tensors(path) as file:
            for name in file.keys():
                types[name] = dtypes.get(file.get_slice(name).get_dtype(), torch.float32)
    return types


def weights_hash(folder: Path) -> str:
    """SHA-256 of a model's tensors by name: the same however they are spread over files, and whoever wrote
    them.
    """
    digest, places = hashlib.sha256(), {}
    for path in weight_files(folder):
        with open_tensors(path) as file:
            places |= dict.fromkeys(file.keys(), path)
    for name in sorted(places):
        with open_tensors(places[name]) as file:
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_weights(folder: Path, shapes: dict[str, tuple[int, ...] | None], device, convert: Callable) -> dict:
    """convert(name, tensor) for every tensor of a model's folder, by name.

    `shapes` are those that the model has by its configuration; None fits any. A file is mapped for one tensor
    at a time: `convert` must read or copy it, and the whole is never in memory twice. A redundant tied
    `lm_head.weight` is left out (published Qwen3 files have one). ValueError names the shard that is missing,
    and all tensors that are missing, unexpected or of another shape.
    """
    weights, problems = {}, {}
    for path in weight_files(folder):
        with open_tensors(path) as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        for name, shape in stored.items():
            if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and name not in shapes):
                continue
            if name not in shapes:
                problems[name] = "not part of this model"
            elif shapes[name] is not None and shape != tuple(shapes[name]):
                problems[name] = f"has shape {shape}, config.json asks for {tuple(shapes[name])}"
            else:
                with open_tensors(path, device) as file:
                    weights[name] = convert(name, file.get_tensor(name))
    problems |= {name: "missing" for name in shapes if name not in weights and name not in problems}
    if problems:
        lines = [f"\n  {name}: {problem}" for name, problem in problems.items()]
        more = f"\n  ... and {len(lines) - 8} more" if len(lines) > 8 else ""
        raise ValueError(f"the weights in {folder} do not fit its config.json:{''.join(lines[:8])}{more}")
    return weights


def safetensors_header(layout: dict[str, tuple[str, tuple[int, ...], int]], size: int = 0) -> bytes:
    """The bytes in front of tensors that follow each other as in `layout`: name to (type, shape, bytes).

    The header's length in 8 bytes, then the header in JSON, with spaces to a multiple of 8 or to `size` bytes
    (https://huggingface.co/docs/safetensors). transformers requires the `format` entry.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, nbytes) in layout.items():
        start, end = end, end + nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (size - 8 - len(text) if size else -len(text) % 8)
    assert not size or len(text) + 8 == size
    return len(text).to_bytes(8, "little") + text


def file_order(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in the order of a file: the largest element types come first, so that all are aligned."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor]) -> str:
    """Write a safetensors file one tensor at a time, and return its SHA-256.

    The library's own writer holds a copy of all tensors. A sharded tensor is gathered when its turn comes:
    the other ranks must take part, in `file_order`.
    """
    ordered, digest = file_order(tensors), hashlib.sha256()
    layout = {name: (SAFETENSORS_TYPES[tensor.dtype], tuple(tensor.shape), tensor.numel() * tensor.itemsize)
              for name, tensor in ordered.items()}

    def parts() -> Iterator[bytes | np.ndarray]:
        yield safetensors_header(layout)
        for tensor in ordered.values():
            if tensor.numel():
                yield full_tensor(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            for part in parts():
                file.write(part)
                digest.update(part)

    replace_file(path, write)
    return digest.hexdigest()
