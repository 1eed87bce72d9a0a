"""Progress of long work is seen on a terminal, in a file and in a pipe."""

import sys

from nanoprune import progress as progress_module
from nanoprune.progress import progress


def test_a_pipe_gets_a_line_every_half_minute_with_the_time_left(monkeypatch, capsys):
    clock = iter(range(0, 1000, 10))  # each item takes ten seconds
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    assert list(progress(range(8), "scoring")) == list(range(8))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["scoring: 2 of 8, 90 s left", "scoring: 5 of 8, 36 s left"]


def test_what_does_not_know_its_length_tells_how_many_are_done(monkeypatch, capsys):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    assert list(progress(iter("abcd"), "files")) == list("abcd")
    assert capsys.readouterr().err.splitlines() == ["files: 1", "files: 3"]


def test_a_first_item_that_takes_long_has_no_time_left_yet(monkeypatch, capsys):
    clock = iter(range(0, 1000, 40))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    assert list(progress(iter("ab"), "cleaning", 2)) == list("ab")
    assert capsys.readouterr().err.splitlines() == ["cleaning: 1 of 2, 80 s left"]


def test_short_work_prints_nothing_and_a_terminal_has_a_bar(monkeypatch, capsys):
    assert list(progress([1, 2], "short")) == [1, 2] and capsys.readouterr().err == ""
    bars = []
    monkeypatch.setattr(progress_module, "tqdm",
                        lambda items, label, *_, **__: (bars.append(label), items)[1])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress([1, 2], "bar")) == [1, 2] and bars == ["bar"]
