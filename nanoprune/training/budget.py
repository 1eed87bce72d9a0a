"""What a run will cost: floating-point operations, memory and disk, before it is tried and while it runs."""

import shutil
from pathlib import Path

import numpy as np
import torch

from model import Decoder
from nanoprune.config import Config
from nanoprune.device import memory_left
from nanoprune.distributed import ALONE, Ranks
from nanoprune.nn.losses import HEAD_CHUNK, SLICE
from nanoprune.nn.model_config import ModelConfig
from nanoprune.training.run_folder import STATES_KEPT


def training_flops(model: Decoder, micro_batches: list) -> float:
    """Floating-point operations of one step: 6 per matrix weight and token (4 if it does not learn), and attention within each
    document.

    Scores and weighted values take 4 x n x n x heads x head_dim a block, half of it by causality, three times that with
    the backward pass. The embedding is a look-up and counts nothing; the head counts, also where it is tied.
    """
    config = model.config
    learning = sum(p.numel() for p in model.parameters() if p.dim() == 2 and p.requires_grad)
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size  # looked up
    passes = 6 if model.head_weight.requires_grad else 4
    matrices = 6 * learning + (passes == 4) * 4 * matrix_parameters(config) - passes * embedding
    tokens = sum(ids.numel() for ids, *_ in micro_batches)
    squares = sum(int((np.bincount(row) ** 2).sum()) for _, _, documents, *_ in micro_batches for row in documents.numpy())
    attending = sum(without != "attn" for without in config.without)
    attention = 6 * squares * config.num_attention_heads * config.head_dim * attending
    return matrices * tokens + attention


def matrix_parameters(shape: ModelConfig) -> int:
    """Values of the matrices; norms and biases are too few to plan with."""
    attention = 2 * shape.hidden_size * (shape.num_attention_heads + shape.num_key_value_heads) * shape.head_dim
    mlp = 3 * shape.hidden_size * shape.intermediate_size
    blocks = sum(attention * (without != "attn") + mlp * (without != "mlp") for without in shape.without)
    return blocks + shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)


def training_memory(config: Config, shape: ModelConfig, device: torch.device, parts: int = 1) -> dict[str, float]:
    """Bytes at the peak of a training step, by what they are for; the tests hold it to measured peaks.

    `parts`: of how many processes each holds a part of every tensor.

    The peak is at the end of the forward pass, when all that the backward pass needs is kept, or at that pass's end, when
    all the gradients are there.
    """
    D, V, L, inner = shape.hidden_size, shape.vocab_size, shape.num_hidden_layers, shape.intermediate_size
    Q, KV = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    tokens, wide = config.batch_size * config.context, 4 if config.dtype == "float32" else 2
    parameters = matrix_parameters(shape)
    normed = 2 * (2 * D * 4 if wide == 4 else D * 4 + 2.5 * D * 2)  # of both norms: before the weight, and for each product
    block = normed + ((2 + shape.qk_norm) * (Q + KV) + 3 * inner) * wide
    kept = {"none": block, "pointwise": 4 * D + (2 * D + 2 * Q + 2 * KV + 2 * inner) * wide, "blocks": 4 * D}[config.recompute]
    forward = tokens * (L * kept + (0 if config.recompute == "none" else block) + 2 * D * 4)
    logits = min(HEAD_CHUNK, tokens * V) * (wide + (4 if device.type == "cuda" else 0))
    lean = config.optimizer == "lean"
    need = {
        "weights": 4 * parameters,
        "optimizer": (3 if lean else 8) * parameters,
        "weights in half precision": 0 if wide == 4 else 2 * parameters,
        "gradients and activations": logits + max(forward + 4 * V * D, 4 * (max(V * D, D * inner) if lean else parameters)),
    }
    if config.accumulation > 1:
        need["gradients and activations"] = logits + forward + 4 * (parameters + V * D)
    if parts > 1:  # a block and the head are whole while they are computed, their gradients and copies too
        at_once = (parameters - V * D) / L + V * D
        if config.recompute == "blocks":
            need["weights in half precision"] = min(need["weights in half precision"], 2 * at_once)
        need |= {"weights": need["weights"] / parts, "optimizer": need["optimizer"] / parts,
                 "gradients and activations": logits + forward + 4 * (2 * at_once + parameters / parts)}
    if device.type != "cuda":  # the process itself, and holes that freed tensors leave in its heap
        need["Python, torch and the heap's holes"] = 350e6 + 0.15 * sum(need.values())
    return need


INPUTS = {"q_proj": "x", "k_proj": "x", "v_proj": "x", "o_proj": "heads", "gate_proj": "mlp", "up_proj": "mlp",
          "down_proj": "inner"}  # layers of one kind keep one input for their adapters


def adapter_sizes(config: Config, shape: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of the layers of a block that get adapters, by name; a pattern for single blocks counts as for all."""
    D, inner = shape.hidden_size, shape.intermediate_size
    Q, KV = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    sizes = {"q_proj": (Q, D), "k_proj": (KV, D), "v_proj": (KV, D), "o_proj": (D, Q), "gate_proj": (inner, D),
             "up_proj": (inner, D), "down_proj": (D, inner)}
    chosen = [part.strip().rpartition(".")[2] for part in config.lora.split(",")]
    return sizes if not set(chosen) <= set(sizes) else {name: sizes[name] for name in chosen}


def adapter_memory(config: Config, shape: ModelConfig, device: torch.device, stored: float) -> dict[str, float]:
    """Bytes at the peak of a step beside frozen weights, of which `stored` bytes lie on the disk; as `memory_need`."""
    D, V, L, inner = shape.hidden_size, shape.vocab_size, shape.num_hidden_layers, shape.intermediate_size
    Q, KV = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    tokens, wide = config.batch_size * config.context, 4 if config.dtype == "float32" else 2
    parameters, sizes = matrix_parameters(shape), adapter_sizes(config, shape)
    head = V * D * (1 if shape.tie_word_embeddings else 2)
    each = {"float32": 4, "bfloat16": 2, "float16": 2}.get(config.frozen, min(4, max(2, stored / parameters)))
    frozen = {"stored": stored, "nf4": each * head + 0.52 * (parameters - head)}.get(config.frozen, each * parameters)
    inputs = sum({"x": D, "heads": Q, "mlp": D, "inner": inner}[kind] for kind in {INPUTS[name] for name in sizes})
    block = 2 * D * 4 + (2 + shape.qk_norm) * (Q + KV) * wide + (2 * inner + inputs) * wide
    kept = 4 * D if config.recompute == "blocks" else block
    adapters = L * config.lora_rank * sum(outs + ins for outs, ins in sizes.values())
    need = {
        "frozen weights": frozen, "adapters and their optimizer": (11 if config.optimizer == "lean" else 16) * adapters,
        "activations": tokens * (L * kept + 2 * block + 3 * D * 4),
        "weights and logits in use": 4 * max(Q, inner) * D + 4 * SLICE * (D + tokens),
    }
    if device.type != "cuda":
        need["Python, torch and the heap's holes"] = 350e6 + 0.15 * sum(need.values())
    return need


def disk_space(config: Config, shape: ModelConfig) -> float:
    """Bytes that a run grows to: the states that are kept and one more while it is written, the model (or its adapters) twice,
    a teacher's predictions."""
    parameters = matrix_parameters(shape)
    if config.lora:
        sizes = adapter_sizes(config, shape).values()
        parameters = shape.num_hidden_layers * config.lora_rank * sum(outs + ins for outs, ins in sizes)
    taught = 8 * config.teacher_top * config.max_steps * config.tokens_per_step if config.teacher else 0
    return taught + (STATES_KEPT + 1) * parameters * (4 + (3 if config.optimizer == "lean" else 8)) + 2 * 4 * parameters


def check_room(
    config: Config, shape: ModelConfig, device: torch.device, ranks: Ranks = ALONE, base: Path | None = None
) -> str:
    """One line on what the run will need and what there is; ValueError where that is too little."""
    if config.lora:
        need = adapter_memory(config, shape, device, sum(path.stat().st_size for path in base.glob("*.safetensors")))
    else:
        need = training_memory(config, shape, device, ranks.size if config.parallel == "fsdp" else 1)
    left = memory_left(device) / (1 if device.type == "cuda" else ranks.here)
    total, disk = sum(need.values()), disk_space(config, shape)
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in need.items())
    above = next(folder for folder in [config.folder.absolute(), *config.folder.absolute().parents] if folder.exists())
    free = shutil.disk_usage(above).free
    if total > left:
        raise ValueError(f"a step will need some {total / 1e9:.1f} GB of memory on {device} ({parts}), {left / 1e9:.1f} are "
                         "left: set recompute=blocks, lower batch_size (and raise accumulation) or context, or take "
                         + ("frozen=nf4" if config.lora else "optimizer=lean (with clip=0, accumulation=1)")
                         + "; --anyway tries it as it is")
    if disk > free:
        raise ValueError(f"the run's folder will grow to {disk / 1e9:.1f} GB, {above} has {free / 1e9:.1f} left: make room or "
                         "set runs to another disk; --anyway tries it as it is")
    return (f"memory some {total / 1e9:.1f} GB ({parts}), {left / 1e9:.1f} left on {device}; "
            f"disk {disk / 1e9:.1f} GB, {free / 1e9:.1f} left")


def enough_room(
    config: Config, shape: ModelConfig, device: torch.device, ranks: Ranks, anyway: bool, base: Path | None
) -> None:
    """Say what the run will need; ValueError where there is less, a warning instead if it is to go on `anyway`."""
    try:
        print(f"{config.folder}: {check_room(config, shape, device, ranks, base)}")
    except ValueError as error:
        if not anyway:
            raise
        print(f"warning: {error}")
