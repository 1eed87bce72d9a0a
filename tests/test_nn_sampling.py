"""nanoprune/nn/sampling.py: neither cache nor batch changes a text, and draws follow the distribution."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from small import SHAPE
from transformers.generation import logits_process

from model import Decoder
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.nn import sampling
from nanoprune.nn.attention import KeyValueCache
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.sampling import GREEDY, Sampling, draw, generate, stream

SETTINGS = [Sampling(temperature=1.2), Sampling(temperature=0.7, top_k=4),
            Sampling(temperature=1.0, top_p=0.8), Sampling(temperature=1.5, min_p=0.2),
            Sampling(temperature=1.0, repetition_penalty=1.5),
            Sampling(1.4, 1.1, top_k=9, top_p=0.85, min_p=0.05)]
OURS = Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.2, seed=4)


def test_greedy_text_equals_transformers(world):
    model = Decoder.from_pretrained(world.model).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(world.model).eval()
    ids = torch.tensor([load_tokenizer(world.model).encode("Plant 3 opens in").ids])
    texts = []
    for penalty in (1.0, 1.3):
        expected = theirs.generate(ids, max_new_tokens=40, do_sample=False, repetition_penalty=penalty,
                                   eos_token_id=None, pad_token_id=0)
        texts.append(generate(model, ids, 40, Sampling(penalty))[0])
        assert texts[-1] == expected[0, ids.shape[1] :].tolist()
    assert texts[0] != texts[1]


def test_greedy_text_of_a_trained_checkpoint_equals_transformers(real):
    folder = real / "checkpoints" / "press-qwen3-4m"
    model = Decoder.from_pretrained(folder).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([load_tokenizer(folder).encode("Munich. The new BMW").ids])
    expected = theirs.generate(ids, max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generate(model, ids, 60)[0] == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5"])
def test_greedy_text_of_real_models_equals_transformers(name):
    """In one batch for prompts of different lengths, with and without a penalty."""
    folder = Path(os.environ.get("NANOPRUNE_MODELS", "no-such")) / name
    if not folder.is_dir():
        pytest.skip(f"NANOPRUNE_MODELS has no folder {name}: that pretrained model is not checked")
    model, tokenizer = Decoder.from_pretrained(folder).eval(), load_tokenizer(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [tokenizer.encode(text).ids for text in ("Munich. The new car", "def add(a, b):", "One")]
    for penalty in (1.0, 1.2):
        expected = []
        for ids in prompts:
            text = theirs.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False,
                                   repetition_penalty=penalty, eos_token_id=None, pad_token_id=0)
            expected.append(text[0, len(ids) :].tolist())
        assert generate(model, prompts, 16, Sampling(penalty)) == expected


def test_the_cache_has_the_type_of_the_products(world, monkeypatch):
    """Under autocast keys and values stay in bf16, and the text is that of whole forward passes."""
    model, ids = Decoder.from_pretrained(world.model).eval(), torch.tensor([[65, 66, 67]])
    caches, extend = [], KeyValueCache.extend
    monkeypatch.setattr(KeyValueCache, "extend", lambda self, block, k, v: (
        caches.append((self.store.dtype, k.dtype, v.dtype)), extend(self, block, k, v))[1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        written = generate(model, ids, 12)[0]
        for token in written:
            assert token == int(model(ids)[0, -1].argmax())
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
    assert set(caches) == {(torch.bfloat16,) * 3}


@pytest.mark.parametrize("windows", [{}, {"use_sliding_window": True, "sliding_window": 4,
                                          "max_window_layers": 1}])
@pytest.mark.parametrize("how", [GREEDY, OURS], ids=["greedy", "sampled"])
def test_a_batch_of_different_lengths_writes_what_each_prompt_gets_alone(windows, how):
    torch.manual_seed(0)
    shape = SHAPE | {"vocab_size": 256, "initializer_range": 0.2} | windows
    model = Decoder(ModelConfig.from_dict(shape)).eval()
    prompts = [[1, 2, 3, 4, 5, 6], [70], [71, 72, 73]]
    alone = [generate(model, [prompt], 12, how)[0] for prompt in prompts]
    assert len(set(map(tuple, alone))) == 3 and generate(model, prompts[::-1], 12, how) == alone[::-1]
    batch = stream(model, prompts, 1, how, set())
    for prompt, logits in zip(prompts, next(batch)[1], strict=True):
        assert torch.allclose(logits, model(torch.tensor([prompt]))[0, -1], atol=1e-5)


def test_rows_end_alone(world):
    """A row stops at its stop token; the others go on, and each is what it is by itself."""
    model = Decoder.from_pretrained(world.model).eval()
    ids = torch.tensor([[65, 66, 67], [70, 71, 72]])
    alone = [generate(model, ids[i : i + 1], 20)[0] for i in (0, 1)]
    stop = {alone[0][4]}
    expected = [row[: next((i for i, token in enumerate(row) if token in stop), 20)] for row in alone]
    assert generate(model, ids, 20, stop=stop) == expected and len(expected[0]) <= 4


def test_a_conversation_reads_only_what_is_new(world, monkeypatch):
    """Whatever a prompt shares with the conversation so far is not read again, and the text is the same."""
    model, read = Decoder.from_pretrained(world.model).eval(), []
    last_logits = model.last_logits
    monkeypatch.setattr(model, "last_logits", lambda ids, cache: (
        read.append(ids.shape[1]), last_logits(ids, cache))[1])
    cache = KeyValueCache(model, 1, 0)
    prompt, other = [65, 66, 67, 68], [65, 66, 99, 98, 97]
    first = [tokens[0] for tokens, _ in stream(model, [prompt], 5, GREEDY, set(), cache)]
    for following, new in (([*prompt, *first, 70, 71], 3), (other, 3), (other, 1)):
        read.clear()
        text = [tokens[0] for tokens, _ in stream(model, [following], 8, OURS, set(), cache)]
        assert read == [new, *[1] * 7] and [text] == generate(model, [following], 8, OURS)
    interrupted = stream(model, [other], 8, GREEDY, set(), cache)
    start = [next(interrupted)[0][0] for _ in range(3)]
    interrupted.close()
    read.clear()
    text = [tokens[0] for tokens, _ in stream(model, [[*other, *start, 70]], 2, GREEDY, set(), cache)]
    assert read == [2, 1] and [text] == generate(model, [[*other, *start, 70]], 2)


# ---------------------------------------------------------------- draws
def draw_p_value(how: Sampling) -> float:
    """Of a chi-square test of 8,000 draws, the distribution being that of transformers' own filters."""
    context = torch.tensor([[3, 7]])
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)) * 2
    scores = logits_process.RepetitionPenaltyLogitsProcessor(how.repetition_penalty)(context, logits.clone())
    scores = scores / how.temperature
    if how.top_k:
        scores = logits_process.TopKLogitsWarper(how.top_k)(context, scores)
    scores = logits_process.TopPLogitsWarper(how.top_p)(context, scores)
    expected = logits_process.MinPLogitsWarper(how.min_p)(context, scores).softmax(-1)[0].double().numpy()
    generator, seen = torch.Generator().manual_seed(0), torch.zeros(1, 12, dtype=torch.bool)
    seen[0, context[0]] = True
    drawn = draw(logits.expand(8000, -1), how, seen, [generator] * 8000)
    counts, drawable = np.bincount(drawn, minlength=12), expected > 0
    assert 1 < drawable.sum() <= 12
    if counts[~drawable].any():
        return 0.0
    return scipy.stats.chisquare(counts[drawable], expected[drawable] * 8000 / expected.sum()).pvalue


@pytest.mark.parametrize("how", SETTINGS)
def test_draws_follow_the_distribution(how):
    assert draw_p_value(how) > 0.001


@pytest.mark.parametrize("filters, change", [
    ({"top_p": 0.8}, {"top_p": 1.0}), ({"top_p": 0.8}, {"top_p": 0.5}), ({"min_p": 0.3}, {"min_p": 0.0})])
def test_draws_by_a_broken_filter_are_found_out(monkeypatch, filters, change):
    filtered, how = sampling.filtered, Sampling(temperature=1.0, **filters)
    monkeypatch.setattr(sampling, "filtered", lambda logits, _: filtered(logits, replace(how, **change)))
    assert draw_p_value(how) < 0.001


def test_the_nucleus_is_of_what_top_k_left():
    logits = torch.tensor([[0.1, 0.5, 0.05, 0.35]]).log().expand(200, 4)
    seen = torch.zeros(200, 4, dtype=torch.bool)
    def drawn(**how) -> set[int]:
        how = Sampling(temperature=1.0, **how)
        return set(draw(logits, how, seen, [torch.Generator().manual_seed(i) for i in range(200)]).tolist())
    assert drawn(top_p=0.5) == drawn(top_p=0.01) == drawn(top_k=1) == drawn(min_p=1.0) == {1}
    assert drawn(top_k=2, top_p=0.55) == {1} and drawn(top_k=2, top_p=0.6) == {1, 3}  # .5 of .85 is 59 %
    assert drawn(min_p=0.6) == {1, 3} and drawn(min_p=0.71) == {1}


def test_seed_and_temperature(world):
    model, ids = Decoder.from_pretrained(world.model).eval(), torch.tensor([[65, 66, 67]])
    state = torch.random.get_rng_state()
    a, b, other = (generate(model, ids, 30, Sampling(temperature=1.0, seed=seed))[0] for seed in (1, 1, 2))
    assert a == b != other and torch.equal(state, torch.random.get_rng_state())
    assert generate(model, ids, 30, Sampling(temperature=1e-4))[0] == generate(model, ids, 30)[0]
