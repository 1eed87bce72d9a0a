"""evaluation/perplexity.py: windows hold every prediction once, protocols predict what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Decoder
from nanoprune.config import IGNORE
from nanoprune.data.dataset import Dataset
from nanoprune.data.token_file import Example
from nanoprune.distributed import Ranks
from nanoprune.evaluation.perplexity import Protocol, score_text

lengths = st.lists(st.integers(1, 23), min_size=1, max_size=8).filter(lambda sizes: max(sizes) > 1)


@given(lengths, st.integers(1, 12), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_windows_hold_every_prediction_once(sizes, context, batch_tokens):
    examples = [Example(np.arange(100 * i, 100 * i + n), np.ones(n, bool)) for i, n in enumerate(sizes)]
    seen, protocol = [], Protocol(context=context)
    for batch in protocol.windows(examples, batch_tokens=batch_tokens):
        ids, targets = batch.ids, batch.targets
        assert ids.shape == targets.shape and len(ids) == len(batch.documents) and ids.shape[1] <= context
        assert len(ids) == 1 or ids.numel() <= batch_tokens
        for i, first, row, wanted in zip(batch.documents, batch.positions, ids, targets, strict=True):
            counted = wanted != IGNORE
            assert torch.equal(wanted[counted], row[counted] + 1) and int(row[0]) == 100 * i + first
            seen += [(int(i), int(token)) for token in wanted[counted]]
    assert sorted(seen) == sorted((i, 100 * i + k) for i, n in enumerate(sizes) for k in range(1, n))


def contributions(model, batches, documents: int, rank: int, size: int) -> tuple[list[np.ndarray], int]:
    """What a rank gives to each sum over the ranks, and the number of its forward passes."""
    sums, passes = [], []

    class Rank(Ranks):
        def sum(self, values):
            sums.append(np.array(values))
            return values

    handle = model.register_forward_hook(lambda *_: passes.append(rank))
    score_text(model, batches, documents, ranks=Rank(rank, size))
    handle.remove()
    return sums, len(passes)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_windows(world, size):
    """Each rank has as many forward passes, as FSDP needs; their sums are those of one process."""
    model, split = Decoder.from_pretrained(world.model).eval(), Dataset(world.data).split("test")
    batches = list(Protocol(context=8).windows(split, batch_tokens=20))
    alone, passes = contributions(model, batches, len(split), 0, 1)
    shares = [contributions(model, batches, len(split), rank, size) for rank in range(size)]
    assert {count for _, count in shares} == {-(-passes // size)}
    for k, whole in enumerate(alone):
        together = sum(sums[k] for sums, _ in shares)
        assert sorted(together[together != 0]) == sorted(whole[whole != 0])


def rolled(tokens: list[int], prefix: int, length: int) -> list[tuple[list[int], list[int]]]:
    """The windows that lm-evaluation-harness makes of a long text: (context, predicted), disjoint."""
    windows, predicted = [([prefix, *tokens[: length - 1]], tokens[:length])], min(length, len(tokens))
    windows[0] = ([prefix, *tokens[: len(windows[0][1]) - 1]], windows[0][1])
    while predicted < len(tokens):
        size = min(len(tokens) - predicted, length)
        end = predicted + size
        windows.append((tokens[end - length - 1 : end - 1], tokens[end - size : end]))
        predicted += size
    return windows


@pytest.mark.parametrize("protocol", [
    Protocol(context=8), Protocol(context=8, prefix=3), Protocol(context=8, stride=3),
    Protocol("rolling", 8, prefix=0), Protocol("stream", 8)])
def test_protocols_predict_what_they_say(world, protocol):
    """Each prediction in a forward pass of its own, from exactly what the protocol lets it see."""
    model, split = Decoder.from_pretrained(world.model).eval(), Dataset(world.data).split("test")
    examples = [split[i] for i in range(3)]
    units, documents = protocol.units(examples), [example.tokens for example in examples]
    losses = score_text(model, protocol.windows(units, batch_tokens=20), len(units))
    nll, counts = losses.nll_by_position, losses.tokens_by_position
    assert losses.nll == pytest.approx(nll.sum(1), rel=1e-9) and (losses.tokens == counts.sum(1)).all()
    expected = []  # (document, what is seen, what is predicted)
    if protocol.name == "stream":
        joined = np.concatenate(documents).tolist()
        for k in range(len(joined) // 8):
            expected += [(k, joined[8 * k : 8 * k + t], joined[8 * k + t]) for t in range(1, 8)]
    for i, tokens in enumerate(documents if protocol.name != "stream" else []):
        tokens = tokens.tolist()
        if protocol.name == "rolling":
            for seen, predicted in rolled(tokens[:-1], 0, 8):
                for t, token in enumerate(predicted):
                    expected.append((i, seen[: len(seen) - len(predicted) + 1 + t], token))
            continue
        tokens = tokens if protocol.prefix is None else [protocol.prefix, *tokens]
        for t in range(1, len(tokens)):
            step = protocol.stride or 8
            window = 0 if t <= 8 else -(-(t - 8) // step)
            expected.append((i, tokens[window * step : t], tokens[t]))
    sums = np.zeros(len(nll))
    for i, seen, token in expected:
        with torch.no_grad():
            sums[i] -= float(model(torch.tensor([seen]))[0, -1].log_softmax(-1)[token])
    assert nll.sum(1) == pytest.approx(sums, rel=1e-5)
    assert counts.sum() == len(expected)
    if protocol.name == "documents":  # by position
        first = sum(len(range(0 if protocol.prefix is not None else 1, min(16, len(d)))) for d in documents)
        assert counts[:, 0].sum() == first
    if protocol.name == "documents" and protocol.prefix is None:  # of conversations what is learned, once
        learned = [np.arange(len(d)) % 3 > 0 for d in documents]
        first, second = (
            score_text(model, protocol.windows([Example(d, mask == said) for d, mask in
                                                zip(documents, learned, strict=True)], batch_tokens=20), 3)
            for said in (True, False))
        assert first.tokens.tolist() == [int(mask[1:].sum()) for mask in learned]
        assert (first.tokens_by_position + second.tokens_by_position == counts).all()
        assert first.nll_by_position + second.nll_by_position == pytest.approx(nll, rel=1e-5)
