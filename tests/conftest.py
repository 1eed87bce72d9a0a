"""What several tests share: a small world, real artifacts where they are, threads that do not fight."""

import os
import sys
from pathlib import Path

import pytest
import torch
from small import World

sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # a process of several shares the cores
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
        pytest.skip("NANOPRUNE_REAL is not set: no real releases, tokenizers and checkpoints to check against")
    return Path(place)


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.write_line(f"{len(terminalreporter.stats.get('skipped', []))} tests were skipped; reasons stand above")


@pytest.fixture
def quick(monkeypatch) -> list[float]:
    """No waiting between requests; what would have been waited is kept."""
    waited = []
    monkeypatch.setattr("nanoprune.web.http.sleep", waited.append)
    return waited
