"""The language of a text."""

import json

import pytest
from small import article, text

from nanoprune.data.dataset import Dataset
from nanoprune.data.language import language_of

POLISH = "Nowy zakład w Krakowie rozpoczął produkcję silników elektrycznych dla nowej generacji samochodów. "
FINNISH = "Uusi tehdas aloitti sähkömoottoreiden tuotannon Suomessa ja työllistää satoja ihmisiä. "
SWEDISH = "Den nya fabriken har börjat tillverka elmotorer för nästa generation av bilar och ger många jobb. "
TABLE = "1 | 25.3 | 7:25.5 | +0.4\n" * 20


@pytest.mark.parametrize("found, language", [
    (text(3), "EN"), ("El coche es de la marca y se fabrica en el sur con un motor para los clientes", "ES"),
    ("新款车型" * 9, "ZH"), (POLISH, "PL"), (FINNISH, "FI"), (SWEDISH, "SV"), (TABLE, None),
    ("BMW iX3 M60", None)])
def test_languages(found, language):
    assert language_of(found) == language


def test_what_a_newsroom_declares_is_believed_unless_the_text_is_clearly_another():
    assert language_of(TABLE, "EN") == language_of("BMW iX3 M60", "EN") == "EN"
    assert language_of(POLISH * 9, "EN") == "PL" and language_of(text(3), "PL") == "EN"


def test_articles_in_other_languages(prepare):
    """Dropped and counted, and so is what does not tell; with `any` nothing is."""
    articles = [article(i) for i in range(40)]
    articles += [article(50, text=POLISH * 9), article(51, text=FINNISH * 9), article(52, text=TABLE),
                 article(53, text=TABLE.replace("25", "24"), language="en-GB"), article(54, language="de")]
    folder = prepare(articles)[3]
    assert Dataset(folder).meta["dropped"] == {
        "other language (text)": 2, "language cannot be told": 1, "other language (declared)": 1}
    folder = prepare(articles, "--train-tokenizer", "400", "--language", "any")[3]
    assert "dropped" in Dataset(folder).meta and not any(
        "language" in reason for reason in Dataset(folder).meta["dropped"])
    code, _, err, _ = prepare(articles, "--train-tokenizer", "400", "--language", "no-such")
    assert code == 2 and "--language NO-SUCH is unknown; give any, or one of" in err


def test_ids_are_those_of_their_newsroom(prepare):
    """The language at the end of BMW's ids is none in the ids of others."""
    articles = [article(i, id=f"PR-{i:04d}{'AG' if i % 2 else 'DE'}") for i in range(30)]
    articles += [article(30 + i, id=f"{i:02d}5F3A9DE") for i in range(10)]
    folder = prepare(articles)[3]
    assert Dataset(folder).meta["dropped"] == {}
    bmw = "https://www.press.bmwgroup.com/global/article"
    articles += [article(50, id="T0000050DE", url=bmw), article(51, id="T0000051EN_US", site="bmw")]
    assert json.loads((prepare(articles)[3] / "meta.json").read_text())["dropped"] == {
        "other language (id)": 1, "other market (id)": 1}
