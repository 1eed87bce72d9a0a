"""How the scripts' time and memory grow with what they are given, each from its start to its last file.

    python -m benchmarks.counts --tokenizer models/smollm2

A small model of random weights, synthetic articles and questions; one count grows, the others stay. "Grows"
is the slope of the logarithms from the line above, of medians: 1 is in proportion, less where a start of
seconds is part of it. Writes results/counts.csv and results/counts.md. """

import math
import shutil
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.common import (
    SMALL,
    clock,
    machine,
    make_parser,
    median_and_range,
    random_model,
    record,
    report,
    select,
)
from benchmarks.corpus import write_articles
from benchmarks.growth import slope
from benchmarks.tables import markdown
from nanoprune import command_line
from nanoprune.io.jsonl import write_jsonl

COUNTS = {
    "articles": (1_000, 10_000, 100_000), "questions": (1_000, 10_000, 100_000),
    "test documents": (100, 1_000, 10_000), "models": (1, 2, 4, 8), "blocks": (4, 8, 16, 32),
    "steps": (50, 500, 5_000)}
SCRIPT = {"articles": "prepare.py", "questions": "eval.py", "test documents": "eval.py", "models": "eval.py",
          "blocks": "prune.py --score", "steps": "train.py"}
SMALLEST = SMALL | {"model_type": "llama", "hidden_size": 64, "intermediate_size": 192,
                    "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}


class Bench:
    """What the commands of a count read, made once in a folder."""

    def __init__(self, work: Path, tokenizer: Path):
        from nanoprune.data.tokenizer import load_tokenizer

        self.work, self.folder, self.tokenizer = work, tokenizer, load_tokenizer(tokenizer)

    def articles(self, count: int) -> Path:
        path = self.work / f"articles-{count}.jsonl"
        if not path.is_file():
            write_articles(path, count, self.tokenizer)
        return path

    def model(self, blocks: int = 2, number: int = 0) -> Path:
        from nanoprune.io.hub import copy_tokenizer

        folder = self.work / f"model-{blocks}-{number}"
        shape = SMALLEST | {"num_hidden_layers": blocks, "vocab_size": self.tokenizer.get_vocab_size()}
        random_model(shape, folder)
        copy_tokenizer(self.folder, folder)
        return folder

    def dataset(self, articles: int = 1_000, test: float = 0.1, questions: int = 0) -> Path:
        folder = self.work / f"data-{articles}-{test}-{questions}"
        if not folder.is_dir():
            clock(self.prepare(articles, folder, test, questions))
        return folder

    def prepare(self, articles: int, folder: Path, test: float = 0.1, questions: int = 0) -> list:
        shutil.rmtree(folder, ignore_errors=True)
        command = ["prepare.py", self.articles(articles), "--out", folder, "--tokenizer", self.folder,
                   "--split", f"{0.9 - test},0.1,{test}", "--language", "any"]
        if questions:
            path = self.work / f"asked_{questions}.jsonl"
            write_jsonl(path, random_questions(questions))
            command += ["--questions", path, "--no-generated"]
        return command

    def evaluate(self, models: int, data: Path, documents: int, questions: int) -> list:
        out = self.work / "results"
        shutil.rmtree(out, ignore_errors=True)
        return ["eval.py", *(self.model(number=i) for i in range(models)), "--data", data, "--out", out,
                "--documents", documents, "--questions", questions, "--general", ""]

    def command(self, kind: str, count: int) -> list:
        """The command of a script for a count of one kind."""
        if kind == "articles":
            return self.prepare(count, self.work / "prepared")
        if kind == "questions":
            return self.evaluate(2, self.dataset(questions=count), 10, count)
        if kind == "test documents":
            return self.evaluate(2, self.dataset(count * 5 // 4, test=0.8), count, 10)
        if kind == "models":
            return self.evaluate(count, self.dataset(questions=1_000), 100, 1_000)
        if kind == "blocks":
            for left in self.work.glob("blocks.*"):  # the losses that it keeps, too
                left.unlink()
            return ["prune.py", self.model(count), "--data", self.dataset(), "--score",
                    self.work / "blocks.csv", "--tokens", 4_000]
        shutil.rmtree(self.work / f"runs-{count}", ignore_errors=True)
        return ["train.py", "configs/smollm2_full.py", f"--base={self.model()}", f"--data={self.dataset()}",
                f"--runs={self.work / f'runs-{count}'}", "--context=128", "--pair_repeats=0", "--epochs=0",
                f"--max_steps={count}", "--eval_every=0", "--save_every=0"]


def random_questions(count: int) -> list[dict]:
    """Four choices each; four questions rest on one source."""
    rng = np.random.default_rng(0)
    numbers = (rng.integers(1_000, 9_000, (count, 1)) + 100 * np.arange(4)).tolist()
    answers = rng.integers(4, size=count).tolist()
    return [{"question": f"What is the output of model {i} in kW?", "choices": [f"{n} kW" for n in row],
             "answer": answer, "source": f"S{i // 4}"}
            for i, (row, answer) in enumerate(zip(numbers, answers, strict=True))]


def main() -> None:
    parser = make_parser(__doc__, work="data/benchmark-counts")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with a tokenizer.json")
    parser.add_argument("--kinds", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--largest", type=int, default=math.inf, help="leave out larger counts")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    work = args.work.resolve()
    bench, measurements = Bench(work, args.tokenizer.resolve()), []
    work.mkdir(parents=True, exist_ok=True)
    for turn, kind in product(range(args.rounds), args.kinds):
        for count in COUNTS[kind]:
            if count <= args.largest:
                seconds, memory = clock(bench.command(kind, count))
                record(measurements, {"round": turn, "kind": kind, "count": count,
                                      "seconds": round(seconds, 2), "memory_gb": round(memory, 3)},
                       args.out / "counts.csv")
    about = f"{args.rounds} rounds; {machine()}; torch {torch.__version__}"
    report([*tabulate(measurements), "", about], args.out, "counts")


def tabulate(measurements: list[dict]) -> list[str]:
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in measurements):
        before = None
        for count in dict.fromkeys(row["count"] for row in select(measurements, kind=kind)):
            runs = select(measurements, kind=kind, count=count)
            values = {column: [run[column] for run in runs] for column in ("seconds", "memory_gb")}
            now = {"count": count} | {column: median(several) for column, several in values.items()}
            cells = [[median_and_range(values[column], form),
                      slope(before, now, "count", column) if before else ""]
                     for column, form in (("seconds", ".1f"), ("memory_gb", ".2f"))]
            rows.append([f"`{SCRIPT[kind]}`", f"{count:,} {kind}", *cells[0], *cells[1]])
            before = now
    return markdown(["script", "count", "seconds", "grows", "peak memory, GB", "grows"], rows)


if __name__ == "__main__":
    command_line.run(main)
