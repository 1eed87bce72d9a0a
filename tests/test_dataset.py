"""dataset.py: the rows a run learns from, the windows it is measured on, and lines that are wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_data

from nanoprune.config import IGNORE
from nanoprune.data.chat_format import question_prompt
from nanoprune.data.dataset import Dataset, read_questions
from nanoprune.data.packing import TrainingRows
from nanoprune.data.token_file import TokenFile, write_documents, write_examples
from nanoprune.data.tokenizer import end_token, split_tokens, tokenizer_hash
from nanoprune.io.files import write_json
from nanoprune.io.jsonl import JsonLines, read_jsonl, write_jsonl
from nanoprune.io.tensors import write_tensors


def make_split(folder, documents, learned=None) -> TokenFile:
    if learned is None:
        write_documents(folder / "s.safetensors", ((d, len(d)) for d in documents), len(documents), 1000)
    else:
        write_examples(folder / "s.safetensors", list(zip(documents, learned, strict=True)), 1000)
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
        for number in np.unique(numbers):  # a run of one document: its ids follow each other, targets are the next ids
            piece = ids[numbers == number]
            assert (np.diff(piece) == 1).all() and len({int(i) // 100 for i in piece}) == 1
        learned = targets != IGNORE
        assert (targets[learned] == ids[learned] + 1).all()
        seen += list(zip(ids.tolist(), learned.tolist(), strict=True))
    first, second = seen[: rows.epoch_tokens], seen[rows.epoch_tokens : 2 * rows.epoch_tokens]
    expected = [(d[k], True) for d in documents for k in range(len(d) - 1)] + [(900, False), (901, True)] * repeats
    assert sorted(first) == sorted(second) == sorted(expected)


@given(st.lists(st.integers(2, 17), min_size=1, max_size=12), st.integers(0, 5), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_of_conversations_alone_none_is_cut(tmp_path_factory, sizes, seed, repeats):
    """Every example is whole in a row, as often an epoch as asked; what is left of a row counts nothing."""
    pairs = make_split(tmp_path_factory.mktemp("rows"), [[100 * i + k for k in range(n)] for i, n in enumerate(sizes)],
                       learned=[[0] + [1] * (n - 1) for n in sizes])
    rows, again, context = TrainingRows(None, 16, seed, pairs, repeats), TrainingRows(None, 16, seed, pairs, repeats), 16
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
            assert ids[here].tolist() == [100 * i + k for k in range(sizes[i] - 1)] and (targets[here] == ids[here] + 1).all()
            found.append(i)
    each = sorted(list(range(len(sizes))) * repeats)
    assert sorted(found[: len(each)]) == each == sorted(found[len(each) : 2 * len(each)])
    assert rows.epoch_tokens % context == 0 and rows.names(0, 1).startswith("s.jsonl line ")


def test_a_conversation_longer_than_a_row_is_named(tmp_path):
    pairs = make_split(tmp_path, [[1, 2], list(range(30))], learned=[[0, 1], [1] * 30])
    with pytest.raises(ValueError, match="s.jsonl, line 2, has 30 tokens, context is 16, .*--max-pair-tokens 17"):
        TrainingRows(None, 16, 0, pairs, 1)
    assert TrainingRows(None, 29, 0, pairs, 1)


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


def test_rows_that_the_dataset_does_not_have(world, tmp_path):
    with pytest.raises(ValueError, match="replay: given 0.1, .* holds no general text; prepare with --replay"):
        Dataset(world.data).rows(16, 0, 0, 0.1)
    shutil.copytree(world.data, tmp_path / "d")
    write_json(tmp_path / "d" / "meta.json", Dataset(world.data).meta | {"conversations": True})
    with pytest.raises(ValueError, match=r"holds conversations alone: set pair_repeats to at least 1 \(given 0\)"):
        Dataset(tmp_path / "d").rows(16, 0, 0, 0.0)


def test_rows_are_a_function_of_seed_and_number(tmp_path):
    split = make_split(tmp_path, [[i] * (5 + i) for i in range(30)])
    a, b, other = TrainingRows(split, 16, 7), TrainingRows(split, 16, 7), TrainingRows(split, 16, 8)
    for r in (40, 3, 0):  # b is asked in another order
        b.row(r)
    assert all(np.array_equal(x, y) for r in range(60) for x, y in zip(a.row(r), b.row(r), strict=True))
    assert any(not np.array_equal(a.row(r)[0], other.row(r)[0]) for r in range(5))
    (tmp_path / "even").mkdir()
    even = TrainingRows(make_split(tmp_path / "even", [[i] * 17 for i in range(30)]), 16, 7)  # a document a row
    first, second = ([int(even.row(r)[0][0]) for r in part] for part in (range(30), range(30, 60)))
    assert sorted(first) == sorted(second) == list(range(30)) and first != second  # each epoch in another order
    ids, targets, documents = a.batch(5, 3)
    assert ids.shape == targets.shape == documents.shape == (3, 16)
    assert np.array_equal(ids[2].numpy(), a.row(7)[0])


@given(lengths, st.integers(1, 12), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_windows_hold_every_prediction_once(tmp_path_factory, sizes, context, batch_tokens):
    documents = [[100 * i + k for k in range(n)] for i, n in enumerate(sizes)]
    split = make_split(tmp_path_factory.mktemp("windows"), documents)
    seen = []
    for ids, targets, numbers in split.windows(context, batch_tokens):
        assert ids.shape == targets.shape and len(ids) == len(numbers) and ids.shape[1] <= context
        assert len(ids) == 1 or ids.numel() <= batch_tokens
        for i, row, wanted in zip(numbers, ids, targets, strict=True):
            counted = wanted != IGNORE
            assert torch.equal(wanted[counted], row[counted] + 1)
            seen += [(int(i), int(token)) for token in wanted[counted]]
    assert sorted(seen) == sorted((i, token) for i, d in enumerate(documents) for token in d[1:])


@given(st.lists(st.fixed_dictionaries({"id": st.text(max_size=9), "n": st.integers()}), max_size=30))
@settings(max_examples=40, deadline=None)
def test_lines_are_the_rows_of_the_file(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    write_jsonl(path, rows)
    lines = JsonLines(path)
    assert list(lines) == rows == read_jsonl(path) and len(lines) == len(rows)
    assert all(lines[-i - 1] == rows[-i - 1] for i in range(len(rows)))
    with pytest.raises(IndexError):
        lines[len(rows)]


def test_a_line_that_is_not_json_is_named_when_it_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\r\n{"a": 2')
    lines = JsonLines(tmp_path / "a.jsonl")
    assert len(lines) == 2 and lines[0] == {"a": 1}
    with pytest.raises(ValueError, match="a.jsonl, line 2: not valid JSON"):
        lines[1]
    with pytest.raises(ValueError, match="cannot read"):
        JsonLines(tmp_path / "b.jsonl")


def test_big_vocabularies_keep_their_ids(tmp_path):
    write_documents(tmp_path / "s.safetensors", [([70_000, 151_643], 3), ([5], 0)], 2, 151_669)
    split = TokenFile(tmp_path / "s.safetensors")
    assert split[0].tolist() == [70_000, 151_643] and split[1].tolist() == [5]


@pytest.mark.parametrize("line, message", [
    ("", "line 2: empty line"), ("   ", "line 2: empty line"), ('{"a": 1', "line 2: not valid JSON"),
    ("[1]", "line 2: expected a JSON object, found list"), ('{"b": 1}', "line 2: lacks a; it has b"),
    (b'{"a": "\xff"}', "line 2: not valid JSON")])
def test_wrong_lines_are_named(tmp_path, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match=f"x.jsonl, {message}"):
        read_jsonl(tmp_path / "x.jsonl", ("a",))


@pytest.mark.parametrize("change, message", [
    ({"choices": ["one"]}, "two or more"), ({"choices": ["one", ""]}, "two or more"), ({"choices": "ab"}, "two or more"),
    ({"answer": 2}, "from 0 to 1, given 2"), ({"answer": -1}, "given -1"), ({"answer": "0"}, "given '0'")])
def test_wrong_questions_are_named(tmp_path, change, message):
    good = {"question": "?", "choices": ["a", "b"], "answer": 0}
    (tmp_path / "q.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(ValueError, match=f"q.jsonl, line 2: .*{message}"):
        read_questions(tmp_path / "q.jsonl")


def test_the_boundary_between_prompt_and_answer(world):
    """As lm-evaluation-harness has it: prompt + answer in one piece, cut at the prompt's own length."""
    tokenizer = Dataset(world.data).tokenizer
    prompt, answer = question_prompt("Where is plant 3?", "A plant."), " Munich"
    tokens, n = split_tokens(tokenizer, prompt, answer)
    assert tokenizer.decode(tokens[:n]) == prompt == "A plant.\n\nQuestion: Where is plant 3?\nAnswer:"
    assert tokenizer.decode(tokens[n:]) == answer


def test_special_tokens_in_text_are_text(world):
    tokenizer = Dataset(world.data).tokenizer
    ids = tokenizer.encode("before <|endoftext|> after").ids
    assert end_token(tokenizer, world.data) not in ids
    assert tokenizer.decode(ids) == "before <|endoftext|> after"


def test_another_tokenizer_is_refused(world, tmp_path):
    other = Dataset(make_data(tmp_path / "other", text="zebra quagga okapi"))
    with pytest.raises(ValueError, match="was tokenized with another tokenizer .* than that of base"):
        other.check_model("base", world.model, 1000)
    with pytest.raises(ValueError, match="base knows 9 tokens"):
        Dataset(world.data).check_model("base", world.model, 9)
    Dataset(world.data).check_model("base", world.model, 1000)


def test_the_same_rules_in_another_layout_are_the_same_tokenizer(real, tmp_path):
    for name in ("Qwen3-0.6B", "Qwen2.5-0.5B-Instruct"):
        shutil.copy(real / "checkpoints" / name / "tokenizer.json", tmp_path / "tokenizer.json")
        content = json.loads((tmp_path / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps(content, indent=None, sort_keys=True))
        assert tokenizer_hash(tmp_path) == tokenizer_hash(real / "checkpoints" / name)


def test_damaged_datasets_are_named(world, tmp_path):
    with pytest.raises(ValueError, match="is not a dataset folder .*python prepare.py ARTICLES --out"):
        Dataset(tmp_path)
    folder = shutil.copytree(world.data, tmp_path / "data")
    (folder / "train.safetensors").write_bytes((folder / "train.safetensors").read_bytes()[:-5])
    with pytest.raises(ValueError, match="train.safetensors is truncated or damaged"):
        Dataset(folder).split("train")
    tensors = {"tokens": torch.zeros(5, dtype=torch.int64), "offsets": torch.tensor([0, 3, 9])}
    write_tensors(folder / "train.safetensors", tensors)
    with pytest.raises(ValueError, match="document offsets do not fit"):
        Dataset(folder).split("train")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer file"):
        Dataset(folder)


def test_a_damaged_folder_is_named(world, tmp_path):
    data = shutil.copytree(world.data, tmp_path / "data")
    write_tensors(data / "val.safetensors", {"offsets": torch.zeros(1, dtype=torch.int64)})
    with pytest.raises(ValueError, match="val.safetensors lacks tokens; run prepare.py again"):
        Dataset(data).split("val")
    (data / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match="meta.json lacks end_token, tokenizer_hash, vocab_size"):
        Dataset(data)


@pytest.mark.parametrize("changes, message", [
    (dict(question=5), "question .* must be a text"), (dict(question=" "), "question .* must be a text"),
    (dict(context=7), "context.* must be a text"), (dict(choices=["a", "a"]), "different texts"),
    (dict(answer=2), "index from 0 to 1"),
])
def test_questions_are_checked(tmp_path, changes, message):
    good = {"question": "Which?", "choices": ["a", "b"], "answer": 0}
    write_jsonl(tmp_path / "q.jsonl", [good, good | changes])
    with pytest.raises(ValueError, match=f"q.jsonl, line 2: .*{message}"):
        read_questions(tmp_path / "q.jsonl")
