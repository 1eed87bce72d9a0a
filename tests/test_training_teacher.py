"""nanoprune/training/teacher.py and its loss: gradients against autograd, a teacher that runs once."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small import TIMING, make_model, read_rows

from model import Decoder
from nanoprune.data.dataset import Dataset
from nanoprune.data.packing import TrainingRows
from nanoprune.distributed import ALONE
from nanoprune.io.files import read_json, write_json
from nanoprune.nn import losses as losses_module
from nanoprune.nn.losses import HeadLoss, SoftTargets, likeliest
from nanoprune.training import teacher as teacher_module
from nanoprune.training.teacher import Teacher
from train import train


def plain(x, weight, targets, ids, log_p, share, temperature):
    """Cross entropy, and the divergence over the k tokens and one that stands for all others, by autograd."""
    logits = x @ weight.t()
    log_q, p = F.log_softmax(logits / temperature, 1), log_p.exp()
    at_top = log_q.gather(1, ids)
    p = torch.cat([p, 1 - p.sum(1, keepdim=True)], 1)
    q = torch.cat([at_top, (1 - at_top.exp().sum(1, keepdim=True)).log()], 1)
    divergence = F.kl_div(q, p, reduction="sum")
    return (1 - share) * F.cross_entropy(logits, targets,
                                         reduction="sum") + share * temperature**2 * divergence


class Head:
    """A model's head alone."""

    def __init__(self, weight):
        self.weight, self.config = weight, SimpleNamespace(vocab_size=len(weight))

    def logits(self, x):
        return x @ self.weight.t()


@pytest.mark.parametrize("share, temperature, k", [(0.5, 1.0, 4), (1.0, 2.0, 1), (0.25, 0.7, 30)])
def test_the_loss_and_its_gradients(monkeypatch, share, temperature, k):
    """In fp64, over several chunks."""
    monkeypatch.setattr(losses_module, "HEAD_CHUNK", 3 * 40 * 5)
    torch.manual_seed(0)
    x, teacher = (torch.randn(17, 8, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(40, 8, dtype=torch.float64)
    ids, _ = likeliest(Head(weight), teacher, k, temperature)
    log_p = F.log_softmax(teacher @ weight.t() / temperature, 1).gather(1, ids)  # in fp64
    targets = torch.randint(0, 40, (17,))
    found, expected = [], []
    def fast(x, weight, targets, ids, log_p, share, temperature):
        return HeadLoss.apply(x, weight, targets, SoftTargets(ids, log_p, share, temperature))

    for function, results in ((fast, found), (plain, expected)):
        a, b = (part.clone().requires_grad_() for part in (x, weight))
        loss = function(a, b, targets, ids, log_p, share, temperature)
        (2 * loss).backward()
        results += [loss.detach(), a.grad, b.grad]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    torch.manual_seed(0)
    x, weight = torch.randn(9, 8), torch.randn(40, 8)
    ids, log_p = likeliest(Head(weight), x, 5, 2.0)
    expected = F.log_softmax(x @ weight.t() / 2.0, 1).topk(5, 1)
    assert torch.equal(ids, expected.indices) and torch.allclose(log_p, expected.values, atol=1e-6)
    x.requires_grad_()
    loss = HeadLoss.apply(x, weight, torch.zeros(9, dtype=torch.int64), SoftTargets(ids, log_p, 1.0, 2.0))
    loss.backward()
    assert abs(float(loss.detach())) < 1e-4 and x.grad.abs().max() < 1e-5


def test_the_teacher_runs_once(world, tmp_path, monkeypatch):
    """Its predictions for each row are those of the teacher itself; a second run, and other blocks, read
    them.
    """
    teacher = make_model(tmp_path / "teacher", world.data, seed=5)
    config = world.config(tmp_path / "runs", teacher=str(teacher), teacher_top=7, teacher_temperature=1.5,
                          max_steps=20,
                          pair_repeats=1)
    dataset = Dataset(config.data)
    rows = TrainingRows(dataset.split("train"), config.context, config.seed, dataset.split("pairs"), 1)
    monkeypatch.setattr(teacher_module, "ROWS", 12)

    def open_teacher(config, rows=rows):
        return Teacher(config, teacher, rows, Decoder.from_pretrained, torch.device("cpu"), ALONE)

    ids, log_p, share, temperature = open_teacher(config).soft_targets(5, 30)
    assert (share, temperature) == (0.5, 1.5)
    model = Decoder.from_pretrained(teacher)
    for r in range(30):
        given, _, documents = rows.batch(5 + r, 1)
        with torch.no_grad():
            expected = F.log_softmax(model(given, documents=documents)[0] / 1.5, -1).topk(7, -1)
        assert torch.equal(ids[r].long(), expected.indices) and torch.allclose(log_p[r], expected.values,
                                                                               atol=1e-4)
    monkeypatch.setattr(Teacher, "_predict", None)  # nothing is left to compute
    again = open_teacher(replace(config, name="other", drop_blocks=(1,))).soft_targets(5, 30)
    assert torch.equal(again.ids, ids) and torch.equal(again.log_p, log_p)
    with pytest.raises(TypeError):  # other rows are
        open_teacher(replace(config, seed=1), dataset.rows(config.context, 1, 1, 0.0))


def test_seconds_of_a_teacher_that_was_killed_count(world, tmp_path, monkeypatch):
    config = world.config(tmp_path / "runs", teacher=str(world.model), max_steps=2)
    rows = Dataset(config.data).rows(config.context, config.seed, 0, 0.0)
    monkeypatch.setattr(teacher_module, "ROWS", 2)

    def seconds() -> float:
        teacher = Teacher(config, world.model, rows, Decoder.from_pretrained, torch.device("cpu"), ALONE)
        return teacher.record["teacher_seconds"]

    seconds()
    [meta] = (tmp_path / "runs" / "teachers").glob("*/meta.json")
    write_json(meta, read_json(meta) | {"seconds": 1000.0})  # the first of two files took them
    (meta.parent / "rows-00000002.safetensors").unlink()
    assert 1000 < seconds() < 1100
    assert seconds() > 1000  # and are kept when nothing is left to compute


def test_predictions_are_found_by_what_decides_them(world, tmp_path, monkeypatch):
    """Other rows, another teacher under the same path and other code are not taken for the same; other names,
    paths and settings that change no prediction are.
    """
    data = shutil.copytree(world.data, tmp_path / "data")
    shutil.copy(data / "val.safetensors", data / "replay.safetensors")
    teacher = make_model(tmp_path / "teacher", data, seed=5)
    config = world.config(tmp_path / "runs", data=str(data), teacher=str(teacher), max_steps=2,
                          pair_repeats=1)
    predict, calls = Teacher._predict, []
    monkeypatch.setattr(Teacher, "_predict", lambda self, *given: (calls.append(1), predict(self, *given))[1])

    def computed(**changes) -> bool:
        changed, dataset = replace(config, **changes), Dataset(data)
        rows = dataset.rows(changed.context, changed.seed, changed.pair_repeats, changed.replay)
        calls.clear()
        Teacher(changed, Path(changed.teacher), rows, Decoder.from_pretrained, torch.device("cpu"), ALONE)
        return bool(calls)

    assert computed() and not computed()
    assert not computed(name="other", drop_blocks=(1,), lr=1e-3, batch_size=1, dtype="bfloat16")
    for changes in ({"replay": 0.3}, {"pair_repeats": 2}, {"context": 16}, {"tf32": True},
                    {"teacher_top": 3}):
        assert computed(**changes) and not computed(**changes), changes
    shutil.move(teacher, tmp_path / "moved")
    assert not computed(teacher=str(tmp_path / "moved"))
    shutil.copytree(tmp_path / "moved", teacher)
    shape = read_json(teacher / "config.json")
    write_json(teacher / "config.json", shape | {"rope_theta": 999.0})  # the same weights
    assert computed()
    write_json(teacher / "config.json", shape)
    assert not computed()
    make_model(teacher, data, seed=6)
    assert computed()
    pairs = data / "pairs.safetensors"
    tensors = load_file(pairs)
    tensors["mask"][:] = 1
    save_file(tensors, pairs)
    assert computed() and not computed(teacher_share=0.1)
    monkeypatch.setattr(teacher_module, "VERSION", teacher_module.VERSION + 1)
    assert computed()


def test_a_distilled_run_is_resumed_bit_by_bit(world, tmp_path):
    teacher = make_model(tmp_path / "teacher", world.data, seed=5)
    whole = world.config(tmp_path, name="whole", teacher=str(teacher), max_steps=6, save_every=3,
                         accumulation=2)
    train(whole)
    train(replace(whole, name="cut"), listen=lambda: ["asked"])
    train(replace(whole, name="cut"), resume=True)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_rows(tmp_path / "whole" / "train.csv", TIMING) == read_rows(tmp_path / "cut" / "train.csv",
                                                                            TIMING)
    train(replace(whole, name="plain", teacher=None))
    plain_rows = read_rows(tmp_path / "plain" / "train.csv")
    assert plain_rows[0]["loss"] != read_rows(tmp_path / "whole" / "train.csv")[0]["loss"]
    assert all(math.isfinite(float(row["loss"])) for row in read_rows(tmp_path / "whole" / "train.csv"))


def test_mistakes(world, tmp_path):
    teacher = make_model(tmp_path / "teacher", world.data, seed=5, max_position_embeddings=16)
    with pytest.raises(ValueError, match="teacher: .* 16 positions; given teacher_top 32 and context 32"):
        train(world.config(tmp_path, teacher=str(teacher)), dry_run=True)
    larger = make_model(tmp_path / "larger", world.data, vocab_size=300)
    with pytest.raises(ValueError, match="larger has 300 rows of a vocabulary, the model 2..: give"):
        train(world.config(tmp_path, teacher=str(larger)))
    for changes, message in (({"teacher_share": 0.0}, "teacher_share: given 0.0, must be above 0"),
                             ({"teacher_top": 0}, "teacher_top"),
                             ({"teacher_temperature": 0.0}, "teacher_temperature")):
        assert message in "\n".join(world.config(tmp_path, **changes).problems())
