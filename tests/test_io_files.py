"""Files: damaged ones are named, writing is all or nothing, and nothing here needs torch."""

import os
import subprocess
import sys

import pytest
from small import ROOT

from nanoprune.io.files import (
    finite_or_none,
    make_folder,
    read_json,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)


@pytest.mark.parametrize("content, message",
                         [("{", "not valid JSON"), ("[1]", "expected a JSON object, found list")])
def test_damaged_json(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "config.json")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "notes.json"
    write_json(path, {"old": True})
    def full(_) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: write_json(path, {"old": False}), lambda: write_bytes(path, b"new")):
        with pytest.raises(ValueError, match="No space left on device.*What was there before is unharmed"):
            write()
    assert read_json(path) == {"old": True} and os.listdir(tmp_path) == ["notes.json"]


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="is a folder or a device; choose another place"):
            write_bytes(place, b"text")
    assert (tmp_path / "pipe").is_fifo()


def test_unwritable_places_are_named(tmp_path):
    write_text(tmp_path / "file", "")
    with pytest.raises(ValueError, match="cannot make the folder .*file/below"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(ValueError, match="cannot make the folder /dev/null/below"):
        make_folder("/dev/null/below")


def test_a_table_has_the_columns_of_all_rows(tmp_path):
    write_csv(tmp_path / "a.csv", [{"a": 1}, {"b": "x,y", "a": 2}])
    assert (tmp_path / "a.csv").read_text() == 'a,b\n1,\n2,"x,y"\n'
    write_csv(tmp_path / "a.csv", [], ["a", "b"])
    assert (tmp_path / "a.csv").read_text() == "a,b\n"


def test_json_has_no_word_for_numbers_that_are_none():
    content = {"a": [1.5, float("nan")], "b": (float("inf"), "x"), "c": {"d": float("-inf")}}
    assert finite_or_none(content) == {"a": [1.5, None], "b": [None, "x"], "c": {"d": None}}


@pytest.mark.parametrize("script, unused", [("scrape", "torch"), ("plot", "torch"), ("train", "matplotlib"),
                                            ("sample", "matplotlib"), ("prune", "matplotlib.pyplot")])
def test_a_script_imports_nothing_that_it_does_not_use(script, unused):
    """Whoever collects texts on a small machine installs no torch."""
    code = f"import sys, {script}, nanoprune.io.jsonl; sys.exit({unused!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_file_is_written_through_a_link(tmp_path):
    link = tmp_path / "link.csv"
    link.symlink_to("table.csv")
    for text in ("1", "2"):
        write_text(link, text)
        assert link.is_symlink() and (tmp_path / "table.csv").read_text() == text
