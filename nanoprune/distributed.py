"""Several processes that train one model: torchrun's ranks, sums over them, and whole tensors from what each of them holds.

    torchrun --nproc-per-node=4 train.py configs/full.py
"""

import atexit
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run: `rank` of `size`, and `local` of `here` on its machine; alone without torchrun."""

    rank: int = 0
    size: int = 1
    local: int = 0
    here: int = 1

    def turns(self, items: Sequence, label: str) -> tqdm:
        """This rank's share of the items, every size-th; the first rank shows its progress."""
        return tqdm(items[self.rank :: self.size], desc=label, leave=False, disable=None if self.rank == 0 else True)

    def sum(self, values: list[float]) -> list[float]:
        """Each summed over the ranks, in fp64."""
        if self.size == 1:
            return values
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def sum_tensor(self, tensor: torch.Tensor) -> None:
        """Summed over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def gather(self, rows: list[dict]) -> list[dict]:
        """Rows of which rank r has filled in every size-th from r on, whole on every rank."""
        if self.size == 1:
            return rows
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        for source in range(self.size):
            text = json.dumps(rows[source :: self.size]).encode() if source == self.rank else b""
            length = torch.tensor([len(text)], device=device)
            dist.broadcast(length, source)
            data = torch.zeros(int(length), dtype=torch.uint8, device=device)
            if text:
                data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
            dist.broadcast(data, source)
            rows[source :: self.size] = json.loads(bytes(data.cpu().tolist()))
        return rows

    def wait(self) -> None:
        """Until all are here."""
        self.sum([0.0])

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        """One rank of every machine goes through the block before the others: what it downloads, they find."""
        if self.size > 1 and self.local:
            dist.barrier()
        yield
        if self.size > 1 and not self.local:
            dist.barrier()

    def share(self, items: list, filler) -> list:
        """This rank's part of a list, with `filler` at its end where others have one more: all take as many steps."""
        return (items + [filler] * (-len(items) % self.size))[self.rank :: self.size]


ALONE = Ranks()


def join(device: str) -> Ranks:
    """The ranks that torchrun describes in the environment, connected; rank 0 alone prints from then on."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    ranks = Ranks(*(int(os.environ[name]) for name in names))
    on_gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpus:
        if ranks.here > torch.cuda.device_count():
            raise ValueError(f"{ranks.here} processes on a machine with {torch.cuda.device_count()} GPUs: give torchrun "
                             "--nproc-per-node of that many at most, or set device=cpu")
        torch.cuda.set_device(ranks.local)
    elif os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's choice, which leaves most cores idle
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks.here))
    if ranks.size > 1 and not dist.is_initialized():
        store, _, _ = next(dist.rendezvous("env://"))
        # torchrun keeps the store when it starts processes again; a try would find the addresses of the dead ones in it.
        attempt = dist.PrefixStore(f"try {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group("nccl" if on_gpus else "gloo", store=attempt, rank=ranks.rank, world_size=ranks.size)
        atexit.register(dist.destroy_process_group)  # or its threads may outlive the interpreter, which aborts the process
    if ranks.rank:
        sys.stdout = open(os.devnull, "w")
    return ranks


def restarted() -> bool:
    """Whether torchrun started this process again, after one of a run's had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def wrap(model: nn.Module, how: str, ranks: Ranks, device: torch.device) -> nn.Module:
    """The model on its device, and what to call for the loss, so that gradients are means over the ranks.

    With "ddp" (arXiv:2006.15704) each rank holds all of it, with "fsdp" (arXiv:2304.11277) a part of every tensor.
    """
    if ranks.size == 1:
        return model.to(device)
    if how == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model.to(device), gradient_as_bucket_view=True, broadcast_buffers=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks.size,))  # which each part is moved to as it is divided
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    # The head's loss is inside this forward pass, so that a tied weight is whole in both its uses.
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


def gradient_sync(spread_model: nn.Module, last: bool):
    """A context for one micro-batch: gradients go from rank to rank at the last one only."""
    if hasattr(spread_model, "set_requires_gradient_sync"):
        spread_model.set_requires_gradient_sync(last)
    elif hasattr(spread_model, "no_sync") and not last:
        return spread_model.no_sync()
    return contextlib.nullcontext()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of which each rank holds a part, on every rank; all must call this in the same order."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a whole tensor, if `like` is divided among the ranks."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def join_full_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """What the other ranks do while rank 0 writes tensors: give their parts, in the same order."""
    for tensor in tensors:
        full_tensor(tensor)
