"""The language of a text, by py3langid: n-grams of bytes, 97 languages (BSD licence)."""

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

ANY = "ANY"  # in place of a language: all of them
MAIN_PART = 1000  # characters in the middle of a text: its beginning and end are often in another language
LIKELY = 0.3  # confidence below which a language cannot be told, as in tables and lists of names
CLEAR = 0.9  # confidence from which a text is believed rather than its newsroom


def words_of(text: str) -> list[str]:
    return text.lower().translate(TO_SPACE).split()


TO_SPACE = dict.fromkeys((i for i in range(0x3100) if not (chr(i).isalnum() or chr(i) == "_")), " ")


def language_of(text: str, declared: str | None = None) -> str | None:
    """The language of a text as "EN"; the declared one unless the text is clearly in another.

    None if nobody declared one and the text does not tell.
    """
    start = max(0, (len(text) - MAIN_PART) // 2)
    code, confidence = identifier().classify(text[start : start + MAIN_PART])
    return code.upper() if confidence >= (CLEAR if declared else LIKELY) else declared


def known_languages() -> list[str]:
    return sorted(code.upper() for code in identifier().labels)


@cache
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
