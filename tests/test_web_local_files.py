"""A folder of files: pages, plain files and PDFs as they come, and those that cannot be read."""

import os

import pytest
from corpora import pdf
from hypothesis import given, settings
from hypothesis import strategies as st
from small import run_main

from nanoprune.io.jsonl import read_jsonl
from nanoprune.web.local_files import day_in, join_lines, without_running_lines


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


def test_what_cannot_be_read_is_named_and_the_rest_comes(read):
    whole = pdf([[(50, 700, "Text.")]])
    files = {"empty.txt": b" ", "scan.pdf": pdf([[]]), "cut.pdf": whole[: len(whole) // 3],
             "no.pdf": b"plain",
             "good.txt": b"Good.", "deep.html": b"<div>" * 10_000}
    code, out, err, found = read(files)
    assert code == 0 and list(found) == ["good.txt"] and "failed         5" in out and "Traceback" not in err
    assert out.count("has no text") >= 2 and out.count("not a PDF that can be read") == 2


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
