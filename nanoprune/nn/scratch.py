"""Memory that one step leaves to the next, so that large tensors need no new pages.

A buffer is handed out again only when no tensor uses its memory any more: results alive at once never share
one. On a GPU torch's allocator does this already.
"""

import math

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

SEGMENT, SMALLEST = 2**26, 2**20  # bytes: of a segment, and of a tensor in it
MEMORY: dict[str, torch.UntypedStorage] = {}  # that was handed out last, by name


def buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, in the memory of the last one of this name if that fits and is out of use."""
    storage = MEMORY.pop(name, None)
    large_enough = storage is not None and storage.nbytes() >= math.prod(shape) * dtype.itemsize
    # The pool is one user; others are tensors, in Python or saved by autograd.
    if large_enough and device.type == "cpu" and torch._C._storage_Use_Count(storage._cdata) == 1:
        tensor = torch.empty(0, dtype=dtype).set_(storage, 0, shape)
    else:
        tensor = torch.empty(shape, dtype=dtype, device=device)
    if device.type == "cpu":
        MEMORY[name] = tensor.untyped_storage()
    return tensor


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A large tensor in another type, in a buffer."""
    if tensor.dtype == dtype:
        return tensor
    return buffer(name, tensor.shape, dtype, tensor.device).copy_(tensor)


class SavedActivations(saved_tensors_hooks):
    """A step's saved activations side by side, so that those freed between them leave no holes in the heap.

        with SavedActivations():
            model(ids, targets).backward()

    glibc puts new tensors into any hole that is large enough. Where lasting and passing tensors alternate, of
    other sizes with each step's documents, the heap grows to more than twice what is used. What autograd
    saves is copied to segments, which the next step writes to again.
    """

    def __init__(self):
        super().__init__(self.pack, lambda tensor: tensor)
        self.segments, self.used, self.last = [], 0, None

    def pack(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor in a segment, or the tensor itself.

        Small, huge and strided tensors and parameters are not copied.
        """
        size, on_cpu = tensor.nbytes, tensor.device.type == "cpu"
        if not on_cpu or not SMALLEST <= size <= SEGMENT or isinstance(tensor, torch.nn.Parameter):
            return tensor
        reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        if reach + 1 != tensor.numel():
            return tensor
        # The same tensor may come twice in a row, as the input of two adapters. The last one is alive: its
        # place is its own.
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version)
        if self.last and self.last[0] == identity:
            return self.last[2]
        if not self.segments or self.used + size > SEGMENT:
            name = f"segment {len(self.segments)}"
            self.segments.append(buffer(name, (SEGMENT,), torch.uint8, tensor.device))
            self.used = 0
        space = self.segments[-1][self.used : self.used + size].view(tensor.dtype)
        self.used += size
        copy = space.as_strided(tensor.shape, tensor.stride(), space.storage_offset()).copy_(tensor.detach())
        self.last = identity, tensor, copy
        return copy

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.segments, self.last = [], None
