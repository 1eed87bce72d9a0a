"""LoRA (arXiv:2106.09685): layers that do not learn, and the low-rank adapters beside them that do.

The frozen weights keep any float type, or four bits: QLoRA (arXiv:2305.14314).
"""

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoprune.config import FROZEN, Frozen
from nanoprune.device import matmul_dtype
from nanoprune.io.tensors import read_weights, write_tensors
from nanoprune.nn.nf4 import (
    BITSANDBYTES,
    Nf4,
    check_quantised,
    dequantise,
    from_file,
    is_quantised,
    quantise,
    quantised_shapes,
    to_file,
)
from nanoprune.nn.pointwise import apply
from nanoprune.nn.scratch import cast

if TYPE_CHECKING:
    from model import Decoder

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a block


# ---------------------------------------------------------------- layers
class FrozenLinear(nn.Module):
    """A linear layer that does not learn, with its weight in any float type or in NF4. Its adapter learns."""

    def __init__(self, weight: Tensor | Nf4, bias: Tensor | None, shape: tuple[int, int]):
        """`shape`: (out, in), which the codes of four bits do not tell."""
        super().__init__()
        self.shape, self.scale, self.dropout = shape, 0.0, 0.0
        self.weight = self.bias = self.lora_A = self.lora_B = None
        if isinstance(weight, Nf4):
            for name, part in weight._asdict().items():
                self.register_buffer(name, part)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def quantised(self) -> Nf4 | None:
        return Nf4(self.codes, self.absmax, self.nested, self.offset) if self.weight is None else None

    @property
    def adapted(self) -> bool:
        return self.lora_A is not None

    def as_type(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) in a product's type, in memory that is used again once nobody holds it."""
        if q := self.quantised:
            return dequantise(q, self.shape).to(dtype)
        return cast("frozen weight", self.weight, dtype)

    def add_adapter(self, A: Tensor, scale: float, dropout: float) -> None:
        """Add `scale` B A to the weight, with A (rank, in) in fp32; B (out, rank) begins at zero."""
        self.lora_A = nn.Parameter(A)
        self.lora_B = nn.Parameter(torch.zeros(self.shape[0], len(A), device=A.device))
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, in) to (B, T, out)."""
        y = apply(FrozenProduct, x, self)
        if not self.adapted:
            return y
        A, B = self.lora_A.to(y.dtype), self.lora_B.to(y.dtype)
        low = F.dropout(x, self.dropout, self.training).to(y.dtype) @ A.t()  # (B, T, rank)
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), B.t(), alpha=self.scale).view(y.shape)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight with the adapter in it, in fp32."""
        weight = self.as_type(torch.float32).clone()
        return weight.addmm_(self.lora_B, self.lora_A, alpha=self.scale) if self.adapted else weight


class FrozenProduct(torch.autograd.Function):
    """x W^T + b for a frozen weight: x is not saved, and W is converted again for the gradient of x."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer, ctx.input_dtype, ctx.dtype = layer, x.dtype, matmul_dtype(x)
        bias = None if layer.bias is None else layer.bias.to(ctx.dtype)
        return F.linear(x.to(ctx.dtype), layer.as_type(ctx.dtype), bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return (grad.to(ctx.dtype) @ ctx.layer.as_type(ctx.dtype)).to(ctx.input_dtype), None


def frozen_layers(model: "Decoder") -> dict[str, FrozenLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, FrozenLinear)}


class ParameterCount(NamedTuple):
    total: int
    trained: int


def count_parameters(model: "Decoder") -> ParameterCount:
    """Values of a model; a matrix in four bits counts as many as it stands for."""
    quantised = sum(math.prod(layer.shape) for layer in frozen_layers(model).values() if layer.quantised)
    return ParameterCount(total=quantised + sum(p.numel() for p in model.parameters()),
                          trained=sum(p.numel() for p in model.parameters() if p.requires_grad))


# ---------------------------------------------------------------- adapters
@dataclass(frozen=True)
class LoraSettings:
    """Numbers that all adapters of a model share, within the bounds of `Config`."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0  # share of an adapter's inputs that is set to zero at random while it learns
    rslora: bool = False  # rank-stabilised (arXiv:2312.03732)

    @property
    def scale(self) -> float:
        """Factor of B A: alpha / rank, or alpha / sqrt(rank) in rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def matching_layers(model: "Decoder", pattern: str) -> list[str]:
    """Layers that "q_proj,v_proj", "model.layers.3.*" or "all" name; ValueError where a part names none."""
    layers = list(frozen_layers(model))
    if not layers:
        raise ValueError("lora: adapters stand beside weights that do not learn; open the model with "
                         "frozen='stored'")
    chosen = set()
    for part in pattern.replace(",", " ").split() or [pattern]:
        matches = [name for name in layers
                   if part == "all" or f".{name}".endswith(f".{part}") or fnmatchcase(name, part)]
        if not matches:
            leaves = dict.fromkeys(name.rpartition(".")[2] for name in layers)
            raise ValueError(f"lora: {part!r} names no layer of this model; there are {', '.join(leaves)} "
                             f"(or all), and single layers from {layers[0]} to {layers[-1]}; embedding and "
                             "head get no adapters")
        chosen.update(matches)
    return [name for name in layers if name in chosen]


def add_lora(model: "Decoder", pattern: str, settings: LoraSettings, seed: int = 0) -> None:
    """Add adapters to the layers that a pattern names, in place: A as in kaiming_uniform(a=sqrt(5)), B zero.

    ValueError where the pattern names no layer of a frozen model, or where the model has adapters already.
    """
    layers = frozen_layers(model)
    if adapted := [name for name, layer in layers.items() if layer.adapted]:
        raise ValueError(f"lora: {adapted[0]} has an adapter already; merge it first")
    for name in matching_layers(model, pattern):
        _, _, block, _, leaf = name.split(".")
        # A depends on the layer's place in the unpruned model: both arms' adapters begin alike.
        number = len(LINEARS) * model.config.blocks[int(block)] + LINEARS.index(leaf)
        generator = torch.Generator().manual_seed((seed * 1_000_003 * 65_537 + number) % 2**63)
        fan_in = layers[name].shape[1]
        A = (torch.rand(settings.rank, fan_in, generator=generator) * 2 - 1) / math.sqrt(fan_in)
        layers[name].add_adapter(A.to(model.device), settings.scale, settings.dropout)
    model.adapter = settings


@torch.no_grad()
def merge(model: "Decoder") -> None:
    """Fold the adapters into the weights, in place, in fp32: a plain model without frozen layers remains."""
    for name, layer in frozen_layers(model).items():
        fan_out, fan_in = layer.shape
        plain = nn.Linear(fan_in, fan_out, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.merged())
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.float())
        model.set_submodule(name, plain)
    model.float()
    model.config.extra.pop("quantization_config", None)
    model.base = model.adapter = None


# ---------------------------------------------------------------- the frozen base and its files
@dataclass
class FrozenBase:
    """Identity of the model that stands frozen beside adapters: nanoprune.json's content, in this order."""

    base: str  # the name or folder it was opened by
    revision: str | None = None  # of a hub name
    base_sha256: dict = field(default_factory=dict)  # hashes of its weights' files
    config_sha256: str = ""  # ModelConfig.fingerprint; empty where PEFT wrote the adapter
    dropped: tuple[int | str, ...] = ()  # blocks and parts, by their index in the base
    frozen: Frozen = "stored"
    blocks: tuple[int, ...] = ()  # of the model with adapters, as in ModelConfig
    without: tuple[str, ...] = ()


def read_frozen_weights(model: "Decoder", folder: Path, frozen: str, device, dtype: torch.dtype) -> None:
    """Fill an uninitialised model, in place, with a folder's weights, none of which learns.

    `frozen` is the type of its matrices: "stored", a float type, or "nf4". Four-bit folders stay as they are.
    Embedding and head are never in four bits. Norms and biases, and so the hidden states, are in `dtype`.
    ValueError as by `read_weights`, and where four bits would be quantised again.
    """
    if frozen not in FROZEN:
        raise ValueError(f"frozen: given {frozen!r}; there are {', '.join(FROZEN)}")
    four_bits = is_quantised(folder)
    if four_bits and frozen == "nf4":
        raise ValueError(f"{folder} is quantised already: take it as it is (frozen=stored), or give the "
                         "model it was made from")
    linears = {name: layer for name, layer in model.named_modules()
               if isinstance(layer, nn.Linear) and name != "lm_head"}
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    packed = {}
    if four_bits:
        in_full = check_quantised(folder)
        for name, linear in linears.items():
            if not any(f"{name}.".startswith(f"{key}.") or name.endswith(key) for key in in_full):
                packed |= quantised_shapes(name, linear.weight.numel())

    def convert(key: str, tensor: Tensor) -> Tensor | Nf4:
        if key in packed:
            return tensor.clone()
        if frozen == "nf4" and key.removesuffix(".weight") in linears:
            return quantise(tensor, f"{folder}, {key}")
        if tensor.dim() < 2:  # a norm or a bias
            return tensor.to(dtype, copy=True)
        return tensor.to(tensor.dtype if frozen in ("stored", "nf4") else getattr(torch, frozen), copy=True)

    tensors = read_weights(folder, shapes | packed, device, convert)
    for name, linear in linears.items():
        shape, weight = (linear.out_features, linear.in_features), tensors[f"{name}.weight"]
        if f"{name}.weight" in packed:
            weight = from_file(f"{folder}, {name}", name, tensors, shape)
        model.set_submodule(name, FrozenLinear(weight, tensors.get(f"{name}.bias"), shape))
    model.load_state_dict(tensors, strict=False, assign=True)  # the rest: embedding, norms and head
    model.requires_grad_(False)


def save_quantised(model: "Decoder", folder: Path) -> None:
    """Write a model in NF4 as transformers with bitsandbytes reads it; other tensors get the head's type."""
    dtype = model.head_weight.dtype
    tensors = {key: tensor.to(dtype) for key, tensor in model.state_dict().items()
               if key.rpartition(".")[2] not in Nf4._fields}
    dtype_name = str(dtype).removeprefix("torch.")
    for name, layer in frozen_layers(model).items():
        tensors |= to_file(name, layer.quantised, layer.shape, dtype_name)
    write_tensors(folder / "model.safetensors", tensors)
    model.save_config(folder, quantization_config=BITSANDBYTES | {
        "load_in_8bit": False, "bnb_4bit_quant_storage": "uint8", "bnb_4bit_compute_dtype": dtype_name})
