"""Real pretrained models: the folders `smollm2` (a Llama) and `qwen2.5` (a Qwen2) in NANOPRUNE_MODELS.

docs/which_block.md says how to make them.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from small import ROOT

from model import Decoder
from nanoprune.data.token_file import Example
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.device import make_autocast
from nanoprune.evaluation.perplexity import Protocol
from nanoprune.evaluation.removal_losses import Calibration, losses_without
from nanoprune.io.jsonl import read_jsonl
from nanoprune.nn.model_config import Part
from nanoprune.statistics import Ratio

BLOCKS = {"smollm2": (0, 14, 15, 28, 29), "qwen2.5": (0, 12, 22, 23)}


@pytest.fixture(params=BLOCKS)
def folder(request) -> Path:
    place = os.environ.get("NANOPRUNE_MODELS")
    if not place:
        pytest.skip("NANOPRUNE_MODELS is not set: no real pretrained models to check")
    path = Path(place) / request.param
    if not path.is_dir():
        pytest.skip(f"{path} is missing: that pretrained model is not checked")
    return path


def texts(folder: Path, count: int) -> list[Example]:
    tokenizer = load_tokenizer(folder)
    rows = read_jsonl(ROOT / "qa" / "general.jsonl", ("text",))[:: 70 // count]
    tokens = [np.array(tokenizer.encode(row["text"]).ids) for row in rows]
    return [Example(row, np.ones(len(row), bool)) for row in tokens]


def test_losses_without_blocks_are_those_of_transformers(folder):
    model = Decoder.from_pretrained(folder).eval()
    examples, removals = texts(folder, 5), [(), *((Part(block),) for block in BLOCKS[folder.name])]
    windows = tuple(Protocol().windows(examples))
    losses = losses_without(model, removals, Calibration(windows, len(examples)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layers = list(theirs.model.layers)
    for removal, nll in zip(removals, losses.nll, strict=True):
        theirs.model.layers = torch.nn.ModuleList(
            layer for i, layer in enumerate(layers) if (i,) not in [tuple(part)[:1] for part in removal])
        theirs.config.num_hidden_layers = len(theirs.model.layers)
        for example, ours in zip(examples, nll, strict=True):
            ids = torch.from_numpy(example.tokens)[None]
            with torch.no_grad():
                mean = float(theirs(ids, labels=ids, use_cache=False).loss)
            assert ours / (len(example) - 1) == pytest.approx(mean, abs=1e-4), removal


def test_bf16_ranks_blocks_as_fp32_and_differs_within_its_intervals(folder):
    model = Decoder.from_pretrained(folder).eval()
    examples, removals = texts(folder, 10), [(), *((Part(block),) for block in BLOCKS[folder.name])]
    exact = Calibration(tuple(Protocol().windows(examples)), len(examples))
    rounded = replace(exact, autocast=make_autocast("bfloat16", torch.device("cpu")))
    fp32, bf16 = (losses_without(model, removals, text) for text in (exact, rounded))
    means = [losses.nll.sum(1) / losses.tokens.sum() for losses in (fp32, bf16)]
    assert np.argsort(means[0]).tolist() == np.argsort(means[1]).tolist()
    for k in range(1, len(removals)):
        low, high = Ratio(fp32.nll[k] - fp32.nll[0], fp32.tokens).interval()
        assert low <= means[1][k] - means[1][0] <= high, removals[k]
