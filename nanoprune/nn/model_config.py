"""A decoder's shape: Hugging Face's config.json in and out."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

import torch

PARTIAL = "nanoprune-"  # before the model_type of a model with blocks that lack their attention or MLP
# Fields that config.json has under their own name.
KEPT = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta",
        "rope_scaling", "max_position_embeddings", "tie_word_embeddings", "initializer_range")
# Keys of config.json that `to_dict` decides.
WRITTEN_ANEW = ("model_type", "architectures", "hidden_act", "torch_dtype", "dtype", "transformers_version")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape; read from and written as Hugging Face's config.json (transformers 4 and 5 forms)."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict | None  # None, or llama3's four numbers
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: int | None
    layer_types: tuple[str, ...]  # "full_attention" or "sliding_attention", one a block
    blocks: tuple[int, ...]  # the index that each block had in the unpruned model
    without: tuple[str, ...]  # what each block lacks: "" (nothing), "attn" or "mlp"
    initializer_range: float = 0.02
    extra: dict = field(default_factory=dict)  # the file's other entries, such as special tokens

    @classmethod
    def from_dict(cls, raw: dict, where: str = "the model's shape") -> "ModelConfig":
        """From config.json's content. ValueError where something is missing, unsupported or inconsistent."""
        raw, kind = {"hidden_act": "silu"} | raw, raw.get("model_type")
        kind = kind.removeprefix(PARTIAL) if isinstance(kind, str) else kind
        _check(where, "model_type", kind, ("qwen2", "qwen3", "llama"))
        _check(where, "hidden_act", raw["hidden_act"], ("silu",))

        def take(key: str, default=None):
            value = raw.pop(key, None)
            value = default if value is None else value
            if type(value) is not int or value < 1:
                raise ValueError(f"{where}: {key} must be a whole number of at least 1, given {value!r}")
            return value

        layers, hidden, heads = take("num_hidden_layers"), take("hidden_size"), take("num_attention_heads")
        kv_heads = take("num_key_value_heads", heads)
        head_dim = take("head_dim", 128 if kind == "qwen3" else hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise ValueError(f"{where}: {heads} query heads need a divisor as key/value heads (given "
                             f"{kv_heads}) and an even head_dim (given {head_dim})")
        theta, scaling = _read_rope(raw, where)
        window, layer_types = _read_window(raw, kind, layers, where)
        bias = bool(raw.pop("attention_bias", False))
        without = tuple(raw.pop("nanoprune_without", [""] * layers))
        if len(without) != layers:
            raise ValueError(f"{where}: nanoprune_without has {len(without)} entries for {layers} blocks")
        for half in without:
            _check(where, "nanoprune_without", half, ("", "attn", "mlp"))
        return cls(
            model_type=kind, num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads,
            num_key_value_heads=kv_heads, head_dim=head_dim, vocab_size=take("vocab_size"),
            intermediate_size=take("intermediate_size"), rms_norm_eps=float(raw.pop("rms_norm_eps", 1e-6)),
            rope_theta=theta, rope_scaling=scaling, sliding_window=window, layer_types=layer_types,
            max_position_embeddings=take("max_position_embeddings", 2048 if kind == "llama" else 32768),
            tie_word_embeddings=bool(raw.pop("tie_word_embeddings", False)),
            qkv_bias=bias or kind == "qwen2", output_bias=bias and kind != "qwen2",
            mlp_bias=bool(raw.pop("mlp_bias", False)) and kind == "llama", qk_norm=kind == "qwen3",
            blocks=tuple(raw.pop("nanoprune_blocks", range(layers))), without=without,
            initializer_range=float(raw.pop("initializer_range", 0.02)),
            extra={k: v for k, v in raw.items() if k not in WRITTEN_ANEW},
        )

    def to_dict(self, dtype: torch.dtype) -> dict:
        """config.json's content, in the form that transformers 4 wrote and both 4 and 5 read."""
        raw = {key: getattr(self, key) for key in KEPT}
        if any(self.without):
            # No other reader knows of these: the unknown type keeps it from filling the gaps.
            raw |= {"model_type": PARTIAL + self.model_type, "nanoprune_without": list(self.without)}
        raw |= {"torch_dtype": str(dtype).removeprefix("torch."), "hidden_act": "silu",
                "nanoprune_blocks": list(self.blocks)}
        if self.model_type == "llama":
            raw |= {"mlp_bias": self.mlp_bias}
        else:
            # A window that is switched off is written as absent: other readers then have nothing to misread.
            window, full = self.sliding_window, [*self.layer_types, "sliding_attention"]
            raw |= {"sliding_window": window, "use_sliding_window": window is not None,
                    "max_window_layers": full.index("sliding_attention"),
                    "layer_types": list(self.layer_types)}
        if self.model_type != "qwen2":
            raw |= {"attention_bias": self.output_bias}
        return self.extra | raw

    def fingerprint(self) -> str:
        """A hash of what decides the outputs beside the weights."""
        decisive = replace(self, extra={}, initializer_range=0.0, max_position_embeddings=1)
        return hashlib.sha256(json.dumps(asdict(decisive), sort_keys=True).encode()).hexdigest()

    def keep_blocks(self, indices: list[int]) -> "ModelConfig":
        """The config of the model that has only the blocks of these present indices, in this order."""
        def pick(values: tuple) -> tuple:
            return tuple(values[i] for i in indices)
        return replace(self, num_hidden_layers=len(indices), layer_types=pick(self.layer_types),
                       blocks=pick(self.blocks), without=pick(self.without))


def _check(where: str, key: str, value, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(map(repr, allowed))
        raise ValueError(f"{where}: {key} {value!r} is not supported; allowed: {choices}")


def _read_rope(raw: dict, where: str) -> tuple[float, dict | None]:
    """(theta, llama3 scaling or None) from either form; a missing theta means 10,000."""
    new = raw.pop("rope_parameters", None) or {}
    scaling = dict(raw.pop("rope_scaling", None) or new)
    theta = raw.pop("rope_theta", None) or scaling.get("rope_theta") or new.get("rope_theta") or 10_000.0
    theta = float(theta)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, None
    needed = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if kind != "llama3" or any(key not in scaling for key in needed):
        raise ValueError(f"{where}: rope scaling {scaling} is not supported; supported are 'default' and "
                         f"'llama3' (with {', '.join(needed)})")
    return theta, {"rope_type": "llama3"} | {key: scaling[key] for key in needed}


def _read_window(raw: dict, kind: str, layers: int, where: str) -> tuple[int | None, tuple[str, ...]]:
    """(window or None, a type per block).

    Qwen's window is inert unless `use_sliding_window`; Llama has none.
    """
    window, use = raw.pop("sliding_window", None), raw.pop("use_sliding_window", False)
    first, types = raw.pop("max_window_layers", None), raw.pop("layer_types", None)
    if types is not None and len(types) != layers:
        raise ValueError(f"{where}: layer_types has {len(types)} entries for {layers} blocks")
    if kind == "llama" or not use or window is None:
        return None, ("full_attention",) * layers
    if types is None:
        first = 28 if first is None else first
        types = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    for name in types:
        _check(where, "layer_types", name, ("full_attention", "sliding_attention"))
    return int(window), tuple(types)


class Part(NamedTuple):
    """A block, or its attention or MLP alone."""

    block: int  # its present index
    half: str = ""  # "" (the whole block), "attn" or "mlp"


def part_name(part: Part) -> str:
    """The part as users write it: 13, 13.attn or 13.mlp."""
    block, half = part
    return f"{block}.{half}" if half else str(block)


def read_parts(names: Iterable[int | str], config: ModelConfig) -> list[Part]:
    """The parts that 13, "13" or "13.attn" name in a model of this config, in order.

    ValueError where a name is no such name, its block is absent, or it is repeated, and where no block would
    be left.
    """
    parts = sorted(_read_part(name, config) for name in names)
    for block, group in groupby(parts, key=lambda part: part.block):
        repeated = [part_name(part) for part in group]
        if len(repeated) > 1:
            both_halves = repeated == [f"{block}.attn", f"{block}.mlp"]
            advice = f"name the whole block, {block}" if both_halves else "name each block to drop once"
            raise ValueError(f"block {block} is named more than once ({', '.join(repeated)}); {advice}")
    if sum(not part.half for part in parts) == config.num_hidden_layers:
        raise ValueError(f"cannot drop all {len(parts)} blocks: keep at least one")
    return parts


def _read_part(name: int | str, config: ModelConfig) -> Part:
    number, dot, half = str(name).partition(".")
    count = config.num_hidden_layers
    if not number.isdecimal() or int(number) >= count or (dot and half not in ("attn", "mlp")):
        raise ValueError(f"cannot drop block {name}: this model has {count} blocks, 0 to {count - 1}; a "
                         "block is named by its number, its attention or MLP alone as in 13.attn or 13.mlp")
    part = Part(int(number), half)
    if half and (lost := config.without[part.block]):
        raise ValueError(f"cannot drop {name}: block {part.block} has lost its {lost} already; to drop the "
                         f"rest, drop the whole block, {part.block}")
    return part


def record_removal(
    config: ModelConfig, base: str, base_sha256: dict[str, str], parts: list[Part], **how
) -> None:
    """Add an entry to config.json's history, before the parts are removed.

    It holds their base and, in `how`, the way they were chosen.
    """
    original = [Part(config.blocks[part.block], part.half) for part in parts]
    entry = {"base": str(base), "base_sha256": base_sha256, "dropped": ",".join(map(part_name, parts)),
             "original": ",".join(map(part_name, original))}
    config.extra["nanoprune_history"] = [*config.extra.get("nanoprune_history", []), entry | how]
