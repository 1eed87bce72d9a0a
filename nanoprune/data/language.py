"""The language of a text, by its script and its stop words."""

import re
from collections import Counter

STOP_WORDS = {
    "EN": "the and of to in is for with that on as are from this by at has was it its be will".split(),
    "DE": "der die das und ist mit von für auf den dem ein eine im zu nicht sich auch wird als".split(),
    "ES": "el la los las de que en y del con por para una un se es su al como más".split(),
    "FR": "le la les des du et est une dans pour que sur avec par au ce qui en un pas".split(),
    "IT": "il la di che e del della per con un una sono nel dei le al da si gli più".split(),
    "NL": "de het een en van in is op te dat met voor zijn niet aan er om ook als bij".split(),
}
SCRIPTS = {  # letters of their own; Japanese before Chinese, whose characters it uses too
    "JA": "\u3040-\u30ff", "ZH": "\u4e00-\u9fff", "KO": "\uac00-\ud7af", "RU": "\u0400-\u04ff",
    "EL": "\u0370-\u03ff", "AR": "\u0600-\u06ff", "HE": "\u0590-\u05ff", "TH": "\u0e00-\u0e7f",
    "HI": "\u0900-\u097f",
}
LANGUAGES_OF = {word: [language for language, words in STOP_WORDS.items() if word in words]
                for word in sum(STOP_WORDS.values(), [])}


def words_of(text: str) -> list[str]:
    return text.lower().translate(TO_SPACE).split()


TO_SPACE = dict.fromkeys((i for i in range(0x3100) if not (chr(i).isalnum() or chr(i) == "_")), " ")


def language_of(text: str, words: list[str]) -> str | None:
    """The language of a text; None if there are too few words to tell.

    It is the one whose script has a fifth of the letters, else the one with the most stop words in the text.
    """
    if not text.isascii():
        letters = sum(map(str.isalpha, text))
        for language, span in SCRIPTS.items():
            if len(re.findall(f"[{span}]", text)) > 0.2 * letters:
                return language
    counts = dict.fromkeys(STOP_WORDS, 0)
    for word, times in Counter(filter(LANGUAGES_OF.__contains__, words)).items():
        for language in LANGUAGES_OF[word]:
            counts[language] += times
    best = max(counts, key=counts.get)
    return best if counts[best] >= 5 else None
