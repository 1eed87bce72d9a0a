"""Token files: ids and masks come back as they were written."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nanoprune.config import IGNORE
from nanoprune.data.token_file import Example, TokenFile, write_documents, write_examples


def test_big_vocabularies_keep_their_ids(tmp_path):
    write_documents(tmp_path / "s.safetensors", [([70_000, 151_643], 3), ([5], 0)], 2, 151_669)
    split = TokenFile(tmp_path / "s.safetensors")
    assert split[0].tokens.tolist() == [70_000, 151_643] and split[1].tokens.tolist() == [5]


def test_all_of_a_document_is_learned_and_of_a_conversation_its_mask(tmp_path):
    write_documents(tmp_path / "d.safetensors", [([7, 8, 9], 5), ([6], 0)], 2, 1000)
    masked = Example(np.array([7, 8, 9]), np.array([False, True, True]))
    write_examples(tmp_path / "p.safetensors", [masked, Example(np.array([5]), np.array([False]))], 1000,
                   [4, 0])
    documents, pairs = TokenFile(tmp_path / "d.safetensors"), TokenFile(tmp_path / "p.safetensors")
    assert documents[0].learned.all() and documents[0].targets.tolist() == [7, 8, 9] and len(documents) == 2
    assert pairs[0].tokens.tolist() == [7, 8, 9] and pairs[0].targets.tolist() == [IGNORE, 8, 9]
    assert documents.prediction_counts.tolist() == pairs.prediction_counts.tolist() == [2, 0]
    assert documents.bytes.tolist() == [5, 0] and pairs.bytes.tolist() == [4, 0]


@pytest.mark.parametrize("change, message", [
    ({"offsets": torch.tensor([0, 4, 2, 6])}, "document offsets do not fit the tokens"),
    ({"offsets": torch.tensor([0, 4, 2, 6], dtype=torch.uint64)}, "document offsets do not fit the tokens"),
    ({"offsets": torch.tensor([0, 3, 5])}, "document offsets do not fit the tokens"),
    ({"offsets": torch.tensor([1, 3, 6])}, "document offsets do not fit the tokens"),
    ({"offsets": torch.zeros(0, dtype=torch.int64)}, "document offsets do not fit the tokens"),
    ({"offsets": torch.tensor([0.0, 3.0, 6.0])}, "offsets is F32 of shape"),
    ({"tokens": torch.zeros(2, 3, dtype=torch.int32)}, r"tokens is I32 of shape \[2, 3\], which no dataset"),
    ({"mask": torch.ones(5, dtype=torch.uint8)}, "document offsets do not fit the tokens"),
    ({"bytes": torch.ones(3, dtype=torch.int64)}, "document offsets do not fit the tokens"),
    ({"tokens": torch.tensor([1, 2, 3, 4, 5, 50])}, "tokens from 1 to 50 are beyond the vocabulary of 50"),
    ({"tokens": torch.tensor([1, 2, 3, 4, 5, -1])}, "tokens from -1 to 5 are beyond the vocabulary of 50"),
])
def test_arrays_that_do_not_fit_are_named(tmp_path, change, message):
    good = {"tokens": torch.arange(6), "offsets": torch.tensor([0, 3, 6])}
    save_file(good, tmp_path / "s.safetensors")
    assert len(TokenFile(tmp_path / "s.safetensors", 50)) == 2
    save_file(good | change, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match=message):
        TokenFile(tmp_path / "s.safetensors", 50)


def test_a_file_that_is_cut_short_while_it_is_in_use(tmp_path):
    """An error that names it; a mapped file would end the process with SIGBUS."""
    path = tmp_path / "s.safetensors"
    write_documents(path, [(list(range(5000)), 3), ([5, 6], 0)], 2, 151_669)
    split = TokenFile(path)
    os.truncate(path, path.stat().st_size // 2)
    assert len(split) == 2
    for i in range(2):
        with pytest.raises(ValueError, match="s.safetensors was cut short while it was in use; restore it"):
            split[i]
