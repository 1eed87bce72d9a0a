"""nanoprune/nn/tied_embedding.py: one weight in two places has the gradient of both."""

import pytest
import torch
import torch.nn.functional as F

from nanoprune.nn.tied_embedding import embedding_and_head


def test_a_shared_weights_gradient_is_that_of_its_two_uses():
    weight = torch.randn(11, 8, dtype=torch.float64).requires_grad_()
    ids = torch.tensor([[3, 3, 10], [0, 3, 1]])
    plain = (F.embedding(ids, weight).square().sum() + F.linear(F.embedding(ids, weight), weight).sin().sum())
    expected = torch.autograd.grad(plain, weight)[0]
    embed, head = embedding_and_head(weight, weight)
    loss = embed(ids).square().sum() + F.linear(embed(ids), head).sin().sum()
    assert loss.item() == pytest.approx(plain.item())
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], expected, rtol=1e-10, atol=1e-12)


def test_two_weights_stay_two():
    embedding, head = (torch.randn(11, 8, requires_grad=True) for _ in range(2))
    embed, weight = embedding_and_head(embedding, head)
    assert weight is head and torch.equal(embed(torch.tensor([3])), embedding[3:4])
