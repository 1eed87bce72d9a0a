"""What is each block worth, and what is left without it: score every block, drop blocks by index.

    python prune.py Qwen/Qwen3-0.6B-Base --data data/bmw --score blocks.csv
    python prune.py Qwen/Qwen3-0.6B-Base --drop 25 --out models/reduced

A block's score is the loss of the model without it, on the dataset's validation split: the reference that cheaper
scores only estimate (and block influence is known to rank Qwen3-0.6B's blocks badly).
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch.nn as nn
from tqdm import tqdm

from dataset import Dataset, Split
from files import MODEL_FILES, TOKENIZER_FILES, copy_tokenizer, locate, make_folder, whole_folder, write_text
from model import Decoder, document_nll, pick_device

SCORE_COLUMNS = ("block", "nll", "difference", "perplexity", "rank", "parameters", "tokens", "documents")


def drop_blocks(model: Decoder, blocks: Iterable[int]) -> None:
    """Remove blocks by their present index, in place; the config's layer count and types follow.

    ValueError where an index is out of range, repeated or not a whole number, and where no block would be left.
    """
    blocks, count = list(blocks), model.config.num_hidden_layers
    if wrong := [b for b in blocks if type(b) is not int or not 0 <= b < count]:
        raise ValueError(f"cannot drop block {wrong[0]}: this model has {count} blocks, 0 to {count - 1}")
    if repeated := sorted({b for b in blocks if blocks.count(b) > 1}):
        raise ValueError(f"block {repeated[0]} is named more than once; name each block to drop once")
    if len(blocks) == count:
        raise ValueError(f"cannot drop all {count} blocks: keep at least one")
    kept = [i for i in range(count) if i not in blocks]
    model.model.layers = nn.ModuleList(model.model.layers[i] for i in kept)
    model.config = model.config.keep_blocks(kept)


def score_blocks(model: Decoder, windows: list, documents: int) -> list[dict]:
    """The loss without each block, the unpruned model first; one row per model, in order of blocks.

    `windows` yields (ids, targets, document numbers) as `dataset.Split.windows` does, of `documents` documents.
    `difference` is from the unpruned nll; `rank` 1 is the block that is missed least. A loss that is not finite ranks
    last. The model is left as it was.
    """
    layers, config = model.model.layers, model.config
    parameters = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    rows = []
    for block in tqdm([None, *range(len(layers))], desc="blocks", disable=None):
        if block is not None:
            drop_blocks(model, [block])
        nll, tokens = document_nll(model, windows, documents)
        model.model.layers, model.config = layers, config
        mean = float(nll.sum() / max(tokens.sum(), 1))
        unpruned = rows[0]["nll"] if rows else mean
        rows.append({"block": "none" if block is None else block, "nll": mean, "difference": mean - unpruned,
                     "perplexity": float(np.exp(mean)), "rank": "", "parameters": 0 if block is None else parameters[block],
                     "tokens": int(tokens.sum()), "documents": int((tokens > 0).sum())})
    order = sorted(rows[1:], key=lambda row: (not np.isfinite(row["nll"]), row["nll"]))
    for rank, row in enumerate(order, start=1):
        row["rank"] = rank
    return rows


def score(args: argparse.Namespace) -> None:
    if args.context < 1 or args.tokens < 0:
        raise ValueError(f"--context must be at least 1 and --tokens 0 or more; given {args.context} and {args.tokens}")
    make_folder(Path(args.score).parent)
    if Path(args.score).is_dir():
        raise ValueError(f"--score {args.score} is a folder; give the CSV file to write")
    dataset = Dataset(args.data)
    folder = locate(args.base, args.revision)
    model = Decoder.from_pretrained(folder, device=pick_device(args.device))
    dataset.check_model(args.base, folder, model.config.vocab_size)
    model.eval()
    split = dataset.split("val")
    context = min(args.context, model.config.max_position_embeddings)
    windows = list(split.windows(context, only=choose_documents(split, args.tokens)))
    print(f"loss without each of {model.config.num_hidden_layers} blocks, on validation documents in windows of {context}, "
          f"{sum(int((t >= 0).sum()) for _, t, _ in windows):,} tokens, fp32, no prefix token")
    rows = score_blocks(model, windows, len(split))
    print("block        nll  difference  perplexity  rank")
    for row in rows:
        print(f"{row['block']!s:>5} {row['nll']:10.4f} {row['difference']:+11.4f} {row['perplexity']:11.2f} {row['rank']!s:>5}")
    table = io.StringIO()
    writer = csv.DictWriter(table, SCORE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(args.score, table.getvalue())
    print(f"wrote {args.score}")


def choose_documents(split: Split, tokens: int) -> set[int]:
    """Documents evenly spaced over the split, of about `tokens` tokens in all (0: every document)."""
    step = max(1, round(len(split.tokens) / tokens)) if tokens else 1
    return set(range(0, len(split), step))


def drop(args: argparse.Namespace) -> None:
    folder, out = locate(args.base, args.revision), Path(args.out)
    strange = {path.name for path in out.glob("*") if not any(map(path.match, MODEL_FILES + TOKENIZER_FILES))}
    if strange or folder.resolve() == out.resolve():
        what = f"holds more than a model ({', '.join(sorted(strange)[:3])})" if strange else "is the base itself"
        raise ValueError(f"--out {out} {what}; write the reduced model to another folder")
    try:
        blocks = [int(b) for b in args.drop.split(",")]
    except ValueError:
        raise ValueError(f"--drop takes block numbers with commas between, such as 25 or 13,15; given {args.drop!r}") from None
    model = Decoder.from_pretrained(folder)
    before = sum(p.numel() for p in model.parameters())
    drop_blocks(model, blocks)
    with whole_folder(out) as beside:
        model.save_pretrained(beside)
        copy_tokenizer(folder, beside)
    after = sum(p.numel() for p in model.parameters())
    print(f"{args.base} without block {args.drop}: {model.config.num_hidden_layers} blocks, "
          f"{after:,} parameters ({(after - before) / before:+.1%})")
    print(f"wrote {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a hub name, a model's folder or a run folder")
    parser.add_argument("--revision", help="hub branch, tag or commit")
    parser.add_argument("--score", metavar="CSV", help="write the loss without each block to this file")
    parser.add_argument("--data", help="dataset folder, for --score")
    parser.add_argument("--tokens", type=int, default=0, help="score on about this many tokens (0: the whole validation split)")
    parser.add_argument("--context", type=int, default=1024, help="longest window, in tokens")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--drop", metavar="I,J", help="remove these blocks")
    parser.add_argument("--out", help="folder for the reduced model, for --drop")
    args = parser.parse_args()
    if bool(args.score) == bool(args.drop):
        raise ValueError("give either --score CSV with --data FOLDER, or --drop BLOCKS with --out FOLDER")
    needed, useless = (args.data, args.out) if args.score else (args.out, args.data)
    if useless or not needed:
        raise ValueError("--score goes with --data FOLDER, --drop with --out FOLDER")
    score(args) if args.score else drop(args)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"prune.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nprune.py: stopped", file=sys.stderr)
        sys.exit(130)
