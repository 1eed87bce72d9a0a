"""Foreign text on a terminal, and on one that knows ASCII alone."""

import os
import subprocess
import sys

import pytest
from small import ROOT

from nanoprune.io.jsonl import read_jsonl

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
