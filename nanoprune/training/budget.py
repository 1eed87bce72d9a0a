"""The cost of a run, known before it: memory and disk; and the floating-point operations of its steps."""

import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from nanoprune.config import IGNORE, Config
from nanoprune.data.dataset import Dataset
from nanoprune.device import matmul_rate, memory_left
from nanoprune.distributed import Ranks
from nanoprune.nn.losses import HEAD_CHUNK, SLICE
from nanoprune.nn.model_config import ModelConfig
from nanoprune.training.base import Base
from nanoprune.training.batches import MicroBatch
from nanoprune.training.run_folder import STATES_KEPT, has_state

if TYPE_CHECKING:
    from model import Decoder

FROZEN_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "nf4": 0.52}  # of a frozen value
PROCESS_BYTES = 350e6  # Python and torch
USUAL_RATE = 0.5  # of square products: what a model reaches
HEAP_HOLES = 0.15  # share of a CPU's heap that is lost between freed tensors


def training_flops(model: "Decoder", micro_batches: Iterable[MicroBatch]) -> float:
    """Floating-point operations of one step: 6 for each matrix value and token (4 if frozen), and attention.

    Attention in a document of n tokens takes 2 x n x n x heads x head_dim a block (scores and weighted
    values, half of them masked), three times that with the backward pass. The head multiplies only tokens
    that are learned. An embedding is a look-up and counts nothing.
    """
    config, full = model.config, model.head_weight.requires_grad
    trained = sum(p.numel() for p in model.parameters() if p.dim() == 2 and p.requires_grad)
    frozen, of_head = (0, 6) if full else (matrix_parameters(config), 4)
    products = 6 * trained + 4 * frozen - of_head * separate_embedding(config)
    tokens = sum(micro.ids.numel() for micro in micro_batches)
    unlearned = sum(int((micro.targets == IGNORE).sum()) for micro in micro_batches)
    squares = sum(int((np.bincount(row) ** 2).sum()) for micro in micro_batches
                  for row in micro.documents.numpy())
    attentions = sum(without != "attn" for without in config.without)
    products = products * tokens - of_head * model.head_weight.numel() * unlearned
    return products + 6 * squares * config.num_attention_heads * config.head_dim * attentions


def expected_time(config: Config, model: ModelConfig, dataset: Dataset, device: torch.device) -> str:
    """The minutes of scoring a model's blocks, of training two arms and of evaluating four models.

    To read a token takes two operations for each value of the matrices, to learn from it six.
    """
    rate = USUAL_RATE * matmul_rate(device, getattr(torch, config.dtype))
    minutes = 2 * matrix_parameters(model) / rate / 60  # to read a token
    validation, test = (len(dataset.split(name).tokens) for name in ("val", "test"))
    asked = sum(len(str(row)) for rows in dataset.questions().values() for row in rows) / 4  # tokens, some
    passes = model.num_hidden_layers / 2 + 3  # half a pass without each block, and those of cheaper scores
    trained = 3 * config.max_steps * config.tokens_per_step
    return (f"expected minutes: {passes * validation * minutes:.1f} to score blocks, "
            f"{2 * trained * minutes:.1f} to train two arms, {4 * (test + asked) * minutes:.1f} to evaluate "
            f"four models; computed for {rate / 1e9:,.0f} GFLOP/s, half of what products of matrices reach "
            f"on {device} now")


def separate_embedding(model: ModelConfig) -> int:
    """Values of an embedding that is not the head, too."""
    return 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size


def moment_bytes(config: Config) -> int:
    """Bytes that the optimizer keeps for each trained value: two moments in fp32, or the lean ones."""
    return 3 if config.optimizer == "lean" else 8


def _heads_width(model: ModelConfig) -> int:
    """Width of queries and keys together."""
    return (model.num_attention_heads + model.num_key_value_heads) * model.head_dim


def matrix_parameters(model: ModelConfig) -> int:
    """Values of the matrices; norms and biases are too few to plan with."""
    attention = 2 * model.hidden_size * _heads_width(model)
    mlp = 3 * model.hidden_size * model.intermediate_size
    blocks = sum(attention * (without != "attn") + mlp * (without != "mlp") for without in model.without)
    return blocks + model.vocab_size * model.hidden_size + separate_embedding(model)


def trained_parameters(config: Config, model: ModelConfig) -> int:
    """Values that learn: all matrices, or adapters, as if all linear layers had one."""
    if not config.lora:
        return matrix_parameters(model)
    # Widths of inputs and outputs of a block's layers.
    ends = 7 * model.hidden_size + 2 * _heads_width(model) + 3 * model.intermediate_size
    return config.lora_rank * model.num_hidden_layers * ends


def training_memory(
    config: Config, model: ModelConfig, device: torch.device, shards: int = 1, stored: float = 0.0,
    plain_head: bool = False,
) -> dict[str, float]:
    """Bytes at the peak of a step, by what they are for. The tests hold it to measured peaks.

    `shards`: among how many processes every tensor is divided. `stored`: bytes of the base's file, beside
    adapters. `plain_head`: the decoder's. The peak is at the end of the forward pass, with all activations,
    or of the backward pass, with all gradients.
    """
    D, V, L, inner = model.hidden_size, model.vocab_size, model.num_hidden_layers, model.intermediate_size
    heads, tokens, width = _heads_width(model), config.batch_size * config.context, 4
    if config.dtype != "float32":
        width = 2
    parameters, trained = matrix_parameters(model), trained_parameters(config, model) / shards
    head, moments = V * D + separate_embedding(model), moment_bytes(config) * trained

    # Activations: bytes that a token leaves in a block for the backward pass. These are inputs of norms (in
    # fp32), heads before and after norm and rotation, gate and up, and the inputs of what learns.
    inputs = (9 * D + inner * width) / (2 if config.lora else 1)
    whole = 8 * D + ((2 + model.qk_norm) * heads + 2 * inner) * width + inputs
    of_block = {"none": whole, "pointwise": 4 * D + 2 * (D + heads + inner) * width, "blocks": 4 * D}
    recomputed = 0 if config.recompute == "none" else 2 * whole  # one block, and its gradients
    activations = tokens * (L * of_block[config.recompute] + recomputed + 8 * D)

    if config.lora:
        of_value = FROZEN_BYTES | {"stored": stored / parameters}
        # in four bits, head and embedding stay as they are stored
        of_head = of_value["stored" if config.frozen == "nf4" else config.frozen]
        need = {
            "frozen weights": of_value[config.frozen] * (parameters - head) + of_head * head,
            "adapters, gradients and optimizer": 8 * trained + moments,
            "weights in use": 4 * max(heads, inner) * D,
            "gradients and activations": activations,
            "logits": 4 * SLICE * (D + tokens),
        }
    else:
        block = (parameters - head) / L
        gradients = max(V * D, block) if config.optimizer == "lean" else trained
        copied = block + head if shards > 1 and config.recompute == "blocks" else parameters
        # Gradients of the micro-batches before; fsdp shards them after the last one.
        earlier = parameters if config.accumulation > 1 else 0
        need = {
            "weights": 4 * trained,
            "optimizer": moments,
            "weights in half precision": 0 if width == 4 else 2 * copied,
            "gradients and activations": max(activations + 4 * (V * D + earlier), 4 * gradients),
            "logits": min(HEAD_CHUNK, tokens * V) * (width + (4 if device.type == "cuda" else 0)),
        }
        if shards > 1:
            need["weights and gradients gathered from shards"] = 8 * (block + head)
    if plain_head:  # logits, their softmax and its gradient in fp32
        need["logits"] = 12 * tokens * V
    if device.type != "cuda":
        need["Python, torch and holes in the heap"] = PROCESS_BYTES + HEAP_HOLES * sum(need.values())
    return need


def disk_space(config: Config, model: ModelConfig) -> float:
    """Bytes that a run will yet write: its states and the next, the model twice, a teacher's predictions.

    Those that its folder holds already count no second time.
    """
    state = 4 + moment_bytes(config)  # bytes of a value that learns
    whole = ((STATES_KEPT + 1) * state + 2 * 4) * trained_parameters(config, model)
    if config.teacher and not has_state(config.folder / "state"):  # they are there before the first state
        whole += 8 * config.teacher_top * config.max_steps * config.tokens_per_step
    written = sum(path.stat().st_size for path in config.folder.glob("*/**/*.safetensors"))
    return max(0.0, whole - written)


def check_budget(
    config: Config, base: Base, device: torch.device, ranks: Ranks, ignore: bool, plain_head: bool
) -> None:
    """Print what the run needs and what is free; ValueError (`ignore`: a warning) if it is too little."""
    stored = sum(path.stat().st_size for path in base.folder.glob("*.safetensors")) if base.folder else 0
    shards = ranks.size if config.parallel == "fsdp" else 1
    need = training_memory(config, base.config, device, shards, stored, plain_head)
    memory, memory_free = sum(need.values()), memory_left(device)
    if device.type != "cuda":  # the processes of a machine share it
        memory_free /= ranks.here
    run = config.folder.absolute()
    place = next(folder for folder in [run, *run.parents] if folder.exists())
    disk, disk_free = disk_space(config, base.config), shutil.disk_usage(place).free
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in need.items())
    print(f"{config.folder}: memory some {_gb(memory)} GB ({parts}), {_gb(memory_free)} left on {device}; "
          f"disk {_gb(disk)} GB, {_gb(disk_free)} left in {place}")
    if memory > memory_free:
        smaller = "frozen=nf4" if config.lora else "optimizer=lean (with clip=0, accumulation=1)"
        problem = (f"too little memory, {_gb(memory_free)} of {_gb(memory)} GB on {device}: set "
                   "recompute=blocks, lower batch_size (and raise accumulation) or context, or take "
                   f"{smaller}; --ignore-budget tries it as it is")
    elif disk > disk_free:
        problem = (f"too little disk, {_gb(disk_free)} of {_gb(disk)} GB in {place}: make room or set runs "
                   "to another disk; --ignore-budget tries it as it is")
    else:
        return
    if not ignore:
        raise ValueError(problem)
    print(f"warning: {problem}")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"
