"""Tokenizers: special tokens in text, the first token, the end of a prompt, and the hash."""

import json

import pytest
from small import article
from tokenizers import Tokenizer
from tokenizers.models import BPE

from nanoprune.data.dataset import Dataset
from nanoprune.data.tokenizer import check_vocabulary, end_token, first_token, load_tokenizer, tokenizer_hash
from nanoprune.evaluation.multiple_choice import encode_questions

GOOD = [article(i) for i in range(40)]


@pytest.mark.parametrize("text",
                         ["Über uns", "U\u0308ber uns", "車 is new", "<|endoftext|> is text", " spaced"])
def test_the_first_tokens_part_of_the_text(prepare, text):
    """Also where it is part of a character, a text that normalisation changes, or one that spells a special
    token.
    """
    tokenizer = Dataset(prepare(GOOD)[3]).tokenizer
    encoded = tokenizer.encode(text)
    assert first_token(tokenizer, encoded.ids, text) == text[: encoded.offsets[0][1]]


def test_a_vocabulary_with_holes_is_as_large_as_its_last_token():
    tokenizer = Tokenizer(BPE({"a": 0, "b": 1, "c": 9}, []))
    check_vocabulary(tokenizer, "the model", 10)
    with pytest.raises(ValueError, match="the model knows 9 tokens, its tokenizer has 10"):
        check_vocabulary(tokenizer, "the model", 9)


def test_the_boundary_between_prompt_and_answer(world):
    """As lm-evaluation-harness has it: prompt + answer in one piece, cut at the prompt's own length."""
    tokenizer = Dataset(world.data).tokenizer
    question = {"question": "Where is plant 3?", "context": "A plant.", "choices": ["Munich", "Leipzig"]}
    [encoded], _ = encode_questions(tokenizer, [question], 128)
    tokens, n = encoded.choices[0]
    assert tokenizer.decode(tokens[:n]) == "A plant.\n\nQuestion: Where is plant 3?\nAnswer:"
    assert tokenizer.decode(tokens[n:]) == " Munich"


def test_special_tokens_in_text_are_text(world):
    tokenizer = Dataset(world.data).tokenizer
    ids = tokenizer.encode("before <|endoftext|> after").ids
    assert end_token(tokenizer, world.data) not in ids
    assert tokenizer.decode(ids) == "before <|endoftext|> after"


@pytest.mark.parametrize("rules, growth", [
    ([{"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 5000}], "5,000"),
    ([{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 12, "4,096"),
    ([{"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y" * 40}] * 2, "1,681"),
    ([{"type": "NFC"}, {"type": "Prepend", "prepend": "p" * 2000}], "2,000"),
])
def test_a_tokenizer_that_multiplies_text_is_refused(world, tmp_path, rules, growth):
    content = json.loads((world.data / "tokenizer.json").read_text())
    usual = [{"type": "Prepend", "prepend": "_"},
             {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]

    def load(normalizers: list[dict]):
        normalizer = {"type": "Sequence", "normalizers": normalizers}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"normalizer": normalizer}))
        return load_tokenizer(tmp_path)

    assert load(usual).encode("a b").ids
    with pytest.raises(ValueError, match=f"may make {growth} characters of one .* at most 1,000 are allowed"):
        load(rules)


@pytest.mark.parametrize("pieces, ids, message", [
    ([{"Sequence": {"id": "A", "type_id": 0}}] * 1200, [0], "may make 1,200 characters of one"),
    ([{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], [0] * 1200,
     "add 1,200 tokens to a text")])
def test_a_template_that_multiplies_text_is_refused(world, tmp_path, pieces, ids, message):
    content = json.loads((world.data / "tokenizer.json").read_text())

    def load(pieces: list[dict], ids: list[int]):
        special = {"x": {"id": "x", "ids": ids, "tokens": ["<|endoftext|>"] * len(ids)}}
        pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
        template = {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": special}
        rules = {"type": "Sequence", "processors": [template]}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"post_processor": rules}))
        return load_tokenizer(tmp_path)

    assert load(pieces[-2:], ids[:1]).encode("a").ids
    with pytest.raises(ValueError, match=f"{message}.*at most 1,000 are allowed"):
        load(pieces, ids)


def test_the_same_rules_in_another_layout_are_the_same_tokenizer(world, tmp_path):
    """In another order, and with merges as texts, as older files have them; other merges make another."""
    content = json.loads((world.data / "tokenizer.json").read_text())
    merges = [" ".join(pair) for pair in content["model"]["merges"]]

    def hash_with(merges: list[str]) -> str:
        model = content["model"] | {"merges": merges}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"model": model}, sort_keys=True))
        return tokenizer_hash(tmp_path)

    assert len(merges) > 1 and hash_with(merges) == tokenizer_hash(world.data) != hash_with(merges[::-1])
