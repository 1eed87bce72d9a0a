"""The offline default: the whole experiment on a fictional newsroom, with the same scripts that a user runs.

    python -m nanoprune.demo                 about five minutes on two CPU cores
    python -m nanoprune.demo --seed 1        another world, other weights
    python -m nanoprune.demo --short         a minute: every step runs, nothing is learned well
"""

import argparse
import csv
import json
import shlex
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from nanoprune import command_line
from nanoprune.demo.newsroom import invent, oddities, questions, releases, training_pairs
from nanoprune.demo.site import serve
from nanoprune.io.folders import LIST, check_output, contents
from nanoprune.io.jsonl import write_jsonl

FIRST_DAY = date(2024, 1, 1)


def build_world(seed: int, folder: Path) -> tuple[list[dict], list[dict]]:
    """Write training pairs and questions to `folder`; return the newsroom's articles and other companies'."""
    *others, company = invent(seed, companies=3, models=20, first_day=FIRST_DAY)
    write_jsonl(folder / "others_pairs.jsonl",
                [p for c in others for p in training_pairs(c, wordings=[0, 1, 2])])
    write_jsonl(folder / "own_facts.jsonl", questions(others, wordings=[1], seed=seed))
    write_jsonl(folder / "newsroom_pairs.jsonl", training_pairs(company, wordings=[0]))
    write_jsonl(folder / "new_facts.jsonl", questions([company], wordings=[1, 2], seed=seed))
    wire = [a for i, c in enumerate(others) for a in releases(c, 75, seed * 10 + i, FIRST_DAY)]
    articles = releases(company, 240, seed * 10 + 9, FIRST_DAY)
    return articles + oddities(company, seed * 10 + 9, articles[0]), wire


def run(*command: str) -> None:
    """Show a command as a user would type it, and run it."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nanoprune.demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="few steps: a check that everything runs")
    args = parser.parse_args()
    name = "demo" + (f"-s{args.seed}" if args.seed else "") + ("-short" if args.short else "")
    folders = [Path(kind) / name for kind in ("data", "runs", "models", "results")]
    for folder in folders:
        check_output(folder, "demo")
    for folder in folders:  # all of it is the last demo's, and made again below
        shutil.rmtree(folder, ignore_errors=True)
    try:
        demonstrate(args.seed, args.short, *folders)
    except subprocess.CalledProcessError as error:
        return error.returncode
    finally:
        for folder in filter(Path.is_dir, folders):
            write_jsonl(folder / LIST, contents(folder, "demo"))
    return 0


def demonstrate(seed: int, short: bool, data: Path, runs: Path, models: Path, results: Path) -> None:
    """Run every step into the four folders."""
    data.mkdir(parents=True)
    started = time.perf_counter()

    articles, wire = build_world(seed, data)
    for served, corpus in ((articles, "newsroom"), (wire, "others")):
        with serve(served) as url:
            run("scrape.py", "--base-url", url, "--delay", "0", "--out", f"{data}/{corpus}.jsonl")
    run("prepare.py", f"{data}/others.jsonl", "--out", f"{data}/others", "--train-tokenizer", "1024",
        "--no-generated", "--pairs", f"{data}/others_pairs.jsonl", "--questions", f"{data}/own_facts.jsonl")
    run("prepare.py", f"{data}/newsroom.jsonl", "--out", f"{data}/newsroom", "--tokenizer", f"{data}/others",
        "--no-generated", "--pairs", f"{data}/newsroom_pairs.jsonl", "--questions", f"{data}/new_facts.jsonl")

    places = [f"--runs={runs}", f"--seed={seed}"]
    places += ["--max_steps=20", "--warmup_steps=5", "--eval_every=10"] if short else []
    arms = [f"--data={data}/newsroom", f"--base={runs}/base", *places]
    run("train.py", "configs/demo_base.py", f"--data={data}/others", *places)
    run("prune.py", f"{runs}/base", "--data", f"{data}/others", "--score", f"{results}/blocks.csv",
        "--dtype", "float32")
    with open(results / "blocks.csv", newline="") as file:
        block = next(row["block"] for row in csv.DictReader(file) if row["rank"] == "1")
    run("prune.py", f"{runs}/base", "--drop", block, "--evidence", f"{results}/blocks.csv",
        "--out", f"{models}/base-less-{block}")
    run("train.py", "configs/demo_full.py", *arms)
    run("train.py", "configs/demo_reduced.py", f"--drop_blocks={block}", *arms)

    before = [f"{runs}/base", f"{models}/base-less-{block}"]
    after = [f"{runs}/full", f"{runs}/reduced"]
    exact = ["--dtype", "float32", *(["--documents", "10", "--questions", "40"] if short else [])]
    run("eval.py", *before, "--data", f"{data}/others", "--out", f"{results}/before", *exact)
    run("eval.py", *before, *after, "--data", f"{data}/newsroom", "--out", f"{results}/after", *exact)
    question = json.loads((data / "new_facts.jsonl").read_text().splitlines()[0])
    newest = max(articles, key=lambda article: article["date"])
    prompt = f"Question: {question['question']}\nAnswer:"
    run("sample.py", *before, *after, "--prompt", prompt, "--prompt", newest["title"], "--tokens", "60",
        "--temperature", "0", "--out", f"{results}/samples.jsonl")
    run("plot.py", f"{runs}/full", f"{runs}/reduced", "--out", f"{results}/curves.png")
    run("plot.py", f"{results}/blocks.csv", "--out", f"{results}/blocks.png")
    print(f"\nThe demo took {time.perf_counter() - started:.0f} s. Its tables: {results}/before/results.md "
          f"(what removing block {block} cost) and {results}/after/results.md "
          "(what fine-tuning made of the two models).")


if __name__ == "__main__":
    command_line.run(main)
