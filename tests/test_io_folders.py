"""Output folders: replaced whole or not at all, put right after a kill, and only where they are ours."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small import ROOT

from nanoprune.data.dataset import Dataset
from nanoprune.io import folders
from nanoprune.io.folders import LIST, check_output, claim, recover, replace_folder, replace_output
from nanoprune.io.hub import locate

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP)
SWAP = """
import os, shutil, sys
from pathlib import Path
from nanoprune.io.folders import replace_folder

calls, at = [], int(sys.argv[2])

def mortal(function):
    def call(*arguments, **options):
        calls.append(function)
        if len(calls) == at:
            os._exit(9)
        return function(*arguments, **options)
    return call

os.replace, os.fsync, shutil.rmtree = map(mortal, (os.replace, os.fsync, shutil.rmtree))
with replace_folder(sys.argv[1]) as folder:
    (folder / "a").write_text("new")
    (folder / "b").write_text("new")
print(len(calls))
"""
WAIT = """
import sys
from nanoprune.io.folders import replace_folder
with replace_folder(sys.argv[1]) as folder:
    (folder / "a").write_text("living")
    print(flush=True)
    sys.stdin.read()
"""


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != LIST}


def python(code: str, *arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, **options)


def without_locks(number: int):
    def refuse(*_) -> None:
        raise OSError(number, os.strerror(number))
    return refuse


# ---------------------------------------------------------------- replaced whole
def test_a_folder_whose_replacement_fails_comes_back(tmp_path, monkeypatch):
    write(tmp_path / "d", a="old")
    replace = os.replace

    def fail_at_the_new(source, target):
        if source.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_new)
    with pytest.raises(ValueError, match="No space left.*unharmed"), replace_folder(tmp_path / "d") as beside:
        (beside / "a").write_text("new")
    assert read(tmp_path / "d") == {"a": "old"} and os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_killed_process_left_is_no_part_of_the_folder(tmp_path, monkeypatch, locks):
    """Process numbers come again."""
    if not locks:
        monkeypatch.setattr(fcntl, "flock", without_locks(errno.ENOLCK))
    for number in (os.getpid(), 4194305):
        write(tmp_path / f".out.{number}.new", old="old")
    with replace_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("new")
    assert read(tmp_path / "out") == {"new": "new"} and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("before", [{}, {"a": "old"}])
def test_a_kill_at_each_step_leaves_the_old_folder_or_the_new_one(tmp_path, before):
    """And nothing else, after the next start, as a reader and as a writer."""
    steps = int(python(SWAP, tmp_path / "counted", -1).communicate()[0])
    for at in range(1, steps + 3):
        folder = tmp_path / str(at) / "out"
        folder.parent.mkdir()
        if before:
            write(folder, **before)
        process = python(SWAP, folder, at)
        process.communicate()
        assert process.returncode in (0, 9)
        recover(folder)
        assert (read(folder) if folder.exists() else {}) in (before, {"a": "new", "b": "new"}), at
        assert os.listdir(folder.parent) in ([], ["out"])
        with replace_folder(folder) as beside:
            (beside / "a").write_text("newer")
        assert read(folder) == {"a": "newer"} and os.listdir(folder.parent) == ["out"]


@pytest.mark.parametrize("find", [locate, lambda folder: Dataset(folder).folder])
def test_whoever_reads_a_folder_puts_it_right(world, tmp_path, find):
    for state in ("old", "new"):  # killed between the two renames
        shutil.copytree(world.data, tmp_path / f".data.4194305.{state}")
    write(tmp_path / ".data.4194306.new", half="written")
    assert find(tmp_path / "data") == tmp_path / "data" and os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("locks", [True, False])
def test_a_process_that_lives_is_left_alone(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(fcntl, "flock", without_locks(errno.ENOLCK))
    process = python(WAIT, tmp_path / "out", stdin=subprocess.PIPE)
    process.stdout.readline()
    with replace_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("ours")
    assert read(tmp_path / "out") == {"a": "ours"} and len(os.listdir(tmp_path)) == 2
    process.communicate("")
    assert read(tmp_path / "out") == {"a": "living"} and os.listdir(tmp_path) == ["out"]


def test_a_process_that_was_killed_is_cleared_away(tmp_path):
    process = python(WAIT, tmp_path / "out", stdin=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(os.listdir(tmp_path)) == 1
    check_output(tmp_path / "out", "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", without_locks(number))
    for state in ("old", "new"):
        write(tmp_path / f".out.4194305.{state}", a=state)
    recover(tmp_path / "out")
    assert read(tmp_path / "out") == {"a": "new"} and os.listdir(tmp_path) == ["out"]


def test_names_that_only_look_alike_are_left_alone(tmp_path):
    names = [".out.new", ".out.x.old", "out.1.old", ".other.1.new", ".out.1.new.txt", ".outs.1.old"]
    for name in names:
        write(tmp_path / name, a="mine")
    with replace_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("new")
    assert all(read(tmp_path / name) == {"a": "mine"} for name in names)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(tmp_path, there):
    if there:
        write(tmp_path / "disk" / "d", a="old")
    link = tmp_path / "link"
    link.symlink_to(Path("disk") / "d")
    with replace_folder(link) as folder:
        (folder / "a").write_text("new")
    assert link.is_symlink() and read(tmp_path / "disk" / "d") == {"a": "new"}
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]


# ---------------------------------------------------------------- ours
def make(folder: Path, kind: str = "model", inputs=(), **files: str) -> None:
    with replace_output(folder, kind, inputs) as beside:
        write(beside, **files)


def test_what_was_written_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()  # empty
    for text in ("1", "2"):
        make(tmp_path / "out", config=text)
        assert read(tmp_path / "out") == {"config": text}
    rows = [json.loads(line) for line in (tmp_path / "out" / LIST).read_text().splitlines()]
    assert [(row["file"], row["as"]) for row in rows] == [("config", "model")]


def put_file(out: Path) -> None:
    write(out, adapter="of another program")


def put_folder(out: Path) -> None:
    (out / "notes").mkdir()


def put_link(out: Path) -> None:
    (out / "link").symlink_to("elsewhere")


def put_hidden(out: Path) -> None:
    write(out / ".git", config="mine")


def change_file(out: Path) -> None:
    write(out, config="mine")


def lose_list(out: Path) -> None:
    (out / LIST).unlink()


@pytest.mark.parametrize("change", [put_file, put_folder, put_link, put_hidden, change_file, lose_list])
def test_what_is_not_ours_is_not_replaced(tmp_path, change):
    make(tmp_path / "out", config="ours")
    change(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="holds what was not written there as a model.* Write to another"):
        make(tmp_path / "out", config="new")
    assert sorted(tmp_path.rglob("*")) == before


def test_another_kind_is_not_replaced(tmp_path):
    make(tmp_path / "out", "dataset", meta="ours")
    with pytest.raises(ValueError, match=r"not written there as a model.* \(meta\)"):
        make(tmp_path / "out", meta="ours")
    assert read(tmp_path / "out") == {"meta": "ours"}


def test_what_comes_in_meanwhile_is_not_lost(tmp_path):
    make(tmp_path / "out", config="ours")
    with pytest.raises(ValueError, match=r"\(notes\)"), replace_output(tmp_path / "out", "model"):
        write(tmp_path / "out", notes="mine")
    assert read(tmp_path / "out") == {"config": "ours", "notes": "mine"}


@pytest.mark.parametrize("place", ["out", "out/config", "link", "link/config", "link_to_file"])
def test_an_input_is_not_replaced(tmp_path, place):
    make(tmp_path / "out", config="ours")
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "link_to_file").symlink_to(Path("out") / "config")
    for out in ("out", "link"):
        with pytest.raises(ValueError, match="would be replaced, and .* lies in it"):
            make(tmp_path / out, inputs=[None, tmp_path / place], config="new")
    assert read(tmp_path / "out") == {"config": "ours"}


def test_the_present_folder_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for out in (".", "..", "../below", tmp_path):
        with pytest.raises(ValueError, match="lies in it"):
            make(Path(out), config="new")
    assert os.listdir(tmp_path) == ["below"]


@pytest.mark.parametrize("find", [locate, recover, lambda out: make(Path(out), config="new")])
def test_names_that_the_disk_refuses(find):
    with pytest.raises(ValueError, match="cannot use .*File name too long"):
        find("n" * 300)


def test_a_folder_is_hashed_once(tmp_path, monkeypatch):
    """Before the work and after it; a file that changed meanwhile is hashed again."""
    make(tmp_path / "out", config="ours")
    hashed, file_hash = [], folders.file_hash
    monkeypatch.setattr(folders, "file_hash", lambda path: hashed.append(path) or file_hash(path))
    check_output(tmp_path / "out", "model")
    with replace_output(tmp_path / "out", "model") as beside:
        write(beside, config="new")
    assert hashed == [tmp_path / "out" / "config", beside / "config"]
    check_output(tmp_path / "out", "model")
    change_file(tmp_path / "out")
    with pytest.raises(ValueError, match="changed since"):
        check_output(tmp_path / "out", "model")


def test_a_mount_point_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.os.path, "ismount", lambda path: True)
    with pytest.raises(ValueError, match="is a mount point.*; write to a folder in it"):
        check_output(tmp_path / "out", "model")


def test_a_file_is_ours_if_it_was_claimed(tmp_path):
    figure = tmp_path / "below" / "figure.png"
    for _ in range(2):
        claim("figure", figure)
        figure.write_text("ours")
    with pytest.raises(ValueError, match="figure.png would be replaced, and was not written there as a text"):
        claim("text", figure)
    other = write(tmp_path, mine="mine") / "mine"
    with pytest.raises(ValueError, match="mine would be replaced"):
        claim("figure", tmp_path / "new", other)
    assert not (tmp_path / LIST).exists() and other.read_text() == "mine"


def test_a_file_of_a_folder_that_was_written_whole_is_not_claimed(tmp_path):
    make(tmp_path / "out", config="ours")
    with pytest.raises(ValueError, match="config would be replaced"):
        claim("model", tmp_path / "out" / "config")


def test_an_input_is_not_claimed(tmp_path):
    claim("result", tmp_path / "samples")
    write(tmp_path, samples="ours")
    (tmp_path / "link").symlink_to("samples")
    for place in ("samples", "link"):
        with pytest.raises(ValueError, match="is read by this command"):
            claim("result", tmp_path / "samples", inputs=[tmp_path / place])


def test_a_figure_of_ours_is_drawn_again(tmp_path):
    """Those of results and studies, too, but no figure replaces a text."""
    for kind, name in (("result", "curves.png"), ("study", "study.png"), ("text", "samples.png")):
        claim(kind, tmp_path / name)
        write(tmp_path, **{name: "drawn"})
    claim("figure", tmp_path / "curves.png", tmp_path / "study.png")
    with pytest.raises(ValueError, match="samples.png would be replaced"):
        claim("figure", tmp_path / "samples.png")
