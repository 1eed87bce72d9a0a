"""What several tests share: a small world, real artifacts where they are, threads that do not fight."""

import os
import sys
from pathlib import Path

import pytest
import torch
from small import World, run_main

from nanoprune.io.jsonl import write_jsonl

sys.path.insert(0, str(Path(__file__).parent))

# a process of several shares the cores
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
os.environ["TQDM_DISABLE"] = "1"


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """A dataset folder and a base; tests must not change them."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real releases, tokenizers and trained checkpoints."""
    place = os.environ.get("NANOPRUNE_REAL")
    if not place:
        pytest.skip("NANOPRUNE_REAL is not set: no real releases, tokenizers and checkpoints to check "
                    "against")
    return Path(place)


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """A function that runs eval.py with some arguments: (exit code, stdout, stderr)."""
    return lambda *arguments: run_main(monkeypatch, capsys, "eval.py", *arguments)


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """A function that runs prepare.py on articles: (exit code, stdout, stderr, the dataset folder)."""
    def run(articles: list[dict], *options) -> tuple[int, str, str, Path]:
        write_jsonl(tmp_path / "articles.jsonl", articles)
        options = options or ("--train-tokenizer", "400")
        source, folder = tmp_path / "articles.jsonl", tmp_path / "data"
        return *run_main(monkeypatch, capsys, "prepare.py", source, "--out", folder, *options), folder
    return run


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.write_line(f"{len(terminalreporter.stats.get('skipped', []))} tests were skipped; "
                                f"reasons stand above")


@pytest.fixture
def quick(monkeypatch) -> list[float]:
    """No waiting between requests; what would have been waited is kept."""
    waited = []
    monkeypatch.setattr("nanoprune.web.http.sleep", waited.append)
    return waited
