"""NF4: matrices in four-bit NormalFloat with double quantisation (QLoRA, arXiv:2305.14314).

In files they are stored as by bitsandbytes.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nanoprune.config import read_fields
from nanoprune.io.files import parse_json, read_json
from nanoprune.nn.scratch import buffer

GROUP, NESTED = 64, 256  # values that share a scale; scales that share one
NF4 = (  # arXiv:2305.14314, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0)
STATE = "weight.quant_state.bitsandbytes__nf4"  # tensor of a layer's metadata: JSON in bytes
BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True}  # in config.json


class Nf4(NamedTuple):
    """A matrix in 4.13 bits a value."""

    codes: Tensor  # (values / 2, 1) uint8: two codes a byte, the first in the upper half
    absmax: Tensor  # (groups,) uint8: codes of the groups' largest magnitudes, less `offset`
    nested: Tensor  # (groups / NESTED,) fp32: the scales of these
    offset: Tensor  # () fp32: their mean


@cache  # on each device: a copy from the CPU would wait for the GPU at every product
def eight_bit_values(device: torch.device | str = "cpu") -> Tensor:
    """The 256 values of the signed dynamic type (arXiv:1511.04561): finer for larger decimal exponents."""
    edges = [torch.linspace(0.1, 1, 2**e + 1) for e in range(7)]
    sizes = torch.cat([10.0 ** (e - 6) * (edge[:-1] + edge[1:]) / 2 for e, edge in enumerate(edges)])
    return torch.cat([-sizes, sizes, torch.tensor([0.0, 1.0])]).sort().values.to(device)


def nearest(x: Tensor, values: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(codes uint8, fp32 scales) of x (N,): the values nearest to x over its group's largest magnitude."""
    rows = pad(x.float(), (0, -len(x) % group)).view(-1, group)
    scales = rows.abs().amax(1)
    middle = ((values[:-1] + values[1:]) / 2).to(x.device)
    shares = rows * (1 / scales.clamp(min=1e-38))[:, None]
    if len(values) > 16:  # bitsandbytes looks shares up by 16 bits on a CPU
        shares = ((shares + 1) * 32767.5 + 0.5).floor_() / 32767.5 - 1
    codes = torch.bucketize(shares, middle, out_int32=True)
    return codes.to(torch.uint8).view(-1)[: len(x)], scales


def quantise(weight: Tensor, name: str = "a weight") -> Nf4:
    """A weight of any shape and float type in NF4; ValueError where it is quantised already or not finite."""
    if not weight.is_floating_point():
        raise ValueError(f"{name}: {weight.dtype} is quantised already; quantise the base it was made from")
    if not weight.isfinite().all():
        raise ValueError(f"{name}: holds values that are not finite; its model is broken")
    codes, absmax = nearest(weight.reshape(-1), torch.tensor(NF4), GROUP)
    codes = pad(codes, (0, len(codes) % 2), value=NF4.index(0.0))
    packed = (codes[::2] << 4 | codes[1::2])[:, None]
    offset = absmax.mean()
    absmax_codes, nested = nearest(absmax - offset, eight_bit_values(), NESTED)
    return Nf4(packed, absmax_codes, nested, offset)


@cache
def _pairs(device: torch.device) -> Tensor:
    """The two values of each byte of codes, as one element of 8 bytes (256,): looked up together."""
    values = torch.tensor(NF4)
    both = torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=1).to(device)
    return both.view(torch.int64).view(-1)


def dequantise(q: Nf4, shape: tuple[int, ...]) -> Tensor:
    """The weight in fp32, in memory that is used again once nobody holds it."""
    device, groups, codes = q.codes.device, len(q.absmax), q.codes.view(-1).int()
    scales = eight_bit_values(device).index_select(0, q.absmax.int())
    scales = scales * q.nested.repeat_interleave(NESTED)[:groups] + q.offset
    values = buffer("frozen weight", (groups * GROUP,), torch.float32, device)
    torch.index_select(_pairs(device), 0, codes, out=values[: 2 * len(codes)].view(torch.int64))
    values.view(-1, GROUP).mul_(scales[:, None])
    return values[: math.prod(shape)].view(shape)


@dataclass(frozen=True)
class InFull:
    """The layers that bitsandbytes leaves out, as config.json names them."""

    llm_int8_skip_modules: tuple[str, ...] | None = None


def is_quantised(folder: Path) -> bool:
    return bool(read_json(folder / "config.json").get("quantization_config"))


def check_quantised(folder: Path) -> tuple[str, ...]:
    """The beginnings and ends of the names of layers that a quantised folder holds in full.

    ValueError where its weights are quantised in another way than ours.
    """
    config = read_json(folder / "config.json")["quantization_config"]
    settings = config if isinstance(config, dict) else {}
    different = [f"{key} {settings.get(key)!r}" for key, value in BITSANDBYTES.items()
                 if settings.get(key) != value]
    if different:
        raise ValueError(f"{folder} is quantised in another way than nanoprune reads "
                         f"({', '.join(different)}); it reads bitsandbytes' NF4 with double quantisation, "
                         "as python -m nanoprune quantise writes it")
    return read_fields(InFull, settings, f"{folder}/config.json").llm_int8_skip_modules or ()


def quantised_shapes(name: str, count: int) -> dict[str, tuple[int, ...] | None]:
    """Shapes of the tensors in a file that stand for a layer's matrix of `count` values; None: any shape.

    `from_file` and `to_file` have them in this order.
    """
    groups = math.ceil(count / GROUP)
    return {
        f"{name}.weight": (math.ceil(count / 2), 1),
        f"{name}.weight.absmax": (groups,),
        f"{name}.weight.quant_map": (16,),
        f"{name}.weight.nested_absmax": (math.ceil(groups / NESTED),),
        f"{name}.weight.nested_quant_map": (256,),
        f"{name}.{STATE}": None,
    }


def from_file(where: str, name: str, tensors: dict[str, Tensor], shape: tuple[int, int]) -> Nf4:
    """A layer's matrix from its tensors in a file; ValueError where they are damaged or no NF4 of ours."""
    parts = [tensors[key] for key in quantised_shapes(name, math.prod(shape))]
    codes, absmax, values, nested, nested_values, state_bytes = parts
    try:
        state = parse_json(bytes(state_bytes.flatten()[:4096].tolist()), where)
        layout = state["quant_type"], state["blocksize"], state["nested_blocksize"], tuple(state["shape"])
        offset = torch.tensor(float(state["nested_offset"]), device=codes.device)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: the description of its four bits is damaged ({error!r})") from error
    if layout != ("nf4", GROUP, NESTED, shape):
        raise ValueError(f"{where}: expected nf4 in groups of {GROUP} and {NESTED} and shape {shape}, "
                         f"found {layout}")
    types_fit = (codes.dtype, absmax.dtype, nested.dtype) == (torch.uint8, torch.uint8, torch.float32)
    finite = nested.isfinite().all() and offset.isfinite()
    same_values = (values.tolist(), nested_values.tolist()) == (torch.tensor(NF4).tolist(),
                                                                eight_bit_values().tolist())
    if not types_fit or not finite or not same_values:
        raise ValueError(f"{where}: its four bits are damaged, or stand for other values than NF4's; "
                         "quantise the base again")
    return Nf4(codes, absmax, nested, offset)


def to_file(name: str, q: Nf4, shape: tuple[int, int], dtype: str) -> dict[str, Tensor]:
    """Tensors in a file for a layer's matrix; `dtype`: its type before it was quantised."""
    state = {"quant_type": "nf4", "blocksize": GROUP, "dtype": dtype, "shape": list(shape),
             "nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": float(q.offset)}
    described = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    parts = q.codes, q.absmax, torch.tensor(NF4), q.nested, eight_bit_values(), described
    return dict(zip(quantised_shapes(name, math.prod(shape)), parts, strict=True))
