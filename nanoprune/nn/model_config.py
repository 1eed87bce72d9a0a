"""A decoder's shape: Hugging Face's config.json in and out."""

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from nanoprune.config import Count, NonNegative, PositiveFloat, read_fields, shown, whole
from nanoprune.io.files import json_hash, read_json
from nanoprune.printing import note

FAMILIES = ("qwen2", "qwen3", "llama")
PARTIAL = "nanoprune-"  # before the model_type of a model with blocks that lack their attention or MLP
# Fields that config.json has under their own name.
KEPT = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta",
        "rope_scaling", "max_position_embeddings", "tie_word_embeddings", "initializer_range")

# Keys that change what a sister architecture of transformers computes: refused unless they are off, as None,
# false, 0 and an empty list are, or one. tests/test_nn_model_config.py reads transformers' code for them.
OFF = (
    # attention
    "alibi", "attention_chunk_size", "attention_multiplier", "attention_out_bias", "attn_logit_softcapping",
    "attn_scale", "attn_temperature_tuning", "clip_qkv", "floor_scale", "kv_lora_rank", "lambda_std_dev",
    "multi_query", "new_decoder_architecture", "no_rope_layers", "num_kv_heads", "q_lora_rank",
    "qk_layernorm", "qk_nope_head_dim", "qk_rope_head_dim", "qkv_bias", "query_pre_attn_scalar",
    "rope_interleave", "rope_interleaved", "sliding_window_pattern", "use_bidirectional_attention",
    "use_qk_norm", "use_qkv_bias", "v_head_dim",
    # dropout, which is not trained with here
    "attention_dropout", "embd_pdrop", "embedding_dropout", "hidden_dropout", "resid_pdrop",
    "residual_dropout",
    # norms, MLP, order of a block
    "activation", "bias", "chunk_size_feed_forward", "ffn_hidden_size", "hidden_activation",
    "intermediate_size_mlp", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon",
    "num_ln_in_parallel_attn", "parallel_attn", "swiglu_alpha", "swiglu_limit", "use_bias",
    "use_parallel_residual",
    # experts
    "decoder_sparse_step", "first_k_dense_replace", "is_moe", "mlp_only_layers", "moe_intermediate_size",
    "moe_layers", "n_group", "n_shared_experts", "norm_topk_prob", "num_dense_layers", "num_experts",
    "num_experts_per_tok", "num_local_experts", "num_shared_experts", "output_router_logits",
    "routed_scaling_factor", "router_jitter_noise", "shared_expert_intermediate_size", "topk_group",
    # the whole
    "add_cross_attention", "final_logit_softcapping", "is_encoder_decoder", "logit_scale", "mup_enabled",
    "per_layer_config", "text_config", "vision_config",
)
ONE = ("embedding_multiplier", "is_causal", "logits_scaling", "partial_rotary_factor", "residual_multiplier")
# Keys that change no logits; what stands on no list is named once.
HARMLESS = (
    "_attn_implementation", "_name_or_path", "architectures", "attn_implementation", "bos_token_id",
    "classifier_dropout", "dtype", "eos_token_id", "id2label", "is_decoder", "label2id", "num_labels",
    "output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type",
    "quantization_config", "return_dict", "router_aux_loss_coef", "torch_dtype", "transformers_version",
    "use_cache",
)


MOST_SIZE, MOST_BLOCKS = 2**24, 1000
Size = whole(1, MOST_SIZE)


@dataclass(frozen=True)
class StopTokens:
    """The entry of generation_config.json that nanoprune reads."""

    eos_token_id: int | tuple[int, ...] | None = None


@dataclass(frozen=True)
class ConfigFile:
    """The entries of config.json that nanoprune reads, with transformers' defaults."""

    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: whole(1, MOST_BLOCKS)
    num_attention_heads: Size
    hidden_act: Literal["silu"] = "silu"
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat | None = None
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None
    original_max_position_embeddings: Size | None = None
    max_position_embeddings: whole(1, 2**30) | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: Size | None = None
    use_sliding_window: bool = False
    max_window_layers: Count = 28
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = None
    initializer_range: NonNegative = 0.02
    eos_token_id: int | tuple[int, ...] | None = None
    nanoprune_blocks: tuple[int, ...] | None = None
    nanoprune_without: tuple[Literal["", "attn", "mlp"], ...] | None = None
    nanoprune_history: tuple[dict, ...] = ()


# Entries that are written anew; ModelConfig keeps all others in `extra`.
DECIDED = {*ConfigFile.__dataclass_fields__, "architectures", "torch_dtype", "dtype",
           "transformers_version"} - {"eos_token_id"}


@dataclass(frozen=True)
class RopeFile:
    """The entries of config.json's rope_parameters or rope_scaling."""

    rope_type: str = "default"
    type: str = "default"  # its older name
    rope_theta: PositiveFloat | None = None
    factor: PositiveFloat | None = None
    low_freq_factor: PositiveFloat | None = None
    high_freq_factor: PositiveFloat | None = None
    original_max_position_embeddings: Size | None = None


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
    def read(cls, folder: Path) -> "ModelConfig":
        """The config of a model's folder."""
        return cls.from_dict(read_json(folder / "config.json"), f"{folder}/config.json")

    @classmethod
    def from_dict(cls, raw: dict, where: str = "the model's shape") -> "ModelConfig":
        """From config.json's content. ValueError where something is missing, unsupported or inconsistent."""
        kind = str(raw.get("model_type")).removeprefix(PARTIAL)
        if kind not in FAMILIES:
            raise ValueError(f"{where}: model_type {shown(kind)} is not supported; allowed: "
                             f"{', '.join(FAMILIES)}")
        given = read_foreign(ConfigFile, raw, where, OFF, (*ONE, *HARMLESS))
        for key in ONE:
            if raw.get(key, 1) != 1:
                raise ValueError(f"{where}: {key} {shown(raw[key])} is not supported; supported is 1 (true)")
        layers, hidden, heads = given.num_hidden_layers, given.hidden_size, given.num_attention_heads
        kv_heads = given.num_key_value_heads or heads
        head_dim = given.head_dim or (128 if kind == "qwen3" else hidden // heads)
        if heads % kv_heads or head_dim % 2 or not 0 < heads * head_dim <= MOST_SIZE:
            raise ValueError(f"{where}: {heads} query heads need a divisor as key/value heads (given "
                             f"{kv_heads}) and an even head_dim (given {head_dim}), at most {MOST_SIZE:,} in "
                             "all")
        positions = given.max_position_embeddings or (2048 if kind == "llama" else 32768)
        theta, scaling = _read_rope(given, positions, where)
        window, layer_types = _read_window(given, kind, where)
        blocks, history = _read_history(given, where)
        without = given.nanoprune_without or ("",) * layers
        if len(without) != layers:
            raise ValueError(f"{where}: nanoprune_without has {len(without)} entries for {layers} blocks")
        kept = {key: getattr(given, key) for key in KEPT} | dict(
            model_type=kind, num_key_value_heads=kv_heads, head_dim=head_dim, rope_theta=theta,
            rope_scaling=scaling, max_position_embeddings=positions)
        return cls(
            **kept, sliding_window=window, layer_types=layer_types, blocks=blocks, without=without,
            qkv_bias=given.attention_bias or kind == "qwen2",
            output_bias=given.attention_bias and kind != "qwen2",
            mlp_bias=given.mlp_bias and kind == "llama", qk_norm=kind == "qwen3",
            extra={key: value for key, value in raw.items() if key not in DECIDED} | history)

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
        return json_hash(asdict(decisive))

    def keep_blocks(self, indices: list[int]) -> "ModelConfig":
        """The config of the model that has only the blocks of these present indices, in this order."""
        remaining = {name: tuple(getattr(self, name)[i] for i in indices)
                     for name in ("layer_types", "blocks", "without")}
        return replace(self, num_hidden_layers=len(indices), **remaining)


def read_foreign(
    kind: type, raw: dict, where: str | Path, off: Iterable[str], harmless: Iterable[str]
) -> Any:
    """As `read_fields`, for a file that other code reads, too.

    ValueError where a key in `off`, which nanoprune does not read, has an effect. Keys that no library reads
    for this model are named once.
    """
    fields_read = read_fields(kind, raw, where)
    for key in off:
        if raw.get(key):
            raise ValueError(f"{where}: {key} {shown(raw[key])} is not supported; remove it if it has no "
                             "effect on this model")
    if unread := sorted(raw.keys() - {*off, *harmless, *kind.__dataclass_fields__}):
        note(f"{where}: kept, and not read by any library for this model: {', '.join(unread):.999}")
    return fields_read


def _read_rope(given: ConfigFile, positions: int, where: str) -> tuple[float, dict | None]:
    """(theta, llama3 scaling or None) from either form, by transformers' order; a missing theta means 10,000.
    """
    raw = given.rope_scaling or given.rope_parameters or {}
    rope = read_fields(RopeFile, raw, f"{where}: rope scaling")
    kind = rope.rope_type if "rope_type" in raw else rope.type
    theta = float(rope.rope_theta or given.rope_theta or 10_000)
    original = given.original_max_position_embeddings or rope.original_max_position_embeddings or positions
    numbers = {"factor": rope.factor, "low_freq_factor": rope.low_freq_factor,
               "high_freq_factor": rope.high_freq_factor, "original_max_position_embeddings": original}
    unread = raw.keys() - {f.name for f in fields(RopeFile)}
    if kind == "default" and not unread:
        return theta, None
    complete = None not in numbers.values() and rope.low_freq_factor < rope.high_freq_factor
    if kind != "llama3" or unread or not complete:
        raise ValueError(f"{where}: rope scaling {shown(raw)} is not supported; supported are 'default' and "
                         f"'llama3' (with {', '.join(numbers)}, the second below the third)")
    return theta, {"rope_type": "llama3"} | numbers


def _read_window(given: ConfigFile, kind: str, where: str) -> tuple[int | None, tuple[str, ...]]:
    """(window or None, a type per block).

    Qwen's window is inert unless `use_sliding_window`; Llama has none.
    """
    layers, window = given.num_hidden_layers, given.sliding_window if given.use_sliding_window else None
    first = given.max_window_layers if window else layers
    types = given.layer_types or tuple("sliding_attention" if i >= first else "full_attention"
                                       for i in range(layers))
    if len(types) != layers:
        raise ValueError(f"{where}: layer_types has {len(types)} entries for {layers} blocks")
    if "sliding_attention" in types and not window:
        raise ValueError(f"{where}: layer_types names sliding_attention, and no sliding_window is in use")
    if kind == "llama" and window:
        raise ValueError(f"{where}: sliding_window {window} is not supported for llama; supported is null")
    return window, types


def _read_history(given: ConfigFile, where: str) -> tuple[tuple[int, ...], dict]:
    """(the blocks' original numbers, the history as config.json holds it), both anew where they do not fit.
    """
    layers, blocks = given.num_hidden_layers, given.nanoprune_blocks
    plain = tuple(range(layers))
    if blocks is None:
        blocks = plain
    elif len(blocks) != layers or any(a >= b for a, b in pairwise((-1, *blocks, MOST_BLOCKS))):
        print(f"warning: {where}: nanoprune_blocks {shown(list(blocks))} does not fit {layers} blocks, "
              "which another tool changed. They are numbered anew, and nanoprune_history is dropped",
              file=sys.stderr)
        return plain, {}
    return blocks, {"nanoprune_history": list(given.nanoprune_history)} if given.nanoprune_history else {}


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
            raise ValueError(f"block {block} is named more than once ({', '.join(repeated)}); name each "
                             f"block to drop once, as {block} where attention and MLP go")
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
