"""nanoprune/nn/pointwise.py: every function against its plain form, with its gradient."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from small import SHAPE

from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.pointwise import apply_rope, rms_norm, rope_table, silu_mul


def drawn(*shape, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def plainly_rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    sin = sin.chunk(2, dim=-1)[1].tile(2)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


@pytest.mark.parametrize("fast, plain, shapes", [
    (lambda x: rms_norm(x, 1e-3), lambda x: F.rms_norm(x, (6,), eps=1e-3), [(2, 3, 6)]),
    (silu_mul, lambda gate, up: F.silu(gate) * up, [(2, 3, 6), (2, 3, 6)]),
    (lambda x: apply_rope(x, *angles()), lambda x: plainly_rotated(x, *angles()), [(2, 4, 3, 6)]),
], ids=["norm", "gated silu", "rotary positions"])
def test_what_lies_between_the_products_equals_its_plain_form(fast, plain, shapes):
    """In fp64: values and gradients."""
    inputs = [drawn(*one, seed=i) for i, one in enumerate(shapes)]
    found, expected = fast(*inputs), plain(*inputs)
    weights = drawn(*found.shape, seed=9).detach()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(fast(*inputs), found)
    for one, other in zip(torch.autograd.grad((found * weights).sum(), inputs),
                          torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def angles() -> tuple[torch.Tensor, torch.Tensor]:
    half = drawn(2, 1, 3, 3).detach()
    turns = torch.cat([-half, half], dim=-1)
    return turns.cos(), turns.sin()


def test_the_norm_is_taken_in_fp32():
    x = drawn(4, 64, dtype=torch.float32).detach().bfloat16()
    expected = F.rms_norm(x.float(), (64,), eps=1e-6).bfloat16()
    assert torch.equal(rms_norm(x, 1e-6), expected)


def test_rope_of_llama_3_equals_transformers():
    """At the published values, where all three ranges of wavelengths occur."""
    scaling = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=8192, rope_theta=500000.0)
    raw = SHAPE | dict(vocab_size=61, head_dim=64, max_position_embeddings=131072, rope_parameters=scaling)
    del raw["rope_theta"], raw["model_type"]
    rope = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**raw))
    positions = torch.tensor([[0, 1, 77, 8191, 100_000]])
    cos, sin = rope(torch.zeros(1), positions)
    ours = rope_table(ModelConfig.from_dict(raw | {"model_type": "llama"}), positions)
    torch.testing.assert_close(ours[0], cos, rtol=0, atol=2e-2)  # fp32 angles of 100,000 radians
    torch.testing.assert_close(ours[0][:, :3], cos[:, :3], rtol=0, atol=1e-5)
    sin[..., :32] *= -1
    torch.testing.assert_close(ours[1][:, :3], sin[:, :3], rtol=0, atol=1e-5)
