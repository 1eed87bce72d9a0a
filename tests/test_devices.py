"""The model on the device of --device, against the same in fp64 on the CPU: one file for CPU, CUDA and MPS.

    python -m pytest tests/test_devices.py --device cuda
"""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from adapters import adapted_model
from small import random_base

from benchmarks import older_torch
from model import Decoder
from nanoprune.device import has_flash, to_device
from nanoprune.nn import attention, losses
from nanoprune.nn.attention import KeyValueCache, packed_layout
from nanoprune.nn.lora import frozen_layers
from nanoprune.nn.losses import SoftTargets, head_loss, plain_loss
from nanoprune.nn.model_config import ModelConfig, read_parts
from nanoprune.nn.nf4 import dequantise, quantise
from nanoprune.nn.sampling import Sampling, generate

pytestmark = pytest.mark.usefixtures("one_thread")
older_torch.bridge()

SHAPE = dict(model_type="qwen3", vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
             tie_word_embeddings=True, initializer_range=0.1)
WINDOW = dict(use_sliding_window=True, sliding_window=7, max_window_layers=1)
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=100.0)
VARIANTS = {
    "qwen3": {},
    "qwen3 untied": dict(tie_word_embeddings=False),
    "qwen3 windows": WINDOW,
    "qwen3 biased": dict(attention_bias=True),
    "qwen3 a key head each": dict(num_key_value_heads=4),
    "qwen2": dict(model_type="qwen2"),
    "qwen2 windows": dict(model_type="qwen2", **WINDOW),
    "llama": dict(model_type="llama", num_key_value_heads=1),
    "llama biased": dict(model_type="llama", attention_bias=True, mlp_bias=True),
    "llama3 rope": dict(model_type="llama", rope_parameters=LLAMA3),
    "parts removed": {},
}
TYPES = {"fp32": (torch.float32, 1e-4), "bf16": (torch.bfloat16, 0.05), "fp16": (torch.float16, 0.01)}
LENGTHS = [[40, 1, 23], [64], [5, 59]]  # of the documents in packed rows


def make(variant: str = "qwen3", **changes) -> Decoder:
    """A model on the CPU in fp32, none of whose weights is zero or one throughout."""
    torch.manual_seed(0)
    model = Decoder(ModelConfig.from_dict(SHAPE | VARIANTS[variant] | changes))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.1
    if variant == "parts removed":
        model.drop_blocks(read_parts(("0.attn", "1.mlp"), model.config))
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, targets, documents) of packed rows, on the CPU as the training's are."""
    generator = torch.Generator().manual_seed(1)
    ids, targets = torch.randint(0, 320, (2, 3, 64), generator=generator)
    targets[0, :3] = -100
    documents = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS]
    return ids, targets, torch.stack(documents)


def precision(device: torch.device, dtype: torch.dtype):
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str = "") -> None:
    """The difference is within `tolerance` of the expected norm."""
    assert found.shape == expected.shape and found.isfinite().all(), what
    error = float((found.cpu().double() - expected.cpu().double()).norm() / expected.double().norm().cpu())
    assert error < tolerance, f"{what} off by {error:.1e} of the norm"


def gradient(model: Decoder) -> torch.Tensor:
    """All gradients of a model in one vector, in fp64 on the CPU; the model's are cleared."""
    parts = [p.grad.cpu().double().flatten() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return torch.cat(parts)


# ---------------------------------------------------------------- forward and backward
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_are_those_of_fp64(variant, device):
    reference = make(variant)
    model, reference = copy.deepcopy(reference).to(device), reference.double()
    ids, targets, documents = batch()
    with torch.no_grad():
        assert_near(model(ids.to(device)), reference(ids), 1e-4, "logits")
    for packed in (None, documents):
        loss, expected = model(ids.to(device), targets, packed), reference(ids, targets, packed)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        loss.backward()
        expected.backward()
        for (name, found), wanted in zip(model.named_parameters(), reference.parameters(), strict=True):
            assert_near(found.grad, wanted.grad, 1e-3, name)
        model.zero_grad()
        reference.zero_grad()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("variant", ["qwen3", "qwen3 windows", "qwen2", "llama"])
def test_packed_documents_are_separate_ones(variant, name, device):
    """Loss and gradient; in half precision on CUDA by one flash kernel over all documents."""
    dtype, tolerance = TYPES[name]
    reference = make(variant)
    model, reference = copy.deepcopy(reference).to(device), reference.double()
    ids, targets, documents = batch()
    apart = 0
    for row, lengths in enumerate(LENGTHS):
        for one, wanted in zip(ids[row].split(lengths), targets[row].split(lengths), strict=True):
            apart = apart + reference(one[None], wanted[None], reduction="sum")
    apart.backward()
    with precision(device, dtype):
        loss = model(ids.to(device), targets, documents, reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(apart.item(), rel=tolerance)
    assert_near(gradient(model), gradient(reference), 2 * tolerance, "gradient")


def test_packed_documents_take_one_kernel(cuda):
    documents = batch()[2]
    for dtype, one_kernel in ((torch.float32, False), (torch.bfloat16, True), (torch.float16, True)):
        x = torch.zeros(1, device=cuda, dtype=dtype)
        layout = packed_layout(documents, [None], x)
        assert has_flash(x) is one_kernel and (layout.visible[None].starts is not None) is one_kernel


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("recompute", ["pointwise", "blocks"])
def test_recomputing_changes_nothing(recompute, name, device):
    model, (ids, targets, documents) = make("qwen3 windows").to(device), batch()
    gradients = []
    for model.recompute in ("none", recompute):
        with precision(device, TYPES[name][0]):
            model(ids.to(device), targets, documents).backward()
        gradients.append(gradient(model))
    # flash attention adds in any order on CUDA
    assert_near(gradients[1], gradients[0], 1e-5 if name == "fp32" else 1e-2, "gradient")


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("frozen, taught", [(False, False), (True, False), (False, True)])
def test_the_head_is_the_plain_form(frozen, taught, name, device, monkeypatch):
    """Of several chunks and slices, with and without a teacher."""
    monkeypatch.setattr(losses, "HEAD_CHUNK", 40 * 320)
    monkeypatch.setattr(losses, "SLICE", 100)
    dtype, tolerance = TYPES[name]
    generator = torch.Generator().manual_seed(2)
    x, weight = torch.randn(3, 64, 32, generator=generator), torch.randn(320, 32, generator=generator)
    targets, teacher = batch()[1], None
    if taught:
        ids = torch.rand(3, 64, 320, generator=generator).topk(8).indices
        log_p = torch.randn(3, 64, 8, generator=generator).log_softmax(-1) - 0.1
        teacher = SoftTargets(ids, log_p, 0.5, 2.0)
    results = []
    for place, kind in (("cpu", torch.float64), (device, torch.float32)):
        inputs = [x.to(place, kind).requires_grad_(), weight.to(place, kind).requires_grad_(not frozen)]
        if kind == torch.float64:
            loss = plain_loss(F.linear(*inputs), targets, teacher=teacher)
        else:
            with precision(device, dtype):
                loss = head_loss(*inputs, targets, teacher=teacher)
        loss.backward()
        results.append([loss.detach(), *(part.grad for part in inputs if part.requires_grad)])
    for found, expected in zip(results[1], results[0], strict=True):
        assert_near(found, expected, tolerance)


def test_a_step_reads_nothing_back(monkeypatch):
    """On torch's meta device, which holds no values: a read, or a tensor left on the CPU, would be an error.

    Flash attention is called as on CUDA, so that its arguments and shapes are checked, too.
    """
    monkeypatch.setattr(attention, "has_flash", lambda *_: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # the meta device knows none
    for variant in ("qwen3 windows", "llama"):
        for recompute in ("none", "pointwise", "blocks"):
            model, (ids, targets, documents) = make(variant).to("meta"), batch()
            model.recompute = recompute
            model(ids.to("meta"), targets, documents).backward()
            assert all(p.grad.device.type == "meta" and p.grad.dtype == p.dtype for p in model.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        model(ids.to("meta"), targets, documents).item()


# ---------------------------------------------------------------- cache and sampling
@pytest.mark.parametrize("variant", ["qwen3", "qwen3 windows", "llama"])
@torch.no_grad()
def test_the_cache_gives_the_full_forward_pass(variant, device):
    model, ids = make(variant).to(device), batch()[0].to(device)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        model.to(dtype)
        cache = KeyValueCache(model, 3, 64)
        steps = [model(ids[:, a:b], cache=cache)
                 for a, b in ((0, 9), (9, 10), (10, 11), (11, 30), (30, 31), (31, 64))]
        assert_near(torch.cat(steps, 1), model(ids), tolerance, str(dtype))


def test_the_same_tokens_are_drawn_on_every_device(device):
    model, ids = make(), batch()[0][:, :9]
    for sampling in (Sampling(), Sampling(temperature=0.8, top_k=50, top_p=0.9, seed=3)):
        expected = generate(model.cpu(), ids, 20, sampling)
        assert generate(model.to(device), ids, 20, sampling) == expected


# ---------------------------------------------------------------- adapters and four bits
@pytest.mark.parametrize("frozen", ["stored", "bfloat16", "nf4"])
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_adapters_learn_the_same(frozen, name, device, tmp_path):
    """Loss and gradients of adapters on a frozen base, against the CPU in fp32."""
    dtype, tolerance = TYPES[name]
    expected = adapted_model(random_base(tmp_path / "base", **SHAPE), "all", frozen=frozen, rank=4)
    model, (ids, targets, documents) = copy.deepcopy(expected).to(device), batch()
    expected_loss = expected(ids, targets, documents)
    expected_loss.backward()
    with precision(device, dtype):
        loss = model(ids.to(device), targets, documents)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=max(tolerance, 1e-4))
    assert_near(gradient(model), gradient(expected), max(2 * tolerance, 1e-3), "gradient")


def test_four_bits_are_those_of_the_cpu(device, tmp_path):
    """Codes bit by bit; the scales' mean is a sum, whose order is the device's own."""
    weight = torch.randn(96, 200, generator=torch.Generator().manual_seed(4))
    here, there = quantise(weight), quantise(weight.to(device))
    assert torch.equal(here.codes, there.codes.cpu())
    assert_near(dequantise(there, weight.shape), dequantise(here, weight.shape), 1e-3)
    base = random_base(tmp_path / "base", **SHAPE)
    layers = [frozen_layers(Decoder.from_pretrained(base, device=place, frozen="nf4"))
              for place in ("cpu", device)]
    for name, layer in layers[0].items():
        assert_near(layers[1][name].merged(), layer.merged(), 1e-3, name)


# ---------------------------------------------------------------- types and copies
def test_tf32_is_on_where_it_is_allowed(cuda):
    a, b = (torch.randn(512, 512, generator=torch.Generator().manual_seed(i)) for i in (5, 6))
    expected, errors = a.double() @ b.double(), []
    for torch.backends.cuda.matmul.allow_tf32 in (True, False):
        product = (a.to(cuda) @ b.to(cuda)).cpu().double()
        errors.append(float((product - expected).norm() / expected.norm()))
    assert errors[1] < 1e-5 < errors[0] < 1e-2


def test_pinned_copies_arrive_whole(device):
    """Also where the source is freed before the copy is done, as a batch's is."""
    copies = [to_device(torch.full((256, 257), i), device) for i in range(200)]
    assert all((copied == i).all() for i, copied in enumerate(copies))
