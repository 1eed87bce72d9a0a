"""Buffers that one step leaves to the next."""

import math

import torch

SEGMENT = 2**26  # bytes
# Large tensors of every step, by name.
SPARES: dict[str, torch.Tensor] = {}


def take_buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor to write to, made of the one given back under this name if it is large enough."""
    kept, size = SPARES.pop(name, None), math.prod(shape)
    if kept is None or kept.numel() < size or (kept.dtype, kept.device) != (dtype, device):
        kept = torch.empty(size, dtype=dtype, device=device)
    return kept.view(-1)[:size].view(shape)


def return_buffer(name: str, tensor: torch.Tensor) -> None:
    """What nobody reads any more, for the next to write to; on a GPU torch's allocator does this."""
    if tensor.device.type == "cpu":
        SPARES[name] = tensor if tensor._base is None else tensor._base  # all of it, where only a part was in use


class SavedActivations:
    """Where a step's saved activations lie together, so that what is let go between them leaves no holes in the heap.

        with Kept():
            model(ids, targets).backward()

    glibc puts new tensors into any hole that is large enough: in a step beside frozen weights, where tensors that stay and that
    pass take turns, as much again was lost. What autograd saves is copied to segments, which the next step writes to again.
    """

    def __init__(self):
        self.segments, self.used, self.last = [], 0, None
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        size, count = tensor.numel() * tensor.element_size(), tensor.numel()
        dense = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) == count
        if not 2**20 <= size <= SEGMENT or not dense or tensor.device.type != "cpu" or isinstance(tensor, torch.nn.Parameter):
            return tensor
        # The same tensor again, as the input of two adapters? What was kept last still lives here, so its place is its own.
        if self.last and (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version) == self.last[0]:
            return self.last[2]
        if not self.segments or self.used + size > SEGMENT:
            self.segments.append(take_buffer(f"segment {len(self.segments)}", (SEGMENT,), torch.uint8, tensor.device))
            self.used = 0
        room = self.segments[-1][self.used : self.used + size].view(tensor.dtype)
        self.used += size
        copy = room.as_strided(tensor.shape, tensor.stride(), room.storage_offset()).copy_(tensor.detach())
        self.last = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version), tensor, copy
        return copy

    def __enter__(self) -> None:
        self.hooks.__enter__()

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)
        for i, segment in enumerate(self.segments):
            return_buffer(f"segment {i}", segment)
        self.segments, self.last = [], None
