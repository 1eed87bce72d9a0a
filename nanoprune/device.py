"""What this machine is: its device, the types it is fast in, its memory and its speed."""

import contextlib
import ctypes
import math
import os
import resource
import sys
import time
from pathlib import Path

import torch

from nanoprune.config import Config


def pick_device(name: str) -> torch.device:
    """The device of a name (cpu, cuda, cuda:1, mps), or the best there is for "auto"; ValueError where there is none."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(best if name == "auto" else name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "cpu" and device.index):
        raise ValueError(f"device: given {name!r}; allowed are auto, cpu, cuda, cuda:N and mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: given {name}, this machine has {torch.cuda.device_count()} CUDA device(s)")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: given mps, this machine or this build of torch has none; use cpu")
    return device


def pick_dtype(name: str, device: torch.device) -> str:
    """The type of a name, or for "auto" the fastest with units of its own: bf16 products without them are slower than fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if fast_bfloat16(device) else "float32"


def make_autocast(config: Config, device: torch.device, cache: bool = True):
    """A function that opens the mixed-precision context of the config; with `cache` it holds copies of all the weights."""
    if config.dtype == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, getattr(torch, config.dtype), cache_enabled=cache)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether this is a CPU with units for products in bf16."""
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def has_flash(x: torch.Tensor) -> bool:
    """Whether flash attention can work on x: in half precision on CUDA, from compute capability 8 (Ampere) on."""
    half = matmul_dtype(x) in (torch.float16, torch.bfloat16)
    return x.is_cuda and half and torch.cuda.get_device_capability(x.device) >= (8, 0)


def matmul_dtype(x: torch.Tensor) -> torch.dtype:
    """The type that products of x have: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """On the device; to a GPU from pinned memory, so that nobody waits for what it is still computing."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def synchronize(device: torch.device) -> None:
    """Until the device has done what it was told, so that a clock says what that took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks: it hands large ones back to the kernel, and every step would fault them in again."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: up to 32 MiB, the most it takes; larger blocks would leave holes in the heap
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The machine's own rate in FLOP/s: the best of some square products. MFU is the share of it that a step reaches."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.ones(n, n, device=device, dtype=dtype) * 0.5 for _ in range(2))
    synchronize = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    best, started = math.inf, time.perf_counter()
    while time.perf_counter() - started < 0.2:
        synchronize()
        start = time.perf_counter()
        a @ b
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def peak_memory(device: torch.device) -> float:
    """Peak so far in GB: of the GPU's allocator on CUDA, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM:"):  # what getrusage gives begins with the peak of the process that started this one
            return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def reset_peak(device: torch.device) -> None:
    """Have the peak of memory begin anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass


def memory_left(device: torch.device) -> float:
    """Bytes that can still be had on the device; inf where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    left = math.inf
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            left = int(line.split()[1]) * 1024
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        found = [int(line) for name in (limit, used) for line in _lines(f"/sys/fs/cgroup/{name}") if line.strip().isdigit()]
        left = min(left, found[0] - found[1]) if len(found) == 2 else left
    return left


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.access(path, os.R_OK) else []
