"""The rows a run learns from: every prediction once an epoch, nothing cut that must not be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoprune.config import IGNORE
from nanoprune.data.packing import ConversationRows, TrainingRows
from nanoprune.data.token_file import Example, TokenFile, write_documents, write_examples


def make_split(folder, documents, learned=None) -> TokenFile:
    if learned is None:
        write_documents(folder / "s.safetensors", ((d, len(d)) for d in documents), len(documents), 1000)
    else:
        examples = [Example(np.array(row), np.array(mask, bool)) for row,
                    mask in zip(documents, learned, strict=True)]
        write_examples(folder / "s.safetensors", examples, 1000)
    return TokenFile(folder / "s.safetensors")


lengths = st.lists(st.integers(1, 23), min_size=1, max_size=8).filter(lambda found: max(found) > 1)


@given(lengths, st.integers(1, 17), st.integers(0, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_learns_every_prediction_once(tmp_path_factory, sizes, context, seed, repeats):
    """And each pair's as often as asked; a token never sees another document."""
    folder = tmp_path_factory.mktemp("rows")
    documents = [[100 * i + k for k in range(n)] for i, n in enumerate(sizes)]
    split = make_split(folder, documents)
    (folder / "p").mkdir()
    pairs = make_split(folder / "p", [[900, 901, 902]], learned=[[0, 0, 1]])
    rows = TrainingRows(split, context, seed, pairs, repeats)
    assert rows.epoch_tokens == sum(n - 1 for n in sizes) + 2 * repeats
    seen = []
    for r in range(-(-2 * rows.epoch_tokens // context)):  # two epochs
        ids, targets, numbers = rows.row(r)
        assert len(ids) == len(targets) == len(numbers) == context
        assert (np.diff(numbers) >= 0).all() and (np.diff(numbers) <= 1).all()
        for number in np.unique(numbers):  # in a run of one document ids follow each other
            piece = ids[numbers == number]
            assert (np.diff(piece) == 1).all() and len({int(i) // 100 for i in piece}) == 1
        learned = targets != IGNORE
        assert (targets[learned] == ids[learned] + 1).all()
        seen += list(zip(ids.tolist(), learned.tolist(), strict=True))
    first, second = seen[: rows.epoch_tokens], seen[rows.epoch_tokens : 2 * rows.epoch_tokens]
    expected = [(d[k], True) for d in documents for k in range(len(d) - 1)] + [(900, False),
                                                                               (901, True)] * repeats
    assert sorted(first) == sorted(second) == sorted(expected)


@given(st.lists(st.integers(2, 17), min_size=1, max_size=12), st.integers(0, 5), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_of_conversations_alone_none_is_cut(tmp_path_factory, sizes, seed, repeats):
    """Every example is whole in a row, as often an epoch as asked; what is left of a row counts nothing."""
    pairs = make_split(tmp_path_factory.mktemp("rows"),
                       [[100 * i + k for k in range(n)] for i, n in enumerate(sizes)],
                       learned=[[0] + [1] * (n - 1) for n in sizes])
    rows, again, context = ConversationRows(pairs, 16, seed, repeats), ConversationRows(pairs, 16, seed,
                                                                                        repeats), 16
    last = 3 * len(sizes) * repeats
    assert all(map(np.array_equal, again.row(last), rows.row(last)))  # without those before it
    found, count = [], 0
    while len(found) < 2 * repeats * len(sizes):
        ids, targets, numbers = rows.row(count)
        count += 1
        for number in np.unique(numbers):
            here = numbers == number
            if number == context:
                assert (targets[here] == IGNORE).all()
                continue
            i = int(ids[here][0]) // 100
            assert ids[here].tolist() == [100 * i + k for k in range(sizes[i] - 1)]
            assert (targets[here] == ids[here] + 1).all()
            found.append(i)
    each = sorted(list(range(len(sizes))) * repeats)
    assert sorted(found[: len(each)]) == each == sorted(found[len(each) : 2 * len(each)])
    assert rows.epoch_tokens % context == 0 and rows.names(0, 1).startswith("s.jsonl line ")


def test_a_conversation_longer_than_a_row_is_named(tmp_path):
    pairs = make_split(tmp_path, [[1, 2], list(range(30))], learned=[[0, 1], [1] * 30])
    with pytest.raises(ValueError, match="s.jsonl, line 2, has 30 tokens, context is 16, .*--max-pair-tokens "
                                         "17"):
        ConversationRows(pairs, 16, 0, 1)
    assert ConversationRows(pairs, 29, 0, 1)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_replay_is_that_share_of_an_epoch(tmp_path, share):
    for name in "dr":
        (tmp_path / name).mkdir()
    documents = make_split(tmp_path / "d", [[i] * 11 for i in range(40)])
    general = make_split(tmp_path / "r", [[100 + i] * (4 + i) for i in range(20)])
    rows = TrainingRows(documents, 16, 3, replay=general, share=share)
    seen = np.concatenate([rows.row(r)[0] for r in range(rows.epoch_tokens // 16)])
    assert float((seen >= 100).mean()) == pytest.approx(share, abs=0.03)
    assert set(range(40)) <= set(seen.tolist()) | set(rows.row(rows.epoch_tokens // 16)[0].tolist())


def test_rows_are_a_function_of_seed_and_number(tmp_path):
    split = make_split(tmp_path, [[i] * (5 + i) for i in range(30)])
    a, b, other = TrainingRows(split, 16, 7), TrainingRows(split, 16, 7), TrainingRows(split, 16, 8)
    for r in (40, 3, 0):  # b is asked in another order
        b.row(r)
    assert all(np.array_equal(x, y) for r in range(60) for x, y in zip(a.row(r), b.row(r), strict=True))
    assert any(not np.array_equal(a.row(r)[0], other.row(r)[0]) for r in range(5))
    (tmp_path / "even").mkdir()
    even = TrainingRows(make_split(tmp_path / "even", [[i] * 17 for i in range(30)]), 16,
                        7)  # a document a row
    first, second = ([int(even.row(r)[0][0]) for r in part] for part in (range(30), range(30, 60)))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second  # each epoch in another order
    ids, targets, documents = a.batch(5, 3)
    assert ids.shape == targets.shape == documents.shape == (3, 16)
    assert np.array_equal(ids[2].numpy(), a.row(7)[0])
