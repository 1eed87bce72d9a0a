"""Matrices in four bits: NormalFloat with double quantisation (QLoRA, arXiv:2305.14314), in files as in bitsandbytes'."""

import json
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from nanoprune.io.files import read_json

BLOCK, NESTED = 64, 256  # values that share a scale; scales that share one
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # arXiv:2305.14314, appendix E
STATE = "weight.quant_state.bitsandbytes__nf4"  # the name, after a layer's, of what is no tensor: JSON in bytes
HOW = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


class Nf4(NamedTuple):
    """A matrix in 4.13 bits a value."""

    codes: torch.Tensor  # (values / 2, 1) uint8: two codes a byte, the first in the upper half
    absmax: torch.Tensor  # (blocks,) uint8: codes of the blocks' largest magnitudes, less `offset`
    nested: torch.Tensor  # (blocks / NESTED,) fp32: the scales of these
    offset: torch.Tensor  # () fp32: their mean


@cache
def eight_bit_values() -> torch.Tensor:
    """The 256 values of the signed dynamic type (arXiv:1511.04561): a decimal exponent, and the finer the larger."""
    edges = [torch.linspace(0.1, 1, 2**e + 1) for e in range(7)]
    sizes = torch.cat([10.0 ** (e - 6) * (edge[:-1] + edge[1:]) / 2 for e, edge in enumerate(edges)])
    return torch.cat([-sizes, sizes, torch.tensor([0.0, 1.0])]).sort().values


def nearest(x: torch.Tensor, values: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes uint8, fp32 scales) of x (N,): a block is divided by its largest magnitude and takes the nearest of the values."""
    rows = pad(x.float(), (0, -len(x) % block)).view(-1, block)
    scales = rows.abs().amax(1)
    middle = ((values[:-1] + values[1:]) / 2).to(x.device)
    shares = rows * (1 / scales.clamp(min=1e-38))[:, None]
    if len(values) == 256:  # looked up by 16 bits, as in bitsandbytes on a CPU
        shares = ((shares + 1) * 32767.5 + 0.5).floor_() / 32767.5 - 1
    codes = torch.bucketize(shares, middle, out_int32=True)
    return codes.to(torch.uint8).view(-1)[: len(x)], scales


def quantise(weight: torch.Tensor) -> Nf4:
    """Four-bit NormalFloat with double quantisation (arXiv:2305.14314) of a weight of any shape and float type.

    ValueError where it is quantised already, or holds values that are not finite.
    """
    if not weight.is_floating_point():
        raise ValueError(f"a weight of {weight.dtype} is quantised already: quantise the base it was made from")
    if not weight.isfinite().all():
        raise ValueError("a weight that is to be quantised holds values that are not finite: the model it is of is broken")
    codes, absmax = nearest(weight.reshape(-1), torch.tensor(NF4), BLOCK)
    codes = pad(codes, (0, len(codes) % 2), value=NF4.index(0.0))
    offset = absmax.mean()
    small, nested = nearest(absmax - offset, eight_bit_values(), NESTED)
    return Nf4((codes[::2] << 4 | codes[1::2])[:, None], small, nested, offset)


@cache
def _pairs(device: torch.device) -> torch.Tensor:
    """The two values of each byte of codes, as one element of 8 bytes (256,): looked up together."""
    values = torch.tensor(NF4)
    both = torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=1).to(device)
    return both.view(torch.int64).view(-1)


def dequantise(q: Nf4, shape: tuple[int, ...], out: torch.Tensor | None = None) -> torch.Tensor:
    """The weight in fp32, in `out` if it is given (fp32, contiguous, of this shape)."""
    count, blocks = math.prod(shape), len(q.absmax)
    scales = eight_bit_values().to(q.codes.device).index_select(0, q.absmax.int()).view(-1)
    scales = scales * q.nested.repeat_interleave(NESTED)[:blocks] + q.offset
    if out is not None and count % BLOCK == 0:
        torch.index_select(_pairs(q.codes.device), 0, q.codes.view(-1).int(), out=out.view(torch.int64).view(-1))
        out.view(-1, BLOCK).mul_(scales[:, None])
        return out
    values = _pairs(q.codes.device).index_select(0, q.codes.view(-1).int()).view(torch.float32)[:count]
    return (values * scales.repeat_interleave(BLOCK)[:count]).view(shape)


def check_quantised(folder: Path) -> None:
    """ValueError where a folder's weights are quantised in another way than ours."""
    how = read_json(folder / "config.json")["quantization_config"]
    how = how if isinstance(how, dict) else {}
    if other := [f"{key} {how.get(key)!r}" for key, value in HOW.items() if how.get(key) != value]:
        raise ValueError(f"{folder} is quantised in another way than nanoprune reads ({', '.join(other)}); it reads "
                         "bitsandbytes' NF4 with double quantisation, as python -m nanoprune quantise writes it")


def quantised_shapes(name: str, count: int) -> dict[str, tuple[int, ...] | None]:
    """The tensors that stand in a file for a matrix of so many values, and their shapes."""
    blocks = -(-count // BLOCK)
    return {f"{name}.weight": (-(-count // 2), 1), f"{name}.weight.absmax": (blocks,), f"{name}.weight.quant_map": (16,),
            f"{name}.weight.nested_absmax": (-(-blocks // NESTED),), f"{name}.weight.nested_quant_map": (256,),
            f"{name}.{STATE}": None}


def from_file(where: str, name: str, tensors: dict[str, torch.Tensor], shape: tuple[int, int]) -> Nf4:
    """A layer's matrix, of the tensors that stand for it; ValueError where they are not what we write and read."""
    q = Nf4(*(tensors[f"{name}.{part}"] for part in ("weight", "weight.absmax", "weight.nested_absmax", STATE)))
    try:
        state = json.loads(bytes(q.offset.flatten()[:4096].tolist()))
        found = state["quant_type"], state["blocksize"], state["nested_blocksize"], tuple(state["shape"])
        offset = torch.tensor(float(state["nested_offset"]), device=q.codes.device)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: the description of its four bits is damaged ({error!r})") from error
    if found != ("nf4", BLOCK, NESTED, shape):
        raise ValueError(f"{where}: expected nf4 in blocks of {BLOCK} and {NESTED} and shape {shape}, found {found}")
    tables = ((tensors[f"{name}.weight.quant_map"], torch.tensor(NF4)),
              (tensors[f"{name}.weight.nested_quant_map"], eight_bit_values()))
    kinds = (q.codes.dtype, q.absmax.dtype, q.nested.dtype)
    if (kinds != (torch.uint8, torch.uint8, torch.float32) or not (q.nested.isfinite().all() and offset.isfinite())
            or not all(torch.equal(table.float().cpu(), ours) for table, ours in tables)):
        raise ValueError(f"{where}: its four bits are damaged, or stand for other values than NF4's; quantise the base again")
    return q._replace(offset=offset)


def to_file(name: str, q: Nf4, shape: tuple[int, int], dtype: str) -> dict[str, torch.Tensor]:
    """The tensors that stand in a file for a layer's matrix; `dtype` is the type it had."""
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": list(shape), "nested_blocksize": NESTED,
             "nested_dtype": "float32", "nested_offset": float(q.offset)}
    return {f"{name}.weight": q.codes, f"{name}.weight.absmax": q.absmax, f"{name}.weight.quant_map": torch.tensor(NF4),
            f"{name}.weight.nested_absmax": q.nested, f"{name}.weight.nested_quant_map": eight_bit_values(),
            f"{name}.{STATE}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}
