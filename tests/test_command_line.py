"""The guard around every script: exit codes, and streams that nobody reads."""

import errno
import io
import os
import subprocess
import sys

import pytest
from small import ROOT, read_rows

from nanoprune import command_line
from nanoprune.command_line import Unread

CHATTY = """
import os, sys
from nanoprune import command_line

def main():
    for number in range(10_000):
        print("stdout", number, flush=number % 2)
        print("stderr", number, file=sys.stderr)
    os.write(int(sys.argv[1]), b"finished")

command_line.run(main)
"""


def chatty(redirection: str) -> tuple[int, bytes]:
    """The exit code of the script under a shell's redirection, and what it says at its end."""
    reading, writing = os.pipe()
    command = f'"$0" -c "$1" {writing} {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command, sys.executable, CHATTY], cwd=ROOT, pass_fds=[writing],
                          capture_output=True)
    os.close(writing)
    with open(reading, "rb") as file:
        return done.returncode, file.read()


@pytest.mark.parametrize("redirection", [
    "| head -1", "2>&1 | head -1", "2>&1 >/dev/null | head -1", ">&-", "2>&-", ">&- 2>&-", "2>&1 | true"])
def test_a_stream_that_nobody_reads_ends_nothing(redirection):
    assert chatty(redirection) == (0, b"finished")


def test_a_full_disk_is_no_reader_that_has_gone():
    code, said = chatty(">/dev/full")
    assert code != 0 and said == b""


def test_what_is_read_is_all_there():
    done = subprocess.run([sys.executable, "-c", CHATTY, "1"], cwd=ROOT, capture_output=True, text=True)
    for name, text in (("stdout", done.stdout.replace("finished", "")), ("stderr", done.stderr)):
        assert text == "".join(f"{name} {number}\n" for number in range(10_000))
    assert "finished" in done.stdout


def test_what_the_system_refuses_is_said_without_a_traceback(monkeypatch, capsys):
    def main() -> None:
        os.listdir("n" * 10**5)

    monkeypatch.setattr(sys, "argv", ["it.py"])
    with pytest.raises(SystemExit, match="2"):
        command_line.run(main)
    said = capsys.readouterr().err
    assert said.startswith("it.py: [Errno 36] File name too long: 'nnn") and len(said) < 10_100


@pytest.mark.parametrize("number, ends", [(errno.EPIPE, False), (errno.EIO, False), (errno.ENOSPC, True)])
def test_errors_of_a_stream(tmp_path, monkeypatch, number, ends):
    class Broken(io.FileIO):
        def write(self, data) -> int:
            raise OSError(number, os.strerror(number))

    class BrokenUnread(Unread, Broken):
        pass

    with BrokenUnread(tmp_path / "file", "w") as stream:
        if ends:
            with pytest.raises(OSError, match=os.strerror(number)):
                stream.write(b"text")
        else:
            assert stream.write(memoryview(b"text")) == 4


def test_a_run_whose_reader_has_gone_trains_to_its_end(world, tmp_path):
    path = world.config_file(tmp_path / "c.py", max_steps=6, log_every=1, eval_every=1)
    command = f'"$0" -u train.py {path} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command, sys.executable], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    assert len(read_rows(tmp_path / "runs" / "run" / "train.csv")) == 6
    assert (tmp_path / "runs" / "run" / "model" / "model.safetensors").is_file()
