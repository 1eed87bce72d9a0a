"""Near-duplicates: those of the plain comparison, at linear cost."""

import random

import numpy as np
import pytest
from small import WORDS, article, text

from nanoprune.data import duplicates
from nanoprune.data.dataset import Dataset
from nanoprune.data.duplicates import near_duplicates, signature
from nanoprune.data.language import words_of


def shingles(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def test_near_duplicates_are_those_of_the_plain_comparison():
    """MinHash against all pairs; a similarity just at the threshold may be missed by chance, none may be made
    up.
    """
    texts = []
    for i in range(60):
        words = text(i).lower().replace(".", "").replace(",", "").split()
        texts.append(" ".join(words))
        if i % 3 == 0:
            for k in range(0, len(words), 150 if i % 2 else 30):
                words[k] = f"other{k}"
            texts.append(" ".join(words))
    found = set(near_duplicates(np.stack([signature(words_of(t)) for t in texts]), texts.__getitem__))
    sets = [shingles(t) for t in texts]
    similar = {(i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i in range(len(texts))
               for j in range(i)}
    assert found <= {(j, i) for (i, j), s in similar.items() if s >= 0.8}
    assert {(j, i) for (i, j), s in similar.items() if s >= 0.9} <= found and len(found) >= 10


def test_a_long_text_has_the_signature_of_its_shingles(monkeypatch):
    """However many are looked at at a time."""
    words = text(5, 3000).split()
    whole = signature(words)
    for size in (1, 7, 4096):
        monkeypatch.setattr(duplicates, "CHUNK", size)
        assert np.array_equal(signature(words), whole)
    assert np.array_equal(whole, (duplicates.PERMUTATIONS * (duplicates.shingles(words) >> np.uint64(32))
                                  .astype(np.uint32)).min(1))


def test_many_versions_of_one_text_leave_one_at_linear_cost(prepare):
    versions = [text(3) + f" Version {i} of {i * i}." for i in range(200)]
    texts = versions + [text(i) for i in range(60, 100)]
    found = near_duplicates(np.stack([signature(words_of(t)) for t in texts]), texts.__getitem__)
    assert 199 <= len(found) <= 16 * 2 * 200 and {j for _, j in found} == set(range(1, 200))
    articles = [article(i, text=t, date="2024-01-01") for i, t in enumerate(versions)]
    folder = prepare(articles + [article(i) for i in range(200, 260)])[3]
    assert Dataset(folder).meta["dropped"] == {"near-duplicate": 199}


@pytest.mark.parametrize("share, cut", [(0.4, 0), (0.6, 0), (0.75, 1)])
def test_a_version_that_the_other_holds_is_dropped(prepare, share, cut):
    """Whole or but for a few words; the longer one stays, whichever is the earlier."""
    def news(seed: int) -> str:
        words = random.Random(seed).choices([*WORDS, "the", "of", "and", "in", "is", "with", "for"], k=400)
        return "\n\n".join(" ".join(words[k : k + 50]) + "." for k in range(0, 400, 50))

    whole = news(0)
    words = whole.split(" ")
    part = words[: int(share * len(words))]
    part[50 : 50 + cut] = ["other"] * cut
    texts = [whole, " ".join(part), *map(news, range(10, 40))]
    found = near_duplicates(np.stack([signature(words_of(t)) for t in texts]), texts.__getitem__)
    assert found == [(0, 1)]
    for first, second in ((whole, " ".join(part)), (" ".join(part), whole)):
        articles = [article(0, text=first), article(1, text=second)]
        data = Dataset(prepare(articles + [article(i) for i in range(10, 50)])[3])
        stays = articles[first != whole]["id"]
        assert data.meta["dropped"] == {"near-duplicate": 1} and data.documents("train")[0]["id"] == stays
