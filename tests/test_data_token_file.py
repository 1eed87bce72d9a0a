"""Token files: ids and masks come back as they were written."""

import numpy as np

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
