"""How prepare.py grows: time and memory from 10,000 to 1,000,000 documents, beside the `tokenizers` library
alone.

    python -m benchmarks.corpus --tokenizer Qwen/Qwen3-0.6B-Base --sizes 10000 100000 1000000

Documents are synthetic: 300 words each, drawn from the tokenizer's own words with Zipf's frequencies. For
each size and round, fresh processes run in turn: `tokenizers` alone on texts that are in memory (its two
batch calls), and the whole of prepare.py. Writes results/corpus.csv and results/corpus.md; compare ratios,
not seconds, as machines are noisy. """

import json
import resource
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import make_parser, median_and_range, record, report, run_fresh, select
from benchmarks.tables import markdown
from nanoprune import command_line
from nanoprune.progress import progress

WORDS, BATCH = 300, 1024
STOP_WORDS = "the and of to in is for with that on as are from this by at has was it its be will".split()
MAX_DOCUMENTS = 50_000  # for `tokenizers` alone, whose speed does not depend on their number
BATCH_CALLS = ("encode_batch", "encode_batch_fast")


def write_articles(path: Path, count: int, tokenizer) -> None:
    """Write synthetic articles, always the same; stop words are among the frequent ones, which gives the
    language."""
    rng = np.random.default_rng(0)
    spaced = sorted(token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ") and len(token) > 3)
    spaced = [word for word in spaced if word.isascii() and word.isalpha() and word.islower()]
    words = np.array(STOP_WORDS + [spaced[i] for i in rng.permutation(len(spaced))[:30_000]])
    ends = np.cumsum(1 / np.arange(1, len(words) + 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for i in progress(range(count), f"writing {count:,} articles"):
            drawn = words[np.searchsorted(ends, rng.random(WORDS) * ends[-1])].tolist()
            sentences = [" ".join(drawn[k : k + 15]).capitalize() + "." for k in range(0, WORDS, 15)]
            power, torque = 100 + i % 397, 200 + i % 211
            sentences[i % 20] += f" The new motor has an output of {power} kW and of {torque} Nm at most."
            text = "\n\n".join(" ".join(sentences[k : k + 4]) for k in range(0, len(sentences), 4))
            article = {"id": f"S{i}", "title": " ".join(drawn[:6]), "text": text,
                       "date": str(np.datetime64("2000-01-01") + i * 9000 // count)}
            file.write(json.dumps(article) + "\n")


def measure_tokenizers(articles: Path, tokenizer_folder: Path, call: str) -> dict:
    """Seconds of the library's own batch call; reading is not counted."""
    from nanoprune.data.tokenizer import load_tokenizer
    from nanoprune.io.jsonl import JsonLines

    tokenizer, lines, seconds, tokens = load_tokenizer(tokenizer_folder), JsonLines(articles), 0.0, 0
    count = min(MAX_DOCUMENTS, len(lines))
    for start in range(0, count, BATCH):
        texts = [lines[i]["text"] for i in range(start, min(start + BATCH, count))]
        began = time.perf_counter()
        encoded = getattr(tokenizer, call)(texts)
        seconds += time.perf_counter() - began
        tokens += sum(map(len, encoded))
        del encoded
    return {"seconds": seconds, "tokens": tokens}


def measure_prepare(articles: Path, tokenizer_folder: Path, out: Path) -> dict:
    """prepare.py as a user starts it; `seconds` of all, `writing` of tokenizing and writing, peak memory in
    GB."""
    import prepare
    from nanoprune.data.dataset_writer import DatasetWriter

    writing, tokens, write_split = [], [], DatasetWriter.write_split

    def timed(*args):
        began = time.perf_counter()
        entry = write_split(*args)
        writing.append(time.perf_counter() - began)
        tokens.append(entry["tokens"] - entry["documents"])
        return entry

    DatasetWriter.write_split = timed
    sys.argv = ["prepare.py", str(articles), "--out", str(out), "--tokenizer", str(tokenizer_folder)]
    began = time.perf_counter()
    prepare.main()
    seconds = time.perf_counter() - began
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    own, worker = (resource.getrusage(who).ru_maxrss / 2**20 for who in processes)
    return {"seconds": seconds, "writing": sum(writing), "tokens": sum(tokens), "memory_gb": own,
            "worker_gb": worker}


def main() -> None:
    from nanoprune.data.tokenizer import load_tokenizer
    from nanoprune.io.hub import TOKENIZER_FILES, locate

    parser = make_parser(__doc__, work="data/benchmark")
    parser.add_argument("--tokenizer", default="Qwen/Qwen3-0.6B-Base", help="hub name or folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3, help="for sizes up to 100,000; larger ones run once")
    args = parser.parse_args()
    work, folder = args.work.resolve(), locate(args.tokenizer, files=TOKENIZER_FILES).resolve()
    dataset = work / "dataset"
    if args.side:
        articles = work / f"articles-{args.sizes[0]}.jsonl"
        ours = args.side == "prepare"
        print(json.dumps(measure_prepare(articles, folder, dataset) if ours else
                         measure_tokenizers(articles, folder, args.side)))
        return
    measurements = []
    for size in args.sizes:
        articles = work / f"articles-{size}.jsonl"
        write_articles(articles, size, load_tokenizer(folder))
        for _ in range(args.rounds if size <= 100_000 else 1):
            options = ("--work", work, "--tokenizer", folder, "--sizes", size)
            sides = {side: run_fresh("benchmarks.corpus", "--side", side, *options)
                     for side in ("prepare", *BATCH_CALLS)}
            shutil.rmtree(dataset)
            record(measurements, summary(size, sides), args.out / "corpus.csv")
        articles.unlink()
    report(tabulate(measurements), args.out, "corpus")


def summary(size: int, sides: dict[str, dict]) -> dict:
    """The columns of a measurement; ratios are of tokens a second, to the faster call of `tokenizers`."""
    ours = sides["prepare"]
    rates = {call: sides[call]["tokens"] / sides[call]["seconds"] for call in BATCH_CALLS}
    best = max(rates.values())
    return {"documents": size, "tokens": ours["tokens"], "seconds": ours["seconds"],
            "ms_per_document": 1000 * ours["seconds"] / size, "memory_gb": ours["memory_gb"],
            "worker_gb": ours["worker_gb"], **{f"{call}_tokens_per_s": rate for call, rate in rates.items()},
            "writing_ratio": ours["tokens"] / ours["writing"] / best,
            "whole_ratio": ours["tokens"] / ours["seconds"] / best}


def tabulate(measurements: list[dict]) -> list[str]:
    columns = ("ms_per_document", "memory_gb", "writing_ratio", "whole_ratio")
    rows = []
    for size in dict.fromkeys(row["documents"] for row in measurements):
        runs = select(measurements, documents=size)
        cells = [median_and_range([row[name] for row in runs], ".2f") for name in columns]
        rows.append([f"{size:,}", *cells])
    header = ["documents", "ms a document", "peak memory, GB", "tokenizing and writing", "all of it"]
    return markdown(header, rows)


if __name__ == "__main__":
    command_line.run(main)
