"""A folder of files: pages, plain files and PDFs as they come, and those that cannot be read."""

import os
import sys
import textwrap
from io import BytesIO

import pytest
from corpora import pdf
from hypothesis import given, settings
from hypothesis import strategies as st
from small import run_main

from nanoprune.io.jsonl import read_jsonl
from nanoprune.web import local_files
from nanoprune.web.local_files import day_at_start, day_in, join_lines, without_running_lines


@pytest.fixture
def read(tmp_path, monkeypatch, capsys):
    """scrape.py on files: (exit code, printed, stderr, articles by id)."""
    folder = tmp_path / "papers"

    def run(files: dict[str, bytes], *options):
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            os.utime(folder / name, (1.7e9, 1.7e9))  # 14 November 2023
        found = run_main(monkeypatch, capsys, "scrape.py", folder, "--out", tmp_path / "a.jsonl", *options)
        rows = read_jsonl(tmp_path / "a.jsonl") if (tmp_path / "a.jsonl").exists() else []
        return *found, {row["id"]: row for row in rows}
    return run


def two_columns() -> list[list[tuple[int, int, str]]]:
    """Three pages of two columns, under a running header and over a page number."""
    left = ["The pump is fixed by four bolts, which are tight-",
            "ened to 12 Nm in the order that is shown in the figure",
            "and then once more. A new seal is used.",
            "The second paragraph begins here and is long enough to",
            "fill a line. End."]
    pages = []
    for number, word in enumerate(("one", "two", "three"), start=1):
        page = [(50, 770, "Service manual 2025")]
        for x, side in ((50, "left"), (320, "right")):
            page += [(x, 740, f"Page {word}, the {side} column: what follows is set in lines")]
            page += [(x, 725 - 15 * i, line) for i, line in enumerate(left)]
        pages.append(page + [(280, 20, f"- {number} -")])
    return pages


def test_a_pdf_of_two_columns(read):
    code, _, err, found = read({"pump.pdf": pdf(two_columns(), "Cooling pump", "D:20240517120000Z")})
    assert code == 0, err
    article = found["pump.pdf"]
    assert (article["title"], article["date"], article["dated_by"]) == ("Cooling pump", "2024-05-17",
                                                                        "metadata")
    assert article["url"].endswith("papers/pump.pdf")
    text = article["text"]
    assert "Service manual" not in text and "- 2 -" not in text
    assert text.count("which are tightened to 12 Nm") == 6
    assert text.index("Page one, the "
                      "left") < text.index("Page one, the right") < text.index("Page two, the left")
    first = text.split("\n\n")[0]
    assert first.startswith("Page one, the left column") and first.endswith("A new seal is used.")


def test_rows_of_a_table_are_lines(read):
    rows = [("Part", "Torque"), ("Bolt A", "12 Nm"), ("Bolt B", "25 Nm")]
    page = [(50, 700, "The table gives the torque of each of the bolts of the pump that are named in the "
                      "text.")]
    page += [(x, 680 - 15 * i, cell) for i, row in enumerate(rows) for x,
             cell in zip((50, 80), row, strict=True)]
    text = read({"t.pdf": pdf([page])})[3]["t.pdf"]["text"]
    assert all(" ".join(row) in " ".join(text.split()) for row in rows)


def test_pages_and_plain_files(read):
    html = ("<html><head><title>Site | Page</title><meta property='article:published_time' "
            "content='2024-02-03T10:00'></head>"
            "<body><nav>Menu</nav><article><nav>Menu</nav><h1>The M&uuml;nchen plant</h1><p>One CO<sub>"
            "2</sub>.</p><p>Two.</p>"
            "</article>"
            "<footer>Imprint</footer></body></html>")
    files = {"a/page.html": html.encode(),
             "2025-12-05 note.txt": "A note\n\nWrapped\nlines, größer.".encode(),
             "old.txt": "Grün in another code.".encode("cp1252"), "ignored.docx": b"x"}
    code, out, _, found = read(files)
    assert code == 0 and "new            3" in out and set(found) == {"a/page.html", "2025-12-05 note.txt",
                                                                      "old.txt"}
    page, note, old = found["a/page.html"], found["2025-12-05 note.txt"], found["old.txt"]
    assert page["title"] == "The München plant" and page["text"] == "One CO2.\n\nTwo."
    assert (page["date"], page["dated_by"]) == ("2024-02-03", "metadata")
    assert (note["title"], note["date"], note["dated_by"]) == ("A note", "2025-12-05", "name")
    assert note["text"] == "Wrapped lines, größer."  # the title is there once
    assert old["text"] == "Grün in another code." and (old["date"], old["dated_by"]) == ("2023-11-14", "file")
    # nothing is lost
    assert "unchanged      3" in read({})[1] and list(read({}, "--since", "2024-01-01")[3]) == list(found)


PARAGRAPHS = [f"Sentence {i}: the press shop in Elbach runs in two shifts and employs {300 + i} people."
              for i in range(8)]
BODY = "".join(map("<p>{}</p>".format, PARAGRAPHS))
PAGES = {
    "form": f"<form method=post><input type=hidden value=x><div><h1>New press shop</h1>{BODY}</div></form>",
    "form with a menu": f"<form><select><option>Menu</select><h1>New press shop</h1><div>{BODY}</div></form>",
    "empty article": f"<article></article><div><h1>New press shop</h1>{BODY}</div>",
    "article of a headline": f"<main><article><h1>New press shop</h1></article><div>{BODY}</div></main>",
    "empty main": f"<main> </main><form><h1>New press shop</h1>{BODY}<button>Send</button></form>",
}


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("kind", PAGES)
def test_the_text_of_pages_nobody_described(read, monkeypatch, kind, installed):
    if installed:
        pytest.importorskip("trafilatura", exc_type=ImportError)
    else:
        monkeypatch.setitem(sys.modules, "trafilatura", None)  # which makes its import fail
    page = f"<html><head><title>News</title></head><body>{PAGES[kind]}<footer>Imprint</footer></body></html>"
    code, out, _, found = read({"page.html": page.encode()})
    assert code == 0 and found["page.html"]["title"] == "New press shop"
    assert found["page.html"]["text"].split("\n\n") == PARAGRAPHS
    reader = "trafilatura" if installed else 'own extractor (pip install ".[pages]" brings trafilatura)'
    assert found["page.html"]["read_by"] == reader and f"read           1  by {reader}" in out


def test_a_page_that_breaks_trafilatura_is_read_by_its_elements(read, monkeypatch):
    trafilatura = pytest.importorskip("trafilatura", exc_type=ImportError)
    monkeypatch.setattr(trafilatura, "extract", lambda *_, **__: [][0])
    code, out, _, found = read({"page.html": PAGES["form"].encode(), "a.txt": b"Good text.\n"})
    assert code == 0 and len(found) == 2 and "by own extractor (IndexError in trafilatura)" in out
    assert found["page.html"]["text"].split("\n\n") == PARAGRAPHS


RULE = "=" * 40


@pytest.mark.parametrize("lines, title, day, text", [
    ((RULE, "Elbach builds a car", RULE, "Date: 18.12.2025", "Topic: Plants", "", "It has", "been built."),
     "Elbach builds a car", "2025-12-18", "Date: 18.12.2025 Topic: Plants\n\nIt has been built."),
    (("* * *", "", "# Elbach builds a car", "", "Munich, 18 December 2025", "", "It has."),
     "Elbach builds a car", "2025-12-18", "Munich, 18 December 2025\n\nIt has."),
    (("18. Dezember 2025", "-----", "Title: Elbach baut", "", "Es ist gebaut."),
     "Elbach baut", "2025-12-18", "18. Dezember 2025\n\nEs ist gebaut."),
    (("Pressemitteilung vom 5. März 2025", "", "Elbach baut", "", "Es ist gebaut."),
     "Elbach baut", "2025-03-05", "Pressemitteilung vom 5. März 2025\n\nEs ist gebaut."),
    (("Elbach builds", "Published: December 5, 2025", "It has."),
     "Elbach builds", "2025-12-05", "Published: December 5, 2025 It has."),
    (("The plant in Elbach has built", "its millionth car."), "a", "",
     "The plant in Elbach has built its millionth car."),
    (("One sentence is no title.", "", "Nor is this."), "a", "", "One sentence is no title.\n\nNor is this."),
    (("A title alone",), "a", "", "A title alone"),
])
def test_titles_and_dates_of_plain_files(read, lines, title, day, text):
    article = read({"a.txt": "\n".join(lines).encode()})[3]["a.txt"]
    assert (article["title"], article["text"]) == (title, text)
    assert (article["date"], article["dated_by"]) == ((day, "text") if day else ("2023-11-14", "file"))


@pytest.mark.parametrize("line, day", [
    ("Date: 18.12.2025", "2025-12-18"), ("Datum: 18.12.25", "2025-12-18"),
    ("Veröffentlicht am 18.12.2025", "2025-12-18"), ("München, den 18. Dezember 2025", "2025-12-18"),
    ("Donnerstag, 18. Dezember 2025", "2025-12-18"),
    ("Frankfurt am Main, 18. Dez. 2025 – Das Werk", "2025-12-18"), ("**Date:** 2025-12-18", "2025-12-18"),
    ("Woodcliff Lake, NJ – December 18th, 2025", "2025-12-18"), ("(Elbach, 18 December 2025)", "2025-12-18"),
    ("Published on Thursday, December 18, 2025 by X", "2025-12-18"), ("12/18/2025", "2025-12-18"),
    ("Date: 05/12/2025", ""), ("Date of birth: 18.12.1975", ""), ("1.2.10 Installation", ""),
    ("31.02.2025", ""), ("Datum der Veröffentlichung: 18.12.2025", "2025-12-18"),
    ("Munich. 18 December 2025", "2025-12-18"), ("Date published: 2025/12/18", "2025-12-18"),
    ("On 18 December 2025 the plant opens", ""), ("18 December 2025 was a day", ""), ("", ""),
    ("In the plant, 18 December 2025 is remembered", ""), ("Elbach, im Dezember 2025", "")])
def test_the_day_at_the_start_of_a_line(line, day):
    assert day_at_start(line) == day


def test_files_in_other_charsets(read):
    files = {"notepad.txt": "\ufeffÜber uns\r\n\r\nDie neue Fabrik kostet 5 €.\r\n".encode("utf-16-le"),
             "big.txt": "\ufeffÜber uns\n\nDie neue Fabrik kostet 5 €.".encode("utf-16-be"),
             "byte.txt": "Über uns\n\nDie neue Fabrik kostet 5 €.".encode().replace(b"neue", b"ne\xfce")}
    found = read(files)[3]
    assert {name: (row["title"], row["text"]) for name, row in found.items()} == {
        "notepad.txt": ("Über uns", "Die neue Fabrik kostet 5 €."),
        "big.txt": ("Über uns", "Die neue Fabrik kostet 5 €."),
        "byte.txt": ("Über uns", "Die ne\ufffde Fabrik kostet 5 €.")}


def test_names_in_another_charset(read, tmp_path):
    (tmp_path / "papers").mkdir()
    folder = os.fsencode(tmp_path / "papers")
    for name in (b"Gr\xf6\xdfe.txt", b"Stra\xdfe.pdf", "Straße.txt".encode(), b"Stra\xdfe.txt"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"A note\n\nIt is short.")
    code, out, err, found = read({"a.docx": b"x"})
    assert code == 0 and set(found) == {"Größe.txt", "Straße.txt"} and "Traceback" not in err
    assert "Straße.pdf: not a PDF" in out and "Straße.txt: another file has this name" in out
    assert "failed         2" in out and "(1 of a kind that is not read)" in out
    assert found["Größe.txt"]["url"].endswith("papers/Größe.txt")


def with_glyphs(data: bytes, **codes: str) -> bytes:
    """A PDF whose font maps letters to code units of UTF-16."""
    pairs = " ".join(f"<{ord(letter):02x}> <{code}>" for letter, code in codes.items())
    units = (f"begincmap 1 begincodespacerange <00> <FF> endcodespacerange {len(codes)} beginbfchar {pairs} "
             "endbfchar endcmap").encode()
    data = data.replace(b"/BaseFont /Helvetica", b"/BaseFont /Helvetica /ToUnicode 99 0 R")
    stream = b"99 0 obj\n<< /Length %d >>\nstream\n%s\nendstream\nendobj\nxref\n" % (len(units), units)
    return data.replace(b"xref\n", stream, 1)


@pytest.mark.parametrize("code, sign", [("D835", "\ufffd"), ("DC00", "\ufffd"), ("D835DC00", "\U0001d400")])
def test_half_a_character_in_a_pdf_costs_one_sign(read, code, sign):
    whole = pdf([[(50, 700, "Number Q is here.")]])
    code, out, _, found = read({"half.pdf": with_glyphs(whole, Q=code), "good.pdf": whole})
    assert code == 0 and set(found) == {"half.pdf", "good.pdf"}
    assert found["half.pdf"]["text"] == f"Number {sign} is here."


def test_encrypted_pdfs(read, monkeypatch):
    pypdf = pytest.importorskip("pypdf")
    pytest.importorskip("cryptography")
    from pypdf import _encryption
    from pypdf._crypt_providers import _fallback

    files = {}
    for password in ("", "secret"):
        for algorithm in ("AES-128", "AES-256"):
            writer = pypdf.PdfWriter(clone_from=BytesIO(pdf([[(50, 700, "Text of it.")]])))
            writer.encrypt(password, "owner", algorithm=algorithm)
            writer.write(data := BytesIO())
            files[f"{algorithm}{password}.pdf"] = data.getvalue()
    code, out, _, found = read(files)
    assert set(found) == {"AES-128.pdf", "AES-256.pdf"} and out.count("not been decrypted") == 2
    for name in ("CryptAES", "aes_cbc_decrypt", "aes_ecb_encrypt", "aes_cbc_encrypt"):
        monkeypatch.setattr(_encryption, name, getattr(_fallback, name))  # as without cryptography
    code, out, _, _ = read({})
    # The password of AES-128 is checked without AES.
    assert code == 0 and out.count('pip install "pypdf[crypto]"') == 3


def lines_of(*paragraphs: str, width: int = 60) -> list[str]:
    return [line for text in paragraphs for line in textwrap.wrap(text, width)]


ENGLISH = ("The plant in Elbach has built its millionth car, and the mayor came to see it leave the line on "
           "a cold morning in December, with all the workers of the early shift around it. They sang.")
GERMAN = ("Das Werk in Elbach hat sein millionstes Fahrzeug gebaut, und die Bürgermeisterin der kleinen "
          "Stadt kam an einem kalten Morgen im Dezember in die Halle, um die Auslieferung an eine Kundin "
          "zu sehen. Alle sangen.")


@pytest.mark.parametrize("odd", [
    "1.2 Maintenance of the press shop and of its tools " + "." * 90 + " 17",
    "https://www.example.com/" + "a" * 150,
    " ".join(f"{i} Nm" for i in range(40))])
@pytest.mark.parametrize("text", [ENGLISH, GERMAN])
def test_one_long_line_breaks_no_paragraph(odd, text):
    for lines in ([odd, *lines_of(text, text)], [*lines_of(text), odd, *lines_of(text)]):
        paragraphs = join_lines(lines).split("\n\n")
        assert [part for part in paragraphs if part.startswith(text[:9])] == [text] * 2


def test_rows_at_the_ends_of_pages_stay():
    pages = [["Service manual 2025", *(f"Bolt {row} has {7 * row} Nm" for row in range(4 * n, 4 * n + 4)),
              f"Torque of step {n}: {20 + n} Nm", f"Page {n + 5} of 30"] for n in range(6)]
    lines = without_running_lines(pages)
    assert len(lines) == 30 and not any("manual" in line or "Page" in line for line in lines)
    for footer in ("{} | Manual 2025", "- {} -", "Manual 2025   {}", "Seite {} von 30", "{}"):
        pages = [[f"Text {'abcde'[n]}.", f"Total {100 * n} Nm", footer.format(n + 3)] for n in range(5)]
        assert without_running_lines(pages) == [line for page in pages for line in page[:2]]


def test_what_cannot_be_read_is_named_and_the_rest_comes(read):
    whole = pdf([[(50, 700, "Text.")]])
    files = {"empty.txt": b" ", "scan.pdf": pdf([[]]), "cut.pdf": whole[: len(whole) // 3],
             "no.pdf": b"plain",
             "good.txt": b"Good.", "deep.html": b"<div>" * 10_000}
    code, out, err, found = read(files)
    assert code == 0 and list(found) == ["good.txt"] and "failed         5" in out and "Traceback" not in err
    assert out.count("has no text") >= 2 and out.count("not a PDF that can be read") == 2


def test_a_limit_reads_no_further(read, monkeypatch):
    files = {f"{name}.txt": b"Text." for name in "abcde"}
    code, out, _, found = read(files, "--limit", "2")
    assert code == 0 and list(found) == ["a.txt", "b.txt"] and "failed         0" in out
    seen, whole = [], local_files.read_article
    monkeypatch.setattr(local_files, "read_article", lambda path, folder: (
        seen.append(path.name), whole(path, folder))[1])
    assert list(read({}, "--limit", "1")[3]) == seen == ["a.txt", "b.txt", "c.txt"]


def test_ctrl_c_keeps_what_was_read(read, monkeypatch):
    whole = local_files.read_article

    def interrupted(path, folder):
        if path.name == "b.txt":
            raise KeyboardInterrupt
        return whole(path, folder)

    monkeypatch.setattr(local_files, "read_article", interrupted)
    code, _, err, found = read({f"{name}.txt": b"Text." for name in "abc"})
    assert code == 130 and "what was collected is kept" in err and list(found) == ["a.txt"]


def test_an_empty_folder_is_a_mistake(read, tmp_path):
    (tmp_path / "papers").mkdir()
    code, _, err, _ = read({})
    assert code == 2 and "gave no article; read are files that end in .html, .htm, .txt, .pdf" in err


def test_days():
    assert day_in("x 2025-13-01 2025-02-30 "
                  "20250203") == "2025-02-03" and day_in("12025-01-01") == day_in("2025") == ""


@given(st.lists(st.lists(st.text("aB-. 1•\n", max_size=12), max_size=6), max_size=6))
@settings(max_examples=200, deadline=None)
def test_lines_lose_only_spaces_hyphens_and_running_lines(pages):
    lines = without_running_lines(pages)
    text = join_lines(lines)
    strip = str.maketrans("", "", " \n-")
    assert text.translate(strip) == "".join(lines).translate(strip)
