"""The archive: every answer once, found again by its URL, and damage noticed."""

import pytest

from nanoprune.web.archive import Archive


@pytest.fixture
def archive(tmp_path) -> Archive:
    archive = Archive(tmp_path / "a.raw")
    archive.add("http://x/1", "page", b"first", version="2025-12-05", etag="e")
    archive.add("http://x/2", "feed", b"second")
    return archive


def test_answers_come_back_in_order(archive):
    archive.add("http://x/2", "feed", b"second")  # the same again: no line
    archive.add("http://x/2", "feed", b"first")  # a body that is stored already: no file
    again = Archive(archive.folder)
    assert [(answer["url"], again.read(answer)) for answer in again.answers] == [
        ("http://x/1", b"first"), ("http://x/2", b"second"), ("http://x/2", b"first")]
    assert again.find("http://x/2")[1] == b"first" and again.find("http://x/1")[0]["etag"] == "e"
    assert again.find("http://x/3") == ({}, None)
    assert len(list(archive.folder.rglob("*.gz"))) == 2


def test_a_page_has_a_version(archive):
    assert archive.has_page("http://x/1", "2025-12-05")
    assert not archive.has_page("http://x/1", "2025-12-06") and not archive.has_page("http://x/3", "")
    archive.add("http://x/2", "feed", b"a feed is no page", version="1")
    assert not archive.has_page("http://x/2", "1")


@pytest.mark.parametrize("damage, message",
                         [(b"not gzip", "cannot be read"), (None, "cannot be read"),
                          ("swap", "its checksum is wrong")])
def test_a_damaged_body_is_noticed_and_written_anew(archive, damage, message):
    first, second = archive.answers
    path = archive._path(first["sha256"])
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(archive._path(second["sha256"]).read_bytes() if damage == "swap" else damage)
    with pytest.raises(ValueError, match=f"{path.name} .of http://x/1.*{message}"):
        archive.read(first)
    assert archive.find("http://x/1") == ({}, None)
    archive.add("http://x/1", "page", b"first", version="2025-12-05", etag="e")
    assert archive.find("http://x/1") == (first, b"first") and len(Archive(archive.folder).answers) == 2
