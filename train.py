"""The loop: a base, less its blocks, fine-tuned (or a model trained from scratch) as a config says.

    python train.py configs/full.py                          -> runs/full
    python train.py configs/reduced.py --max_steps=200       -> runs/reduced
    python train.py --resume runs/reduced
    torchrun --nproc-per-node=4 train.py configs/full.py     (the same run on four devices)

A run folder holds config.json, env.json, train.csv, eval.csv, model/ (the weights to use) and state/ (for --resume).
Ctrl-C and SIGTERM end a run after its step, with its state saved (exit code 3); a second one ends it at once.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

# Read when torch starts: cuBLAS repeats its results only with a fixed workspace; on CPUs, tensors that start at large pages
# leave fewer holes that nothing fits in.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

from model import Decoder
from nanoprune.config import IGNORE, Config, config_from_dict, load_config
from nanoprune.data.dataset import Dataset
from nanoprune.device import (
    keep_freed_memory,
    make_autocast,
    matmul_rate,
    peak_memory,
    pick_device,
    pick_dtype,
    to_device,
)
from nanoprune.distributed import Ranks, full_tensor, gradient_sync, join, join_full_tensors, restarted, wrap
from nanoprune.evaluation.perplexity import Validation
from nanoprune.io.files import file_hashes, make_folder, read_json, write_json
from nanoprune.io.hub import copy_tokenizer, locate
from nanoprune.io.tensors import file_order
from nanoprune.nn.lora import add_lora, count_parameters, load_frozen
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.peft import is_adapter, save_adapter
from nanoprune.nn.scratch import SavedActivations, return_buffer
from nanoprune.training.budget import enough_room, training_flops
from nanoprune.training.lean_adamw import LeanAdamW
from nanoprune.training.run_folder import (
    Log,
    check_unchanged,
    environment,
    has_state,
    load_state,
    lock_folder,
    restore,
    save_state,
    state_tensors,
)
from nanoprune.training.teacher import Teacher
from prune import drop_blocks, read_parts, remember

# Read when torch starts: cuBLAS repeats its results only with a fixed workspace; on CPUs, tensors that start at large pages
# leave fewer holes that nothing fits in.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
TRAIN_COLUMNS = ("step", "tokens", "epoch", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_gb", "seconds")
EVAL_COLUMNS = ("step", "tokens", "split", "nll", "perplexity", "bits_per_byte", "documents")
STOPPED = 3  # exit code of a run that was asked to stop, and saved its state
OVERFLOWS = 30  # steps in a row that fp16 may leave out: its scale has then fallen to nothing


class Diverged(ValueError):
    """The loss or its gradient is not finite."""


def train(config: Config, resume: bool = False, anyway: bool = False, dry_run: bool = False, listen=list) -> bool:
    """Run the experiment of a config into its run folder: True when it is finished, False where it was asked to stop.

    `anyway` goes on where memory or disk seem too small, or where a run is resumed on another machine than it began on;
    `dry_run` checks all that can be checked and leaves nothing behind; once the list that `listen` gives holds something, the
    run saves its state after the step and ends. ValueError for whatever the user can mend.
    """
    ranks = join(config.device)
    run, device = config.folder, pick_device(config.device)
    config = replace(config, dtype=pick_dtype(config.dtype, device))
    check_ranks(config, ranks)
    if config.optimizer == "lean" and config.dtype == "float16":
        raise ValueError(f"optimizer: lean cannot scale the loss, as float16 needs; set dtype for {device} or take adamw")
    if device.type == "cpu" and config.dtype == "float16":
        print("warning: float16 products are slow on CPUs; bfloat16 or float32 will be faster")
    keep_freed_memory()
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time and changes no result
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    if config.threads:
        torch.set_num_threads(config.threads)
    if not resume and (run / "config.json").is_file() and not restarted():
        resume_it = f"go on with it (python train.py --resume {run}), " if has_state(run / "state") else ""
        raise ValueError(f"{run} holds a run already: {resume_it}give this one another name (--name={config.name}-2), or "
                         "remove the folder")

    dataset = Dataset(config.data)
    rows = dataset.rows(config.context, config.seed, config.pair_repeats, config.replay)
    config = count_steps(config, rows.epoch_tokens)
    validation = Validation(dataset, config)
    with ranks.one_first():
        try:
            shape, base_folder = find_base(config, dataset)
        except ValueError as error:
            if not resume:
                raise
            raise ValueError(f"{error}. A run goes on with its own base: put it back, or a link to it") from error
    enough_room(config, shape, device, ranks, anyway, base_folder)
    model = load_base(config, shape, base_folder)
    env = environment(device) | {"ranks": ranks.size, "data": file_hashes(dataset.folder),
                                 "base": file_hashes(base_folder) if base_folder else {}}
    if dry_run:
        print(f"{run}: nothing is wrong; a dry run, so nothing was written")
        return True
    _lock = lock_folder(run) if ranks.rank == 0 else None  # held while this lives
    if teacher := Teacher(config, dataset, rows, device, ranks) if config.teacher else None:
        env |= {"teacher": teacher.hashes, "teacher_seconds": teacher.seconds}
    model.train()
    model.model.recompute = config.recompute
    if config.compile:
        for layer in model.model.layers:
            layer.compile()
    spread_model = wrap(model, config.parallel, ranks, device)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
    progress = {"step": 0, "seconds": 0.0, "best": math.inf, "best_step": 0, "stale": 0, "overflows": 0, "in_a_row": 0,
                "scaler": scaler.state_dict(), "config": json.loads(json.dumps(config.to_dict()))}
    if resume:
        check_unchanged(run, env, anyway, write=ranks.rank == 0)
        state, tensors = load_state(run / "state")
        elsewhere = ("name", "runs")  # a run's folder may be moved
        if changed := [name for name, value in state["config"].items()
                       if progress["config"].get(name) != value and name not in elsewhere]:
            raise ValueError(f"{run}/config.json is not what the run began with: {', '.join(changed)} changed. Put "
                             "it back, or begin anew under another name")
        progress |= state
        restore(tensors, optimizer)
        scaler.load_state_dict(progress["scaler"])
        if progress["finished"]:
            print(f"{run} is finished, at step {progress['step']}: nothing to resume, {run}/model is up to date")
            return True
    elif ranks.rank == 0:
        write_json(make_folder(run) / "config.json", config.to_dict())
        write_json(run / "env.json", env)
    if ranks.rank == 0:
        done = progress["step"] if resume else None
        train_log, eval_log = Log(run / "train.csv", TRAIN_COLUMNS, done), Log(run / "eval.csv", EVAL_COLUMNS, done)
    autocast = make_autocast(config, device, cache=ranks.size == 1 or config.parallel == "ddp")
    peak = matmul_rate(device, getattr(torch, config.dtype))
    epochs = config.max_steps * config.tokens_per_step / rows.epoch_tokens
    total, trained = count_parameters(model)
    beside = f", {trained:,} of them trained" if config.lora else ""
    print(f"{run}: {model.config.num_hidden_layers} blocks, {total:,} parameters{beside}; "
          f"{config.max_steps} steps of {config.tokens_per_step:,} tokens ({epochs:.1f} epochs); "
          f"{config.dtype} on {device}{f', {ranks.size} processes ({config.parallel})' if ranks.size > 1 else ''}")

    def validate(step: int) -> None:
        """Log the validation loss and keep the weights if the config's rule says so."""
        nll, perplexity, bits = validation.measure(model, autocast, ranks)
        if ranks.rank == 0:
            eval_log.write(step=step, tokens=step * config.tokens_per_step, split="val", nll=nll, perplexity=perplexity,
                           bits_per_byte=bits, documents=validation.documents)
        better = nll < progress["best"]
        progress.update({"best": nll, "best_step": step, "stale": 0} if better else {"stale": progress["stale"] + 1})
        if better and config.keep == "best":
            keep_model()
        print(f"step {step:5d}  validation nll {nll:.4f}, perplexity {perplexity:.2f}{' (best)' if better else ''}")

    def keep_model() -> None:
        if ranks.rank == 0:
            save_adapter(model, run / "model") if config.lora else model.save_pretrained(run / "model")
        elif not config.lora:
            join_full_tensors(file_order(model.state_dict()).values())

    def save(step: int, finished: bool = False) -> None:
        progress.update(step=step, finished=finished, seconds=time.perf_counter() - started, scaler=scaler.state_dict())
        tensors = state_tensors(optimizer)
        if ranks.rank == 0:
            save_state(run / "state", step, tensors, progress)
        else:
            join_full_tensors(tensors.values())

    asked = listen()
    if not resume:
        validate(0)
        if ranks.rank == 0:
            for source in filter(None, (dataset.folder, base_folder)):  # the base's files, the dataset's where it has none
                copy_tokenizer(source, make_folder(run / "model"))
    step_rows = config.batch_size * config.accumulation
    started = time.perf_counter() - progress["seconds"]
    for step in range(progress["step"] + 1, config.max_steps + 1):
        step_started = time.perf_counter()
        lr = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        first_row = (step - 1) * step_rows
        batch = rows.batch(first_row, step_rows)  # all the ranks': what is counted in it decides on the mean
        counted = max(1, int((batch[1] != IGNORE).sum()))
        batch += teacher.batch(first_row, step_rows) if teacher else ()
        mine = [part.chunk(ranks.size)[ranks.rank].split(config.batch_size) for part in batch]
        numbers = torch.arange(first_row, first_row + step_rows).chunk(ranks.size)[ranks.rank].split(config.batch_size)
        micro_batches = list(zip(*mine, strict=True))
        loss = torch.zeros((), device=device)
        for i, (ids, targets, documents, *likeliest) in enumerate(micro_batches):
            if config.lora:
                model.draws.rows = numbers[i].tolist()
            taught = (*likeliest, config.teacher_share, config.teacher_temperature) if teacher else None
            kept = SavedActivations() if config.lora else contextlib.nullcontext()
            with gradient_sync(spread_model, last=i == len(micro_batches) - 1), kept:
                with autocast():
                    total = spread_model(to_device(ids, device), targets, documents, reduction="sum", teacher=taught)
                    micro_loss = total / counted
                scaler.scale(micro_loss * ranks.size).backward()  # what is exchanged are means over the ranks
            loss += micro_loss.detach()
        loss, asked_somewhere = ranks.sum([loss, len(asked)])
        if config.optimizer == "lean":  # which has made its updates
            grad_norm = optimizer.grad_norm()
        else:
            scaler.unscale_(optimizer)
            grad_norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)))
        overflow = not (math.isfinite(loss) and math.isfinite(grad_norm))
        progress["overflows"] += overflow
        progress["in_a_row"] = progress["in_a_row"] + 1 if overflow else 0
        if overflow and (not scaler.is_enabled() or progress["in_a_row"] >= OVERFLOWS):
            intact = config.optimizer != "lean"  # which has updated some of the weights
            if intact:
                save(step - 1)
            raise Diverged(
                f"step {step}: the loss is {float(loss)}, the gradient norm {grad_norm} (rows {first_row} to "
                f"{first_row + step_rows - 1} of seed {config.seed}, from {rows.names(first_row, step_rows)}). The weights "
                f"{'before it' if intact else 'of the last save, where there was one,'} are in {run}/state. Look at these "
                "documents, lower lr, lengthen warmup_steps or use float32, under another name"
            )
        scaler.step(optimizer)  # in fp16, a step whose gradient overflowed is left out and the scale lowered
        scaler.update()
        if config.optimizer == "adamw" and ranks.size == 1 and not config.lora:
            return_buffer("gradient", model.head_weight.grad)
        optimizer.zero_grad()

        now = time.perf_counter()
        tokens_per_s = config.tokens_per_step / (now - step_started)
        mfu = training_flops(model, micro_batches) / (now - step_started) / peak
        if ranks.rank == 0:
            train_log.write(step=step, tokens=step * config.tokens_per_step, epoch=round(epochs * step / config.max_steps, 4),
                            loss=float(loss), lr=lr, grad_norm=grad_norm, tokens_per_s=round(tokens_per_s, 1),
                            mfu=round(mfu, 4), memory_gb=round(peak_memory(device), 3), seconds=round(now - started, 2))
        if step % config.log_every == 0 or step == config.max_steps:
            left = (config.max_steps - step) * (now - step_started)
            print(f"step {step:5d}  loss {float(loss):.4f}  lr {lr:.2e}  grad {grad_norm:.2f}  {tokens_per_s:,.0f} tokens/s  "
                  f"mfu {mfu:.0%}  {peak_memory(device):.1f} GB  {left:,.0f} s left")

        if step == config.max_steps or (config.eval_every and step % config.eval_every == 0):
            validate(step)
        stop = bool(config.patience) and progress["stale"] >= config.patience
        finished = stop or step == config.max_steps
        if finished and config.keep == "last":
            keep_model()
        if finished or asked_somewhere or (config.save_every and step % config.save_every == 0):
            save(step, finished)
        if stop:
            print(f"stopped: {config.patience} validations without a better loss than at step {progress['best_step']}")
        if stop or asked_somewhere:
            break
    if progress["overflows"]:
        print(f"{progress['overflows']} steps were left out, because their gradients overflowed in float16")
    if not finished:
        print(f"stopped by {asked[0] if asked else 'another process'} after step {step}, saved in {run}/state; go on with "
              f"python train.py --resume {run}")
        return False
    if config.keep == "best" and not progress["best_step"]:
        print(f"warning: no validation was better than the one before training, so {run}/model holds what it began with; lower "
              "lr, or set keep=last for both arms")
    chosen = f"step {progress['best_step']}, nll {progress['best']:.4f}" if config.keep == "best" else f"step {step}"
    print(f"wrote {run}/model ({config.keep}: {chosen}), {run}/train.csv, {run}/eval.csv, {run}/state")
    return True


def find_base(config: Config, dataset: Dataset) -> tuple[ModelConfig, Path | None]:
    """The shape of the base before blocks are dropped, and its folder (None from scratch); checked without its weights."""
    if isinstance(config.base, dict):
        folder, shape = None, ModelConfig.from_dict({"vocab_size": dataset.meta["vocab_size"]} | config.base, "base")
        if shape.vocab_size < dataset.meta["vocab_size"]:
            raise ValueError(f"base: vocab_size {shape.vocab_size} is below the tokenizer's {dataset.meta['vocab_size']}")
        shape.extra.setdefault("eos_token_id", dataset.meta["end_token"])
    else:
        folder = locate(config.base, config.revision)
        if is_adapter(folder):
            raise ValueError(f"base: {config.base} is an adapter on another model; make one model of both: python -m nanoprune "
                             f"merge {config.base} --out FOLDER")
        shape = Decoder.read_config(folder)
        dataset.check_model(config.base, folder, shape.vocab_size)
    if config.context > shape.max_position_embeddings:
        raise ValueError(f"context: given {config.context}, the base allows up to {shape.max_position_embeddings}")
    return shape, folder


def load_base(config: Config, shape: ModelConfig, folder: Path | None) -> Decoder:
    """The model to train: the base from its folder, or made from scratch, less the config's blocks, perhaps with adapters."""
    if config.lora:
        model = load_frozen(config.base, config.frozen, revision=config.revision)
    else:
        model = Decoder(shape) if folder is None else Decoder.from_pretrained(folder)
    if config.drop_blocks:
        remember(model, config.base, folder, read_parts(config.drop_blocks, model.config), method="by the config")
        drop_blocks(model, config.drop_blocks)
    if config.lora:
        model.base["dropped"] = list(config.drop_blocks)
        add_lora(model, config.lora, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_root, config.seed)
    return model


def count_steps(config: Config, epoch_tokens: int) -> Config:
    """The config with the steps that its epochs come to; ValueError where warming up would take longer."""
    if not config.epochs:
        return config
    steps = math.ceil(config.epochs * epoch_tokens / config.tokens_per_step)
    if config.warmup_steps >= steps:
        raise ValueError(f"warmup_steps: given {config.warmup_steps}, must be below the {steps} steps that epochs="
                         f"{config.epochs} comes to: {epoch_tokens:,} tokens an epoch, {config.tokens_per_step:,} a step")
    return replace(config, max_steps=steps)


def check_ranks(config: Config, ranks: Ranks) -> None:
    """ValueError where this run cannot be divided among the processes."""
    rows = config.batch_size * config.accumulation
    if rows % ranks.size:
        raise ValueError(f"{ranks.size} processes cannot share the {rows} rows of a step (batch_size {config.batch_size} x "
                         f"accumulation {config.accumulation}): start as many as divide them, or change accumulation")
    if ranks.size > 1 and config.parallel == "fsdp" and config.lora:
        raise ValueError(f"{ranks.size} processes: adapters are trained with parallel=ddp, where each has the whole base")
    if ranks.size > 1 and (config.optimizer == "lean" or (config.parallel == "fsdp" and config.dtype == "float16")):
        raise ValueError(f"{ranks.size} processes: optimizer=lean updates before the gradients are exchanged, and fsdp cannot "
                         "scale float16's loss; take adamw, and bfloat16, float32 or ddp")


def make_optimizer(model: Decoder, config: Config) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) with decay on matrices only; groups carry the parameters' names for the checkpoint."""
    groups = []
    for decay in (True, False):
        chosen = [(name, p) for name, p in model.named_parameters() if p.requires_grad and (p.dim() >= 2) == decay]
        groups.append({"params": [p for _, p in chosen], "names": [name for name, _ in chosen],
                       "weight_decay": config.weight_decay * decay})
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, **settings, fused=True)
        for parameter in (p for group in groups for p in group["params"]):  # now, not in holes that activations leave
            optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | {
                name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return optimizer
    optimizer = LeanAdamW(groups, **settings)
    optimizer.during_backward()
    return optimizer


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up to lr, then a cosine down to lr x min_lr at the last step; `step` counts from 1."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    along = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)
    return config.lr * (config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * along)))


def catch_signals() -> list[str]:
    """A list that Ctrl-C and SIGTERM write their names to; the same a second time is a KeyboardInterrupt, at once."""
    asked = []

    def note(number: int, _) -> None:
        if (name := signal.Signals(number).name) in asked:  # torchrun passes a Ctrl-C on as SIGTERM besides
            raise KeyboardInterrupt
        asked.append(name)
        os.write(2, b"\nthis step is finished and saved first; once more, and it ends at once\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return asked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="Any setting of the config can be given as --key=value.", allow_abbrev=False)
    parser.add_argument("config", nargs="?", help="a config file, such as configs/full.py")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    parser.add_argument("--dry-run", action="store_true", help="check config, data, base, memory and disk, and train nothing")
    parser.add_argument("--anyway", action="store_true", help="go on although memory or disk seem too small, or although data, "
                        "base, device, threads or versions are not what the run to resume began with")
    args, overrides = parser.parse_known_args()
    if bool(args.config) == bool(args.resume):
        raise ValueError("give a config (python train.py configs/full.py) or a run to go on with (--resume runs/full)")
    if args.resume:
        if overrides:
            raise ValueError(f"--resume goes on with the run's own settings; {' '.join(overrides)} cannot be changed")
        if not has_state(Path(args.resume) / "state"):
            raise ValueError(f"there is no saved state in {args.resume} to go on from; a run that stopped before its first "
                             "save starts anew: remove its folder and run its config again")
        config = config_from_dict(read_json(Path(args.resume) / "config.json"), f"{args.resume}/config.json")
        if config.folder.resolve() != Path(args.resume).resolve():
            raise ValueError(f"{args.resume} was written as {config.folder}; move it back there to resume it")
    else:
        config = load_config(args.config, overrides)
    resume = bool(args.resume) or (restarted() and has_state(config.folder / "state"))
    return 0 if train(config, resume, args.anyway, args.dry_run, catch_signals) else STOPPED


if __name__ == "__main__":
    try:
        sys.exit(main())
    except torch.OutOfMemoryError as error:
        print(f"train.py: {str(error).splitlines()[0]} Set recompute=blocks, lower batch_size (and raise accumulation) or "
              "context, or take optimizer=lean. The last saved state is unharmed", file=sys.stderr)
        sys.exit(2)
    except ValueError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if not torch.distributed.is_initialized():
            raise
        print(f"train.py: another process of this run has ended ({str(error).splitlines()[0]}). The last saved state is "
              "unharmed; go on with --resume, under torchrun or without", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ntrain.py: stopped; if a state was saved (see the run's state/), go on with --resume", file=sys.stderr)
        sys.exit(130)
