"""nanoprune/data/text_stream.py: pieces of text are whole characters, and together they are the text."""

import random

import pytest
from small import byte_tokenizer
from tokenizers import Tokenizer, decoders, models

from nanoprune.data.text_stream import TextStream
from nanoprune.data.tokenizer import load_tokenizer

TEXT = "Zoë said: 東京 🙂🇩🇪 – naïve\n end"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Tokenizer:
    return load_tokenizer(byte_tokenizer(tmp_path_factory.mktemp("bytes"), ("<|endoftext|>",)))


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """As converted from sentencepiece: spaces stand in the words, unknown characters are bytes."""
    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁new", "▁car", "s", "▁é", "."]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>",
                                     byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                           decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def pieces(tokenizer, prompt: list[int], tokens: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream, written = TextStream(tokenizer, prompt, stop), []
    for token in [*tokens, None]:
        if not stream.ended:
            written.append(stream.add(token))
    assert stream.ended and stream.text == "".join(written)
    return written


def test_characters_appear_whole_as_soon_as_they_are(byte_level):
    written = pieces(byte_level, byte_level.encode("Plant. ").ids, byte_level.encode(TEXT).ids)
    assert "".join(written) == TEXT and "\ufffd" not in TEXT
    assert [piece for piece in written if piece] == list(TEXT)


def test_a_space_at_the_beginning_of_a_word_is_kept(sentencepiece):
    new, car, s, accent, dot = (sentencepiece.token_to_id(word) for word in ("▁new", "▁car", "s", "▁é", "."))
    end, euro = sentencepiece.token_to_id("<s>"), [2 + byte for byte in "€".encode()]
    assert pieces(sentencepiece, [1, new], [car, s, end, accent, *euro, dot]) == [
        " car", "s", "", " é", "", "", "€", ".", ""]
    assert pieces(sentencepiece, [1], [new, car]) == ["new", " car", ""]  # of the text itself


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_any_tokens_give_their_text(name, request):
    """Characters that are never finished come at the end, and hold nothing up that was certain."""
    tokenizer, random_tokens = request.getfixturevalue(name), random.Random(0)
    words = [[token] for token in range(258, 264)] if name == "sentencepiece" else [
        [token] for token in tokenizer.encode("car.").ids]
    spelled = tokenizer.encode if name == "byte_level" else None
    for character in "é€😀":
        ids = spelled(character).ids if spelled else [2 + byte for byte in character.encode()]
        words += [ids]
    for _ in range(50):
        tokens = [token for _ in range(12) for token in random_tokens.choice(words)]
        whole = tokenizer.decode(tokens)
        written = pieces(tokenizer, [], tokens)
        assert "".join(written) == whole
        cut = pieces(tokenizer, [], tokens[:-1])
        assert "\ufffd" not in "".join(cut[:-1])


@pytest.mark.parametrize("stop, text", [
    ((": 東",), "Zoë said"), (("🙂🇩🇪",), "Zoë said: 東京 "), (("said", "ë s"), "Zo"), (("Z",), ""),
    (("nothing",), TEXT), ((" ends",), TEXT)])
def test_a_text_is_cut_before_a_stop_string_that_spans_tokens(byte_level, stop, text):
    written = pieces(byte_level, byte_level.encode("Z").ids, byte_level.encode(TEXT).ids, stop)
    assert "".join(written) == text
    for n in range(len(written)):  # no beginning of the stop string was shown
        assert text.startswith("".join(written[:n]))
