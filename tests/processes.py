"""Scripts in processes of their own, forked from one that has loaded torch, so that they begin at once."""

import atexit
import os
import runpy
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess

from small import ROOT
from torch.distributed import TCPStore

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "train", "prune", "eval", "torch._dynamo", "torch.distributed.fsdp", "nanoprune.evaluation.results_files",
    "rouge_score.rouge_scorer"])


def child(words: list[str], before: str, environment: dict[str, str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.update(environment)
    sys.argv = words
    try:
        exec(before, {})
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


class Script:
    """A script of this project in a process of its own; `before` is code that runs ahead of it."""

    def __init__(self, name: str, *arguments, before: str = "", **environment):
        self.words = [str(ROOT / name), *map(str, arguments)]
        self.out, self.err = (Path(tempfile.mkstemp(prefix="nanoprune-test-")[1]) for _ in range(2))
        variables = {name: str(value) for name, value in environment.items()}
        self.process = CONTEXT.Process(target=child, args=(self.words, before, variables, self.out, self.err),
                                       daemon=True)  # one that hangs ends with the tests
        self.process.start()

    def wait_for(self, words: str) -> None:
        """Wait until it has printed these words, or has ended."""
        while self.process.is_alive() and words not in self.out.read_text():
            time.sleep(0.02)

    def end(self, seconds: float = 120) -> CompletedProcess:
        """Wait for its end."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"{self.words} takes more than {seconds} s"
        texts = self.out.read_text(), self.err.read_text()
        self.out.unlink(), self.err.unlink()
        return CompletedProcess(self.words, self.process.exitcode, *texts)


def run_script(name: str, *arguments, **options) -> CompletedProcess:
    return Script(name, *arguments, **options).end()


def run_ranks(number: int, name: str, *arguments) -> CompletedProcess:
    """A script in so many processes, which find each other as torchrun's do; the output is that of rank 0."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True,
              "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": 0, "WORLD_SIZE": number,
              "LOCAL_WORLD_SIZE": number, "OMP_NUM_THREADS": 1}
    scripts = [Script(name, *arguments, RANK=rank, LOCAL_RANK=rank, **shared) for rank in range(number)]
    done = [script.end() for script in scripts]
    code = next((one.returncode for one in done if one.returncode), 0)
    return CompletedProcess(done[0].args, code, done[0].stdout, "".join(one.stderr for one in done))
