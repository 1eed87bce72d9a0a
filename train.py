"""Train a model: a base without the blocks that a config drops, or random weights.

    python train.py configs/full.py                          -> runs/full
    python train.py configs/reduced.py --max_steps=200       -> runs/reduced
    python train.py --resume runs/reduced
    torchrun --nproc-per-node=4 train.py configs/full.py     (the same run on four devices)

A run folder holds config.json, env.json, train.csv, eval.csv, model/ (the weights to use), state/ (for
--resume). Ctrl-C and SIGTERM end a run after its step, with its state saved (exit code 3); a second one ends
it at once.
"""

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

# Read when torch starts. cuBLAS repeats its results only with a fixed workspace. On CPUs, tensors that start
# at large pages leave fewer unusable holes.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

from model import Decoder
from nanoprune import command_line
from nanoprune.config import IGNORE, MOST_OVERFLOWS, Config, load_config
from nanoprune.data.dataset import Dataset
from nanoprune.device import (
    environment,
    make_autocast,
    matmul_rate,
    peak_memory,
    pick_device,
    pick_dtype,
    set_up,
    to_device,
)
from nanoprune.distributed import full_tensor, gradient_sync, join, restarted, wrap
from nanoprune.evaluation.perplexity import Validation
from nanoprune.nn.lora import LoraSettings, add_lora, count_parameters
from nanoprune.nn.model_config import record_removal
from nanoprune.nn.scratch import SavedActivations
from nanoprune.training.base import Base, find_base
from nanoprune.training.batches import check_step, count_steps, seed_dropout, split_rows
from nanoprune.training.budget import check_budget, expected_time, training_flops
from nanoprune.training.lean_adamw import LeanAdamW
from nanoprune.training.run_folder import RunFolder, has_state, saved_config
from nanoprune.training.teacher import Teacher, find_teacher

VERSION = 1  # of what a run learns: raise it when the same config gives other weights
STOPPED = 3  # exit code of a run that was asked to stop, and saved its state


class Diverged(ValueError):
    """The loss or its gradient is not finite."""


def train(
    config: Config, resume: bool = False, dry_run: bool = False, ignore_budget: bool = False,
    ignore_changes: bool = False, from_state: Path | None = None, listen: Callable[[], list[str]] = list,
) -> bool:
    """Train into the config's run folder: True when the run is finished, False if it was asked to stop.

    `dry_run`: check all that can be checked, and write nothing. `ignore_budget`: train although memory or
    disk seem too small. `ignore_changes`: resume with other files or on another machine. `from_state`:
    another run, with whose state this one begins. `listen` returns a list: once a signal's name is in it, the
    run saves its state after the step and ends. ValueError for whatever the user can mend.
    """
    # ---- set-up: everything is checked before anything is written
    ranks = join(config.device)
    run = RunFolder(config, ranks, resume, from_state, ignore_changes)
    if run.find_state(config):
        return True
    device = pick_device(config.device)
    config = replace(config, dtype=pick_dtype(config.dtype, device))
    check_step(config, ranks)
    set_up(config, device)
    dataset = Dataset(config.data)
    rows = dataset.rows(config.context, config.seed, config.pair_repeats, config.replay)
    config = count_steps(config, rows.epoch_tokens)
    validation = Validation(dataset, config)
    base = find_base(config, dataset, ranks, resume)
    teacher_folder = find_teacher(config, base, dataset, ranks) if config.teacher else None
    check_budget(config, base, device, ranks, ignore_budget, Decoder.plain_head)
    model = load_base(config, base)
    env = environment(device) | base.record | {"ranks": ranks.size, "version": VERSION}
    if dry_run:
        print(expected_time(config, base.config, dataset, device))
        print(f"{run}: nothing is wrong; a dry run, so nothing was written")
        return True
    run.lock()
    teacher = None
    if teacher_folder:
        teacher = Teacher(config, teacher_folder, rows, Decoder.from_pretrained, device, ranks)
        env |= teacher.record

    # ---- model, optimizer and where the run stands
    model.train()
    model.recompute = config.recompute
    if config.compile:
        for block in model.model.layers:
            block.compile()
    peak_flops = matmul_rate(device, getattr(torch, config.dtype))  # before there is anything to hold beside
    network = wrap(model, config.parallel, ranks, device)
    autocast = make_autocast(config.dtype, device, cache=ranks.size == 1 or config.parallel == "ddp")
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
    progress = run.begin(config, env, optimizer, scaler, dataset.folder, base.folder)
    epochs = config.max_steps * config.tokens_per_step / rows.epoch_tokens
    parameters = count_parameters(model)
    print(f"{run}: {model.config.num_hidden_layers} blocks, {parameters.total:,} parameters, "
          f"{parameters.trained:,} of them trained; {config.max_steps} steps of {config.tokens_per_step:,} "
          f"tokens ({epochs:.1f} epochs); {config.dtype} on {device}")

    def validate() -> None:
        """Log the validation loss; save the model if it is the best so far and the config keeps the best."""
        loss, documents = validation.measure(model, autocast, ranks)
        run.log_validation(loss._asdict(), documents, step=progress.step,
                           tokens=progress.step * config.tokens_per_step)
        better = progress.count_validation(loss.nll)
        if better and config.keep == "best":
            run.save_model(model)
        print(f"step {progress.step:5d}  validation nll {loss.nll:.4f}, perplexity {loss.perplexity:.2f}"
              + (" (best)" if better else ""))

    def save_state() -> None:
        progress.seconds, progress.scaler = time.perf_counter() - began, scaler.state_dict()
        run.save_state(progress, optimizer)

    # ---- the loop
    stop_signals = listen()
    if not resume:
        validate()
    began = time.perf_counter() - progress.seconds
    for step in range(progress.step + 1, config.max_steps + 1):
        step_began = time.perf_counter()
        lr = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr

        # Forward and backward: the loss is a mean over the learned tokens of all ranks' rows.
        first_row = (step - 1) * config.rows_per_step
        ids, targets, documents = rows.batch(first_row, config.rows_per_step)
        learned_tokens = max(1, int((targets != IGNORE).sum()))
        micro_batches = split_rows((ids, targets, documents), first_row, config.batch_size, ranks)
        loss = torch.zeros((), device=device)
        for micro in micro_batches:
            seed_dropout(config.seed, micro.first_row)
            soft_targets = teacher.soft_targets(micro.first_row, len(micro.ids)) if teacher else None
            activations = SavedActivations() if device.type == "cpu" else contextlib.nullcontext()
            with gradient_sync(network, last=micro is micro_batches[-1]), activations:
                with autocast():
                    nll = network(to_device(micro.ids, device), micro.targets, micro.documents,
                                  reduction="sum", teacher=soft_targets)
                    micro_loss = nll / learned_tokens
                scaler.scale(micro_loss * ranks.size).backward()  # the exchange takes the mean over the ranks
            loss += micro_loss.detach()

        # Update, unless the loss or its gradient is not finite.
        scaler.unscale_(optimizer)
        norms = clip_gradients(model, optimizer, config.clip)
        loss, *norms = torch.stack([loss, *norms]).tolist()  # in one transfer: it waits for the device
        grad_norm = math.sqrt(sum(norm**2 for norm in norms))
        loss, stop_requests = ranks.sum([loss, len(stop_signals)])
        overflow = not (math.isfinite(loss) and math.isfinite(grad_norm))
        progress.count_overflow(overflow)
        if overflow and (not scaler.is_enabled() or progress.in_a_row >= MOST_OVERFLOWS):
            saved = "the last save, if any,"
            if config.optimizer != "lean":  # which has updated some of the weights already
                save_state()
                saved = "the step before"
            raise Diverged(
                f"step {step}: the loss is {loss}, the gradient norm {grad_norm} (rows {first_row} to "
                f"{first_row + config.rows_per_step - 1} of seed {config.seed}, from "
                f"{rows.names(first_row, config.rows_per_step)}). The weights of {saved} are in {run}/state. "
                "Look at these documents, lower lr, lengthen warmup_steps or use float32, under another name "
                f"(--name={config.name}-2), from the start or, with --from-state {run}, from there")
        scaler.step(optimizer)  # float16 skips a step whose gradient overflowed, and lowers the scale
        scaler.update()
        optimizer.zero_grad()
        progress.step = step

        # Log. All ranks come here and rank 0 writes; a column is a keyword (docs/formats.md lists them).
        now = time.perf_counter()
        step_seconds = now - step_began
        tokens_per_s = config.tokens_per_step / step_seconds
        mfu = training_flops(model, micro_batches) / step_seconds / peak_flops
        memory_gb = peak_memory(device)
        run.log("train", step=step, tokens=step * config.tokens_per_step,
                epoch=round(epochs * step / config.max_steps, 4), loss=loss, lr=lr, grad_norm=grad_norm,
                tokens_per_s=round(tokens_per_s, 1), mfu=round(mfu, 4), memory_gb=round(memory_gb, 3),
                seconds=round(now - began, 2))
        last = step == config.max_steps
        if last or due(step, config.log_every):
            print(f"step {step:5d}  loss {loss:.4f}  lr {lr:.2e}  grad {grad_norm:.2f}  {tokens_per_s:,.0f} "
                  f"tokens/s  mfu {mfu:.0%}  {memory_gb:.1f} GB  "
                  f"{(config.max_steps - step) * step_seconds:,.0f} s left")

        # Validate, save the model, save the state.
        if last or due(step, config.eval_every):
            validate()
        progress.finished = last or 0 < config.patience <= progress.stale
        if progress.finished and config.keep == "last":
            run.save_model(model)
        if progress.finished or stop_requests or due(step, config.save_every):
            save_state()
        if progress.finished or stop_requests:
            break
    run.conclude(progress, config, stop_signals)
    return progress.finished


def due(step: int, every: int) -> bool:
    """True at every so many steps; never for 0."""
    return every > 0 and step % every == 0


def load_base(config: Config, base: Base) -> Decoder:
    """The model to train: the base without the config's blocks, perhaps with adapters."""
    if config.lora:
        model = Decoder.from_pretrained(config.base, revision=config.revision, frozen=config.frozen)
    elif base.folder:
        model = Decoder.from_pretrained(base.folder)
    else:
        model = Decoder(base.config)
    if base.dropped:
        record_removal(model.config, config.base, base.record["base"], base.dropped, method="by the config")
        model.drop_blocks(base.dropped)
    if config.lora:
        model.base.dropped = list(config.drop_blocks)
        settings = LoraSettings(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_root)
        add_lora(model, config.lora, settings, config.seed)
    return model


def make_optimizer(model: Decoder, config: Config) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) with decay on matrices only; groups carry the parameters' names."""
    trained = [pair for pair in model.named_parameters() if pair[1].requires_grad]
    matrices = [pair for pair in trained if pair[1].dim() >= 2]
    vectors = [pair for pair in trained if pair[1].dim() < 2]
    groups = [{"params": pairs, "weight_decay": decay}
              for pairs, decay in ((matrices, config.weight_decay), (vectors, 0.0)) if pairs]
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.optimizer == "lean":
        return LeanAdamW(groups, **settings)
    optimizer = torch.optim.AdamW(groups, **settings, fused=True)
    for _, parameter in trained:  # moments now, not later in holes that activations leave
        optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device),
                                      "exp_avg": torch.zeros_like(parameter),
                                      "exp_avg_sq": torch.zeros_like(parameter)}
    return optimizer


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up to lr, then a cosine down to lr x min_lr at the last step; `step` counts from 1."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    along = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)
    return config.lr * (config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * along)))


def clip_gradients(model: Decoder, optimizer: torch.optim.Optimizer, limit: float) -> list[torch.Tensor]:
    """The norms of all parts of the gradient, which is scaled down to `limit` (0: no clipping) in place."""
    if isinstance(optimizer, LeanAdamW):  # has used its gradients already
        return optimizer.take_norms()
    return [full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), limit or math.inf))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="Any setting of the config can be given as --key=value.",
                                     allow_abbrev=False)
    parser.add_argument("config", nargs="?", help="a config file, such as configs/full.py")
    parser.add_argument("--resume", metavar="RUN", help="resume the run in this folder")
    parser.add_argument("--dry-run", action="store_true", help="check config, data, base, memory and disk; "
                        "train nothing")
    parser.add_argument("--ignore-budget", action="store_true",
                        help="train although memory or disk seem too small")
    parser.add_argument("--ignore-changes", action="store_true", help="go on from a state although data, "
                        "base, device, threads or versions changed since the run began")
    parser.add_argument("--from-state", type=Path, metavar="RUN", help="begin with the weights, the "
                        "optimizer and the step of another run, such as one that diverged")
    args, overrides = parser.parse_known_args()
    if bool(args.config) == bool(args.resume):
        raise ValueError("give a config (python train.py configs/full.py) or a run to resume (--resume "
                         "runs/full)")
    if args.resume and (overrides or args.from_state):
        raise ValueError("--resume takes the run's own settings and state: leave out "
                         f"{' '.join(overrides) or '--from-state'}, or start a new run")
    config = saved_config(Path(args.resume)) if args.resume else load_config(args.config, overrides)
    resume = bool(args.resume) or (restarted() and has_state(config.folder / "state"))
    try:
        finished = train(config, resume, args.dry_run, args.ignore_budget, args.ignore_changes,
                         args.from_state, command_line.catch_signals)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{str(error).splitlines()[0]} Set recompute=blocks, lower batch_size (and raise "
                         "accumulation) or context, or take optimizer=lean. The last saved state is "
                         "unharmed") from error
    except RuntimeError as error:
        if not torch.distributed.is_initialized():
            raise
        print(f"train.py: another process of this run has ended ({str(error).splitlines()[0]}). The last "
              "saved state is unharmed; resume with --resume, under torchrun or without", file=sys.stderr)
        return 1
    return 0 if finished else STOPPED


if __name__ == "__main__":
    command_line.run(main, "stopped; if a state was saved (see the run's state/), resume with --resume")
