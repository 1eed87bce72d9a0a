"""The whole way, from articles to a table of four models: nanoprune's commands beside a script of one's own.

    python -m benchmarks.whole articles.jsonl --base models/smollm2

Both sides prepare the articles, score every block by the loss without it, remove the best, fine-tune the full
and the reduced model, and measure four models on test split and questions. Sides run in turn; each of their
commands is a fresh process; glibc keeps freed memory on both. The script is benchmarks/whole_usual.py (`pip
install -r requirements-bench.txt`). nanoprune does more: near-duplicates, general text, intervals, figures,
pages. Writes results/whole.csv and results/whole.md. """

import shutil
import statistics
from pathlib import Path

from benchmarks.common import (
    KEEP_FREED_MEMORY,
    ROOT,
    clock,
    machine,
    make_parser,
    median_and_range,
    record,
    report,
    select,
)
from benchmarks.tables import markdown
from nanoprune import command_line

SIDES = ("nanoprune", "the usual way")


def our_commands(args, work: Path) -> dict[str, list]:
    """What a user types, by step; the block to drop is filled in once the scores are there."""
    training = [f"--base={args.base}", f"--data={work / 'data'}", f"--runs={work / 'runs'}",
                "--pair_repeats=0", "--epochs=0", f"--max_steps={args.steps}", "--eval_every=0",
                "--save_every=0"]
    models = [args.base, work / "base-less", work / "runs/smollm2_full", work / "runs/smollm2_reduced"]
    return {
        "prepare": ["prepare.py", args.articles, "--out", work / "data", "--tokenizer", args.base,
                    "--questions", ROOT / "qa/bmw_news.jsonl"],
        "score": ["prune.py", args.base, "--data", work / "data", "--score", work / "blocks.csv", "--tokens",
                  args.tokens],
        "drop": ["prune.py", args.base, "--drop", "BLOCK", "--out", work / "base-less", "--evidence",
                 work / "blocks.csv"],
        "train full": ["train.py", "configs/smollm2_full.py", *training],
        "train reduced": ["train.py", "configs/smollm2_reduced.py", *training, "--drop_blocks=BLOCK"],
        "evaluate": ["eval.py", *models, "--data", work / "data", "--out", work / "results", "--documents",
                     args.documents, "--questions", args.questions],
    }


def best_block(table: Path) -> str:
    """The block of rank 1 in a table of scores."""
    header, *rows = (line.split(",") for line in table.read_text().splitlines())
    block, rank = header.index("block"), header.index("rank")
    return next(row[block] for row in rows if row[rank] == "1")


def user_lines(path: Path) -> int:
    """Lines of a script that are neither blank nor comments."""
    lines = (line.strip() for line in path.read_text().split('"""', 2)[-1].splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def main() -> None:
    parser = make_parser(__doc__, work="data/benchmark-whole")
    parser.add_argument("articles", type=Path, help="articles.jsonl")
    parser.add_argument("--base", type=Path, required=True, help="a model's folder")
    parser.add_argument("--steps", type=int, default=30, help="of 2,048 tokens")
    parser.add_argument("--tokens", type=int, default=4000, help="to score the blocks on")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--questions", type=int, default=40, help="of each set")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    args.articles, args.base, work = args.articles.resolve(), args.base.resolve(), args.work.resolve()
    measurements = []
    for turn in range(args.rounds):
        for side in SIDES:
            folder = work / side.replace(" ", "-")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            if side == "nanoprune":
                steps = our_commands(args, folder)
            else:
                steps = {"all": ["-m", "benchmarks.whole_usual", args.articles, args.base,
                                 work / "nanoprune/data/qa", folder, args.steps, args.tokens, args.documents,
                                 args.questions]}
            for step, command in steps.items():
                if step in ("drop", "train reduced"):
                    block = best_block(folder / "blocks.csv")
                    command = [str(part).replace("BLOCK", block) for part in command]
                seconds, memory = clock(command, KEEP_FREED_MEMORY if step == "all" else None)
                record(measurements, {"round": turn, "side": side, "step": step, "seconds": round(seconds, 1),
                                      "memory_gb": round(memory, 2)}, args.out / "whole.csv")
    about = (f"{args.rounds} rounds; {args.steps} steps an arm, {args.tokens:,} tokens scored, "
             f"{args.documents} documents, {args.questions} questions of each set; {machine()}")
    report([*tabulate(measurements, args), "", about], args.out, "whole")


def tabulate(measurements: list[dict], args) -> list[str]:
    """A line for each step of ours, and one for each side: medians, with the range of several rounds."""
    lines = {"nanoprune": len(our_commands(args, args.work)),
             "the usual way": user_lines(ROOT / "benchmarks/whole_usual.py")}
    rows = []
    for step in dict.fromkeys(row["step"] for row in select(measurements, side="nanoprune")):
        parts = select(measurements, side="nanoprune", step=step)
        rows.append([f"nanoprune: {step}", median_and_range([row["seconds"] for row in parts], ".0f"),
                     median_and_range([row["memory_gb"] for row in parts], ".1f"), ""])
    totals = {}
    for side in SIDES:
        rounds = [select(measurements, side=side, round=turn) for turn in range(args.rounds)]
        totals[side] = [sum(row["seconds"] for row in parts) for parts in rounds]
        peaks = [max(row["memory_gb"] for row in parts) for parts in rounds]
        rows.append([side, median_and_range(totals[side], ".0f"), median_and_range(peaks, ".1f"),
                     lines[side]])
    ratio = statistics.median(a / b for a, b in zip(*totals.values(), strict=True))
    return [*markdown(["what", "seconds", "peak memory, GB", "lines or commands of the user"], rows), "",
            f"nanoprune takes {ratio:.2f} of the usual way's time."]


if __name__ == "__main__":
    command_line.run(main)
