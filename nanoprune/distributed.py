"""Several processes that train one model: torchrun's ranks, DDP and FSDP2, whole tensors from their shards.

    torchrun --nproc-per-node=4 train.py configs/full.py
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor, nn

from nanoprune.progress import progress


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from this one; without torchrun it is alone."""

    rank: int = 0  # of this process
    size: int = 1  # processes in all
    local: int = 0  # rank of this process on its machine
    here: int = 1  # processes on this machine

    def shard(self, items: Sequence, label: str) -> Iterable:
        """This rank's share of the items, every size-th; rank 0 tells of its progress."""
        share = items[self.rank :: self.size]
        return share if self.rank else progress(share, label)

    def sum(self, values: ArrayLike) -> ArrayLike:
        """The sum of each value over the ranks, in fp64 and in the shape of the values."""
        if self.size == 1:
            return values
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.cpu().numpy()

    def sum_tensor(self, tensor: Tensor) -> None:
        """Sum a tensor over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def gather(self, rows: list[dict]) -> list[dict]:
        """All rows on every rank, of which each rank has filled in its shard."""
        if self.size == 1:
            return rows
        shards = [None] * self.size
        dist.all_gather_object(shards, rows[self.rank :: self.size])
        for rank, shard in enumerate(shards):
            rows[rank :: self.size] = shard
        return rows

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.sum([0.0])

    @contextlib.contextmanager
    def local_first(self) -> Iterator[None]:
        """Let one rank of every machine through the block before the others, which then find what it
        downloaded.
        """
        if self.size > 1 and self.local:
            dist.barrier()
        yield
        if self.size > 1 and not self.local:
            dist.barrier()


ALONE = Ranks()


def join(device: str) -> Ranks:
    """Connect the ranks that torchrun describes in the environment; rank 0 alone prints from then on."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    ranks = Ranks(*(int(os.environ[name]) for name in names))
    on_gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpus:
        if ranks.here > torch.cuda.device_count() or ":" in device:
            raise ValueError(f"{ranks.here} processes on a machine with {torch.cuda.device_count()} GPUs, "
                             f"given device={device}: each needs its own. Give torchrun --nproc-per-node of "
                             "that many at most, and set device=cuda or cpu")
        torch.cuda.set_device(ranks.local)
    elif os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's choice, which leaves most cores idle
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks.here))
    if ranks.size > 1 and not dist.is_initialized():
        store, _, _ = next(dist.rendezvous("env://"))
        # torchrun keeps the store when it starts processes again; a try would find the addresses of the dead
        # ones in it.
        attempt = dist.PrefixStore(f"try {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        gpu = torch.device("cuda", ranks.local) if on_gpus else None
        dist.init_process_group("nccl" if on_gpus else "gloo", store=attempt, rank=ranks.rank,
                                world_size=ranks.size, device_id=gpu)
        # or its threads may outlive the interpreter, which aborts the process
        atexit.register(dist.destroy_process_group)
    if ranks.rank:
        sys.stdout = open(os.devnull, "w")
    return ranks


def restarted() -> bool:
    """True if torchrun started this process again, after one of the run had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def wrap(model: nn.Module, how: str, ranks: Ranks, device: torch.device) -> nn.Module:
    """Move the model to its device, and return the module to call for the loss.

    Its gradients are means over the ranks. With "ddp" (arXiv:2006.15704) each rank holds the whole model,
    with "fsdp" (arXiv:2304.11277) a shard of every tensor.
    """
    if ranks.size == 1:
        return model.to(device)
    print(f"{ranks.size} processes ({how})")
    if how == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model.to(device), gradient_as_bucket_view=True,
                                       broadcast_buffers=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks.size,))  # shards move to their device one by one
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    # The loss is inside this forward pass, so a tied weight is whole in both its uses.
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


def gradient_sync(network: nn.Module, last: bool):
    """A context for one micro-batch: the ranks exchange gradients at the last one only."""
    if hasattr(network, "set_requires_gradient_sync"):
        network.set_requires_gradient_sync(last)
    elif hasattr(network, "no_sync") and not last:
        return network.no_sync()
    return contextlib.nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor whole on every rank; all must call this in the same order."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a whole tensor, if `like` is sharded."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def join_full_tensors(tensors: Iterable[Tensor]) -> None:
    """Give this rank's shards, in the same order, while rank 0 writes whole tensors."""
    for tensor in tensors:
        full_tensor(tensor)
