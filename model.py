"""The decoder: Qwen2/2.5, Qwen3 and Llama 3, its key/value cache, Hugging Face safetensors in and out.

Module and parameter names are Hugging Face's, letter for letter, so that loading and saving is a plain dictionary.
Shapes: B batch, T time, D hidden size, H query heads, K key/value heads, F head_dim, V vocabulary.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.checkpoint import create_selective_checkpoint_contexts as keep_outputs

from nanoprune.device import has_flash, to_device
from nanoprune.io.files import read_json, write_json
from nanoprune.io.hub import locate
from nanoprune.io.tensors import read_weights, write_tensors
from nanoprune.nn.attention import (
    KeyValueCache,
    attend,
    attend_documents,
    causal_mask,
    document_lengths,
    document_mask,
    document_positions,
)
from nanoprune.nn.losses import head_logits, head_loss
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.pointwise import GatedSilu, Normalize, Rotate, apply, rope_table
from nanoprune.nn.tied_embedding import tie

SHORT_DOCUMENT = 64  # tokens: packed documents shorter than this on average share one attention under a mask
SAVED_OPERATIONS = [getattr(torch.ops.aten, name).default for name in (  # where only what is pointwise runs again in the backward pass
    "mm", "addmm", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # In fp32, cast back, then times the weight: the order the checkpoints were trained with.
        return self.weight * apply(Normalize, x, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim, hidden = config.head_dim, config.hidden_size
        q_size, kv_size = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, hidden, bias=config.output_bias)
        if config.qk_norm:  # over head_dim, per head, before the rotary positions
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x_BTD: torch.Tensor, rope, mask, cache: KeyValueCache | None, block: int) -> torch.Tensor:
        """`mask`: None (causal), what may be seen (B or 1, 1, T, keys), or what `attend_documents` takes."""
        B, T, _ = x_BTD.shape
        q, k, v = (proj(x_BTD).view(B, T, -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, heads, T, F)
        q, k = apply(Rotate, q, *rope), apply(Rotate, k, *rope)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast the norms leave fp32 behind
        if cache is not None:
            k, v = cache.extend(block, k, v)
        y = attend_documents(q, k, v, *mask) if isinstance(mask, tuple) else attend(q, k, v, mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(apply(GatedSilu, self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """One transformer block: what nanoprune removes, whole or in part, and asks the worth of."""

    def __init__(self, config: ModelConfig, without: str = ""):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.remove(without)

    def remove(self, part: str) -> None:
        """Take out the attention ("attn") or the MLP ("mlp"), with the norm before it."""
        if part == "attn":
            self.self_attn = self.input_layernorm = None
        elif part == "mlp":
            self.mlp = self.post_attention_layernorm = None

    def forward(self, x: torch.Tensor, rope, mask, cache: KeyValueCache | None = None, block: int = 0, skip: str = "") -> torch.Tensor:
        """x (B, T, D) with attention and MLP added, but for the one to `skip`."""
        if self.self_attn is not None and skip != "attn":
            x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, block)
        if self.mlp is not None and skip != "mlp":
            x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Trunk(nn.Module):
    """Embedding, blocks and final norm: what the checkpoints call `model`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, without) for without in config.without)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.recompute = "none"  # what of a block runs again in the backward pass: none, pointwise or blocks

    def begin(self, config: ModelConfig, ids: torch.Tensor, embed, documents=None, start: int = 0) -> tuple:
        """What the blocks are given: x (B, T, D), the rotary table, and by kind of block what attention may see."""
        T = ids.shape[1]
        if documents is None:
            positions = torch.arange(start, start + T, device=ids.device)[None]
        else:
            documents = documents.cpu()  # they decide on shapes
            lengths = document_lengths(documents)
            if len(lengths) == len(documents):  # rows of one document each
                return self.begin(config, ids, embed)
            positions = to_device(document_positions(documents), ids.device)
        x = embed(ids).to(self.norm.weight.dtype)  # of a frozen base only the norms are wide
        cos, sin = (table[:, None].to(x.dtype) for table in rope_table(config, positions))  # (B or 1, 1, T, F)
        windows = {"full_attention": None, "sliding_attention": config.sliding_window}
        if documents is None:
            masks = {kind: causal_mask(T, start + T, window, ids.device) for kind, window in windows.items()}
        elif has_flash(x):
            starts = to_device(torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32), ids.device)
            masks = {kind: (lengths, window, starts) for kind, window in windows.items()}
        elif len(lengths) * SHORT_DOCUMENT <= ids.numel():
            masks = {kind: (lengths, window) for kind, window in windows.items()}
        else:
            masks = {kind: document_mask(documents, windows[kind], ids.device) for kind in set(config.layer_types)}
        return x, (cos, sin), masks

    def forward(self, config: ModelConfig, ids: torch.Tensor, embed, documents=None, cache=None) -> torch.Tensor:
        assert documents is None or cache is None, "packed rows are for training, the cache is for generating"
        x, rope, masks = self.begin(config, ids, embed, documents, cache.used if cache else 0)
        for i, layer in enumerate(self.layers):
            given = (x, rope, masks[config.layer_types[i]], cache, i)
            if self.recompute == "none" or not torch.is_grad_enabled():
                x = layer(*given)
            else:
                kept = SAVED_OPERATIONS if self.recompute == "pointwise" else []
                x = checkpoint(layer, *given, use_reentrant=False, context_fn=partial(keep_outputs, kept))
        if cache is not None:
            cache.used += ids.shape[1]
        return self.norm(x)


class Decoder(nn.Module):
    """`model(ids)` gives logits, `model(ids, targets)` the loss; `from_pretrained`, `save_pretrained`."""

    def __init__(self, config: ModelConfig):
        """Random weights: normal with the config's `initializer_range`, norms one, biases zero."""
        super().__init__()
        self.config, self.generation_config = config, {}
        self.model = Trunk(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=config.initializer_range)

    @property
    def head_weight(self) -> torch.Tensor:
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes from block to block, and so of a cache's keys and values."""
        return self.model.norm.weight.dtype

    def forward(
        self,
        ids: torch.Tensor,
        targets: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        reduction: str = "mean",
        teacher: tuple | None = None,
    ) -> torch.Tensor:
        """Logits (B, T, V) of ids (B, T) int64; with targets (B, T), the cross entropy in nats.

        Targets of -100 do not count. `reduction` is "mean" over counted tokens, "sum", or "none" for (B, T).
        `documents` (B, T) numbers the documents of packed rows: tokens see their own document only, positions restart.
        `cache` holds earlier positions, and takes these in. `teacher`: what `ops.head_loss` takes.
        """
        tied = self.config.tie_word_embeddings
        weight, embed = tie(self.head_weight) if tied else (self.head_weight, self.model.embed_tokens)
        x = self.model(self.config, ids, embed, documents, cache)
        return head_logits(x, weight) if targets is None else head_loss(x, weight, targets, reduction, teacher)

    def last_logits(self, ids: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        """Logits (B, V) of the last position only: what generating needs, without the head over the whole prompt."""
        return head_logits(self.model(self.config, ids, self.model.embed_tokens, None, cache)[:, -1], self.head_weight)

    @property
    def stop_tokens(self) -> set[int]:
        """The ids that end a text, from the generation config and the config."""
        found = [source.get("eos_token_id") for source in (self.generation_config, self.config.extra)]
        return {i for ids in found if ids is not None for i in (ids if isinstance(ids, list) else [ids])}

    @staticmethod
    def read_config(folder: Path) -> ModelConfig:
        return ModelConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device="cpu", dtype: torch.dtype = torch.float32, revision: str | None = None
    ) -> "Decoder":
        """A model from a hub name, a folder or a run folder, its weights cast to `dtype`.

        ValueError where a file is missing or damaged or a tensor does not fit, naming it.
        """
        folder = locate(name, revision)
        model = cls.without_weights(folder)
        if model.config.extra.get("quantization_config"):
            raise ValueError(f"{name} is quantised: its weights cannot be changed; give the model that it was made from "
                             "(or, to train, name layers in `lora`)")
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        model.load_state_dict(read_weights(folder, wanted, device, lambda _, tensor: tensor.to(dtype, copy=True)), assign=True)
        return model

    @classmethod
    def without_weights(cls, folder: Path) -> "Decoder":
        """A model of the shape that a folder's config.json gives, on the meta device."""
        with torch.device("meta"), Uninitialized():
            model = cls(cls.read_config(folder))
        if (folder / "generation_config.json").is_file():
            model.generation_config = read_json(folder / "generation_config.json")
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, generation_config.json and model.safetensors, each beside and then renamed."""
        self.save_config(folder)
        write_tensors(Path(folder) / "model.safetensors", self.state_dict())

    def save_config(self, folder: str | Path, more: dict | None = None) -> None:
        """Write config.json, with `more` in it, and generation_config.json."""
        folder = Path(folder)
        architecture = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
        name = "NanopruneForCausalLM" if any(self.config.without) else architecture[self.config.model_type]
        raw = {"architectures": [name]} | self.config.to_dict(self.head_weight.dtype)
        write_json(folder / "config.json", raw | (more or {}))
        if self.generation_config:
            write_json(folder / "generation_config.json", self.generation_config)


class Uninitialized(TorchFunctionMode):
    """Modules made inside draw no weights: on the meta device that alone would import torch's compiler, for a second."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
