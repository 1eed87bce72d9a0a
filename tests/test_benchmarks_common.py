"""benchmarks.common: a dataset of random tokens is one that train.py opens."""

import numpy as np

from benchmarks.common import random_documents, write_dataset
from nanoprune.data.dataset import Dataset


def test_a_random_dataset_opens(tmp_path):
    documents = random_documents(np.random.default_rng(0), [5, 9], 50)
    write_dataset(tmp_path, {"train": documents, "val": documents[:1]}, 50)
    dataset = Dataset(str(tmp_path))
    assert [example.tokens.tolist() for example in dataset.split("train")] == documents
    dataset.check_model("any", tmp_path / "no-such-tokenizer", 50)
