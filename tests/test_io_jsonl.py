"""JSON lines: read whole, on demand and as a log; lines that are no object are named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoprune.io.jsonl import JsonLines, append_line, read_jsonl, read_log, write_jsonl


@given(st.lists(st.fixed_dictionaries({"id": st.text(max_size=9), "n": st.integers()}), max_size=30))
@settings(max_examples=40, deadline=None)
def test_lines_are_the_rows_of_the_file(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    write_jsonl(path, rows)
    lines = JsonLines(path)
    assert list(lines) == rows == read_jsonl(path) and len(lines) == len(rows)
    assert all(lines[-i - 1] == rows[-i - 1] for i in range(len(rows)))
    with pytest.raises(IndexError):
        lines[len(rows)]


def test_a_line_that_is_not_json_is_named_when_it_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "1"}\r\n{"a": "2"')
    lines = JsonLines(tmp_path / "a.jsonl")
    assert len(lines) == 2 and lines[0] == {"a": "1"}
    with pytest.raises(ValueError, match="a.jsonl, line 2: not valid JSON"):
        lines[1]
    with pytest.raises(ValueError, match="cannot read"):
        JsonLines(tmp_path / "b.jsonl")


@pytest.mark.parametrize("line, message", [
    ("", "line 2: empty line"), ("   ", "line 2: empty line"), ('{"a": "1"', "line 2: not valid JSON"),
    ("[1]", "line 2: expected a JSON object, found list"), ('{"b": 1}', "line 2: lacks a; it has b"),
    (b'{"a": "\xff"}', "line 2: not valid JSON")])
def test_wrong_lines_are_named(tmp_path, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "1"}\n' + line + b'\n{"a": "2"}\n')
    with pytest.raises(ValueError, match=f"x.jsonl, {message}"):
        read_jsonl(tmp_path / "x.jsonl", ("a",))
    with pytest.raises(ValueError, match=f"x.jsonl, {message}"):
        JsonLines(tmp_path / "x.jsonl", ("a",))[1]


def test_a_log_is_its_whole_lines(tmp_path, capsys):
    """No file is an empty log, half a last line is cut off, and a last line without its end is whole."""
    path = tmp_path / "below" / "log.jsonl"
    assert read_log(path, ("a",)) == []
    append_line(path, {"a": "ä"})
    append_line(path, {"a": "2"})
    whole = path.read_bytes()
    assert whole == '{"a": "ä"}\n{"a": "2"}\n'.encode()
    for half in (b'{"a', b'{"b": 1}', "{\"a\": \"ä".encode()[:-1]):
        path.write_bytes(whole + half)
        assert read_log(path, ("a",)) == [{"a": "ä"}, {"a": "2"}] and path.read_bytes() == whole
        assert "log.jsonl, line 3: a half line at the end is dropped" in capsys.readouterr().err
    path.write_bytes(whole[:-1])
    assert read_log(path, ("a",)) == [{"a": "ä"}, {"a": "2"}] and path.read_bytes() == whole


def test_a_log_that_is_damaged_is_left_alone(tmp_path):
    path = tmp_path / "log.jsonl"
    for line, message in ((b'{"a": ', "not valid JSON"), (b"", "empty line"),
                          (b'{"b": 1}', "lacks a; it has b")):
        path.write_bytes(b'{"a": "1"}\n' + line + b'\n{"a": "2"')
        with pytest.raises(ValueError, match=f"log.jsonl, line 2: {message}"):
            read_log(path, ("a",))
        assert path.read_bytes() == b'{"a": "1"}\n' + line + b'\n{"a": "2"'
    for call in (lambda: read_log(path / "below", ()), lambda: append_line(path / "below", {})):
        with pytest.raises(ValueError, match="cannot .*log.jsonl/below.*choose another --out"):
            call()
