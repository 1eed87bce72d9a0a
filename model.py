"""The decoder: Qwen2/2.5, Qwen3 and Llama 3, its key/value cache, Hugging Face safetensors in and out.

Module and parameter names are Hugging Face's, letter for letter, so that loading and saving is a plain
dictionary. Shapes: B batch, T time, D hidden size, H query heads, K key/value heads, F head_dim, V
vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint
from torch.utils.checkpoint import create_selective_checkpoint_contexts as save_outputs_of

from nanoprune.config import read_fields
from nanoprune.io.files import file_hashes, read_json, write_json
from nanoprune.io.hub import locate
from nanoprune.io.tensors import read_weights, write_tensors
from nanoprune.nn.attention import (
    KeyValueCache,
    Layout,
    Visible,
    attend,
    causal_layout,
    packed_layout,
)
from nanoprune.nn.lora import FrozenBase, LoraSettings, read_frozen_weights
from nanoprune.nn.losses import SoftTargets, head_logits, head_loss, plain_loss
from nanoprune.nn.model_config import ModelConfig, Part, StopTokens
from nanoprune.nn.nf4 import is_quantised
from nanoprune.nn.peft import base_folder, check_no_adapter, is_adapter, read_adapter, restore_adapter
from nanoprune.nn.pointwise import apply_rope, rms_norm, rope_table, silu_mul
from nanoprune.nn.tied_embedding import embedding_and_head

PRODUCTS = {
    "aten::mm", "aten::addmm", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention", "torch_attn::_varlen_attn"}


def save_products(context, operation: torch._ops.OpOverload, *args, **kwargs) -> CheckpointPolicy:
    """With `recompute` "pointwise": save what products and attention give, compute the rest again.

    Attention in blocks (bf16 on a CPU) is computed again, too.
    """
    saved = operation.name() in PRODUCTS
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        # In fp32, cast back, then times the weight: the order the checkpoints were trained with.
        return self.weight * rms_norm(x, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim, hidden = config.head_dim, config.hidden_size
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, hidden, bias=config.output_bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm:  # over head_dim, per head, before the rotary positions
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(
        self, x: Tensor, rope: tuple, visible: Visible, extend: Callable | None = None
    ) -> Tensor:
        """x (B, T, D) to the same shape; `extend` puts keys and values into a cache and gives all in it."""
        B, T, _ = x.shape
        q, k, v = (part.view(B, T, -1, self.head_dim) for part in self.project(x))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))  # (B, heads, T, F)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast the norms return fp32
        if extend:
            k, v = extend(k, v)
        y = attend(q, k, v, visible)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.gate_proj(x), self.up_proj(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu_mul(*self.project(x)))


class Block(nn.Module):
    """One transformer block: what nanoprune removes, whole or in part."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.window = config.sliding_window if config.layer_types[index] == "sliding_attention" else None
        self.remove(config.without[index])

    def remove(self, half: str) -> None:
        """Remove the attention ("attn") or the MLP ("mlp") with the norm before it, or nothing ("")."""
        if half == "attn":
            self.self_attn = self.input_layernorm = None
        elif half == "mlp":
            self.mlp = self.post_attention_layernorm = None

    def forward(
        self, x: Tensor, rope: tuple, visible: Visible, extend: Callable | None = None, skip: str = ""
    ) -> Tensor:
        """x (B, T, D) plus attention, plus MLP; without the half to `skip`."""
        if self.self_attn is not None and skip != "attn":
            x = x + self.self_attn(self.input_layernorm(x), rope, visible, extend)
        if self.mlp is not None and skip != "mlp":
            x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Trunk(nn.Module):
    """Embedding, blocks and final norm: what the checkpoints call `model`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rope: tuple,
        visible: dict[int | None, Visible],
        cache: KeyValueCache | None,
        recompute: str,
    ) -> Tensor:
        """Embeddings x (B, T, D) to hidden states after the final norm."""
        for i, layer in enumerate(self.layers):
            inputs = (x, rope, visible[layer.window], cache and partial(cache.extend, i))
            if recompute == "none" or not torch.is_grad_enabled():
                x = layer(*inputs)
            else:
                saved = partial(save_outputs_of, save_products if recompute == "pointwise" else [])
                x = checkpoint(layer, *inputs, use_reentrant=False, context_fn=saved)
        if cache is not None:
            cache.used += x.shape[1]
        return self.norm(x)


class Decoder(nn.Module):
    """`model(ids)` gives logits, `model(ids, targets)` the loss; `from_pretrained`, `save_pretrained`."""

    # True: the loss is autograd over `logits`, so that whatever is tried there is trained, too
    plain_head = False

    def __init__(self, config: ModelConfig):
        """Random weights: normal with the config's `initializer_range`, norms one, biases zero."""
        super().__init__()
        self.config, self.generation_config = config, {}
        self.recompute = "none"  # in the backward pass: none, pointwise or blocks
        self.base: FrozenBase | None = None  # of frozen weights: where they came from
        self.adapter: LoraSettings | None = None  # of its low-rank adapters
        self.model = Trunk(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=config.initializer_range)

    @property
    def head_weight(self) -> Tensor:
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        return self.head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes from block to block."""
        return self.model.norm.weight.dtype

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
        reduction: str = "mean",
        teacher: SoftTargets | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of ids (B, T) int64; with targets (B, T), the cross entropy in nats.

        Targets of -100 do not count. `reduction` is "mean" over counted tokens, "sum", or "none" for (B, T).
        `documents` (B, T) numbers the documents of packed rows: tokens see their own document only, positions
        restart. `cache` holds earlier positions, and takes these in. `teacher`: what to learn beside the
        targets.
        """
        embed, head = embedding_and_head(self.model.embed_tokens.weight, self.head_weight)
        x = self.hidden_states(ids, documents, cache, embed=embed)
        return self.logits(x, head) if targets is None else self.loss(x, targets, reduction, teacher, head)

    def hidden_states(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layout: Layout | None = None,
        embed: Callable | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the final norm.

        `layout` gives other positions, and what they may attend to; `embed` another embedding.
        """
        assert documents is None or cache is None, "packed rows are for training, the cache is for generating"
        x, rope, visible = self.block_inputs(ids, documents, cache, layout, embed)
        return self.model(x, rope, visible, cache, self.recompute)

    def block_inputs(self, ids: Tensor, documents=None, cache=None, layout=None, embed=None) -> tuple:
        """(embeddings (B, T, D), rotary cos and sin, by a block's window what positions may attend to)."""
        x = (embed or self.model.embed_tokens)(ids).to(self.dtype)  # of a frozen base only the norms are wide
        windows = {layer.window for layer in self.model.layers}
        if layout is None and documents is None:
            earlier = (cache.used, cache.padding) if cache else ()
            layout = causal_layout(ids.shape[1], windows, x.device, *earlier)
        elif layout is None:
            layout = packed_layout(documents, windows, x)
        # (B or 1, 1, T, F)
        rope = tuple(table[:, None].to(x.dtype) for table in rope_table(self.config, layout.positions))
        return x, rope, layout.visible

    def logits(self, x: Tensor, head: Tensor | None = None) -> Tensor:
        """Logits (..., V) of hidden states (..., D). To try a softcap, apply it here and set `plain_head`."""
        return head_logits(x, self.head_weight if head is None else head)

    def loss(
        self,
        x: Tensor,
        targets: Tensor,
        reduction: str = "mean",
        teacher: SoftTargets | None = None,
        head: Tensor | None = None,
    ) -> Tensor:
        """The loss of hidden states x (B, T, D), as `forward` gives it.

        `head` is the head's weight where its gradient is shared with the embedding's, or is not needed.
        """
        if self.plain_head:
            return plain_loss(self.logits(x, head), targets, reduction, teacher)
        return head_loss(x, self.head_weight if head is None else head, targets, reduction, teacher)

    def last_logits(self, ids: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits (B, V) of the last position alone: generating needs no others of a prompt."""
        return self.logits(self.hidden_states(ids, cache=cache)[:, -1])

    def drop_blocks(self, parts: list[Part]) -> None:
        """Remove blocks, or their attention or MLP alone, in place; the config follows.

        `parts` are checked, as `read_parts` gives them.
        """
        without = list(self.config.without)
        for block, half in parts:
            self.model.layers[block].remove(half)
            without[block] = half
        dropped = [part.block for part in parts if not part.half]
        remaining = [i for i in range(self.config.num_hidden_layers) if i not in dropped]
        self.model.layers = nn.ModuleList(self.model.layers[i] for i in remaining)
        self.config = replace(self.config, without=tuple(without)).keep_blocks(remaining)

    @property
    def stop_tokens(self) -> set[int]:
        """The ids that end a text, from the generation config and the config."""
        found = [source.get("eos_token_id") for source in (self.generation_config, self.config.extra)]
        return {i for ids in found if ids is not None for i in (ids if isinstance(ids, list) else [ids])}

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device="cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        frozen: str = "",
    ) -> "Decoder":
        """A model from a hub name, a folder, a run or an adapter, its weights cast to `dtype`.

        With `frozen`, one of config.FROZEN, none of its weights learns, and its matrices are kept in that
        type. A folder in four bits and an adapter's base are always frozen. ValueError where a file is
        missing or damaged or a tensor does not fit, naming it.
        """
        folder = locate(name, revision)
        if is_adapter(folder) and not frozen:
            adapter = read_adapter(folder)
            frozen = adapter.base.frozen  # as in training
            if frozen == "stored":
                frozen = str(dtype).removeprefix("torch.")
            model = cls.from_pretrained(base_folder(adapter), device=device, dtype=dtype, frozen=frozen)
            restore_adapter(model, adapter)
            return model
        check_no_adapter(name, folder)
        model = cls.without_weights(folder)
        if frozen or is_quantised(folder):
            frozen = frozen or "stored"
            read_frozen_weights(model, folder, frozen, device, dtype)
            hashes = file_hashes(folder), model.config.fingerprint()
            model.base = FrozenBase(str(name), revision, *hashes, frozen=frozen)
        else:
            shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
            tensors = read_weights(folder, shapes, device, lambda _, tensor: tensor.to(dtype, copy=True))
            model.load_state_dict(tensors, assign=True)
        return model

    @classmethod
    def without_weights(cls, folder: Path) -> "Decoder":
        """A model of the shape that a folder's config.json gives, on the meta device."""
        with torch.device("meta"), Uninitialized():
            model = cls(ModelConfig.read(folder))
        path = folder / "generation_config.json"
        if path.is_file():
            model.generation_config = read_json(path)
            read_fields(StopTokens, model.generation_config, path)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, generation_config.json and model.safetensors, each beside and then renamed."""
        self.save_config(folder)
        write_tensors(Path(folder) / "model.safetensors", self.state_dict())

    def save_config(self, folder: str | Path, **more) -> None:
        """Write config.json, with `more` in it, and generation_config.json."""
        folder = Path(folder)
        family = "Nanoprune" if any(self.config.without) else self.config.model_type.capitalize()
        raw = {"architectures": [f"{family}ForCausalLM"]} | self.config.to_dict(self.head_weight.dtype)
        write_json(folder / "config.json", raw | more)
        if self.generation_config:
            write_json(folder / "generation_config.json", self.generation_config)


class Uninitialized(TorchFunctionMode):
    """A context in which modules draw no weights.

    On the meta device that alone would import torch's compiler, for a second.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
