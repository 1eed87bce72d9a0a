"""benchmarks.common: a dataset of random tokens is one that train.py opens; a script's time and memory."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import clock, random_documents, write_dataset
from nanoprune.data.dataset import Dataset


def test_a_random_dataset_opens(tmp_path):
    documents = random_documents(np.random.default_rng(0), [5, 9], 50)
    write_dataset(tmp_path, {"train": documents, "val": documents[:1]}, 50)
    dataset = Dataset(str(tmp_path))
    assert [example.tokens.tolist() for example in dataset.split("train")] == documents
    dataset.check_model("any", tmp_path / "no-such-tokenizer", 50)


def test_a_script_is_timed_with_its_own_peak_of_memory():
    held = np.ones(2**25)  # a quarter of a gigabyte of this process, which is not the script's
    seconds, peak = clock(["-c", "import time; held = bytearray(10**8); time.sleep(0.1)"])
    assert 0.1 < seconds and (not Path("/proc").is_dir() or 0.1 < peak < held.nbytes / 1e9)
    with pytest.raises(ValueError, match="the end of its messages"):
        clock(["-c", "raise SystemExit('the end of its messages')"])
