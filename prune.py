"""Pruning: score every block by the loss without it, choose blocks, drop them.

    python prune.py Qwen/Qwen3-0.6B-Base --data data/bmw --score blocks.csv   (--parts: attention, MLP, too)
    python prune.py Qwen/Qwen3-0.6B-Base --drop 25 --out models/reduced       (or 13,15 or 13.attn or 13.mlp)
    python prune.py Qwen/Qwen3-0.6B-Base --data data/bmw --choose 2 --out models/reduced

A block's score is the loss of the model without it, on the dataset's validation split. The cheaper scores
beside it estimate that loss. Losses by document, and estimates, are kept in a .losses.json file beside the
table: after a stop or a kill the same command goes on. Runs under torchrun, too.
"""

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from model import Decoder
from nanoprune import command_line
from nanoprune.command_line import option, parse_options
from nanoprune.config import Dtype
from nanoprune.data.dataset import Dataset
from nanoprune.data.token_file import Example, TokenFile
from nanoprune.device import environment, keep_freed_memory, make_autocast, pick_device, pick_dtype
from nanoprune.distributed import join
from nanoprune.evaluation.block_scores import SCORES, BlockScores, estimates, protocol, score_blocks
from nanoprune.evaluation.removal_losses import Calibration, KeptLosses, loss_rows, losses_without, without
from nanoprune.io.files import (
    file_hash,
    file_hashes,
    finite_or_none,
    make_folder,
    naming_failures,
    write_csv,
    write_json,
)
from nanoprune.io.folders import check_output, replace_output
from nanoprune.io.hub import copy_tokenizer, locate
from nanoprune.io.tensors import stored_types
from nanoprune.nn.identity import model_identity
from nanoprune.nn.lora import count_parameters
from nanoprune.nn.model_config import ModelConfig, Part, part_name, read_parts, record_removal
from nanoprune.nn.peft import check_weights_can_change
from nanoprune.statistics import LEAST, average_ranks, evenly_spaced
from nanoprune.training.model_card import Origin, write_card

LEAST_DOCUMENTS, LEAST_TOKENS = 2, 100  # of a calibration: fewer give no interval, and no basis for a choice
BEGINNINGS, BEGINNING_TOKENS = 64, 32  # of --tokens: so many documents at most, and so much of each at least


def drop_blocks(model: Decoder, blocks: Iterable[int | str]) -> None:
    """Remove blocks by their present index, or "13.attn", "13.mlp" of them, in place; the config follows.

    ValueError where an index is out of range, repeated or no index, and where no block would be left.
    """
    model.drop_blocks(read_parts(blocks, model.config))


def choose_blocks(
    model: Decoder, calibration: Calibration, count: int, method: str = "loss", contiguous: bool = False,
    protect: Iterable[int | str] = (),
) -> tuple[list[int], list[dict]]:
    """The blocks whose removal costs least, by present index, and the decisions: their blocks and score.

    Blocks are chosen one at a time, each scored without those before it, as SLEB does (arXiv:2402.09025).
    With `contiguous` the blocks follow each other and are scored together. Blocks to `protect` are never
    chosen.
    """
    total = model.config.num_hidden_layers
    free = set(range(total)).difference(
        part.block for name in protect for part in read_parts([name], model.config))
    if not 1 <= count <= min(len(free), total - 1):
        raise ValueError(f"--choose {count}: this model has {total} blocks, {len(free)} of them not "
                         "protected, and one must be left")
    width, score = count if contiguous else 1, SCORES[method]
    # Scores that read no text stay as they are when a block goes: one table decides on all.
    until_next_table = 1 if contiguous or score.reads_text else count
    chosen, decisions = [], []
    while len(chosen) < count:
        runs = [list(range(first, first + width)) for first in range(total - width + 1)]
        runs = [run for run in runs if free.issuperset(run)]
        if not runs:
            raise ValueError(f"--contiguous: no {count} unprotected blocks follow each other")
        remaining = [block for block in range(total) if block not in chosen]
        removals = [tuple(Part(remaining.index(block)) for block in run) for run in runs]
        with without(model, chosen):
            scores = score.function(model, removals, calibration)
        for k in np.argsort(average_ranks(scores), kind="stable")[:until_next_table]:
            chosen += runs[k]
            decisions.append({"blocks": runs[k], method: finite_or_none(float(scores[k]))})
        free.difference_update(chosen)
    return sorted(chosen), decisions


# ---------------------------------------------------------------- the commands
def calibrate(
    model: Decoder, dataset: Dataset, tokens: int, context: int, dtype: str, **how
) -> tuple[Calibration, dict]:
    """Text of the validation split to score on, and its description for the records."""
    split = dataset.split("val")
    documents = choose_documents(split, tokens)
    context = min(context, model.config.max_position_embeddings)
    calibration = Calibration.of_split(
        model, documents, context, autocast=make_autocast(dtype, model.device), **how)
    if len(documents) < LEAST_DOCUMENTS or calibration.tokens < LEAST_TOKENS:
        raise ValueError(f"{dataset.folder}: the validation split gives {calibration.tokens} tokens of "
                         f"{len(documents)} document(s) to score on; at least {LEAST_TOKENS} tokens of "
                         f"{LEAST_DOCUMENTS} are needed: prepare it from more articles, or raise --tokens")
    return calibration, {
        "data": str(dataset.folder), "data_sha256": file_hash(split.path), "split": "val",
        "documents": len(documents),
        "chosen": (f"the first {max(map(len, documents))} tokens of {len(documents)} documents, evenly spaced"
                   if tokens else "all of the split"),
        "tokens": calibration.tokens, "context": context, "dtype": dtype}


def choose_documents(split: TokenFile, tokens: int) -> Sequence[Example]:
    """The beginnings of documents evenly spaced over the split, about `tokens` in all (0: the whole split).

    Many documents tell more than much of each: they are BEGINNINGS, or more where these are too short, of
    BEGINNING_TOKENS tokens or more. Conversations are never cut.
    """
    if not tokens:
        return split
    count = math.ceil(tokens * len(split) / max(1, len(split.tokens)))  # of whole documents
    if split.mask is None:
        count = max(count, min(BEGINNINGS, tokens // BEGINNING_TOKENS))
    documents = evenly_spaced(split, count)
    lengths = np.array(list(map(len, documents)))
    if split.mask is not None or lengths.sum() <= tokens:
        return documents
    length = BEGINNING_TOKENS
    while np.minimum(lengths, length).sum() < tokens:
        length += 1
    return [Example(document.tokens[:length], document.learned[:length]) for document in documents]


def print_scores(scores: BlockScores) -> None:
    print("block        nll  difference [95 %]             perplexity  rank  "
          + "  ".join(f"{name:>9}" for name in estimates()))
    for row in scores.rows:
        interval = f"{row['difference']:+9.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
        ranks = "  ".join(f"{row[name + '_rank']:>9}" for name in estimates())
        warning = "" if math.isfinite(row["nll"]) else "  the loss is not finite"
        print(f"{row['block']:>7} {row['nll']:8.4f} {interval:30} {row['perplexity']:10.2f} {row['rank']:>5}"
              f"  {ranks}{warning}")
    for name, correlation in scores.correlations.items():
        low, high = correlation["interval"]
        print(f"rank correlation of {name} with the loss, over {correlation['of']}: "
              f"{correlation['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]")


def ties(model: Decoder, calibration: Calibration, scores: BlockScores) -> list[str]:
    """The block whose removal costs least, and those whose paired difference from it may be none (95 %).

    Empty where no loss is finite. The losses are those of the table, kept in the calibration's file.
    """
    rows = [row for row in scores.rows[1:] if "." not in row["block"] and math.isfinite(row["nll"])]
    blocks = [row["block"] for row in sorted(rows, key=lambda row: row["nll"])]
    if not blocks:
        return []
    losses = losses_without(model, [(Part(int(block)),) for block in blocks], calibration)
    return [block for block, row in zip(blocks, loss_rows(losses), strict=True)
            if not row["difference_low"] > 0]


def verdict(tied: list[str], more_tokens: int, drop: list[str]) -> str:
    """A line on what the scores decide and what to run next.

    `more_tokens`: for --tokens, if the split has more text. `drop`: the options besides --drop and --out.
    """
    if not tied:
        return "no block can be removed: no loss is finite"
    best, *others = tied
    command = shlex.join(["python", "prune.py", *drop, "--drop", best,
                          "--out", f"models/{Path(drop[0]).name}-less-{best}"])
    if not others:
        return f"block {best} costs least, told apart from all others (95 %); next: {command}"
    line = f"not told apart from the best, block {best}: {', '.join(others)} (95 %); next: "
    if more_tokens:
        return f"{line}the same command with --tokens {more_tokens}"
    return f"{line}prepare.py with more articles, or {command}"


def write_scores(path: Path, scores: BlockScores, description: dict) -> None:
    """The table as CSV, and beside it a JSON file of what it was measured on."""
    write_csv(path, scores.rows)
    details = path.with_suffix(".json")
    write_json(details, finite_or_none(description | {
        "protocol": protocol(), "columns": list(scores.rows[0]),
        "seconds": scores.seconds, "correlations": scores.correlations}))
    print(f"wrote {path} and {details}")


def check_file(path: Path, beginning: str) -> None:
    """ValueError if a file cannot be written, or another is there that does not begin like it."""
    make_folder(path.parent)
    with naming_failures(f"read {path}"):
        if path.exists() and not (path.is_file() and path.read_bytes().startswith(beginning.encode())):
            raise ValueError(f"{path} would be replaced, and is no earlier result of this command: give "
                             "another name")


def decision_rows(model: Decoder, calibration: Calibration, decisions: list[dict]) -> list[dict]:
    """The loss after each decision, and its paired difference from the unpruned model's."""
    removals = [()]
    for decision in decisions:
        removals.append((*removals[-1], *map(Part, decision["blocks"])))
    losses = losses_without(model, removals, calibration)
    return [{"removed": ",".join(map(part_name, removal)) or "none"} | row
            for removal, row in zip(removals, loss_rows(losses), strict=True)]


def write_reduced(
    model: Decoder, parts: list[Part], base: str, folder: Path, out: Path, history: dict
) -> None:
    """Drop the parts of a model that was loaded from `folder`, and write what is left, with its history.

    Its weights have the types that they have in the base.
    """
    before, types = count_parameters(model).total, stored_types(folder)
    origin = Origin(base, file_hashes(folder), folder)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(types[name])
    record_removal(model.config, base, origin.sha256, parts, **history)
    model.drop_blocks(parts)
    with replace_output(out, "model") as beside:
        model.save_pretrained(beside)
        copy_tokenizer(folder, beside)
        write_card(beside, origin)
    after = count_parameters(model).total
    print(f"{base} without {','.join(map(part_name, parts))}: {model.config.num_hidden_layers} blocks, "
          f"{after:,} parameters ({(after - before) / before:+.1%})")
    if any(model.config.without):
        print("transformers cannot represent a block without its attention or MLP, and will refuse this "
              "folder; nanoprune reads it")
    print(f"wrote {out}")


def print_history(base: str, config: ModelConfig) -> None:
    if config.blocks != tuple(range(len(config.blocks))) or any(config.without):
        parts = map(Part, config.blocks, config.without)
        lost = [part_name(part) for part in parts if part.half]
        print(f"{base} is pruned already: its blocks are {list(config.blocks)} of the original"
              + (f", without {', '.join(lost)}" if lost else ""))
    for entry in config.extra.get("nanoprune_history", []):
        print(f"  dropped {entry.get('original')} of {entry.get('base')} by {entry.get('method')}")


@dataclass(frozen=True)
class Options:
    """The command line."""

    base: str = option("a hub name, a model's folder or a run folder", name="base")
    revision: str | None = option("hub branch, tag or commit")
    data: str | None = option("dataset folder, for --score and --choose")
    tokens: int = option("score on about this many tokens, the beginnings of up to 64 documents, or of more "
                         "where these are too short (0: all)", 0, least=0)
    context: int = option("longest window, in tokens", 1024, least=1)
    device: str = option("auto, cpu, cuda, cuda:N or mps", "auto")
    dtype: str = option("of the products; auto: bfloat16 where the device has units for it", "auto",
                        choices=get_args(Dtype))
    score: Path | None = option("write the scores of all blocks to it", metavar="CSV")
    parts: bool = option("score each block's attention and MLP, too", False)
    drop: str | None = option("remove these blocks, or of them I.attn, J.mlp", metavar="I,J")
    choose: int | None = option("choose N blocks and remove them", metavar="N")
    method: str | None = option("score to --choose by (default: loss)", choices=SCORES)
    contiguous: bool = option("--choose blocks that follow each other", False)
    protect: str | None = option("blocks that --choose never takes", metavar="I,J")
    decisions: Path | None = option("write the loss after each removal of --choose to it", metavar="CSV")
    seed: int = option("of --method random", 0, least=0)
    out: Path | None = option("folder for the reduced model, for --drop and --choose")
    evidence: str | None = option("table of scores behind --drop, to record", metavar="CSV")

    def check(self) -> None:
        commands = [name for name in ("score", "drop", "choose") if getattr(self, name) is not None]
        if not commands or commands[-2:] == ["drop", "choose"]:
            raise ValueError("give --score CSV with --data FOLDER, or --drop BLOCKS or --choose N with --out "
                             "FOLDER")
        reads_text = "score" in commands or ("choose" in commands and (
            SCORES[self.method or "loss"].reads_text or self.decisions is not None))
        if bool(self.data) != reads_text or bool(self.out) != (commands != ["score"]):
            textless = ", ".join(name for name, score in SCORES.items() if not score.reads_text)
            raise ValueError("--score goes with --data FOLDER, --drop with --out FOLDER, --choose with --out "
                             f"and, unless --method is one of {textless} without --decisions, with --data")
        command_of = {"evidence": "drop", "method": "choose", "contiguous": "choose", "protect": "choose",
                      "decisions": "choose", "parts": "score"}
        for name, command in command_of.items():
            if getattr(self, name) and command not in commands:
                raise ValueError(f"--{name} goes with --{command}")
        tables = list(filter(None, (self.score, self.decisions)))
        if len(set(tables)) < len(tables) or {path.suffix for path in tables} - {".csv"}:
            raise ValueError("--score and --decisions each take a .csv file of its own, given "
                             f"{', '.join(map(str, tables))}")
        if self.evidence and not Path(self.evidence).is_file():
            raise ValueError(f"--evidence {self.evidence}: there is no such file")


def main() -> None:
    options = parse_options(Options, __doc__)
    options.check()
    ranks = join(options.device)
    keep_freed_memory()
    if options.score:
        check_file(options.score, "block,original,nll,")
        check_file(options.score.with_suffix(".json"), '{\n  "base": ')
    if options.decisions:
        check_file(options.decisions, "removed,nll,")
    dataset = Dataset(options.data) if options.data else None
    with ranks.local_first():
        folder = locate(options.base, options.revision)
    if options.out:
        check_output(options.out, "model", [
            folder, options.data, options.evidence, options.score, options.decisions])
    check_weights_can_change(options.base, folder)
    config = ModelConfig.read(folder)
    if dataset:
        dataset.check_model(options.base, folder, config.vocab_size)
    if options.drop is not None:
        parts, history = read_parts(options.drop.split(","), config), {"method": "by hand"}
    print_history(options.base, config)
    model = Decoder.from_pretrained(folder, device=pick_device(options.device) if dataset else "cpu").eval()
    calibration, text = Calibration(seed=options.seed), {}
    if dataset:
        dtype, table = pick_dtype(options.dtype, model.device), options.score or options.decisions
        kept = table and KeptLosses(table.with_suffix(".losses.json"),
                                    model_identity(folder) | {"dtype": dtype}, ranks.rank == 0)
        calibration, text = calibrate(model, dataset, options.tokens, options.context, dtype, ranks=ranks,
                                      seed=options.seed, kept=kept)

    # ---- score: the loss without each block, and its estimates
    if options.score:
        print(f"loss without each of {config.num_hidden_layers} blocks, products in {dtype}, on "
              f"{text['documents']} validation documents in windows of {text['context']}, "
              f"{text['tokens']:,} tokens ({text['chosen']}), no prefix token")
        if text["documents"] < LEAST:
            print(f"warning: there are no intervals over fewer than {LEAST} documents; raise "
                  "--tokens, or prepare from more articles")
        scores = score_blocks(model, calibration, options.parts)
        print_scores(scores)
        if ranks.rank == 0:
            write_scores(options.score, scores, {
                "base": options.base, "base_sha256": file_hashes(folder), "blocks": list(config.blocks),
                "history": config.extra.get("nanoprune_history", []), **text, "seed": options.seed,
                "environment": environment(model.device)})
        more_tokens = 4 * options.tokens if options.tokens < len(dataset.split("val").tokens) else 0
        drop = [options.base, *(["--revision", options.revision] if options.revision else []), "--evidence",
                str(options.score)]
        print(verdict(ties(model, calibration, scores), more_tokens, drop))

    # ---- choose: the blocks whose removal costs least
    if options.choose is not None:
        protect = options.protect.split(",") if options.protect else []
        method = options.method or "loss"
        blocks, decisions = choose_blocks(
            model, calibration, options.choose, method, options.contiguous, protect)
        print(f"chosen by {method}{', contiguous' if options.contiguous else ''}"
              + (f", never {options.protect} (protected)" if protect else ""))
        for decision in decisions:
            score = decision[method]
            print(f"  {','.join(map(str, decision['blocks'])):>9}  {method} "
                  + ("not finite" if score is None else f"{score:.4f}"))
        parts = read_parts(blocks, config)
        if options.decisions:
            rows = decision_rows(model, calibration, decisions)
            if ranks.rank == 0:
                write_csv(options.decisions, rows)
                print(f"wrote {options.decisions}")
        history = {"method": method, "contiguous": options.contiguous,
                   "protect": options.protect or "", "seed": options.seed, "decisions": decisions, **text}

    # ---- drop
    if options.out and ranks.rank == 0:
        evidence = options.evidence or options.score
        history |= {"scores": evidence and str(evidence), "scores_sha256": evidence and file_hash(evidence)}
        write_reduced(model, parts, options.base, folder, options.out, history)


if __name__ == "__main__":
    command_line.run(main)
