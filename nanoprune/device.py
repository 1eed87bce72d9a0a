"""This machine: its device, the types it is fast in, its memory and its speed."""

import contextlib
import ctypes
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.library import Library, get_kernel

from nanoprune.config import Config


# ---------------------------------------------------------------- choices
def pick_device(name: str) -> torch.device:
    """The device of a name (cpu, cuda, cuda:1, mps), or the best for "auto"; ValueError if there is none.

    A GPU that is named by its number becomes the current one, which pinned memory and torch's defaults use.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        name = next(kind for kind, count in counts.items() if count)
    if not re.fullmatch(r"(cuda|mps|cpu)(:\d{1,3})?", name):
        raise ValueError(f"device: given {name!r}; allowed are auto, cpu, cuda, cuda:N and mps")
    device = torch.device(name)
    count = counts[device.type]
    if (device.index or 0) >= count:
        raise ValueError(f"device: given {name}, this machine and this build of torch have {count} "
                         f"{device.type} device(s); take another, or cpu")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def pick_dtype(name: str, device: torch.device) -> str:
    """The type of a name, or for "auto" the fastest: bf16 only if the device has units for it.

    With a warning where a CPU has no units for the type: its products are then formed in fp32.
    """
    if lacks_units(name, device):
        print(f"warning: this CPU has no units for {name}: products are formed in float32 and rounded, "
              "1.1 to 1.2 times as slow as float32; give dtype float32, or auto")
        form_products_in_float32(name)
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if fast_bfloat16(device) else "float32"


def set_up(config: Config, device: torch.device) -> None:
    """Set torch and the allocator for a training run: seed, threads, results that repeat."""
    torch.manual_seed(config.seed)
    # On CUDA also the backward pass of attention, which repeats its results in this strict mode alone.
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cuda")
    # a debugging aid that costs time and changes no result
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_freed_memory()


# ---------------------------------------------------------------- types
def make_autocast(dtype: str, device: torch.device, cache: bool = True) -> Callable:
    """A function that opens the context in which products have this type.

    With `cache` it keeps copies of all the weights that learn.
    """
    if dtype == "float32":
        return contextlib.nullcontext
    if lacks_units(dtype, device):  # in a process that picked no type, too
        form_products_in_float32(dtype)
    return lambda: torch.autocast(device.type, getattr(torch, dtype), cache_enabled=cache)


def fast_bfloat16(device: torch.device) -> bool:
    """True on a CPU with units for products in bf16."""
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def lacks_units(dtype: str, device: torch.device) -> bool:
    """True if this is a half precision type on a CPU without units for its products."""
    return device.type == "cpu" and (
        (dtype == "bfloat16" and not fast_bfloat16(device))
        or (dtype == "float16" and not (
            torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported())))


@cache
def form_products_in_float32(dtype: str) -> Library:
    """From here on, form products of matrices of this type on the CPU in fp32, and round them.

    That is, in forward and backward passes, as long as the library that it returns lives. torch's own,
    without units for the type, take 2.5 (AVX-512) to 15 times (AVX2) as long as in fp32. They sum in fp32,
    too: the two differ by the order of their sums. Of one or two rows torch's own are faster.
    """
    library = Library("aten", "IMPL")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch warns of what is meant here
        for name in ("mm", "bmm", "addmm", "baddbmm", "mm.out", "bmm.out", "addmm.out", "baddbmm.out"):
            library.impl(name, rounded_product(name, getattr(torch, dtype)), "CPU", with_keyset=True,
                         allow_override=True)
    return library


def rounded_product(name: str, half: torch.dtype) -> Callable:
    """A kernel in place of torch's own for this product on the CPU."""
    product, own = getattr(torch.ops.aten, name.partition(".")[0]), get_kernel(f"aten::{name}", "CPU")

    def kernel(keys: torch.DispatchKeySet, *matrices: torch.Tensor, **options) -> torch.Tensor:
        left = matrices[-2]
        if left.dtype != half or left.shape[-2] < 3:
            return own.call_boxed(keys, *matrices, **options)
        out = options.pop("out", None)
        result = product(*(matrix.float() for matrix in matrices), **options).to(half)
        return result if out is None else out.copy_(result)

    return kernel


def has_flash(x: torch.Tensor) -> bool:
    """True if flash attention works on x: half precision on CUDA, from compute capability 8 (Ampere) on."""
    half = matmul_dtype(x) in (torch.float16, torch.bfloat16)
    return x.is_cuda and half and torch.cuda.get_device_capability(x.device) >= (8, 0)


def matmul_dtype(x: torch.Tensor) -> torch.dtype:
    """The type that products of x have: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device; to a GPU from pinned memory, so that the CPU need not wait for it."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# ---------------------------------------------------------------- speed
def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work, so that a clock measures it."""
    if device.type in ("cuda", "mps"):
        torch.accelerator.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The machine's FLOP/s: the best of some square products. MFU is the share of it that a step reaches."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.linspace(-1, 1, n * n, device=device).view(n, n).to(dtype)  # of constants a GPU is faster

    def clock() -> float:
        synchronize(device)
        return time.perf_counter()

    seconds, end = [], clock() + 0.2
    while (start := clock()) < end or len(seconds) < 3:  # the first may wait for its kernel
        a @ a
        seconds.append(clock() - start)
    return 2 * n**3 / min(seconds)


# ---------------------------------------------------------------- memory
def keep_freed_memory() -> None:
    """Make glibc keep freed memory: it returns much to the kernel, and each step would fault it in.

    And make oneDNN keep fewer of its kernels, one for each shape: they lie between freed tensors.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")  # of 1,024
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        # M_MMAP_THRESHOLD: its largest, 32 MiB; larger blocks would leave holes in the heap
        mallopt(-3, 2**25)
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap


def peak_memory(device: torch.device) -> float:
    """Peak so far in GB: of the GPU's allocator on CUDA, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # getrusage would begin with the peak of the parent
    return highest_memory("self") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def highest_memory(process: int | str) -> float:
    """Peak so far of a process in GB; 0 where the system does not say."""
    return (_kibibytes(f"/proc/{process}/status", "VmHWM:") or 0) * 1024 / 1e9


def memory_left(device: torch.device) -> float:
    """Bytes still free on the device; inf if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    left = (_kibibytes("/proc/meminfo", "MemAvailable:") or math.inf) * 1024
    for limit, used in (("memory.max", "memory.current"),
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        numbers = [line for name in (limit, used) for line in _lines(f"/sys/fs/cgroup/{name}")]
        if len(numbers) == 2 and numbers[0].isdigit():  # a limit of "max" is none
            left = min(left, int(numbers[0]) - int(numbers[1]))
    return left


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.access(path, os.R_OK) else []


def _kibibytes(path: str, label: str) -> int | None:
    """The number after a label in one of Linux's lists of memory; None elsewhere."""
    return next((int(line.split()[1]) for line in _lines(path) if line.startswith(label)), None)


# ---------------------------------------------------------------- a record of it
def environment(device: torch.device) -> dict:
    """Versions and hardware that the last digits of a result depend on."""
    commit = None
    if shutil.which("git"):
        describe = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        commit = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True,
                                text=True).stdout.strip() or None
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"git": commit, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__,
            "device": name, "threads": torch.get_num_threads()}
