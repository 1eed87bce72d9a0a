"""The Makefile's comparison for a scheduler: one process at a time, with a log and an exit code of its own.

    python -m nanoprune.compare comparison BASE=Qwen/Qwen3-0.6B-Base ARTICLES=articles.jsonl
    python -m nanoprune.compare scrape comparison BASE=Qwen/Qwen3-0.6B-Base

These are `make compare` and `make all`; what follows goes to make as it is. Exit code: 0 done or nothing to
do, 2 a mistake, 3 stopped, or another process is at work: the same command goes on later (make itself knows
2 alone). What is printed stands in results/compare.log, too.
"""

import os
import re
import signal
import subprocess
import sys
import time

from nanoprune import command_line
from nanoprune.io.files import make_folder
from nanoprune.io.folders import lock

STOPPED = 3


def main() -> int:
    words, folder = sys.argv[1:], make_folder("results")
    if not words or words[0].startswith("-"):
        raise ValueError(f"say what to make\n\n{__doc__}")
    with open(folder / "compare.lock", "a") as holder, open(folder / "compare.log", "a") as log:
        try:
            lock(holder)
        except BlockingIOError:
            print(f"another process is at work, see {log.name}; run this again later", file=sys.stderr)
            return STOPPED
        print(time.strftime("%Y-%m-%d %H:%M:%S"), *words, file=log, flush=True)
        for name in ("MAKEFLAGS", "MAKELEVEL"):  # of a make that started this
            os.environ.pop(name, None)
        os.environ["LANGUAGE"] = "en"  # of make's messages, which are read below
        process = subprocess.Popen(
            ["make", f"PY={sys.executable}", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", pass_fds=[holder.fileno()],  # the lock lasts as long as make does
            start_new_session=True)  # what stops this stops make once, which stops a training once: it saves
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: process.terminate())
        stopped = False
        for line in process.stdout:
            stopped |= bool(re.match(r"make.*: \*\*\* .* Error (3|130)$", line))
            for stream in (sys.stdout, log):
                print(line, end="", file=stream, flush=True)
        code = process.wait()
    return STOPPED if stopped or code < 0 else code


if __name__ == "__main__":
    command_line.run(main)
