"""What is each block worth, and what is left without it: score every block, choose and drop blocks.

    python prune.py Qwen/Qwen3-0.6B-Base --data data/bmw --score blocks.csv            (--parts: attention and MLP, too)
    python prune.py Qwen/Qwen3-0.6B-Base --drop 25 --out models/reduced                (or 13,15 or 13.attn or 13.mlp)
    python prune.py Qwen/Qwen3-0.6B-Base --data data/bmw --choose 2 --out models/reduced

A block's score is the loss of the model without it, on the dataset's validation split: the reference that the cheaper
scores beside it only estimate (and block influence is known to rank Qwen3-0.6B's blocks badly). Runs under torchrun, too.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.nn as nn

from model import Decoder
from nanoprune import command_line
from nanoprune.data.dataset import Dataset
from nanoprune.data.token_file import TokenFile
from nanoprune.device import pick_device
from nanoprune.distributed import ALONE, Ranks, join
from nanoprune.evaluation.block_scores import (
    ESTIMATES,
    SCORE_COLUMNS,
    SOURCES,
    Part,
    losses_without,
    magnitude,
    part_name,
    score_blocks,
    similarities,
    taylor,
    window_tokens,
)
from nanoprune.io.files import (
    file_hash,
    file_hashes,
    finite_or_none,
    make_folder,
    replace_folder,
    write_csv,
    write_json,
)
from nanoprune.io.hub import check_out, copy_tokenizer, locate
from nanoprune.statistics import average_ranks
from nanoprune.training.run_folder import environment

METHODS = ("loss", "influence", "angular", "taylor", "magnitude", "last", "random")
LEAST_DOCUMENTS, LEAST_TOKENS = 2, 100  # with less there is no interval, and nothing to go by


# ---------------------------------------------------------------- removing
def read_parts(given: Iterable[int | str], config) -> list[Part]:
    """What "13", 13 or "13.attn" name in a model of this config, in order; ValueError where it is not there or repeated."""
    parts, count = [], config.num_hidden_layers
    for name in given:
        number, dot, half = str(name).partition(".")
        if type(name) not in (int, str) or not number.removeprefix("-").isdecimal() or (dot and half not in ("attn", "mlp")):
            raise ValueError(f"cannot drop block {name}: this model has {count} blocks, 0 to {count - 1}; a block is named "
                             "by its number, its attention or MLP alone as in 13.attn or 13.mlp")
        block = int(number)
        if not 0 <= block < count:
            raise ValueError(f"cannot drop block {name}: this model has {count} blocks, 0 to {count - 1}")
        if half and config.without[block]:
            raise ValueError(f"cannot drop {name}: block {block} has lost its {config.without[block]} already"
                             + ("" if half == config.without[block] else f"; drop the whole block, {block}"))
        parts.append((block, half))
    for block in sorted({block for block, _ in parts}):
        if len(named := [part_name(part) for part in parts if part[0] == block]) > 1:
            both = sorted(named) == [f"{block}.attn", f"{block}.mlp"]
            mend = f"name the whole block, {block}" if both else "name each block to drop once"
            raise ValueError(f"block {block} is named more than once ({', '.join(named)}); {mend}")
    if sum(not half for _, half in parts) == count:
        raise ValueError(f"cannot drop all {count} blocks: keep at least one")
    return sorted(parts)


def drop_blocks(model: Decoder, blocks: Iterable[int | str]) -> None:
    """Remove blocks by their present index, or "13.attn", "13.mlp" of them, in place; the config follows.

    ValueError where an index is out of range, repeated or no index, and where no block would be left.
    """
    parts = read_parts(blocks, model.config)
    without = list(model.config.without)
    for block, half in parts:
        if half:
            model.model.layers[block].remove(half)
            without[block] = half
    gone = {block for block, half in parts if not half}
    kept = [i for i in range(model.config.num_hidden_layers) if i not in gone]
    model.model.layers = nn.ModuleList(model.model.layers[i] for i in kept)
    model.config = replace(model.config, without=tuple(without)).keep_blocks(kept)


def silence(model: Decoder, parts: list[Part]) -> None:
    """Have attentions or MLPs add nothing, by zeros in what they add last: what any reader of the model's family can load."""
    for block, half in parts:
        layer = model.model.layers[block]
        for p in (layer.self_attn.o_proj if half == "attn" else layer.mlp.down_proj).parameters():
            nn.init.zeros_(p)


def remember(model: Decoder, base: str, folder: Path, parts: list[Part], **how) -> None:
    """Add to the history that config.json carries: what is about to be dropped from which base, and how it was chosen."""
    entry = {"base": str(base), "base_sha256": file_hashes(folder), "dropped": ",".join(map(part_name, parts)),
             "original": ",".join(part_name((model.config.blocks[block], half)) for block, half in parts)}
    model.config.extra["nanoprune_history"] = [*model.config.extra.get("nanoprune_history", []), entry | how]


# ---------------------------------------------------------------- choosing
def choose_blocks(
    model: Decoder, windows: list, documents: int, count: int, method: str = "loss", contiguous: bool = False,
    protect: Iterable[int] = (), once: bool = False, seed: int = 0, ranks: Ranks = ALONE,
) -> tuple[list[int], list[dict]]:
    """(the blocks to drop, by present index; a line per decision: blocks, score, and the loss where it was computed).

    Free sets are chosen one block at a time, each scored anew without those before it, as SLEB does (arXiv:2402.09025), or
    with `once` all from one table, as ShortGPT does. A contiguous run is scored as a whole. `protect` is never chosen.
    """
    blocks = range(model.config.num_hidden_layers)
    protect = [block for block, _ in read_parts(protect, model.config)]
    free = [i for i in blocks if i not in protect]
    if not 1 <= count <= min(len(free), len(blocks) - 1):
        raise ValueError(f"--choose {count}: this model has {len(blocks)} blocks, {len(free)} of them not protected, and one "
                         "must be left")
    if method not in METHODS:
        raise ValueError(f"--method {method}: there are {', '.join(METHODS)}")
    width = count if contiguous else 1
    chosen, decisions = [], []
    while len(chosen) < count:
        runs = [tuple(range(i, i + width)) for i in blocks if all(j in free and j not in chosen for j in range(i, i + width))]
        if not runs:
            raise ValueError(f"--contiguous: no {count} unprotected blocks follow each other")
        wanted = 1 if contiguous or not (once or method in ("last", "random")) else count
        scores = score_runs(model, windows, documents, chosen, runs, method, seed, ranks)
        order = np.argsort(average_ranks(scores), kind="stable")[:wanted]
        for k in order:
            chosen += runs[k]
            decisions.append({"blocks": list(runs[k]), method: None if not math.isfinite(scores[k]) else float(scores[k])})
    return sorted(chosen), decisions


def score_runs(model, windows, documents, gone: list[int], runs: list[tuple[int, ...]], method: str, seed: int, ranks) -> list:
    """The score of each run of blocks in the model without those that are gone; the lowest is missed least."""
    if method == "last":
        return [-run[-1] for run in runs]
    if method == "random":
        return np.random.default_rng(seed).permutation(len(runs)).tolist()
    if method == "loss":
        removals = [tuple((block, "") for block in (*gone, *run)) for run in runs]
        nll, tokens, _ = losses_without(model, windows, documents, removals, ranks)
        return (nll.sum(1) / tokens.sum()).tolist()
    layers, config = model.model.layers, model.config
    kept = [i for i in range(config.num_hidden_layers) if i not in gone]
    drop_blocks(model, gone)
    ends = {run: ((kept.index(run[0]), ""), (kept.index(run[-1]), "")) for run in runs}
    if method in ("influence", "angular"):
        found = similarities(model, windows, ends, ranks)[0]
        scores = [found[run][method == "angular"] for run in runs]
    else:
        values = taylor(model, windows, ranks) if method == "taylor" else magnitude(model)
        by_block = np.zeros(len(kept))
        for name, value in values.items():
            by_block[int(name.split(".")[0])] += value
        scores = [by_block[first : last + 1].sum() for (first, _), (last, _) in ends.values()]
    model.model.layers, model.config = layers, config
    return list(scores)


# ---------------------------------------------------------------- the commands
def choose_documents(split: TokenFile, tokens: int) -> set[int]:
    """Documents evenly spaced over the split, of about `tokens` tokens in all (0: every document)."""
    step = max(1, round(len(split.tokens) / tokens)) if tokens else 1
    return set(range(0, len(split), step))


def calibration(args, model: Decoder, dataset: Dataset, streams: int) -> tuple[list, int, dict]:
    """(windows, documents of the split, what they are) to score on."""
    split = dataset.split("val")
    chosen = choose_documents(split, args.tokens)
    context = min(args.context, model.config.max_position_embeddings)
    windows = list(split.windows(context, window_tokens(model, streams), only=chosen))
    tokens = sum(int((targets >= 0).sum()) for _, targets, _ in windows)
    if len(chosen) < LEAST_DOCUMENTS or tokens < LEAST_TOKENS:
        raise ValueError(f"{args.data}: the validation split gives {tokens} tokens of {len(chosen)} document(s) to score on; "
                         f"at least {LEAST_TOKENS} tokens of {LEAST_DOCUMENTS} are needed: prepare it from more articles, or "
                         "raise --tokens")
    return windows, len(split), {
        "data": str(args.data), "data_sha256": file_hash(split.path), "split": "val", "documents": len(chosen),
        "chosen": "evenly spaced over the split" if args.tokens else "all of the split", "tokens": tokens, "context": context}


def score(args, model: Decoder, folder: Path, dataset: Dataset, ranks: Ranks) -> list[dict]:
    streams = 3 * model.config.num_hidden_layers + 1 if args.parts else 2 * model.config.num_hidden_layers + 1
    windows, documents, used = calibration(args, model, dataset, streams)
    if not 1 <= args.span <= model.config.num_hidden_layers:
        raise ValueError(f"--span {args.span}: from 1 to the model's {model.config.num_hidden_layers} blocks")
    print(f"loss without each of {model.config.num_hidden_layers} blocks, on {used['documents']} validation documents in "
          f"windows of {used['context']}, {used['tokens']:,} tokens, fp32, no prefix token")
    rows, found = score_blocks(model, windows, documents, args.parts, args.span, ranks)
    print("block        nll  difference [95 %]             perplexity  rank  " + "  ".join(f"{name:>9}" for name in ESTIMATES))
    for row in rows:
        interval = f"{row['difference']:+9.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
        ranks_ = "  ".join(f"{row[name + '_rank']:>9}" for name in ESTIMATES)
        broken = "" if math.isfinite(row["nll"]) else "  the loss is not finite"
        print(f"{row['block']:>7} {row['nll']:8.4f} {interval:30} {row['perplexity']:10.2f} {row['rank']:>5}  {ranks_}{broken}")
    for name, about in found["correlations"].items():
        low, high = about["interval"]
        print(f"rank correlation of {name} with the loss, over {about['of']}: {about['spearman']:+.2f} "
              f"[{low:+.2f}, {high:+.2f}]")
    if ranks.rank:
        return rows
    write_csv(args.score, rows)
    about = {"base": str(args.base), "base_sha256": file_hashes(folder), "blocks": list(model.config.blocks),
             "history": model.config.extra.get("nanoprune_history", []), **used, "seed": args.seed, "span": args.span,
             "dtype": "float32", "protocol": SOURCES, "columns": list(SCORE_COLUMNS), **found,
             "environment": environment(model.head_weight.device)}
    path = Path(args.score).with_suffix(".json")
    write_json(path, finite_or_none(about))
    print(f"wrote {args.score} and {path}")
    return rows


def choose(args, model: Decoder, dataset: Dataset | None, ranks: Ranks) -> tuple[list[int], dict]:
    windows, documents, used = [], 0, {}
    if args.method not in ("last", "random", "magnitude"):
        windows, documents, used = calibration(args, model, dataset, 2 * model.config.num_hidden_layers + 1)
    protect = args.protect.split(",") if args.protect else []
    chosen, decisions = choose_blocks(model, windows, documents, args.choose, args.method, args.contiguous, protect, args.once,
                                      args.seed, ranks)
    print(f"chosen by {args.method}{', contiguous' if args.contiguous else ''}"
          + (f", never {args.protect} (protected)" if protect else ""))
    for line in decisions:
        value = line[args.method]
        print(f"  {','.join(map(str, line['blocks'])):>9}  {args.method} {'not finite' if value is None else f'{value:.4f}'}")
    return chosen, {"method": args.method, "contiguous": args.contiguous, "once": args.once, "protect": args.protect or "",
                    "seed": args.seed, "decisions": decisions, **used}


def save(args, model: Decoder, folder: Path, blocks: list, how: dict, evidence: str | None) -> None:
    """Drop the blocks and write what is left, with its history."""
    out, before = Path(args.out), sum(p.numel() for p in model.parameters())
    parts = read_parts(blocks, model.config)
    names = ",".join(map(part_name, parts))
    if args.zeroed and not all(half for _, half in parts):
        raise ValueError(f"--zeroed is for attentions and MLPs, as in --drop 13.attn; {names} names a whole block, which every "
                         "reader can be without")
    remember(model, args.base, folder, parts, zeroed=args.zeroed, **how, scores=evidence,
             scores_sha256=file_hash(evidence) if evidence else None)
    silence(model, parts) if args.zeroed else drop_blocks(model, map(part_name, parts))
    with replace_folder(out) as beside:
        model.save_pretrained(beside)
        copy_tokenizer(folder, beside)
    after = sum(p.numel() for p in model.parameters())
    print(f"{args.base} without {names}{' (set to zero)' if args.zeroed else ''}: {model.config.num_hidden_layers} blocks, "
          f"{after:,} parameters ({(after - before) / before:+.1%})")
    if any(model.config.without):
        print("transformers cannot represent a block without its attention or MLP, and will refuse this folder; nanoprune "
              "reads it. --zeroed writes one that transformers reads: the same outputs, no fewer parameters")
    print(f"wrote {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a hub name, a model's folder or a run folder")
    parser.add_argument("--revision", help="hub branch, tag or commit")
    parser.add_argument("--data", help="dataset folder, for --score and --choose")
    parser.add_argument("--tokens", type=int, default=0, help="score on about this many tokens (0: the whole validation split)")
    parser.add_argument("--context", type=int, default=1024, help="longest window, in tokens")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--score", metavar="CSV", help="write the loss without each block, and its estimates, to this file")
    parser.add_argument("--parts", action="store_true", help="score each block's attention and MLP, too")
    parser.add_argument("--span", type=int, default=1, help="blocks that the angular distance goes over")
    parser.add_argument("--drop", metavar="I,J", help="remove these blocks, or of them I.attn, J.mlp")
    parser.add_argument("--choose", type=int, metavar="N", help="choose N blocks and remove them")
    parser.add_argument("--method", default="loss", choices=METHODS, help="what --choose goes by (default: loss)")
    parser.add_argument("--contiguous", action="store_true", help="--choose blocks that follow each other")
    parser.add_argument("--once", action="store_true", help="--choose from one table, scoring nothing anew after a removal")
    parser.add_argument("--protect", metavar="I,J", help="blocks that --choose leaves alone")
    parser.add_argument("--seed", type=int, default=0, help="of --method random")
    parser.add_argument("--out", help="folder for the reduced model, for --drop and --choose")
    parser.add_argument("--zeroed", action="store_true", help="--drop attentions or MLPs by zeros: what transformers can read")
    parser.add_argument("--evidence", metavar="CSV", help="the table of scores that --drop rests on; its hash is kept")
    args = parser.parse_args()
    removing = args.drop is not None or args.choose is not None
    if (args.drop is not None and args.choose is not None) or not (args.score or removing):
        raise ValueError("give --score CSV with --data FOLDER, or --drop BLOCKS or --choose N with --out FOLDER")
    scoring = args.score or (args.choose is not None and args.method not in ("last", "random", "magnitude"))
    if bool(args.data) != bool(scoring) or bool(args.out) != removing:
        raise ValueError("--score goes with --data FOLDER, --drop with --out FOLDER, --choose with --out and, unless --method "
                         "is last, random or magnitude, with --data")
    if args.context < 1 or args.tokens < 0:
        raise ValueError(f"--context must be at least 1 and --tokens 0 or more; given {args.context} and {args.tokens}")
    only = {"drop": ("zeroed", "evidence"), "choose": ("contiguous", "once", "protect"), "score": ("parts",)}
    for mode, names in only.items():
        if useless := [name for name in names if getattr(args, name) and getattr(args, mode) is None]:
            raise ValueError(f"--{useless[0]} goes with --{mode}")
    ranks = join(args.device)
    if args.score:
        make_folder(Path(args.score).parent)
        if Path(args.score).is_dir():
            raise ValueError(f"--score {args.score} is a folder; give the CSV file to write")
    if args.evidence and not Path(args.evidence).is_file():
        raise ValueError(f"--evidence {args.evidence}: there is no such file")
    dataset = Dataset(args.data) if args.data else None
    with ranks.one_first():
        folder = locate(args.base, args.revision)
    if removing:
        check_out(Path(args.out), folder)
    config = Decoder.read_config(folder)
    if dataset:
        dataset.check_model(args.base, folder, config.vocab_size)
    if args.drop is not None:
        read_parts(args.drop.split(","), config)
    if config.blocks != tuple(range(len(config.blocks))) or any(config.without):
        lost = [part_name((b, half)) for b, half in zip(config.blocks, config.without, strict=True) if half]
        print(f"{args.base} is pruned already: its blocks are {list(config.blocks)} of the original"
              + (f", without {', '.join(lost)}" if lost else ""))
    for entry in config.extra.get("nanoprune_history", []):
        print(f"  dropped {entry.get('original')} of {entry.get('base')} by {entry.get('method')}")
    model = Decoder.from_pretrained(folder, device=pick_device(args.device) if scoring else "cpu").eval()
    evidence = args.evidence
    if args.score:
        score(args, model, folder, dataset, ranks)
        evidence = args.score
    if args.choose is not None:
        blocks, how = choose(args, model, dataset, ranks)
    elif args.drop is not None:
        blocks, how = args.drop.split(","), {"method": "by hand"}
    if removing and ranks.rank == 0:
        save(args, model, folder, blocks, how, evidence)


if __name__ == "__main__":
    command_line.run(main)
