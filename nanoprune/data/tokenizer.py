"""Tokenizers: loaded, identified by a hash, trained; the token that ends a text."""

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nanoprune.io.files import json_hash, read_json, write_json

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>")  # of documents for Qwen and Llama 3, instruct models too
MOST_GROWTH = 1000  # characters that a tokenizer may make of one


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder. Text that spells a special token is encoded as plain text."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"no tokenizer.json in {folder}; give a folder or hub name of a model that has one")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{path} is not a tokenizer file: {error}") from error
    unknown = getattr(tokenizer.model, "unk_token", None)
    if unknown is not None and tokenizer.token_to_id(unknown) is None:
        raise ValueError(f"{path}: its unknown token {unknown!r} is not in its vocabulary; fetch it again")
    parts = filter(None, (tokenizer.normalizer, tokenizer.post_processor, tokenizer.decoder))
    growth = math.prod(_growth(json.loads(part.__getstate__())) for part in parts)
    added = tokenizer.num_special_tokens_to_add(False)
    if max(growth, added) > MOST_GROWTH:
        raise ValueError(f"{path}: its rules may make {growth:,} characters of one and add {added:,} tokens "
                         f"to a text, at most {MOST_GROWTH:,} are allowed; take another tokenizer")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _growth(rules: dict) -> int:
    """The most characters that a normalizer, post-processor or decoder makes of one."""
    written, replaced = rules.get("content") or rules.get("prepend") or "", rules.get("pattern") or {}
    growth = len(written) // len(replaced.get("String") or "x") + ("Regex" in replaced)  # may match nothing
    growth = max(growth, len(rules.get("single") or []))  # a template may hold a text many times
    parts = [part for kind in ("normalizers", "processors", "decoders") for part in rules.get(kind) or []]
    return max(1, growth) * math.prod(map(_growth, parts))


def tokenizer_hash(folder: str | Path) -> str | None:
    """A hash of the vocabulary, merges and rules, in any layout of the file; None without a file."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return None
    content = read_json(path)
    rules = {key: content.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor")}
    try:
        model = content.get("model") or {}
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
        specials = sorted((token["id"], token["content"]) for token in content.get("added_tokens") or [])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a tokenizer file: {error!r}") from error
    return json_hash([rules, model.get("vocab"), merges, specials])


def end_token(tokenizer: Tokenizer, folder: str | Path) -> int:
    """The id of the token that ends a document: the family's, else the `eos_token` of the folder's files."""
    names = list(END_TOKENS)
    with suppress(ValueError):  # there may be no such file
        eos = read_json(Path(folder) / "tokenizer_config.json").get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if isinstance(eos, str):
            names.append(eos)
    for name in names:
        if (token := tokenizer.token_to_id(name)) is not None:
            return token
    raise ValueError(f"the tokenizer in {folder} has no end-of-text token; looked for {', '.join(names)}")


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """A byte-level BPE with Qwen's special tokens, trained on these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(specials) + len(alphabet)
    if vocab_size < least:
        raise ValueError(f"--train-tokenizer {vocab_size} is too small: the bytes and special tokens alone "
                         f"are {least}")
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": specials[0], "pad_token": specials[0]})


def vocabulary(tokenizer: Tokenizer) -> int:
    """One more than the largest id: some vocabularies have holes."""
    return max(tokenizer.get_vocab().values()) + 1


def check_vocabulary(tokenizer: Tokenizer, name: str, known: int) -> None:
    """ValueError if the tokenizer has more tokens than the model of this name knows."""
    if known < (size := vocabulary(tokenizer)):
        raise ValueError(f"{name} knows {known} tokens, its tokenizer has {size}: they do not belong "
                         "together")


def first_token(tokenizer: Tokenizer, tokens: list[int], text: str) -> str:
    """The part of the text that its first token stands for."""
    plain = tokenizer.decode(tokens[:1])
    if not tokens or (plain and text.startswith(plain)):
        return plain
    # It is part of a character, or of a text that was normalised.
    return text[: tokenizer.encode(text).offsets[0][1]]
