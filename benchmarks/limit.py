"""What a training step needs at least on this machine: its products at their own rates, and the optimizer's
bytes."""

import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch

from model import Decoder
from nanoprune.nn.model_config import ModelConfig

REPEATS, COPIED = 5, 2**27  # of each measurement; numbers copied to measure the memory


def step_limit(shape: dict, rows: int, context: int, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of a full step with AdamW, by part: rows of `context` tokens, products in `dtype`.

    Products: for each matrix one in the forward pass and two in the backward pass, each timed alone at its
    true sizes. Attention: the multiplications of its causal half at the products' mean rate. Optimizer:
    weight, gradient and two moments read, all but the gradient written, in fp32, as fast as memory is copied.
    """
    config = ModelConfig.from_dict(shape)
    with torch.device("meta"):
        model = Decoder(config)
    matrices = Counter(tuple(p.shape) for name, p in model.named_parameters() if p.dim() == 2
                       and name != "model.embed_tokens.weight")
    matrices[tuple(model.head_weight.shape)] += config.tie_word_embeddings
    tokens, products, operations = rows * context, 0.0, 0
    for (out, size), count in matrices.items():
        x, grad = torch.randn(tokens, size, dtype=dtype), torch.randn(tokens, out, dtype=dtype)
        weight = torch.randn(out, size, dtype=dtype)
        products += count * sum(seconds(torch.mm, *pair) for pair in
                                ((x, weight.T), (grad, weight), (grad.T, x)))
        operations += count * 6 * tokens * out * size
    heads = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    attention = 6 * tokens * context * heads  # 12 without causality
    source = torch.ones(COPIED)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds(target.copy_, source)
    parameters = sum(p.numel() for p in model.parameters())
    return {"products": products, "attention": attention / (operations / products),
            "optimizer": 7 * 4 * parameters / bandwidth}


def seconds(function: Callable, *arguments: torch.Tensor) -> float:
    """The median of some calls, after a first."""
    function(*arguments)
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        function(*arguments)
        took.append(time.perf_counter() - began)
    return statistics.median(took)
