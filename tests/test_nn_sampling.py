"""nanoprune/nn/sampling.py: the cache changes nothing, and draws follow the distribution."""

import pytest
import torch
import transformers

from model import Decoder
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.nn.attention import KeyValueCache
from nanoprune.nn.sampling import draw, generate


def test_greedy_text_equals_transformers(world):
    model = Decoder.from_pretrained(world.model).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(world.model).eval()
    ids = torch.tensor([load_tokenizer(world.model).encode("Plant 3 opens in").ids])
    expected = theirs.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generate(model, ids, 40)[0] == expected[0, ids.shape[1] :].tolist()


def test_greedy_text_of_a_trained_checkpoint_equals_transformers(real):
    folder = real / "checkpoints" / "press-qwen3-4m"
    model = Decoder.from_pretrained(folder).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([load_tokenizer(folder).encode("Munich. The new BMW").ids])
    expected = theirs.generate(ids, max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generate(model, ids, 60)[0] == expected[0, ids.shape[1] :].tolist()


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


def test_rows_end_alone(world):
    """A row stops at its stop token; the others go on, and each is what it is by itself."""
    model = Decoder.from_pretrained(world.model).eval()
    ids = torch.tensor([[65, 66, 67], [70, 71, 72]])
    alone = [generate(model, ids[i : i + 1], 20)[0] for i in (0, 1)]
    stop = {alone[0][4]}
    expected = [row[: next((i for i, token in enumerate(row) if token in stop), 20)] for row in alone]
    assert generate(model, ids, 20, stop=stop) == expected and len(expected[0]) <= 4


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.1, 0.5, 0.05, 0.35]).log().expand(20_000, 4)
    def share(top_k: int, top_p: float) -> list[float]:
        found = draw(logits, top_k, top_p, torch.Generator().manual_seed(0))
        return (torch.bincount(found, minlength=4) / len(found)).tolist()
    assert share(0, 1.0) == pytest.approx([0.1, 0.5, 0.05, 0.35], abs=0.015)
    assert share(2, 1.0) == pytest.approx([0, 0.5 / 0.85, 0, 0.35 / 0.85], abs=0.015)
    assert share(0, 0.9) == pytest.approx([0.1 / 0.95, 0.5 / 0.95, 0, 0.35 / 0.95], abs=0.015)
    assert share(0, 0.5) == share(0, 0.01) == share(1, 1.0) == [0, 1, 0, 0]
    # the nucleus is of what top_k left: of .5 and .35, .5 is 59 %
    assert share(2, 0.55) == [0, 1, 0, 0] and share(2, 0.6)[3] > 0.3


def test_seed_and_temperature(world):
    model, ids = Decoder.from_pretrained(world.model).eval(), torch.tensor([[65, 66, 67]])
    state = torch.random.get_rng_state()
    a, b, other = (generate(model, ids, 30, temperature=1.0, seed=seed)[0] for seed in (1, 1, 2))
    assert a == b != other and torch.equal(state, torch.random.get_rng_state())
    assert generate(model, ids, 30, temperature=1e-4)[0] == generate(model, ids, 30)[0]
