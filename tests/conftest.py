"""What several tests share: a small world, real artifacts where they are, threads that do not fight."""

import os
import sys
from pathlib import Path

import pytest
import torch
from small import World, run_main, write_little

from nanoprune import statistics
from nanoprune.device import form_products_in_float32, pick_device
from nanoprune.io.jsonl import write_jsonl

sys.path.insert(0, str(Path(__file__).parent))

# a process of several shares the cores
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
os.environ["TQDM_DISABLE"] = "1"


def pytest_addoption(parser) -> None:
    parser.addoption("--device", default="cpu", help="of test_devices*.py: cpu, cuda, cuda:N or mps")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """The device that --device names; ValueError if this machine has none."""
    return pick_device(request.config.getoption("--device"))


@pytest.fixture
def cuda(device) -> torch.device:
    """The device where it is CUDA; elsewhere the test is skipped, because nothing else has what it tests."""
    if device.type != "cuda":
        pytest.skip(f"on CUDA alone, not on {device.type}")
    return device


@pytest.fixture
def one_thread():
    """One thread for tensors that are too small to share: others would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """A dataset folder and a base; tests must not change them."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def folders(world, tmp_path_factory) -> dict[str, Path]:
    """By kind, a folder of each that nanoprune writes; tests must not change them."""
    from written import written_folders  # here: it imports half of the package

    return written_folders(tmp_path_factory.mktemp("written"), world)


@pytest.fixture(scope="session", autouse=True)
def few_documents_suffice():
    """Intervals over the few documents of the small world, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "LEAST", 3)
        yield


@pytest.fixture(autouse=True)
def products_are_torchs_again():
    """After a test in half precision on a CPU without units for it."""
    yield
    form_products_in_float32.cache_clear()


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
    """A function that runs eval.py in fp32, with short texts, with some arguments: (exit code, stdout,
    stderr).
    """
    write_little(monkeypatch)
    return lambda *arguments: run_main(monkeypatch, capsys, "eval.py", "--dtype", "float32", *arguments)


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
