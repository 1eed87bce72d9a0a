"""Files of instruction data: every common form comes in, the others are refused by their name."""

import gzip
import json

import pytest

from nanoprune.data import instruction_files
from nanoprune.data.conversations import read_pairs
from nanoprune.data.instruction_files import read_rows

ROWS = [{"prompt": f"Größe {i}?", "response": f"Antwort, „{i}“;\nin two lines"} for i in range(12)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TABLE = '"prompt","response","task"\n' + "".join(
    '"{prompt}","{response}",\n'.format(**row) for row in ROWS)


@pytest.mark.parametrize("name, data", [
    ("p.jsonl", LINES), ("p.jsonl", LINES.rstrip()), ("p.jsonl", LINES + b"\n"),
    ("p.jsonl", LINES + b" \r\n\n"),
    ("p.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")), ("p.txt", LINES.decode().encode("utf-16")),
    ("p.json", json.dumps(ROWS, indent=1).encode()), ("p.jsonl", json.dumps(ROWS).encode()),
    ("p.jsonl.gz", gzip.compress(LINES)), ("p.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    ("p.csv", TABLE.encode()), ("P.CSV", TABLE.encode()), ("p.csv.gz", gzip.compress(TABLE.encode())),
    ("p.csv", b"\xef\xbb\xbf" + TABLE.replace('","', '";"').replace('",\n', '";\n').encode()),
    ("p.tsv", TABLE.replace('","', '"\t"').replace('",\n', '"\t\n').encode()),
])
def test_what_is_read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert [row for _, row in read_rows(tmp_path / name)] == ROWS
    assert len(read_pairs(tmp_path / name)) == 12


def test_parquet(tmp_path):
    """Nested messages, with a null for each key that only other turns have; days come as text."""
    pyarrow = pytest.importorskip("pyarrow")
    from datetime import date

    from pyarrow import parquet

    turns = [[{"role": "user", "content": f"Q{i}?", "weight": None}, {"role": "assistant", "content": "A",
                                                                      "weight": 1}]
             for i in range(12)]
    parquet.write_table(pyarrow.table({"messages": turns, "day": [date(2025, 1, 2)] * 12}),
                        tmp_path / "p.parquet")
    pairs = read_pairs(tmp_path / "p.parquet")
    assert [pair["messages"][0] for pair in pairs] == [{"role": "user", "content": f"Q{i}?"}
                                                       for i in range(12)]
    assert pairs[0]["day"] == "2025-01-02" and json.dumps(pairs)
    (tmp_path / "p.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="p.parquet is damaged or no Parquet"):
        read_rows(tmp_path / "p.parquet")


@pytest.mark.parametrize("name, data, message", [
    ("p.jsonl", b"[1]\n[2]\n", "p.jsonl: not valid JSON .*give one array of objects, or an object a line"),
    ("p.jsonl", LINES + b"[1]\n", "p.jsonl, line 13: expected a JSON object, found list"),
    ("p.json", b"[[{}]]", r"p.json, item 1: this is \[{}\]; every item must be one JSON object"),
    ("p.json", b'[{}, "x"]', 'p.json, item 2: this is "x"; every'),
    ("p.json", b"[{}, ", "p.json: not valid JSON"), ("p.json", b"[" * 99999, "p.json: not valid JSON"),
    ("p.json", rb'[{"a": "\ud800"}]', "p.json, item 1: not valid text"),
    ("p.json", json.dumps({"data": ROWS}, indent=1).encode(), "p.json: this is one JSON object over several "
                                                              "lines"),
    ("p.jsonl", LINES + b"\n" + LINES, "p.jsonl, line 13: empty line"),
    ("p.xlsx", b"PK\x03\x04\x14\x00rest", "p.xlsx is no text .* give JSONL, a JSON array, CSV or Parquet"),
    ("p.gz", gzip.compress(gzip.compress(LINES)), "p.gz is no text .perhaps an archive, or compressed twice"),
    ("p.gz", gzip.compress(LINES)[:-9], "cannot read .*p.gz"), ("p.gz", b"\x1f\x8bno", "cannot read .*p.gz"),
    ("p.csv", b"prompt,response\na,b,c\n", "p.csv, row 1: more cells than names"),
    ("p.csv", b"prompt,response\n\"a,b\n", "p.csv is no CSV in UTF-8"), ("p.csv", b"a,b\n\xff,x\n",
                                                                         "is no CSV in UTF-8"),
])
def test_what_is_refused_by_its_name(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)
    with pytest.raises(ValueError, match="cannot read .*no-such"):
        read_rows(tmp_path / "no-such")


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    """Of gzip; of Parquet a value that is stored once and stands in a million rows, and a page of zeros."""
    monkeypatch.setattr(instruction_files, "MAX_BYTES", 10_000_000)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(b" " * 10_000_001))
    with pytest.raises(ValueError, match="p.jsonl.gz holds more than 0.0 GB when it is decompressed"):
        read_rows(tmp_path / "p.jsonl.gz")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for column in (["word " * 20_000] * 1000, [" " * 10_000_001]):
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / "p.parquet")
        assert (tmp_path / "p.parquet").stat().st_size < 1_000_000
        with pytest.raises(ValueError, match="p.parquet holds more than 0.0 GB"):
            read_rows(tmp_path / "p.parquet")
