"""Layers that do not learn, kept in any type or in four bits, with the low-rank adapters beside them that do.

LoRA (arXiv:2106.09685) where the base is kept as it is stored, QLoRA (arXiv:2305.14314) where it is kept in four bits.
"""

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from model import Decoder
from nanoprune.config import FROZEN
from nanoprune.device import matmul_dtype
from nanoprune.io.files import file_hashes, read_json
from nanoprune.io.hub import locate
from nanoprune.io.tensors import read_weights, write_tensors
from nanoprune.nn.nf4 import (
    HOW,
    Nf4,
    check_quantised,
    dequantise,
    from_file,
    quantise,
    quantised_shapes,
    to_file,
)
from nanoprune.nn.pointwise import apply
from nanoprune.nn.scratch import return_buffer, take_buffer

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a block


@dataclass
class DropoutRows:
    """What the dropout of all of a model's adapters is drawn from: the run's seed and the numbers of the rows in the batch.

    A row's draw is a function of these and of the layer alone: a resumed run, and one on several processes, has the same.
    """

    seed: int = 0
    rows: list[int] = field(default_factory=list)


class FrozenLinear(nn.Module):
    """A linear layer that does not learn, its weight kept in any type or in four bits, with perhaps an adapter that does."""

    def __init__(self, weight: torch.Tensor | Nf4, bias: torch.Tensor | None, shape: tuple[int, int]):
        super().__init__()
        self.shape, self.rank = shape, 0
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        if isinstance(weight, Nf4):
            for name, part in zip(Nf4._fields, weight, strict=True):
                self.register_buffer(name, part)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)

    @property
    def quantised(self) -> Nf4 | None:
        return Nf4(self.codes, self.absmax, self.nested, self.offset) if "codes" in self._buffers else None

    def as_type(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight (out, in) in the type of a product; where it had to be made, good until the next one is."""
        q = self.quantised
        if q is None and self.weight.dtype == dtype:
            return self.weight
        room = take_buffer("frozen weight", self.shape, torch.float32 if q else dtype, (q.codes if q else self.weight).device)
        return_buffer("frozen weight", room)
        return dequantise(q, self.shape, room).to(dtype) if q else room.copy_(self.weight)

    def add(self, rank: int, scale: float, dropout: float, draws: DropoutRows, number: int) -> None:
        """An adapter B A of this rank beside the weight: A as in kaiming_uniform(a=sqrt(5)), B zero, both in fp32."""
        outs, ins = self.shape
        device = self.codes.device if self.quantised else self.weight.device
        draw = torch.Generator().manual_seed(_mix_seed(draws.seed, -1, number))
        self.lora_A = nn.Parameter(((torch.rand(rank, ins, generator=draw) * 2 - 1) / math.sqrt(ins)).to(device))
        self.lora_B = nn.Parameter(torch.zeros(outs, rank, device=device))
        self.rank, self.scale, self.dropout, self.draws, self.number = rank, scale, dropout, draws, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, in) to (B, T, out)."""
        y = apply(FrozenProduct, x, self)
        if not self.rank:
            return y
        low = (self.drop(x) if self.dropout and self.training else x).to(y.dtype) @ self.lora_A.to(y.dtype).t()
        added = torch.addmm(y.flatten(0, -2), low.flatten(0, -2), self.lora_B.to(y.dtype).t(), alpha=self.scale)
        return added.view(y.shape)

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """x with values set to 0 at random, and the others scaled up to the same mean."""
        assert len(self.draws.rows) == len(x), "dropout needs to know the numbers of the rows"
        kept = torch.empty_like(x, requires_grad=False)
        for row, number in zip(kept, self.draws.rows, strict=True):
            draw = torch.Generator(x.device).manual_seed(_mix_seed(self.draws.seed, number, self.number))
            row.bernoulli_(1 - self.dropout, generator=draw)
        return x * kept.div_(1 - self.dropout)

    @torch.no_grad()
    def merged(self) -> torch.Tensor:
        """The weight with the adapter in it, in fp32."""
        weight = self.as_type(torch.float32).clone()
        return weight.addmm_(self.lora_B, self.lora_A, alpha=self.scale) if self.rank else weight


class FrozenProduct(torch.autograd.Function):
    """x W^T + b for a weight that does not learn: x is not kept, and the weight is made again for the gradient of x."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, layer: FrozenLinear) -> torch.Tensor:
        ctx.layer, ctx.types = layer, (x.dtype, matmul_dtype(x))
        flat, weight = x.to(ctx.types[1]).flatten(0, -2), layer.as_type(ctx.types[1])
        y = torch.mm(flat, weight.t()) if layer.bias is None else torch.addmm(layer.bias.to(flat.dtype), flat, weight.t())
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        given, kind = ctx.types
        return (grad.to(kind) @ ctx.layer.as_type(kind)).to(given), None


def _mix_seed(seed: int, row: int, layer: int) -> int:
    return ((seed * 1_000_003 + row + 1) * 65_537 + layer) % 2**63


def frozen_layers(model: Decoder) -> dict[str, FrozenLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, FrozenLinear)}


def matching_layers(model: Decoder, pattern: str) -> list[str]:
    """The linear layers that "q_proj,v_proj", "model.layers.3.*" or "all" name; ValueError where one names none."""
    names = [name for name, layer in model.model.named_modules(prefix="model") if isinstance(layer, FrozenLinear | nn.Linear)]
    found = set()
    for part in [part.strip() for part in pattern.split(",") if part.strip()] or [pattern]:
        some = [n for n in names if part == "all" or n == part or n.endswith(f".{part}") or fnmatchcase(n, part)]
        if not some:
            leaves = dict.fromkeys(name.rsplit(".", 1)[1] for name in names)
            raise ValueError(f"lora: {part!r} names no layer of this model; there are {', '.join(leaves)} (or all), and single "
                             f"layers from {names[0]} to {names[-1]}; embedding and head get no adapters")
        found.update(some)
    return [name for name in names if name in found]


def check_sizes(where: str, rank, alpha, dropout) -> None:
    numbers = type(rank) is int and all(type(value) in (int, float) for value in (alpha, dropout))
    if not numbers or rank < 1 or not 0 < alpha < 1e9 or not 0 <= dropout < 1:
        raise ValueError(f"{where}: the rank must be a whole number of at least 1, alpha above 0, dropout from 0 to below 1; "
                         f"given {rank!r}, {alpha!r} and {dropout!r}")


def add_lora(
    model: Decoder, layers: str | list[str], rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, root: bool = False,
    seed: int = 0,
) -> None:
    """Put adapters on layers of a frozen model, in place: W + s B A with s = alpha / rank, or alpha / sqrt(rank) with `root`
    (rsLoRA, arXiv:2312.03732). They add nothing until they are trained; `model.draws` is what their dropout is drawn from.

    `layers`: a pattern that `matched` takes, or their names. ValueError where it names none, or where there are adapters.
    """
    check_sizes("lora", rank, alpha, dropout)
    chosen, frozen = matching_layers(model, layers) if isinstance(layers, str) else layers, frozen_layers(model)
    if not set(chosen) <= set(frozen):
        raise ValueError("lora: adapters stand beside weights that do not learn; load the model with lora.load_frozen")
    if taken := [name for name, layer in frozen.items() if layer.rank]:
        raise ValueError(f"lora: {taken[0]} has an adapter already; merge it first")
    model.draws = DropoutRows(seed)
    for name in chosen:
        number = 7 * model.config.blocks[int(name.split(".")[2])] + LINEARS.index(name.rsplit(".", 1)[1])
        frozen[name].add(rank, alpha / (math.sqrt(rank) if root else rank), dropout, model.draws, number)
    model.adapter = {"names": chosen, "rank": rank, "alpha": alpha, "dropout": dropout, "root": root}


def count_parameters(model: Decoder) -> tuple[int, int]:
    """(all values of the model, those that are trained); a quantised matrix counts as many as it stands for."""
    hidden = sum(math.prod(layer.shape) for layer in frozen_layers(model).values() if layer.quantised)
    return (hidden + sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad))


def is_quantised(folder: Path) -> bool:
    return bool(read_json(folder / "config.json").get("quantization_config"))


def load_frozen(given: str | Path, frozen: str = "stored", *, device="cpu", wide: torch.dtype = torch.float32,
                revision: str | None = None) -> Decoder:
    """A model none of whose weights learns, its matrices kept in `frozen`: as they are stored, in a type, or in NF4.

    Norms, biases and what goes from block to block are in `wide`; head and embedding are never in four bits, and what is so
    already stays so. ValueError as by `Decoder.from_pretrained`, and where it would be quantised twice.
    """
    if frozen not in FROZEN:
        raise ValueError(f"frozen: given {frozen!r}; there are {', '.join(FROZEN)}")
    folder = locate(given, revision)
    four_bits = is_quantised(folder)
    if four_bits and frozen == "nf4":
        raise ValueError(f"{given} is quantised already: take it as it is (frozen=stored), or give the model it was made from")
    model = Decoder.without_weights(folder)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in model.named_modules()
              if isinstance(layer, nn.Linear) and name != "lm_head"}
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if four_bits:
        check_quantised(folder)
        for name, shape in shapes.items():
            wanted |= quantised_shapes(name, math.prod(shape))

    def convert(key: str, tensor: torch.Tensor):
        if tensor.dtype == torch.uint8 or "quant_map" in key or "nested" in key:
            return tensor.clone()
        if key.removesuffix(".weight") in shapes and frozen == "nf4":
            try:
                return quantise(tensor)
            except ValueError as error:
                raise ValueError(f"{folder}, {key}: {error}") from error
        kept = tensor.dtype if frozen in ("stored", "nf4") else getattr(torch, frozen)
        return tensor.to(kept if tensor.dim() == 2 else wide, copy=True)

    found = read_weights(folder, wanted, device, convert)
    for name, shape in shapes.items():
        weight, bias = found[f"{name}.weight"], found.get(f"{name}.bias")
        if four_bits:
            weight = from_file(f"{folder}, {name}", name, found, shape)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, FrozenLinear(weight, bias, shape))
    model.load_state_dict({key: found[key] for key in model.state_dict() if key in found}, strict=False, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.base = {"base": str(given), "revision": revision, "base_sha256": file_hashes(folder),
                  "config_sha256": model.config.fingerprint(), "dropped": [], "frozen": frozen}
    return model


def save_quantised(model: Decoder, folder: Path) -> None:
    """Write a model in NF4 as transformers with bitsandbytes reads it, what is not quantised in the type of its embedding."""
    tensors = {key: tensor.to(model.head_weight.dtype) for key, tensor in model.state_dict().items()
               if key.rpartition(".")[2] not in Nf4._fields}
    kept = str(model.head_weight.dtype).removeprefix("torch.")
    for name, layer in frozen_layers(model).items():
        tensors |= to_file(name, layer.quantised, layer.shape, kept)
    write_tensors(folder / "model.safetensors", tensors)
    model.save_config(folder, {"quantization_config": HOW | {
        "load_in_8bit": False, "bnb_4bit_quant_storage": "uint8", "bnb_4bit_compute_dtype": kept}})
