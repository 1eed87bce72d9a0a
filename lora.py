"""Low-rank adapters on a frozen base, which may be kept in four bits: LoRA (arXiv:2106.09685), QLoRA (arXiv:2305.14314).

    python train.py configs/recipes/pairs_lora.py                                    (runs/NAME/model is the adapter)
    python lora.py merge runs/pairs_lora --out models/merged                         (base and adapter as one plain model)
    python lora.py quantise Qwen/Qwen3-0.6B-Base --out models/qwen3-nf4              (a base in four bits)

An adapter's folder is PEFT's (adapter_config.json, adapter_model.safetensors), and nanoprune.json beside it says what it
belongs to: the base, the hash of its weights, and the blocks that were dropped from it.
"""

import argparse
import math
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from checkpoint import file_hashes
from configs import FROZEN
from files import copy_tokenizer, locate, open_tensors, read_json, read_weights, whole_folder, write_json, write_tensors
from memory import give_back, spare
from model import Decoder
from nf4 import HOW, STATE, Nf4, check_quantised, dequantise, quantise, quantised_shapes, read_state, to_file
from ops import multiplied_type, run
from prune import check_out, drop_blocks

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a block
PREFIX = "base_model.model."  # before the names of tensors in PEFT's files


# ---------------------------------------------------------------- frozen layers, with adapters


@dataclass
class Draws:
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
        room = spare("frozen weight", self.shape, torch.float32 if q else dtype, (q.codes if q else self.weight).device)
        give_back("frozen weight", room)
        return dequantise(q, self.shape, room).to(dtype) if q else room.copy_(self.weight)

    def add(self, rank: int, scale: float, dropout: float, draws: Draws, number: int) -> None:
        """An adapter B A of this rank beside the weight: A as in kaiming_uniform(a=sqrt(5)), B zero, both in fp32."""
        outs, ins = self.shape
        device = self.codes.device if self.quantised else self.weight.device
        draw = torch.Generator().manual_seed(_mixed(draws.seed, -1, number))
        self.lora_A = nn.Parameter(((torch.rand(rank, ins, generator=draw) * 2 - 1) / math.sqrt(ins)).to(device))
        self.lora_B = nn.Parameter(torch.zeros(outs, rank, device=device))
        self.rank, self.scale, self.dropout, self.draws, self.number = rank, scale, dropout, draws, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, in) to (B, T, out)."""
        y = run(FrozenProduct, x, self)
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
            draw = torch.Generator(x.device).manual_seed(_mixed(self.draws.seed, number, self.number))
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
        ctx.layer, ctx.types = layer, (x.dtype, multiplied_type(x))
        flat, weight = x.to(ctx.types[1]).flatten(0, -2), layer.as_type(ctx.types[1])
        y = torch.mm(flat, weight.t()) if layer.bias is None else torch.addmm(layer.bias.to(flat.dtype), flat, weight.t())
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        given, kind = ctx.types
        return (grad.to(kind) @ ctx.layer.as_type(kind)).to(given), None


def _mixed(seed: int, row: int, layer: int) -> int:
    return ((seed * 1_000_003 + row + 1) * 65_537 + layer) % 2**63


def frozen_layers(model: Decoder) -> dict[str, FrozenLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, FrozenLinear)}


def matched(model: Decoder, pattern: str) -> list[str]:
    """The linear layers that "q_proj,v_proj", "model.layers.3.*" or "all" name; ValueError where one names none."""
    names = [name for name, layer in model.model.named_modules(prefix="model") if isinstance(layer, FrozenLinear | nn.Linear)]
    found = set()
    for part in (part.strip() for part in pattern.split(",")):
        some = [n for n in names if part == "all" or n == part or n.endswith(f".{part}") or fnmatchcase(n, part)]
        if not some:
            leaves = dict.fromkeys(name.rsplit(".", 1)[1] for name in names)
            raise ValueError(f"lora: {part!r} names no layer of this model; there are {', '.join(leaves)} (or all), and single "
                             f"layers such as {names[0]}")
        found.update(some)
    return [name for name in names if name in found]


def adapt(
    model: Decoder, pattern: str, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, root: bool = False, seed: int = 0
) -> None:
    """Put adapters on layers of a frozen model, in place: W + s B A with s = alpha / rank, or alpha / sqrt(rank) with `root`
    (rsLoRA, arXiv:2312.03732). They add nothing until they are trained; `model.draws` is what their dropout is drawn from.
    """
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError("lora: the rank must be at least 1, alpha above 0, dropout from 0 to below 1; given "
                         f"{rank}, {alpha} and {dropout}")
    chosen, layers = matched(model, pattern), frozen_layers(model)
    assert set(chosen) <= set(layers), "freeze the model first"
    if taken := [name for name in chosen if layers[name].rank]:
        raise ValueError(f"lora: {taken[0]} has an adapter already; merge it first")
    model.draws = Draws(seed)
    for name in chosen:
        number = 7 * model.config.blocks[int(name.split(".")[2])] + LINEARS.index(name.rsplit(".", 1)[1])
        layers[name].add(rank, alpha / (math.sqrt(rank) if root else rank), dropout, model.draws, number)
    model.adapter = {"names": chosen, "rank": rank, "alpha": alpha, "dropout": dropout, "root": root}


def parameter_count(model: Decoder) -> tuple[int, int]:
    """(all values of the model, those that are trained); a quantised matrix counts as many as it stands for."""
    hidden = sum(math.prod(layer.shape) for layer in frozen_layers(model).values() if layer.quantised)
    return (hidden + sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad))


# ---------------------------------------------------------------- a frozen base, read and written


def is_quantised(folder: Path) -> bool:
    return "quantization_config" in read_json(folder / "config.json")


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


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
        raise ValueError(f"{given} is quantised already: it is loaded as it is with frozen=stored")
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
            return quantise(tensor)
        kept = tensor.dtype if frozen in ("stored", "nf4") else getattr(torch, frozen)
        return tensor.to(kept if tensor.dim() == 2 else wide, copy=True)

    found = read_weights(folder, wanted, device, convert)
    for name, shape in shapes.items():
        weight, bias = found.pop(f"{name}.weight"), found.pop(f"{name}.bias", None)
        if four_bits:
            offset = read_state(f"{folder}, {name}", found[f"{name}.{STATE}"], shape)
            weight = Nf4(weight, found[f"{name}.weight.absmax"], found[f"{name}.weight.nested_absmax"], offset.to(device))
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, FrozenLinear(weight, bias, shape))
    model.load_state_dict({key: found[key] for key in model.state_dict() if key in found}, strict=False, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.base = {"base": str(given), "revision": revision, "base_sha256": file_hashes(folder), "dropped": [], "frozen": frozen}
    return model


def save_quantised(model: Decoder, folder: Path) -> None:
    """Write a model in NF4 as transformers with bitsandbytes reads it, what is not quantised in the type it is kept in."""
    tensors = {key: tensor for key, tensor in model.state_dict().items()
               if key.rpartition(".")[2] not in Nf4._fields}
    kept = str(model.head_weight.dtype).removeprefix("torch.")
    for name, layer in frozen_layers(model).items():
        tensors |= to_file(name, layer.quantised, layer.shape, kept)
    write_tensors(folder / "model.safetensors", tensors)
    model.save_config(folder, {"quantization_config": HOW | {
        "load_in_8bit": False, "bnb_4bit_quant_storage": "uint8", "bnb_4bit_compute_dtype": kept}})


# ---------------------------------------------------------------- adapters, read and written


def save_adapter(model: Decoder, folder: Path) -> None:
    """Write the adapters alone: PEFT's two files, ours that says what they belong to, and the config of the model with them."""
    about, layers = model.adapter, frozen_layers(model)
    tensors = {f"{PREFIX}{name}.lora_{part}.weight": getattr(layers[name], f"lora_{part}")
               for name in about["names"] for part in "AB"}
    blocks = {"blocks": list(model.config.blocks), "without": list(model.config.without)}
    dropped = model.base["dropped"]
    base = model.base["base"] + (f" without blocks {','.join(map(str, dropped))}" if dropped else "")
    leaves = {name.rsplit(".", 1)[1] for name in about["names"]}
    every = {leaf: [n for n in layers if n.endswith(f".{leaf}")] for leaf in leaves}
    whole = all(set(names) <= set(about["names"]) for names in every.values())
    write_tensors(folder / "adapter_model.safetensors", tensors)
    write_json(folder / "nanoprune.json", model.base | blocks)
    model.save_config(folder)
    write_json(folder / "adapter_config.json", {  # last: what makes the folder an adapter
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": model.base["revision"],
        "r": about["rank"], "lora_alpha": about["alpha"], "lora_dropout": about["dropout"], "use_rslora": about["root"],
        "target_modules": sorted(leaves) if whole else about["names"], "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "modules_to_save": None, "use_dora": False})


def read_adapter(folder: Path) -> tuple[dict, dict | None]:
    """(adapter_config.json's content, nanoprune.json's or None); ValueError for what PEFT can do and nanoprune cannot."""
    path = folder / "adapter_config.json"
    about = read_json(path)
    plain = {"peft_type": ("LORA",), "bias": ("none", None), "use_dora": (False, None), "fan_in_fan_out": (False, None),
             "modules_to_save": (None, []), "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "lora_bias": (False, None),
             "init_lora_weights": (True, False, "gaussian", None)}
    for key, allowed in plain.items():
        if about.get(key) not in allowed:
            raise ValueError(f"{path}: {key} {about.get(key)!r} is not supported; supported is {allowed[0]!r}")
    rank, alpha = about.get("r"), about.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise ValueError(f"{path}: r must be a whole number of at least 1 and lora_alpha above 0, given {rank!r} and {alpha!r}")
    ours = folder / "nanoprune.json"
    record = read_json(ours) if ours.is_file() else None
    if record is not None and (missing := {"base", "base_sha256", "revision", "dropped", "frozen", "blocks"} - record.keys()):
        raise ValueError(f"{ours} is damaged: it lacks {', '.join(sorted(missing))}; it says which base the adapter belongs to")
    return about, record


def add_adapter(model: Decoder, folder: Path) -> None:
    """Put a saved adapter on a frozen model, in place; ValueError where it was trained on another one.

    The base's name may differ, the hash of its weights and the blocks that it has may not. An adapter from elsewhere tells
    neither: there the layers that it names must be layers of this model, and those of all of its blocks.
    """
    about, record = read_adapter(folder)
    blocks = {"blocks": list(model.config.blocks), "without": list(model.config.without)}
    if record is None:
        print(f"warning: {folder} was not written by nanoprune and does not say what weights it was trained on")
    else:
        if {key: record.get(key) for key in blocks} != blocks:
            raise ValueError(f"{folder} belongs to a model of {len(record.get('blocks', []))} blocks "
                             f"({_gaps(record.get('blocks', []))}), this one has {len(blocks['blocks'])} "
                             f"({_gaps(blocks['blocks'])}): load the adapter by its folder, which drops the blocks it was "
                             "trained without")
        given = f"{folder} was trained on {record.get('base')}"
        if record.get("base_sha256") != model.base["base_sha256"]:
            raise ValueError(f"{given}; this base ({model.base['base']}) has other weights. Give the base it was trained on")
        if "nf4" in (record.get("frozen"), model.base["frozen"]) and record.get("frozen") != model.base["frozen"]:
            raise ValueError(f"{given}, kept as {record.get('frozen')}; this base is kept as {model.base['frozen']}")
    with open_tensors(folder / "adapter_model.safetensors") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    rank, layers = about["r"], frozen_layers(model)
    wanted = {}
    names = sorted({key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors})
    for name in names:
        outs, ins = layers[name].shape if name in layers else (0, 0)
        wanted |= {f"{PREFIX}{name}.lora_A.weight": (rank, ins), f"{PREFIX}{name}.lora_B.weight": (outs, rank)}
    strange = [key for key in tensors if key not in wanted or tuple(tensors[key].shape) != wanted[key]]
    if strange := strange + [key for key in wanted if key not in tensors]:
        raise ValueError(f"{folder} does not fit this base: {strange[0]} is missing, of another shape or of a layer that is "
                         f"not there ({len(strange)} such)")
    reached = {int(name.split(".")[2]) for name in names}
    if record is None and not about.get("layers_to_transform") and reached != set(range(model.config.num_hidden_layers)):
        raise ValueError(f"{folder} has adapters for {len(reached)} blocks, this base has {model.config.num_hidden_layers}: it "
                         "was trained on another one")
    adapt(model, ",".join(names), rank, about["lora_alpha"], about.get("lora_dropout") or 0.0, bool(about.get("use_rslora")))
    with torch.no_grad():
        for name in names:
            for part in "AB":
                getattr(layers[name], f"lora_{part}").copy_(tensors[f"{PREFIX}{name}.lora_{part}.weight"])


def _gaps(blocks: list[int]) -> str:
    """Which of the unpruned model's blocks these are: "0 to 27 without 25"."""
    if not blocks:
        return "not named"
    missing = sorted(set(range(max(blocks) + 1)) - set(blocks))
    return f"0 to {max(blocks)}" + (f" without {', '.join(map(str, missing))}" if missing else "")


def load_adapted(folder: Path, *, base: str | None = None, device="cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """An adapter on its base less the blocks it was trained without; `base`: where the base is, if it was moved."""
    about, record = read_adapter(folder)
    name = base or (record["base"] if record else about.get("base_model_name_or_path"))
    if not name:
        raise ValueError(f"{folder}/adapter_config.json names no base")
    kept = record["frozen"] if record else "stored"
    frozen = str(dtype).removeprefix("torch.") if kept == "stored" else kept
    revision = record["revision"] if record and not base else None
    model = load_frozen(name, frozen, device=device, wide=dtype, revision=revision)
    if record and record["dropped"]:
        drop_blocks(model, record["dropped"])
        model.base["dropped"] = record["dropped"]
    add_adapter(model, folder)
    assert record is None or model.config.num_hidden_layers == len(record["blocks"])
    return model


def load_model(folder: Path, *, device="cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """A model to evaluate, whatever the folder holds: all its weights, a base in four bits, or an adapter on its base."""
    if is_adapter(folder):
        return load_adapted(folder, device=device, dtype=dtype)
    if is_quantised(folder):
        return load_frozen(folder, "stored", device=device, wide=dtype)
    return Decoder.from_pretrained(folder, device=device, dtype=dtype)


@torch.no_grad()
def merge(model: Decoder) -> None:
    """Fold the adapters into the weights, in place, in fp32: a plain model is left."""
    for name, layer in frozen_layers(model).items():
        plain = nn.Linear(*reversed(layer.shape), bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.merged())
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.float())
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain)
    model.float()
    model.config.extra.pop("quantization_config", None)


# ---------------------------------------------------------------- the commands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("merge", "an adapter and its base as one plain model"), ("quantise", "a base in NF4")):
        command = commands.add_parser(name, help=about)
        command.add_argument("model", help="a hub name, a folder or a run")
        command.add_argument("--out", required=True, help="folder to write")
        if name == "merge":
            command.add_argument("--base", help="where the base is, if not where it was when the adapter was trained")
            command.add_argument("--dtype", default="float32", choices=FROZEN[1:4], help="of the weights that are written")
        else:
            command.add_argument("--revision", help="hub branch, tag or commit")
    args = parser.parse_args()
    folder, out = locate(args.model, None if args.command == "merge" else args.revision), Path(args.out)
    check_out(folder, out)
    if args.command == "merge":
        if not is_adapter(folder):
            raise ValueError(f"{args.model} is no adapter (it has no adapter_config.json): there is nothing to merge")
        model = load_adapted(folder, base=args.base)
        tokenizer = folder if (folder / "tokenizer.json").is_file() else locate(args.base or model.base["base"])
        merge(model)
        model.to(getattr(torch, args.dtype))
    else:
        model, tokenizer = load_frozen(args.model, "nf4", revision=args.revision), folder
    with whole_folder(out) as beside:
        model.save_pretrained(beside) if args.command == "merge" else save_quantised(model, beside)
        copy_tokenizer(tokenizer, beside)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(f"wrote {out}: {model.config.num_hidden_layers} blocks, {parameter_count(model)[0]:,} parameters, "
          f"{size / 1e6:,.1f} MB")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"lora.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nlora.py: stopped", file=sys.stderr)
        sys.exit(130)
