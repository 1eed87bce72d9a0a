"""What a training step needs at least on this machine: its products at their own rates, and the optimizer's
bytes."""

import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch

from model import Decoder
from nanoprune.config import Config
from nanoprune.nn.model_config import ModelConfig

REPEATS, COPIED = 5, 2**27  # of each measurement; numbers copied to measure the memory


# Bytes that a parameter's update reads and writes: weight, gradient and moments; all but the gradient again
UPDATE = {"adamw": 4 + 4 + 8 + 4 + 8, "lean": 4 + 4 + 3 + 4 + 3}


def step_limit(shape: dict, settings: Config, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of a full step, by part: a micro-batch of the settings, products in `dtype`.

    Products: for each matrix one in the forward pass and two in the backward pass, each timed alone at its
    true sizes; one more in blocks that are recomputed. Attention: the multiplications of its causal half at
    the products' mean rate. Optimizer: its bytes, as fast as memory is copied.
    """
    config = ModelConfig.from_dict(shape)
    with torch.device("meta"):
        model = Decoder(config)
    matrices = Counter(tuple(p.shape) for name, p in model.named_parameters() if p.dim() == 2
                       and name != "model.embed_tokens.weight")
    tokens, products, operations = settings.batch_size * settings.context, 0.0, 0
    head, again = tuple(model.head_weight.shape), settings.recompute == "blocks"
    matrices[head] += config.tie_word_embeddings
    for (out, size), count in matrices.items():
        x, grad = torch.randn(tokens, size, dtype=dtype), torch.randn(tokens, out, dtype=dtype)
        weight = torch.randn(out, size, dtype=dtype)
        forward = 1 + (again and (out, size) != head)
        products += count * (forward * seconds(torch.mm, x, weight.T) + seconds(torch.mm, grad, weight)
                             + seconds(torch.mm, grad.T, x))
        operations += count * 2 * (forward + 2) * tokens * out * size
    heads = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    attention = 2 * (3 + again) * tokens * settings.context * heads  # twice that without causality
    source = torch.ones(COPIED)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds(target.copy_, source)
    parameters = sum(p.numel() for p in model.parameters())
    return {"products": products, "attention": attention / (operations / products),
            "optimizer": UPDATE[settings.optimizer] * parameters / bandwidth}


def seconds(function: Callable, *arguments: torch.Tensor) -> float:
    """The median of some calls, after a first."""
    function(*arguments)
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        function(*arguments)
        took.append(time.perf_counter() - began)
    return statistics.median(took)
