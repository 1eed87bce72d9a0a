"""The loop: a base, less its blocks, fine-tuned (or a model trained from scratch) as a config says.

    python train.py configs/full.py                          -> runs/full
    python train.py configs/reduced.py --max_steps=200       -> runs/reduced
    python train.py --resume runs/reduced

A run folder holds config.json, env.json, train.csv, eval.csv, model/ (the weights to use) and state/ (for --resume).
"""

import argparse
import contextlib
import ctypes
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

# Read when torch starts: cuBLAS repeats its results only with a fixed workspace; on CPUs, tensors that start at large pages
# leave fewer holes that nothing fits in.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import torch

from checkpoint import Log, has_state, load_state, restore, save_state
from configs import Config, config_from_dict, load_config, replace
from dataset import IGNORE, Dataset, Rows
from files import copy_tokenizer, file_hash, locate, make_folder, read_json, write_json
from lean import LeanAdamW
from model import Decoder, ModelConfig, document_nll, pick_device
from ops import give_back, send
from prune import drop_blocks

TRAIN_COLUMNS = ("step", "tokens", "epoch", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_gb", "seconds")
EVAL_COLUMNS = ("step", "tokens", "split", "nll", "perplexity", "bits_per_byte", "documents")


def train(config: Config, resume: bool = False) -> None:
    """Run the experiment of a config into its run folder; ValueError for whatever the user can mend."""
    run, device = config.folder, pick_device(config.device)
    config = replace(config, dtype=pick_dtype(config.dtype, device))
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
    if not resume and (run / "config.json").is_file():
        resume_it = f"go on with it (python train.py --resume {run}), " if has_state(run / "state") else ""
        raise ValueError(f"{run} holds a run already: {resume_it}give this one another name (--name={config.name}-2), or "
                         "remove the folder")

    dataset = Dataset(config.data)
    pairs = dataset.split("pairs") if config.pair_repeats else None
    rows = Rows(dataset.split("train"), config.context, config.seed, pairs, config.pair_repeats)
    validation = Validation(dataset, config)
    model, base_folder = load_base(config, dataset)
    sources = {"data": file_hashes(dataset.folder), "base": file_hashes(base_folder) if base_folder else None}
    model.to(device).train()
    model.model.recompute = config.recompute
    if config.compile:
        for layer in model.model.layers:
            layer.compile()
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
    progress = {"step": 0, "seconds": 0.0, "best": math.inf, "best_step": 0, "stale": 0, "scaler": scaler.state_dict()}
    if resume:
        if changed := [name for name, hashes in sources.items() if read_json(run / "env.json").get(name) != hashes]:
            raise ValueError(f"{run} began with another {' and another '.join(changed)} than there is now ({config.data}, "
                             f"{config.base}): put them back, or begin anew under another name")
        progress, tensors = load_state(run / "state", device)
        restore(tensors, model, optimizer)
        del tensors  # as large as the model and the optimizer's state
        scaler.load_state_dict(progress["scaler"])
        if progress["finished"]:
            print(f"{run} is finished, at step {progress['step']}: nothing to resume, {run}/model is up to date")
            return
    else:
        write_json(make_folder(run) / "config.json", config.to_dict())
        write_json(run / "env.json", environment(device) | sources)
    done = progress["step"] if resume else None
    train_log, eval_log = Log(run / "train.csv", TRAIN_COLUMNS, done), Log(run / "eval.csv", EVAL_COLUMNS, done)
    autocast = make_autocast(config, device)
    peak = matmul_rate(device, getattr(torch, config.dtype))
    epochs = config.max_steps * config.tokens_per_step / rows.epoch_tokens
    print(f"{run}: {model.config.num_hidden_layers} blocks, {sum(p.numel() for p in model.parameters()):,} parameters; "
          f"{config.max_steps} steps of {config.tokens_per_step:,} tokens ({epochs:.1f} epochs); "
          f"{config.dtype} on {device}")

    def validate(step: int) -> None:
        """Log the validation loss and keep the weights if the config's rule says so."""
        nll, perplexity, bits = validation.measure(model, autocast)
        eval_log.write(step=step, tokens=step * config.tokens_per_step, split="val", nll=nll, perplexity=perplexity,
                       bits_per_byte=bits, documents=validation.documents)
        better = nll < progress["best"]
        progress.update({"best": nll, "best_step": step, "stale": 0} if better else {"stale": progress["stale"] + 1})
        if better and config.keep == "best":
            model.save_pretrained(run / "model")
        print(f"step {step:5d}  validation nll {nll:.4f}, perplexity {perplexity:.2f}{' (best)' if better else ''}")

    def save(step: int, finished: bool = False) -> None:
        progress.update(step=step, finished=finished, seconds=time.perf_counter() - started, scaler=scaler.state_dict())
        save_state(run / "state", step, model.state_dict(), optimizer, progress)

    if not resume:
        validate(0)
        keep_tokenizer(base_folder, dataset.folder, run / "model")
    started = time.perf_counter() - progress["seconds"]
    for step in range(progress["step"] + 1, config.max_steps + 1):
        step_started = time.perf_counter()
        lr = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        first_row = (step - 1) * config.batch_size * config.accumulation
        micro_batches = [rows.batch(first_row + i * config.batch_size, config.batch_size) for i in range(config.accumulation)]
        # The mean is over the step's tokens, so every micro-batch's sum is divided by the count of all.
        counted = max(1, sum(int((targets != IGNORE).sum()) for _, targets, _ in micro_batches))
        loss = torch.zeros((), device=device)
        for ids, targets, documents in micro_batches:
            with autocast():
                micro_loss = model(send(ids, device), targets, documents, reduction="sum") / counted
            scaler.scale(micro_loss).backward()
            loss += micro_loss.detach()
        if config.optimizer == "lean":  # which has made its updates
            grad_norm = optimizer.grad_norm()
        else:
            scaler.unscale_(optimizer)
            grad_norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf))
        if not math.isfinite(loss) or (not math.isfinite(grad_norm) and not scaler.is_enabled()):
            whole = config.optimizer != "lean"  # which has updated some of the weights
            if whole:
                save(step - 1)
            raise ValueError(
                f"step {step}: the loss is {float(loss)}, the gradient norm {grad_norm} (rows {first_row} to "
                f"{first_row + config.batch_size * config.accumulation - 1} of seed {config.seed}). The weights "
                f"{'before it' if whole else 'of the last save, where there was one,'} are in {run}/state. Lower lr, "
                "lengthen warmup_steps or use float32, under another name"
            )
        scaler.step(optimizer)  # in fp16, a step whose gradient overflowed is left out and the scale lowered
        scaler.update()
        if config.optimizer == "adamw":
            give_back("gradient", model.head_weight.grad)
        optimizer.zero_grad()

        now = time.perf_counter()
        tokens_per_s = config.tokens_per_step / (now - step_started)
        mfu = training_flops(model, micro_batches) / (now - step_started) / peak
        train_log.write(step=step, tokens=step * config.tokens_per_step, epoch=round(epochs * step / config.max_steps, 4),
                        loss=float(loss), lr=lr, grad_norm=grad_norm, tokens_per_s=round(tokens_per_s, 1), mfu=round(mfu, 4),
                        memory_gb=round(peak_memory(device), 3), seconds=round(now - started, 2))
        if step % config.log_every == 0 or step == config.max_steps:
            left = (config.max_steps - step) * (now - step_started)
            print(f"step {step:5d}  loss {float(loss):.4f}  lr {lr:.2e}  grad {grad_norm:.2f}  {tokens_per_s:,.0f} tokens/s  "
                  f"mfu {mfu:.0%}  {peak_memory(device):.1f} GB  {left:,.0f} s left")

        if step == config.max_steps or (config.eval_every and step % config.eval_every == 0):
            validate(step)
        stop = bool(config.patience) and progress["stale"] >= config.patience
        finished = stop or step == config.max_steps
        if finished and config.keep == "last":
            model.save_pretrained(run / "model")
        if finished or (config.save_every and step % config.save_every == 0):
            save(step, finished)
        if stop:
            print(f"stopped: {config.patience} validations without a better loss than at step {progress['best_step']}")
            break
    chosen = f"step {progress['best_step']}, nll {progress['best']:.4f}" if config.keep == "best" else f"step {step}"
    print(f"wrote {run}/model ({config.keep}: {chosen}), {run}/train.csv, {run}/eval.csv, {run}/state")


def load_base(config: Config, dataset: Dataset) -> tuple[Decoder, Path | None]:
    """The model to train, less the config's blocks, and the folder it came from (None from scratch)."""
    if isinstance(config.base, dict):
        folder, model = None, Decoder(ModelConfig.from_dict({"vocab_size": dataset.meta["vocab_size"]} | config.base, "base"))
        if model.config.vocab_size < dataset.meta["vocab_size"]:
            raise ValueError(f"base: vocab_size {model.config.vocab_size} is below the tokenizer's "
                             f"{dataset.meta['vocab_size']}")
        model.config.extra.setdefault("eos_token_id", dataset.meta["end_token"])
    else:
        folder = locate(config.base, config.revision)
        model = Decoder.from_pretrained(folder)
        dataset.check_model(config.base, folder, model.config.vocab_size)
    if config.context > model.config.max_position_embeddings:
        raise ValueError(f"context: given {config.context}, the base allows up to {model.config.max_position_embeddings}")
    drop_blocks(model, config.drop_blocks)
    return model, folder


def keep_tokenizer(base: Path | None, dataset: Path, target: Path) -> None:
    """The base's tokenizer files, and the dataset's own where the base has none."""
    for source in (dataset, base):
        if source is not None:
            copy_tokenizer(source, make_folder(target))


def make_optimizer(model: Decoder, config: Config) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) with decay on matrices only; groups carry the parameters' names for the checkpoint."""
    groups = []
    for decay in (True, False):
        chosen = [(name, p) for name, p in model.named_parameters() if (p.dim() >= 2) == decay]
        groups.append({"params": [p for _, p in chosen], "names": [name for name, _ in chosen],
                       "weight_decay": config.weight_decay * decay})
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, **settings, fused=True)
        for parameter in model.parameters():  # now, in one piece, not in the holes that the first step's activations leave
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


class Validation:
    """The same documents in the same windows every time; draws nothing from the training's random state."""

    def __init__(self, dataset: Dataset, config: Config):
        split = dataset.split("val")
        n = min(config.eval_documents or len(split), len(split))
        chosen = set(np.linspace(0, len(split) - 1, n).round().astype(int).tolist()) if n else set()
        self.windows = list(split.windows(config.context, only=chosen))
        self.size, self.documents, self.bytes = len(split), len(chosen), sum(int(split.bytes[i]) for i in chosen)
        if not self.windows:
            raise ValueError(f"{dataset.folder} has an empty validation split; prepare it from more articles")

    def measure(self, model: Decoder, autocast) -> tuple[float, float, float]:
        """Mean nll per token in nats, perplexity, bits per byte."""
        model.eval()
        nll, tokens = document_nll(model, self.windows, self.size, autocast)
        model.train()
        mean = nll.sum() / tokens.sum()
        return float(mean), float(np.exp(mean)), float(nll.sum() / math.log(2) / self.bytes)


def pick_dtype(name: str, device: torch.device) -> str:
    """The type of a name, or for "auto" the fastest with units of its own: bf16 products without them are slower than fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "float32"


def make_autocast(config: Config, device: torch.device):
    """A function that opens the mixed-precision context of the config."""
    if config.dtype == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, getattr(torch, config.dtype))


def training_flops(model: Decoder, micro_batches: list) -> float:
    """Floating-point operations of one step: 6 per matrix weight and token, and attention within each document.

    Scores and weighted values take 4 x n x n x heads x head_dim a block, half of it by causality, three times that with
    the backward pass. The embedding is a look-up and counts nothing; the head counts, also where it is tied.
    """
    config = model.config
    matrices = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.dim() == 2)
    matrices += config.vocab_size * config.hidden_size
    tokens = sum(ids.numel() for ids, _, _ in micro_batches)
    squares = sum(int((np.bincount(row) ** 2).sum()) for _, _, documents in micro_batches for row in documents.numpy())
    attention = 6 * squares * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return 6 * matrices * tokens + attention


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The machine's own rate in FLOP/s: the best of some square products. MFU is the share of it that a step reaches."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.ones(n, n, device=device, dtype=dtype) * 0.5 for _ in range(2))
    synchronize = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    best, started = math.inf, time.perf_counter()
    while time.perf_counter() - started < 0.2:
        synchronize()
        start = time.perf_counter()
        a @ b
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks: it hands large ones back to the kernel, and every step would fault them in again."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: up to 32 MiB, the most it takes; larger blocks would leave holes in the heap
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap


def peak_memory(device: torch.device) -> float:
    """Peak so far in GB: of the GPU's allocator on CUDA, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def environment(device: torch.device) -> dict:
    """What a run depends on besides its config, data and base."""
    describe = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    git = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True) if shutil.which("git") else None
    return {
        "git": git.stdout.strip() or None if git else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of a folder's safetensors, by name."""
    return {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="Any setting of the config can be given as --key=value.", allow_abbrev=False)
    parser.add_argument("config", nargs="?", help="a config file, such as configs/full.py")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
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
        train(config, resume=True)
    else:
        train(load_config(args.config, overrides))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ntrain.py: stopped; if a state was saved (see the run's state/), go on with --resume", file=sys.stderr)
        sys.exit(130)
