"""The versions of what studies keep: a measure that changes needs a higher one, or old numbers are reused.

If a value here fails, and the change was meant: raise VERSION beside the measure, and enter the new value.
"""

import pytest
import torch
from small import read_rows

import train as train_module
from model import Decoder
from nanoprune.data.dataset import Dataset
from nanoprune.distributed import ALONE
from nanoprune.evaluation import block_scores, multiple_choice, perplexity, removal_losses
from nanoprune.evaluation.block_scores import score_blocks
from nanoprune.evaluation.multiple_choice import encode_questions, loglikelihoods
from nanoprune.evaluation.perplexity import Protocol, score_text
from nanoprune.evaluation.removal_losses import Calibration, losses_without
from nanoprune.nn.model_config import Part
from nanoprune.nn.rounding import ROUNDED, VERSIONS, round_matrices
from nanoprune.training import teacher
from nanoprune.training.teacher import Teacher

TEXT, CHOICES, WITHOUT, TRAINED = 1984.1333, -1490.7259, 1209.8295, 5.24677
ESTIMATES = {"influence": 0.987257, "angular": 0.609294, "taylor": 50.21973, "magnitude": 3171.5838}
PREDICTED = -1264.1322
SUMS = {"nf4": 13.80623, "int8": 13.67446}


def written_model(world) -> Decoder:
    """A model whose weights follow from a formula, whatever the version of torch draws."""
    model = Decoder.from_pretrained(world.model).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            waves = (torch.arange(parameter.numel(), dtype=torch.float64) * 0.37 + number).sin()
            parameter.copy_((waves * 0.2 + (parameter.dim() == 1)).view_as(parameter))
    return model


def test_losses_of_text(world):
    split = Dataset(world.data).split("test")
    losses = score_text(written_model(world), Protocol(context=32).windows(split), len(split))
    assert (perplexity.VERSION, losses.nll.sum()) == (1, pytest.approx(TEXT, rel=1e-4))


def test_loglikelihoods_of_choices(world):
    dataset = Dataset(world.data)
    questions, _ = encode_questions(dataset.tokenizer, dataset.questions()["places"], 128)
    values = loglikelihoods(written_model(world), [question.choices for question in questions])
    total = sum(map(sum, values))
    assert (multiple_choice.VERSION, total) == (1, pytest.approx(CHOICES, rel=1e-4))


def test_losses_without_a_block(world):
    model = written_model(world)
    calibration = Calibration.of_split(model, Dataset(world.data).split("val"), 32)
    losses = losses_without(model, [(Part(1),)], calibration)
    assert (removal_losses.VERSION, losses.nll.sum()) == (1, pytest.approx(WITHOUT, rel=1e-4))


def test_estimates_of_blocks(world):
    model = written_model(world)
    rows = score_blocks(model, Calibration.of_split(model, Dataset(world.data).split("val"), 32)).rows[1:]
    sums = {name: sum(row[name] for row in rows) for name in ESTIMATES}
    assert (block_scores.VERSION, sums) == (1, pytest.approx(ESTIMATES, rel=1e-4))


@pytest.mark.parametrize("how", ROUNDED)
def test_rounded_matrices(world, how):
    model = written_model(world)
    round_matrices(model, how)
    total = sum((p.double() * torch.arange(p.numel()).cos().view_as(p)).sum() for p in model.parameters())
    assert ({}, total.item()) == (VERSIONS, pytest.approx(SUMS[how], rel=1e-5))


def test_predictions_of_a_teacher(world, tmp_path):
    base = tmp_path / "base"
    written_model(world).save_pretrained(base)
    config = world.config(tmp_path / "runs", teacher=str(base), teacher_top=4, max_steps=1)
    rows = Dataset(config.data).rows(config.context, config.seed, 0, 0.0)
    predictions = Teacher(config, base, rows, Decoder.from_pretrained, torch.device("cpu"), ALONE)
    total = predictions.soft_targets(0, 2).log_p.double().sum().item()
    assert (teacher.VERSION, total) == (1, pytest.approx(PREDICTED, rel=1e-4))


def test_what_a_run_learns(world, tmp_path):
    base = tmp_path / "base"
    written_model(world).save_pretrained(base)
    config = world.config(tmp_path / "runs", base=str(base), max_steps=6, warmup_steps=2, lr=1e-2,
                          dtype="float32")
    train_module.train(config)
    loss = float(read_rows(config.folder / "eval.csv")[-1]["nll"])
    assert (train_module.VERSION, loss) == (1, pytest.approx(TRAINED, rel=1e-3))
