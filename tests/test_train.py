"""train.py against a plain loop, and the messages of its command."""

import json
import math
import os
import shutil
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small import SHAPE, TIMING, make_data, read_rows, run_main

from model import Decoder
from nanoprune.config import IGNORE, MOST_OVERFLOWS
from nanoprune.data.dataset import Dataset
from nanoprune.data.packing import TrainingRows
from nanoprune.data.token_file import Example, write_examples
from nanoprune.device import to_device
from nanoprune.evaluation.perplexity import Validation, ValidationLoss
from nanoprune.io.files import write_json
from nanoprune.nn import scratch
from nanoprune.nn.losses import SoftTargets
from nanoprune.nn.scratch import SavedActivations
from train import clip_gradients, learning_rate, make_optimizer, train


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same_bytes(a, b) -> None:
    """The weights and the logs of two runs, timing and memory aside."""
    first, second = ((run / "model" / "model.safetensors").read_bytes() for run in (a, b))
    assert first == second
    for name in ("train.csv", "eval.csv"):
        assert read_rows(a / name, without=TIMING) == read_rows(b / name, without=TIMING)


def test_activations_lie_side_by_side_on_a_cpu(world, tmp_path, monkeypatch):
    """Those of each micro-batch, of a full run too; holes between them would grow from step to step."""
    segments, save = [], SavedActivations.__exit__
    monkeypatch.setattr(SavedActivations, "__exit__", lambda self, *error: (
        segments.append(len(self.segments)), save(self, *error))[1])
    monkeypatch.setattr(scratch, "SMALLEST", 1)
    train(world.config(tmp_path, max_steps=2, accumulation=2))
    assert segments == [1] * 4
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024


def assert_close_weights(a: dict, b: dict, tolerance: float) -> None:
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=0, atol=tolerance, msg=lambda text,
                                   name=name: f"{name}: {text}")


def test_the_loop_is_plain_training(world, tmp_path):
    """Against transformers' model, one document at a time, torch's plain AdamW, decay on matrices only, in
    fp32.
    """
    config = world.config(tmp_path, max_steps=5, warmup_steps=2, batch_size=2, accumulation=2,
                          weight_decay=0.5, clip=0.3,
                          pair_repeats=2)
    train(config)
    data = Dataset(config.data)
    rows = TrainingRows(data.split("train"), config.context, config.seed, data.split("pairs"), 2)
    model = transformers.AutoModelForCausalLM.from_pretrained(config.base, attn_implementation="eager",
                                                              dtype=torch.float32)
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == wanted]
                         for wanted in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.5},
                                   {"params": vectors, "weight_decay": 0.0}],
                                  lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps,
                                  foreach=False, fused=False)
    # 1e-2 x (1/2, 1), then a cosine over three steps down to a tenth
    rates = [5e-3, 1e-2] + [1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 3)) / 2) for k in (1, 2, 3)]
    for step, (logged, lr) in enumerate(zip(read_rows(config.folder / "train.csv"), rates, strict=True)):
        total = count = 0
        for r in range(4 * step, 4 * step + 4):
            ids, targets, documents = (torch.from_numpy(part) for part in rows.row(r))
            for number in documents.unique():
                mine = documents == number
                logits = model(ids[None, mine]).logits[0]
                total = total + torch.nn.functional.cross_entropy(logits, targets[mine], ignore_index=IGNORE,
                                                                  reduction="sum")
                count += int((targets[mine] != IGNORE).sum())
        loss = total / count
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        assert float(logged["loss"]) == pytest.approx(loss.item(), rel=1e-4)
        assert float(logged["grad_norm"]) == pytest.approx(norm.item(), rel=1e-3)
        assert float(logged["lr"]) == pytest.approx(lr) and int(logged["tokens"]) == 128 * (step + 1)
    assert_close_weights(weights(config.folder), dict(model.named_parameters()), 2e-4)


@pytest.mark.parametrize("recompute", ["none", "pointwise", "blocks"])
@pytest.mark.parametrize("taught", [False, True])
def test_a_step_reads_nothing_from_its_device_before_it_logs(world, monkeypatch, recompute, taught):
    """On the meta device nothing can be read: what would make a CPU wait for a GPU is an error."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it knows no such device
    model = Decoder.without_weights(world.model)
    model.recompute, device = recompute, torch.device("meta")
    ids, targets, documents = Dataset(world.data).rows(32, 0, 1, 0.0).batch(0, 4)
    likeliest = torch.zeros(4, 32, 3, dtype=torch.int32)
    teacher = SoftTargets(likeliest, likeliest - 3.0, 0.5, 1.0) if taught else None
    loss = model(to_device(ids, device), targets, documents, reduction="sum", teacher=teacher)
    loss.backward()
    norms = clip_gradients(model, torch.optim.SGD(model.parameters()), 1.0)
    assert [norm.device for norm in norms] == [device]
    with pytest.raises(RuntimeError):
        loss.item()


def test_accumulation_equals_the_big_batch(world, tmp_path):
    """Also where micro-batches count unequal tokens, as they do with pairs; eps keeps AdamW from magnifying
    the last digits.
    """
    big = world.config(tmp_path, name="big", batch_size=4, accumulation=1, pair_repeats=4, eps=1e-4)
    small = replace(big, name="small", batch_size=1, accumulation=4)
    train(big)
    train(small)
    for a, b in zip(read_rows(big.folder / "train.csv"), read_rows(small.folder / "train.csv"), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-5)
        assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=1e-4)
    assert_close_weights(weights(big.folder), weights(small.folder), 2e-5)


def test_two_runs_are_the_same_bytes(world, tmp_path):
    """And validating more often changes nothing of the training."""
    runs = [world.config(tmp_path, name=name, max_steps=3) for name in ("a", "b")]
    often = world.config(tmp_path, name="often", max_steps=3, eval_every=1)
    for config in (*runs, often):
        train(config)
    assert_same_bytes(*(config.folder for config in runs))
    assert all(torch.equal(tensor, weights(often.folder)[name]) for name,
               tensor in weights(runs[0].folder).items())
    assert len(read_rows(often.folder / "eval.csv")) == 4


def test_validation_numbers(world, tmp_path):
    """nll, perplexity and bits per byte of the whole split, each document alone."""
    config = world.config(tmp_path, max_steps=1)
    train(config)
    data, model = Dataset(config.data), Decoder.from_pretrained(config.base).eval()
    split, nll, count, size = data.split("val"), 0.0, 0, 0
    for i, document in enumerate(data.documents("val")):
        tokens = torch.from_numpy(split[i].tokens)[None]
        with torch.no_grad():
            for start in range(0, tokens.shape[1] - 1, config.context):
                piece = tokens[:, start : start + config.context + 1]
                nll += float(model(piece[:, :-1], piece[:, 1:], reduction="sum"))
        count += tokens.shape[1] - 1
        size += len(document["text"].encode()) - 1  # the first token is a byte, and not predicted
    row = read_rows(config.folder / "eval.csv")[0]
    assert float(row["nll"]) == pytest.approx(nll / count, rel=1e-5)
    assert float(row["bits_per_byte"]) == pytest.approx(nll / math.log(2) / size, rel=0.02)
    assert int(row["documents"]) == len(split)


def test_validation_cuts_no_conversation(world, tmp_path):
    """A row of training must hold the longest of training's; those of validation may be longer."""
    data = shutil.copytree(world.data, tmp_path / "data")
    write_examples(data / "val.safetensors", [
        Example(np.full(n, 5), np.arange(n) >= n - 4) for n in (20, 90, 40)], 300, [4, 4, 4])
    for alone, longest in ((True, 89), (False, 32)):  # predictions; the config's rows have 32
        write_json(data / "meta.json", Dataset(world.data).meta | {"conversations": alone})
        windows = Validation(Dataset(data), world.config(tmp_path, data=str(data))).windows
        assert max(batch.ids.shape[1] for batch in windows) == longest
        assert sum(int((batch.targets != IGNORE).sum()) for batch in windows) == 12


def test_a_run_that_makes_nothing_better_says_so(world, tmp_path, monkeypatch, capsys):
    config, worse = world.config(tmp_path, keep="best", eval_every=2), count(1)
    monkeypatch.setattr(Validation, "measure", lambda *_: (
        ValidationLoss(float(next(worse)), 1.0, 1.0), []))
    assert train(config)
    assert "no validation was better than the one before training" in capsys.readouterr().out
    assert all(map(torch.equal, weights(config.folder).values(),
                   load_file(world.model / "model.safetensors").values()))


def test_from_scratch(world, tmp_path):
    """A shape as the base: the seed decides the weights, and the loss falls."""
    runs = [world.config(tmp_path, name=f"s{i}", base=SHAPE, max_steps=30, seed=seed, lr=3e-3)
            for i, seed in enumerate((5, 5, 6))]
    for config in runs:
        train(config)
    assert_same_bytes(runs[0].folder, runs[1].folder)
    assert weights(runs[0].folder)["model.norm.weight"].ne(weights(runs[2].folder)["model.norm.weight"]).any()
    losses = [float(row["loss"]) for row in read_rows(runs[0].folder / "train.csv")]
    assert losses[0] == pytest.approx(math.log(280), rel=0.05) and losses[-1] < losses[0] - 1
    model = Decoder.from_pretrained(runs[0].folder)
    assert model.config.vocab_size == Dataset(world.data).meta["vocab_size"] and model.stop_tokens == {0}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_is_the_same_training(world, tmp_path, dtype):
    """Losses, gradient norms (unscaled, in fp16) and weights near those of fp32."""
    plain, mixed = (world.config(tmp_path, name=name, dtype=name, max_steps=3, lr=1e-3)
                    for name in ("float32", dtype))
    train(plain)
    train(mixed)
    for a, b in zip(read_rows(plain.folder / "train.csv"), read_rows(mixed.folder / "train.csv"),
                    strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=0.03)
        assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=0.1)
    # three steps of at most 1e-3 either way
    assert_close_weights(weights(plain.folder), weights(mixed.folder), 5e-3)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_what_is_kept(world, tmp_path, keep):
    """A learning rate that ruins the model: best keeps the weights before that, last those after it."""
    config = world.config(tmp_path, keep=keep, lr=0.9, max_steps=4, eval_every=1, clip=0.0)
    train(config)
    nll = [float(row["nll"]) for row in read_rows(config.folder / "eval.csv")]
    assert min(nll) < nll[-1]
    state = load_file(config.folder / "state" / "step-00000004" / "training.safetensors")
    kept = weights(config.folder)
    assert all(torch.equal(kept[n], state[f"weights/{n}"]) for n in kept) == (keep == "last")
    if keep == "best" and nll.index(min(nll)) == 0:
        base = Decoder.from_pretrained(config.base).state_dict()
        assert all(torch.equal(tensor, kept[name]) for name, tensor in base.items())


def test_patience_stops_and_the_run_is_finished(world, tmp_path, capsys):
    config = world.config(tmp_path, lr=0.9, clip=0.0, max_steps=50, eval_every=1, patience=2, keep="best")
    train(config)
    nll = [float(row["nll"]) for row in read_rows(config.folder / "eval.csv")]
    best = nll.index(min(nll))
    assert len(nll) == best + 3 < 50
    assert "stopped: 2 validations without a better loss" in capsys.readouterr().out
    train(config, resume=True)
    assert f"is finished, at step {best + 2}" in capsys.readouterr().out
    assert len(read_rows(config.folder / "eval.csv")) == best + 3


def never_finite(monkeypatch) -> None:
    forward = Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda self, *args, **options: (
        forward(self, *args, **options) * (float("nan") if self.training else 1)))


def test_a_loss_that_is_not_finite_names_its_documents(world, tmp_path, monkeypatch):
    config = world.config(tmp_path, max_steps=3, pair_repeats=1)
    never_finite(monkeypatch)
    expected = r"step 1: the loss is nan.*rows 0 to 1 of seed 0, from (train|pairs).jsonl line \d"
    with pytest.raises(ValueError, match=expected):
        train(config)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_weights(world, tmp_path, monkeypatch):
    config = world.config(tmp_path, max_steps=9)
    forward, calls = Decoder.forward, []

    def fail_at_third(self, *args, **kwargs):
        loss = forward(self, *args, **kwargs)
        calls.append(1) if self.training else None
        return loss * math.nan if len(calls) == 3 and self.training else loss

    monkeypatch.setattr(Decoder, "forward", fail_at_third)
    expected = r"step 3: the loss is nan.*rows 4 to 5 of seed 0.*weights of the step before are in .*state"
    with pytest.raises(ValueError, match=expected):
        train(config)
    assert [int(row["step"]) for row in read_rows(config.folder / "train.csv")] == [1, 2]
    assert (config.folder / "state" / "step-00000002" / "state.json").is_file()
    monkeypatch.undo()
    train(config, resume=True)  # the weights before it are good
    assert [int(row["step"]) for row in read_rows(config.folder / "train.csv")] == list(range(1, 10))


def test_fp16_leaves_out_steps_that_overflow(world, tmp_path):
    """The scale starts too high for this model: the first gradients overflow, weights stay, the scale falls
    and is kept.
    """
    big = shutil.copytree(world.model, tmp_path / "big")
    tensors = load_file(big / "model.safetensors")
    tensors["model.norm.weight"] *= 50
    save_file(tensors, big / "model.safetensors", {"format": "pt"})
    config = world.config(tmp_path, base=str(big), dtype="float16", max_steps=12, save_every=1)
    train(config)
    norms = [float(row["grad_norm"]) for row in read_rows(config.folder / "train.csv")]
    assert not math.isfinite(norms[0]) and math.isfinite(norms[-1])
    state = json.loads(next((config.folder / "state").glob("step-00000012/state.json")).read_text())
    assert state["counters"]["scaler"]["scale"] < 65536
    before = weights(config.folder)
    shutil.rmtree(config.folder / "state" / "step-00000012")
    train(config, resume=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(config.folder).items())


def test_fp16_counts_what_it_leaves_out_and_gives_up_in_the_end(world, tmp_path, monkeypatch, capsys):
    big = shutil.copytree(world.model, tmp_path / "big")
    tensors = load_file(big / "model.safetensors")
    tensors["model.norm.weight"] *= 50
    save_file(tensors, big / "model.safetensors", {"format": "pt"})
    config = world.config(tmp_path, base=str(big), dtype="float16", max_steps=12)
    train(config)
    left_out = sum(not float(row["grad_norm"]) < float("inf")
                   for row in read_rows(config.folder / "train.csv"))
    assert left_out and f"{left_out} steps were skipped, because their gradients" in capsys.readouterr().out
    never_finite(monkeypatch)
    with pytest.raises(ValueError, match=f"step {MOST_OVERFLOWS}: the loss is nan"):
        train(replace(config, name="never", max_steps=100))


def test_learning_rate(world, tmp_path):
    config = world.config(tmp_path, lr=1.0 - 1e-9, max_steps=10, warmup_steps=4, min_lr=0.2)
    rates = [learning_rate(step, config) for step in range(1, 11)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and rates[-1] == pytest.approx(0.2)
    assert rates[6] == pytest.approx(0.6) and all(a > b for a, b in zip(rates[3:], rates[4:], strict=False))
    assert learning_rate(1, replace(config, warmup_steps=0)) < 1


def test_decay_on_matrices_only(world, tmp_path):
    model = Decoder.from_pretrained(world.model)
    groups = {group["weight_decay"]: group["param_names"] for group in make_optimizer(model,
                                                                                world.config(tmp_path)).param_groups}
    assert set(groups) == {0.1, 0.0}
    assert all("norm" in name for name in groups[0.0]) and not any("norm" in name for name in groups[0.1])
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_epochs_come_to_steps(world, tmp_path):
    """As many as it takes to see all of it that often; the run's config says how many."""
    config = world.config(tmp_path, epochs=2, warmup_steps=2)
    tokens = Dataset(world.data).rows(config.context, config.seed, 0, 0.0).epoch_tokens
    assert train(config)
    steps = math.ceil(2 * tokens / config.tokens_per_step)
    assert len(read_rows(config.folder / "train.csv")) == steps != config.max_steps
    assert json.loads((config.folder / "config.json").read_text())["max_steps"] == steps
    assert train(config, resume=True)
    expected = f"warmup_steps: given 400, must be below the {steps} steps that epochs=2 comes to"
    with pytest.raises(ValueError, match=expected):
        train(world.config(tmp_path, name="long", epochs=2, warmup_steps=400))


@pytest.mark.parametrize("changes, message", [
    (dict(data="{tmp}/nowhere"), "is not a dataset folder"),
    (dict(data="{other}"), "was tokenized with another tokenizer"),
    (dict(base="{tmp}/nothing"), "no folder"),
    (dict(drop_blocks=(3,)), "cannot drop block 3: this model has 3 blocks"),
    (dict(drop_blocks=(0, 1, 2)), "cannot drop all 3 blocks"),
    (dict(context=1000), "context: given 1000, the base allows up to 128"),
    (dict(device="cuda:7"), "device: given cuda:7"),
    (dict(base=dict(SHAPE, vocab_size=5)), "vocab_size 5 is below the tokenizer's"),
    (dict(base=dict(SHAPE, model_type="gpt2")), "model_type 'gpt2' is not supported"),
    (dict(runs="/dev/null/runs"), "choose another place to write to"),
])
def test_mistakes(world, tmp_path, monkeypatch, capsys, changes, message):
    other = make_data(tmp_path / "other",
                      text="zebra quagga okapi") if changes.get("data") == "{other}" else ""
    changes = {k: v.format(tmp=tmp_path, other=other) if isinstance(v, str) else v for k,
               v in changes.items()}
    path = world.config_file(tmp_path / "c.py", **changes)
    code, out, err = run_main(monkeypatch, capsys, "train.py", path)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "runs").exists()  # nothing half made in the way of the next try


def test_the_command(world, tmp_path, monkeypatch, capsys):
    path = world.config_file(tmp_path / "c.py", save_every=2)
    assert run_main(monkeypatch, capsys, "train.py", path, "--max_steps=3")[0] == 0
    run = tmp_path / "runs" / "run"
    for arguments, message in (
        ([path], f"{run} holds a run already"),
        (["--resume", run, "--lr=1"], "leave out --lr=1, or"),
        (["--resume", run, "--from-state", run], "leave out --from-state, or"),
        (["--resume", tmp_path], "there is no saved state"), ([], "give a config"),
        ([path, "--resume", run], "give a config"), ([path, "--lrr=1"], "did you mean lr?"),
        ([path, "more"], "--key=value"),
        ([tmp_path / "no.py"], "there is no config file"), (["--max_steps", "2", path], "given as "
                                                            "--key=value"),
    ):
        code, _, err = run_main(monkeypatch, capsys, "train.py", *arguments)
        assert code == 2 and message in err and "Traceback" not in err, err
    shutil.rmtree(run / "state" / "step-00000003")
    assert run_main(monkeypatch, capsys, "train.py", "--resume", run)[0] == 0
    assert [row["step"] for row in read_rows(run / "train.csv")] == ["1", "2", "3"]


def test_compiled_blocks_learn_the_same(world, tmp_path):
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler: torch.compile cannot be tried")
    plain = world.config(tmp_path, batch_size=1)  # one shape of a batch: each is compiled for many seconds
    fast = world.config(tmp_path, batch_size=1, name="fast", compile=True)
    train(plain)
    train(fast)
    for a, b in zip(read_rows(plain.folder / "train.csv"), read_rows(fast.folder / "train.csv"), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)


def test_too_little_memory_says_what_to_lower(world, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    path = world.config_file(tmp_path / "c.py")
    monkeypatch.setattr("nanoprune.training.base.find_base", fail)
    code, _, err = run_main(monkeypatch, capsys, "train.py", path)
    assert code == 2 and "Traceback" not in err
    assert "Tried to allocate 2 GiB. Set recompute=blocks, lower batch_size" in err
