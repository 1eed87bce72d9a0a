"""The language of a text."""

from small import text

from nanoprune.data.language import language_of, words_of


def test_languages():
    spanish = "El coche es de la marca y se fabrica en el sur con un motor para los clientes"
    for found, language in ((text(3), "EN"), (spanish, "ES"), ("BMW iX3 M60", None), ("新款车型" * 9, "ZH")):
        assert language_of(found, words_of(found)) == language
