"""nanoprune/device.py: the type a device has units for, and memory."""

import subprocess
import sys

import pytest
import torch
from small import ROOT, SHAPE
from torch.library import get_kernel

from model import Decoder
from nanoprune import device as machine
from nanoprune.device import (
    form_products_in_float32,
    make_autocast,
    matmul_rate,
    pick_device,
    pick_dtype,
    set_up,
)
from nanoprune.nn.model_config import ModelConfig
from train import train


@pytest.mark.parametrize("device, units, expected", [
    ("cpu", True, "bfloat16"), ("cpu", False, "float32"), ("cuda", True, "bfloat16"),
    ("cuda", False, "float16"),
    ("mps", True, "float32")])
def test_products_are_in_the_type_the_device_has_units_for(monkeypatch, device, units, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: units)
    assert pick_dtype("auto", torch.device(device)) == expected
    assert pick_dtype("float16", torch.device(device)) == "float16"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_without_units_are_formed_in_float32(monkeypatch, dtype):
    """Logits, a loss and its gradients are torch's own but for the order of sums; a single row is torch's."""
    torch.manual_seed(0)
    model = Decoder(ModelConfig.from_dict(SHAPE | {"model_type": "qwen2", "vocab_size": 256}))
    ids, name = torch.randint(256, (2, 40)), str(dtype).removeprefix("torch.")

    def run() -> list[torch.Tensor]:
        with torch.autocast("cpu", dtype):
            loss, logits = model(ids, ids), model(ids)
        return [logits, loss, *torch.autograd.grad(loss, list(model.parameters()))]

    class Recorded:
        def __init__(self, *name: str):
            self.kernel = get_kernel(*name)

        def call_boxed(self, keys, *matrices, **options):
            products.add(matrices[-2].dtype)
            return self.kernel.call_boxed(keys, *matrices, **options)

    plain, products = run(), set()
    monkeypatch.setattr(machine, "get_kernel", Recorded)
    form_products_in_float32(name)
    for a, b in zip(run(), plain, strict=True):
        assert a.dtype == b.dtype and (a - b).norm() < 0.01 * b.norm()
    assert products == {torch.float32}
    products.clear()
    with torch.autocast("cpu", dtype):
        model(ids[:1, :1])
    assert products == {dtype}
    left, right, out = *torch.randn(2, 4, 4).to(dtype), torch.empty(4, 4, dtype=dtype)
    assert torch.equal(torch.mm(left, right, out=out), (left.float() @ right.float()).to(dtype))
    form_products_in_float32.cache_clear()
    products.clear()
    assert torch.equal(run()[0], plain[0]) and not products

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False, raising=False)
    entered = []
    monkeypatch.setattr(machine, "form_products_in_float32", entered.append)
    for given in ("auto", "float32", name):
        pick_dtype(given, torch.device("cpu"))
    make_autocast(name, torch.device("cpu"))
    assert entered == [name, name]


def test_a_gpu_named_by_its_number_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda") and not chosen
    assert pick_device("cuda:1") == torch.device("cuda:1") and chosen == [torch.device("cuda:1")]
    for name, message in (("cuda:2", "given cuda:2, .* have 2 cuda device"), ("cpu:1", "have 1 cpu device"),
                          ("cuda:", "allowed are"), ("meta", "allowed are"), ("gpu", "allowed are")):
        with pytest.raises(ValueError, match=message):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("kind, strict", [("cuda", True), ("cpu", False)])
def test_attention_on_cuda_repeats_its_results_in_the_strict_mode(world, tmp_path, kind, strict):
    """In the mode that only warns, its backward pass adds in any order."""
    set_up(world.config(tmp_path), torch.device(kind))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled() is not strict
    set_up(world.config(tmp_path), torch.device("cpu"))


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_used_where_it_is_allowed(world, tmp_path, tf32):
    """Seen from a CPU: what the products on a GPU would be told."""
    torch.backends.cuda.matmul.allow_tf32 = not tf32
    train(world.config(tmp_path, max_steps=1, tf32=tf32))
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    torch.backends.cuda.matmul.allow_tf32 = False


def test_a_first_product_that_waits_is_not_the_machines_rate(monkeypatch):
    times = iter([0.0, 0.0, 9.0, 9.0, 9.5, 9.5, 9.75, 10.0])  # products of 9, 0.5 and 0.25 seconds
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(times))
    assert matmul_rate(torch.device("cpu"), torch.float32) == 2 * 1024**3 / 0.25


def test_the_peak_of_a_run_is_its_own():
    """Not that of the process which started it, as getrusage would have it."""
    large = torch.ones(2**28)  # 1.1 GB
    code = "import torch; from nanoprune.device import peak_memory; print(peak_memory(torch.device('cpu')))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.05 < float(found.stdout) < 0.9 and large.sum() > 0
