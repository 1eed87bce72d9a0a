"""Whole runs on the device of --device: training, resuming, memory, scoring and evaluation, beside the CPU.

    python -m pytest tests/test_devices_runs.py --device cuda
"""

import shutil
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from small import TIMING, World, read_rows, run_main, write_little

from benchmarks import older_torch
from model import Decoder
from nanoprune import distributed
from nanoprune.config import Config
from nanoprune.data.dataset import Dataset
from nanoprune.distributed import Ranks
from train import train

pytestmark = pytest.mark.usefixtures("one_thread")
older_torch.bridge()
FINE = {"lr": 1e-3, "max_steps": 6, "pair_repeats": 1}


@pytest.fixture(autouse=True)
def known_rate(monkeypatch) -> None:
    """A rate of products that is not measured for each run."""
    monkeypatch.setattr("train.matmul_rate", lambda *_: 1e12)


def curve(config: Config, column: str = "loss", log: str = "train") -> list[float]:
    return [float(row[column]) for row in read_rows(config.folder / f"{log}.csv")]


def learns(config: Config) -> bool:
    """True if the validation loss fell."""
    first, *_, last = curve(config, "nll", "eval")
    return last < first


def run(world: World, folder, place, **settings) -> Config:
    """A finished run on a device, in fp32 unless the settings say otherwise."""
    name = f"run-{len(list(folder.glob('run-*')))}"
    config = world.config(folder, **FINE | {"device": str(place), "name": name} | settings)
    assert train(config)
    return config


# ---------------------------------------------------------------- training
KINDS = {"plain": {}, "accumulation": {"accumulation": 2}, "recompute": {"recompute": "blocks"},
         "lean": {"optimizer": "lean", "clip": 0.0}, "lora": {"lora": "all", "frozen": "bfloat16"},
         "qlora": {"lora": "all", "frozen": "nf4"}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_as_on_the_cpu(kind, world, device, tmp_path):
    ours, expected = (run(world, tmp_path, place, **KINDS[kind]) for place in (device, "cpu"))
    assert curve(ours) == pytest.approx(curve(expected), rel=1e-4)
    assert curve(ours, "nll", "eval") == pytest.approx(curve(expected, "nll", "eval"), rel=1e-4)


def test_a_teacher_teaches_as_on_the_cpu(world, device, tmp_path):
    curves = [curve(run(world, tmp_path / str(place), place, teacher=str(world.model), teacher_top=8))
              for place in (device, "cpu")]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("dtype, bound", [("bfloat16", 0.03), ("float16", 0.005)])
def test_half_precision_stays_near_fp32(dtype, bound, world, device, tmp_path):
    """Of each step's loss and of the first gradient's norm, within the bound; float16 skips no step."""
    wide, half = (run(world, tmp_path, device, dtype=name) for name in ("float32", dtype))
    assert curve(half) == pytest.approx(curve(wide), rel=bound)
    assert curve(half, "grad_norm")[0] == pytest.approx(curve(wide, "grad_norm")[0], rel=2 * bound)
    assert max(curve(half, "grad_norm")) < 1e6 and learns(half)


def test_lean_stays_near_plain(world, device, tmp_path):
    plain, lean = (run(world, tmp_path, device, clip=0.0, optimizer=name) for name in ("adamw", "lean"))
    assert curve(lean) == pytest.approx(curve(plain), rel=0.005) and learns(lean)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_resumed_run_is_the_same_bit_by_bit(dtype, world, device, tmp_path):
    """Saved on the device, resumed on the device; and the same run twice."""
    settings = {"dtype": dtype, "save_every": 3, "pair_repeats": 1, "device": str(device)}
    runs = [world.config(tmp_path, name=name, max_steps=6, **settings)
            for name in ("first", "again", "resumed")]
    for config in runs:
        train(config)
    shutil.rmtree(runs[2].folder / "state" / "step-00000006")  # as if it had been stopped after step 3
    train(runs[2], resume=True)
    expected = load_file(runs[0].folder / "model" / "model.safetensors")
    for config in runs[1:]:
        found = load_file(config.folder / "model" / "model.safetensors")
        apart = {name: float((found[name] - expected[name]).abs().max()) for name in expected
                 if not torch.equal(found[name], expected[name])}
        assert not apart, f"the {config.name} run differs from the first by up to {max(apart.values()):.1e}"
        assert read_rows(config.folder / "train.csv", TIMING) == read_rows(
            runs[0].folder / "train.csv", TIMING)


def test_too_little_memory_is_answered_with_what_to_lower(cuda, world, tmp_path, monkeypatch, capsys):
    """A true overflow of the allocator, behind the estimate that is made before a run."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(cuda).total_memory
    allowed = torch.cuda.memory_allocated(cuda) + 2**28
    path = world.config_file(tmp_path / "c.py", device=str(cuda), batch_size=4096, context=128)
    torch.cuda.set_per_process_memory_fraction(allowed / total, cuda)
    try:
        code, _, err = run_main(monkeypatch, capsys, "train.py", path, "--ignore-budget")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
        torch.cuda.empty_cache()
    assert code == 2 and "Traceback" not in err
    assert "out of memory" in err and "Set recompute=blocks, lower batch_size" in err
    assert run(world, tmp_path, cuda)  # and the next run has the memory again


# ---------------------------------------------------------------- several processes
@pytest.fixture
def group(device, tmp_path):
    """A process group of one rank, by the backend of the device."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timedelta(seconds=30))
    yield backend
    dist.destroy_process_group()


def test_ranks_exchange_what_they_have(group, device):
    """Every exchange of a run once, between one rank: types and devices fit the backend."""
    ranks = Ranks(rank=0, size=2)  # so that nothing is cut short
    assert ranks.sum(np.array([1.5, 2**53 - 1.0])).tolist() == [1.5, 2**53 - 1.0]
    tensor = torch.ones(3, device=device)
    ranks.sum_tensor(tensor)
    ranks.barrier()
    assert tensor.tolist() == [1.0, 1.0, 1.0]
    shards = [None]
    dist.all_gather_object(shards, [{"nll": 1.0}])
    assert shards == [[{"nll": 1.0}]]


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_wrapped_model_has_the_same_gradients(how, group, world, device, monkeypatch):
    if device.type == "mps":
        pytest.skip("several processes are for CPUs and CUDA")
    meshes = torch.distributed.device_mesh.init_device_mesh
    monkeypatch.setattr(torch.distributed.device_mesh, "init_device_mesh",
                        lambda kind, _: meshes(kind, (1,)))
    batch = Dataset(world.data).rows(32, 0, 0, 0.0).batch(0, 4)
    gradients = []
    for wrapped in (True, False):
        model = Decoder.from_pretrained(world.model)
        network = distributed.wrap(model, how, Ranks(size=2), device) if wrapped else model.to(device)
        with distributed.gradient_sync(network, last=True):
            network(batch[0].to(device), *batch[1:], reduction="sum").backward()
        gradients.append([distributed.full_tensor(p.grad) for p in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- scoring and evaluation
def numbers(path, *without: str) -> list:
    """All cells of a CSV, numbers as numbers."""
    cells = []
    for row in read_rows(path, without):
        for value in row.values():
            try:
                cells.append(float(value))
            except ValueError:
                cells.append(value)
    return cells


def assert_alike(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a == (pytest.approx(b, rel=2e-4, abs=2e-5) if isinstance(b, float) else b)


def test_scores_of_blocks_are_those_of_the_cpu(world, device, tmp_path, monkeypatch, capsys):
    if device.type == "mps":
        pytest.skip("MPS has no float64, in which scores are summed")
    tables = []
    for place in ("cpu", str(device)):
        out = tmp_path / f"{len(tables)}.csv"
        code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, "--data", world.data, "--parts",
                                "--score", out, "--device", place, "--dtype", "float32")
        assert code == 0, err
        tables.append(numbers(out, "time_saved"))
    assert_alike(tables[1], tables[0])


def test_evaluation_is_that_of_the_cpu(device, tmp_path, monkeypatch, capsys):
    """Documents, questions and written answers of a model, line by line."""
    write_little(monkeypatch)
    world = World(tmp_path)
    lines = (world.data / "pairs.jsonl").read_text().splitlines()[:4]
    (world.data / "pairs_test.jsonl").write_text("\n".join(lines) + "\n")
    places = {"there": "cpu", "here": str(device)}
    for out, place in places.items():
        code, _, err = run_main(monkeypatch, capsys, "eval.py", world.model, "--data", world.data, "--out",
                                tmp_path / out, "--answer-tokens", "4", "--device", place,
                                "--dtype", "float32")
        assert code == 0, err
    for name in ("documents.csv", "questions.csv", "answers.csv"):
        assert_alike(numbers(tmp_path / "here" / name), numbers(tmp_path / "there" / name))


# ---------------------------------------------------------------- last, because it takes longest
def test_compiled_blocks_learn_the_same(device, tmp_path):
    if device.type == "cpu":
        pytest.skip("tests/test_train.py does it on the CPU")
    world = World(tmp_path)
    plain, fast = (run(world, tmp_path, device, compile=compiled, dtype="bfloat16")
                   for compiled in (False, True))
    assert curve(fast) == pytest.approx(curve(plain), rel=0.01)
