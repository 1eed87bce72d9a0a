"""One training step by kernels: how much of it is matrix products, and what the rest is."""

import time
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_measures import Job
from model import Decoder
from nanoprune.data.dataset import Dataset
from nanoprune.device import make_autocast, set_up, synchronize, to_device
from train import clip_gradients, make_optimizer

STEPS = 3
# A kernel is of the first kind one of whose words its name contains; flash attention is built of the parts of
# matrix products, so it comes first.
KINDS = {
    "attention": ("flash", "fmha", "attention", "varlen"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "aten::mm", "aten::addmm",
                        "aten::bmm"),
    "optimizer and clipping": ("adam", "multi_tensor", "_foreach", "lerp"),
    "copies and casts": ("memcpy", "memset", "copy", "aten::fill_", "aten::zero_"),
    "sums, norms and softmax": ("reduce", "norm", "softmax", "aten::sum", "amax"),
    "look-ups": ("index", "embedding", "gather", "scatter", "sort"),
    "pointwise": ("",),
}
SHOWN = 8  # of the kernels that are not products


def measure(job: Job) -> Iterator[dict]:
    """Shares of a step of `full`, from the device's own clock; the rest of the step it waits."""
    config = job.config("profile", job.rows)
    set_up(config, job.device)
    rows = Dataset(config.data).rows(config.context, config.seed, 0, 0.0)
    model = Decoder.from_pretrained(job.base).train().to(job.device)
    optimizer, autocast = make_optimizer(model, config), make_autocast(config.dtype, job.device)

    def step(number: int) -> None:
        ids, targets, documents = rows.batch(number * config.batch_size, config.batch_size)
        with autocast():
            loss = model(to_device(ids, job.device), targets, documents)
        loss.backward()
        clip_gradients(model, optimizer, config.clip)
        optimizer.step()
        optimizer.zero_grad()

    for number in range(2):
        step(number)
    synchronize(job.device)
    began = time.perf_counter()
    for number in range(STEPS):
        step(number)
    synchronize(job.device)
    wall = (time.perf_counter() - began) / STEPS  # without the profiler, which slows the CPU down
    activities = [ProfilerActivity.CUDA if job.device.type == "cuda" else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        step(0)
        synchronize(job.device)
        watched = time.perf_counter() - began
    seconds = {}
    for event in profiler.key_averages():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu or job.device.type != "cuda":
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            seconds[event.key] = seconds.get(event.key, 0.0) + microseconds / 1e6
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, part in seconds.items():
        kinds[kind_of(name)] += part
    busy = sum(seconds.values())
    others = sorted((name for name in seconds if kind_of(name) != "matrix products"),
                    key=lambda name: -seconds[name])[:SHOWN]
    yield {"step_s": wall, "busy": busy / (wall if job.device.type == "cuda" else watched),
           "shares": {kind: part / busy for kind, part in kinds.items()},
           "others": {name[:80]: seconds[name] / busy for name in others}}


def kind_of(kernel: str) -> str:
    return next(kind for kind, words in KINDS.items() if any(word in kernel.lower() for word in words))


MEASURES = {"profile": measure}
