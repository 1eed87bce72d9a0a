"""Output folders and files: ours by a list of what was written, replaced whole, put right after a kill.

Each folder that is written to holds such a list, one JSON line a file. A folder is replaced only if it holds
nothing but what its list names, unchanged, and nothing that the command reads; a file only if its folder's
list names it. What a killed process left beside a folder is put right when the folder is next used.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from nanoprune.io.files import UNHARMED, file_hash, make_folder, naming_failures, write_text
from nanoprune.io.jsonl import append_line, read_log, write_jsonl

LIST = ".written_by_nanoprune.jsonl"
DRAW = ("result", "study")  # kinds of folders whose figures plot.py may draw again


# ---------------------------------------------------------------- replacing a folder
def lock(descriptor) -> bool:
    """Lock an open file or folder until it is closed; False where the file system has no locks.

    BlockingIOError if another process holds the lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # ENOSYS, ENOLCK, EBADF, EOPNOTSUPP: Lustre, NFS
        return False
    return True


def is_locked(path: Path) -> bool | None:
    """True if a process holds the lock of a file or folder; None where the file system has no locks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return False if lock(descriptor) else None
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder that replaces `folder` when the `with` block ends; after an error the old one stays.

    Of a link its target is replaced.
    """
    target = Path(os.path.realpath(folder))
    parent = make_folder(target.parent)
    recover(target)
    beside, before = (parent / f".{target.name}.{os.getpid()}.{state}" for state in ("new", "old"))
    shutil.rmtree(beside, ignore_errors=True)  # a killed process may have had the same number
    descriptor = os.open(make_folder(beside), os.O_RDONLY)
    try:
        with naming_failures(f"write {folder}", UNHARMED):
            lock(descriptor)  # it tells other processes that this one lives
            yield beside
            for path in filter(Path.is_file, beside.rglob("*")):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            if target.exists():
                os.replace(target, before)
            os.replace(beside, target)
    finally:
        os.close(descriptor)
        if before.exists() and not target.exists():
            os.replace(before, target)
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def recover(folder: str | Path) -> None:
    """Finish what killed processes began to replace, and remove what they left; living ones are let be."""
    target = Path(os.path.realpath(folder))
    name = re.compile(rf"\.{re.escape(target.name)}\.\d+\.(new|old)")
    with naming_failures(f"use {folder}"):
        target.exists()  # no name is too long
    with suppress(OSError):  # whoever may not write there can still read
        for path in sorted(path for path in target.parent.iterdir() if name.fullmatch(path.name)):
            new, old = path.with_suffix(".new"), path.with_suffix(".old")
            if new.exists() and lives(new):
                continue
            if old.exists() and not target.exists():  # killed between two renames: the new one is complete
                os.replace(path, target)
            else:
                shutil.rmtree(path)


def lives(beside: Path) -> bool:
    """True if the process that made this folder has not ended."""
    locked = is_locked(beside)
    if locked is None:
        with suppress(ProcessLookupError):
            os.kill(int(beside.suffixes[-2][1:]), 0)  # is there a process of this number?
            return True
    return bool(locked)


# ---------------------------------------------------------------- what is ours
@contextmanager
def replace_output(folder: Path, kind: str, inputs: Iterable[str | Path | None] = ()) -> Iterator[Path]:
    """As `replace_folder`, for a folder that a user names: `check_output` decides, a list is written."""
    check_output(folder, kind, inputs)
    with replace_folder(folder) as beside:
        yield beside
        write_jsonl(beside / LIST, contents(beside, kind))
        check_output(folder, kind)  # something may have been put there meanwhile


def check_output(folder: Path, kind: str, inputs: Iterable[str | Path | None] = ()) -> None:
    """ValueError unless the folder may be replaced: missing, empty, or written as this kind and unchanged.

    `inputs`: what the command reads, or writes beside; it must not lie in the folder.
    """
    recover(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another place to write to")
    if os.path.ismount(folder):
        raise ValueError(f"{folder} is a mount point, which cannot be replaced; write to a folder in it")
    for place in (*inputs, Path.cwd()):
        if place and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder)):
            raise ValueError(f"{folder} would be replaced, and {place} lies in it; write to another folder")
    make_folder(folder.parent)
    written = read_log(folder / LIST, ("file",))
    with naming_failures(f"read {folder}"):
        others = [row["file"] for row in contents(folder, kind) if row not in written]
    if others:
        raise ValueError(
            f"{folder} holds what was not written there as a {kind}, or was changed since "
            f"({', '.join(others[:3])}). Write to another folder or, if nothing in it is needed, remove it "
            "(folders of earlier versions have no list of what was written)")


def contents(folder: Path, kind: str) -> Iterator[dict]:
    """The lines of a folder's list: all that is in it, of files with their hash."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name != LIST:
            status = path.stat(follow_symlinks=False)
            stamp = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            yield {"file": name, "as": kind, "sha256": hash_once(path, stamp) if path.is_file() else None}


@cache  # a folder is looked at before the work and after it
def hash_once(path: Path, stamp: tuple) -> str:
    """SHA-256 of a file; `stamp` changes whenever the file does."""
    return file_hash(path)


def replace_text(path: Path, text: str, kind: str) -> bool:
    """Write a text file and put it on its folder's list; False where another is there, or was changed."""
    index, row = path.with_name(LIST), {"file": path.name, "as": kind}
    if path.exists() and row | {"sha256": file_hash(path)} not in read_log(index, ("file",)):
        return False
    write_text(path, text)
    append_line(index, row | {"sha256": file_hash(path)})
    return True


def claim(kind: str, *paths: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Put files that will be written into their folders' lists.

    ValueError if one is there and on no list, or is one of the inputs.
    """
    read = [os.path.realpath(path) for path in inputs if path]
    kinds = (kind, *DRAW) if kind == "figure" else (kind,)
    new = []
    for path in map(Path, map(os.path.realpath, paths)):
        make_folder(path.parent)
        listed = read_log(path.with_name(LIST), ("file",))
        is_new = not any({"file": path.name, "as": name} in listed for name in kinds)
        if str(path) in read or (is_new and path.exists()):
            raise ValueError(f"{path} would be replaced, and was not written there as a {kind}, or is read "
                             "by this command. Write to another place, or move it away (files of earlier "
                             "versions are on no list of what was written)")
        new += [path] if is_new else []
    for path in new:
        append_line(path.with_name(LIST), {"file": path.name, "as": kind})
