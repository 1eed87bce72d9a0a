"""Foreign text on a terminal, and on one that knows ASCII alone."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from small import ROOT

from nanoprune.io.jsonl import read_jsonl
from nanoprune.printing import print_growing

HOSTILE = "Plant\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08 \N{LATIN SMALL LETTER U WITH DIAERESIS}\udcff\n\tnext"


def run(code: str, encoding: str) -> tuple[int, bytes, bytes]:
    code = f"from nanoprune import command_line\n{code}\ncommand_line.run(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": encoding})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("encoding, letter", [
    ("ascii", b"\\xfc"), ("utf-8", b"\xc3\xbc"), ("latin-1", b"\xfc")])
def test_control_characters_are_shown_and_other_letters_kept(encoding, letter):
    code = f"def main():\n    print({HOSTILE!r})\n    raise ValueError({HOSTILE!r})"
    status, out, err = run(code, encoding)
    shown = rb"Plant\x1b]0;owned\x07\x1b[2J\x9b31m\x0d\x08 " + letter + b"\\udcff\n\tnext\n"
    assert (status, out, err) == (2, shown, b"-c: " + shown)


def test_a_bar_still_moves():
    code = """def main():
    from tqdm import tqdm
    for _ in tqdm(range(3), "bar\\x1b[2J", leave=False, disable=False):
        pass
    for place in (0, 1):
        tqdm(range(3), position=place, disable=False).close()"""
    status, _, err = run(code, "utf-8")
    assert status == 0 and err.startswith(b"\rbar\\x1b[2J:") and b"\x1b[A" in err and b"\x1b[2J" not in err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_in_no_charset(tmp_path, encoding):
    folder = os.fsencode(tmp_path) + b"/press\xff"
    os.mkdir(folder)
    for name, text in ((b"a\xe4\x1b[2J.txt", "New plant\n\nIt opens."), (b"\xff.pdf", "none")):
        with open(folder + b"/" + name, "w") as file:
            file.write(text)
    arguments = [sys.executable, b"scrape.py", folder, b"--out", folder + b"/out\xfe.jsonl"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr and b"failed         1" in done.stdout
    [article] = read_jsonl(os.fsdecode(folder + b"/out\xfe.jsonl"))
    assert article["title"] == "New plant"


def grow(capsys, width: int, *texts: list[str]) -> list[str]:
    """What is printed from step to step, each of which adds a piece to every text."""
    growing = [SimpleNamespace(unshown="", ended=False) for _ in texts]
    steps, printed = print_growing("title", growing, width), []
    for pieces in zip(*texts, strict=True):
        for text, piece in zip(growing, pieces, strict=True):
            text.unshown += piece or ""
            text.ended = text.ended or piece is None
        next(steps, None)
        printed.append(capsys.readouterr().out)
    assert next(steps, "end") == "end"
    return printed


def test_one_text_is_printed_as_it_comes(capsys):
    assert grow(capsys, 40, ["One", " two", " three\n", None]) == ["title\nOne", " two", " three\n", ""]


def test_columns_are_printed_by_lines_that_all_have(capsys):
    words = "the plant in town builds many cars for "
    printed = grow(capsys, 63, [words, "people\n", None, None], [words, words, "\x1b[2J\n", None])
    assert printed == [
        "title\nthe plant in town builds many    the plant in town builds many\n",
        "cars for people                  cars for the plant in town\n",
        "                                 builds many cars for \\x1b[2J\n", ""]


def test_a_column_waits_for_those_behind(capsys):
    assert grow(capsys, 63, ["a\nb\n", "c\n", None], ["", "d\n", None]) == [
        "title\n", "a".ljust(33) + "d\n", "b\nc\n"]


def test_wide_characters_keep_columns_straight(capsys):
    printed = "".join(grow(capsys, 66, ["東京" * 10 + "e\u0301\n", None], ["x" * 70 + "\n", None]))
    assert printed.splitlines() == ["title", "東京" * 7 + "東" + " " * 4 + "x" * 31,
                                    "京" + "東京" * 2 + "e\u0301" + " " * 23 + "x" * 31, " " * 34 + "x" * 8]


def test_texts_stand_one_below_the_other_where_columns_would_be_narrow(capsys):
    assert grow(capsys, 62, ["a ", "b\n", None, None], ["c ", "d ", "e\n", None]) == [
        "title\na ", "b\n", "c d e\n", ""]
