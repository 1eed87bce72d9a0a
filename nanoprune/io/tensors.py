"""Safetensors: open, map or read them into a model one tensor at a time; write them without a copy."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from nanoprune.config import shown
from nanoprune.distributed import full_tensor
from nanoprune.io.files import naming_failures, parse_json, read_json, replace_file

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
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


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, by name."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@dataclass(frozen=True)
class StoredArray:
    """A flat array of integers in a safetensors file, read by slices.

    Not mapped: a file that is cut short is an error, where a mapped one would kill the process.
    """

    file: BinaryIO
    dtype: np.dtype
    count: int
    start: int  # its first byte in the file

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, span: slice) -> np.ndarray:
        first, end, _ = span.indices(self.count)
        size = max(0, end - first) * self.dtype.itemsize
        data = os.pread(self.file.fileno(), size, self.start + first * self.dtype.itemsize)
        if len(data) < size:
            raise ValueError(f"{self.file.name} was cut short while it was in use; restore it, then resume")
        return np.frombuffer(data, self.dtype)


def stored_arrays(path: str | Path) -> dict[str, StoredArray]:
    """The arrays of a safetensors file; ValueError if one is no flat array of integers."""
    with open_tensors(path):  # checks header and size
        file = open(path, "rb")  # noqa: SIM115 (open as long as its arrays are)
    size = int.from_bytes(file.read(8), "little")
    header = parse_json(file.read(size), str(path))
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        kind = re.fullmatch(r"([UI])(8|16|32|64)", entry["dtype"])
        if not kind or len(entry["shape"]) != 1:
            raise ValueError(f"{path}: {name} is {entry['dtype']} of shape {entry['shape']}, which no "
                             "dataset holds; run prepare.py again")
        dtype = np.dtype(f"<{kind[1].lower()}{int(kind[2]) // 8}")
        arrays[name] = StoredArray(file, dtype, entry["shape"][0], 8 + size + entry["data_offsets"][0])
    return arrays


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model's folder; ValueError if it has none or lacks one that its index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise missing_weights(folder / "model.safetensors", "pytorch_model.bin")
    weight_map = read_json(index).get("weight_map")
    shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not shards or not all(isinstance(shard, str) and Path(shard).name == shard for shard in shards):
        raise ValueError(f"{index}: weight_map must name a file for each tensor, in the model's own folder, "
                         f"given {shown(weight_map)}")
    shards = sorted(set(shards))
    with naming_failures(f"read the shards that {index} names"):
        missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, named by {index.name}; "
                         "fetch the missing shard(s)")
    return [folder / shard for shard in shards]


def missing_weights(path: Path, pickled: str) -> ValueError:
    """The error of a folder without this safetensors file, with the command to convert a pickled one."""
    code = (f"import torch, safetensors.torch as s; t = torch.load({str(path.with_name(pickled))!r}, 'cpu', "
            f"weights_only=True); s.save_file({{k: v.clone() for k, v in t.items()}}, {str(path)!r})")
    return ValueError(f"{path.parent} holds no {path.name}: its weights are missing. {pickled} is not read, "
                      f"because it may run code; to convert it: python -c {shlex.quote(code)}")


class Stored(NamedTuple):
    """A tensor in a file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it


def stored_tensors(folder: Path, files: list[Path] | None = None) -> dict[str, Stored]:
    """The tensors of a model's folder, or of these files, by their names in the model.

    Some files leave the `model.` out.
    """
    tensors = {}
    for path in files or weight_files(folder):
        with open_tensors(path) as file:
            for name in file.keys():
                part = file.get_slice(name)
                full = name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
                tensors[full] = Stored(path, name, tuple(part.get_shape()), part.get_dtype())
    return tensors


def stored_types(folder: Path) -> dict[str, torch.dtype]:
    """The element types of a model's tensors as they are stored, by name; fp32 for those we cannot write."""
    dtypes = {name: dtype for dtype, name in SAFETENSORS_TYPES.items()}
    types = {name: dtypes.get(tensor.dtype, torch.float32) for name, tensor in stored_tensors(folder).items()}
    return {EMBEDDING: types.get(HEAD)} | types


def weights_hash(folder: Path) -> str:
    """SHA-256 of a model's tensors by name: the same however they are spread over files, and whoever wrote
    them.
    """
    digest = hashlib.sha256()
    for stored in sorted(stored_tensors(folder).values(), key=lambda stored: stored.name):
        tensor = read_stored(stored)
        digest.update(f"{stored.name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_weights(folder: Path, shapes: dict[str, tuple[int, ...] | None], device, convert: Callable) -> dict:
    """convert(name, tensor) for every tensor of a model's folder, by name.

    `shapes` are those that the model has by its configuration; None fits any. A file is mapped for one tensor
    at a time: `convert` must read or copy it, and the whole is never in memory twice. A tied `lm_head.weight`
    is redundant (published Qwen3 files have one) or stands for the embedding. ValueError names the shard that
    is missing, and all tensors that are missing, unexpected or of another shape.
    """
    weights, problems, stored = {}, {}, stored_tensors(folder)
    if HEAD not in shapes and HEAD in stored:
        head = stored.pop(HEAD)
        embedding = stored.setdefault(EMBEDDING, head)
        same = embedding is head or embedding.shape != shapes[EMBEDDING]  # which is said below
        if not same and not torch.equal(read_stored(embedding), read_stored(head)):
            problems[HEAD] = ("differs from the embedding, config.json ties both; if they are apart, write "
                              '"tie_word_embeddings": false there')
    for name, tensor in stored.items():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if name not in shapes:
            problems[name] = "not part of this model"
        elif shapes[name] is not None and tensor.shape != shapes[name]:
            problems[name] = f"has shape {tensor.shape}, config.json asks for {tuple(shapes[name])}"
        else:
            weights[name] = convert(name, read_stored(tensor, device))
    problems |= {name: "missing" for name in shapes if name not in weights and name not in problems}
    if problems:
        lines = [f"\n  {name}: {problem}" for name, problem in problems.items()]
        more = f"\n  ... and {len(lines) - 8} more" if len(lines) > 8 else ""
        raise ValueError(f"the weights in {folder} do not fit its config.json:{''.join(lines[:8])}{more}")
    return weights


def read_stored(tensor: Stored, device="cpu") -> torch.Tensor:
    """A tensor, read from its file."""
    with open_tensors(tensor.path, device) as file:
        return file.get_tensor(tensor.name)


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


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file one tensor at a time.

    The library's own writer holds a copy of all tensors. A sharded tensor is gathered when its turn comes:
    the other ranks must take part, in `file_order`.
    """
    ordered = file_order(tensors)
    layout = {name: (SAFETENSORS_TYPES[tensor.dtype], tuple(tensor.shape), tensor.numel() * tensor.itemsize)
              for name, tensor in ordered.items()}

    with replace_file(path) as file:
        file.write(safetensors_header(layout))
        for tensor in ordered.values():
            if tensor.numel():
                whole = full_tensor(tensor.detach()).cpu().contiguous()
                file.write(whole.reshape(-1).view(torch.uint8).numpy())
