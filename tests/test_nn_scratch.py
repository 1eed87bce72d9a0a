"""nanoprune/nn/scratch.py: memory is handed out again only where nobody holds it."""

import pytest
import torch
from small import IDS, random_base

from model import Decoder
from nanoprune.nn import scratch
from nanoprune.nn.lora import FrozenLinear
from nanoprune.nn.scratch import buffer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty_pool(monkeypatch):
    monkeypatch.setattr(scratch, "MEMORY", {})


def test_two_frozen_weights_at_once_are_two_tensors():
    """Each must be made for its use: they are of one shape, and kept in another type than the product's."""
    weights = (torch.full((8, 8), value, dtype=torch.bfloat16) for value in (3.0, 1.0))
    first, second = (FrozenLinear(weight, None, (8, 8)) for weight in weights)
    difference = first.as_type(torch.float32) - second.as_type(torch.float32)
    assert torch.equal(difference, torch.full((8, 8), 2.0))


def test_memory_out_of_use_is_written_to_again():
    """Where it is large enough, whatever the type."""
    address = buffer("logits", (3, 4), torch.float32, CPU).data_ptr()
    for shape, dtype, again in (((2, 5), torch.float32, True), ((3, 4), torch.bfloat16, True),
                                ((3, 5), torch.float32, False)):
        tensor = buffer("logits", shape, dtype, CPU)
        assert (tensor.shape, tensor.dtype, tensor.data_ptr() == address) == (shape, dtype, again)
        del tensor


def test_memory_in_use_is_never_handed_out():
    """Whoever holds it: a view, a gradient, autograd."""
    weight = torch.ones(3, 4, requires_grad=True)
    for hold in (lambda tensor: tensor, lambda tensor: tensor[1:, 2:], lambda tensor: weight * tensor):
        held = hold(buffer("name", (3, 4), torch.float32, CPU).fill_(7.0))
        values = held.detach().clone()
        first = buffer("name", (3, 4), torch.float32, CPU).fill_(1.0)
        buffer("name", (3, 4), torch.float32, CPU).fill_(2.0)
        assert torch.equal(held, values) and torch.equal(first, torch.ones(3, 4))
        if held.grad_fn is not None:
            held.sum().backward()
            assert torch.equal(weight.grad, torch.full((3, 4), 7.0))


def test_a_gradient_that_is_not_cleared_stays(tmp_path):
    """As in a training loop that forgets to clear it: two steps add up."""
    model = Decoder.from_pretrained(random_base(tmp_path))
    model(IDS.flip(1), IDS).backward()
    other = model.head_weight.grad.clone()
    model.zero_grad()
    model(IDS, IDS).backward()
    once, address = model.head_weight.grad.clone(), model.head_weight.grad.data_ptr()
    model(IDS.flip(1), IDS).backward()
    torch.testing.assert_close(model.head_weight.grad, once + other)
    assert model.head_weight.grad.data_ptr() == address
    model.zero_grad()
    model(IDS, IDS).backward()
    address = model.head_weight.grad.data_ptr()
    model.zero_grad()
    model(IDS, IDS).backward()
    assert model.head_weight.grad.data_ptr() == address and torch.equal(model.head_weight.grad, once)
