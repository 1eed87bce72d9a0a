"""nanoprune/columns.py: texts side by side, printed as they grow."""

from types import SimpleNamespace

from nanoprune.columns import print_growing


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


def test_texts_stand_one_below_the_other_where_columns_would_be_narrow(capsys):
    assert grow(capsys, 62, ["a ", "b\n", None, None], ["c ", "d ", "e\n", None]) == [
        "title\na ", "b\n", "c d e\n", ""]
