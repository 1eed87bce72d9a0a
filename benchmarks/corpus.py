"""How prepare.py grows: time and memory from 10,000 to 1,000,000 documents, beside the `tokenizers` library alone.

    python -m benchmarks.corpus --tokenizer Qwen/Qwen3-0.6B-Base --sizes 10000 100000 1000000

Documents are synthetic: 300 words each, drawn from the tokenizer's own words with Zipf's frequencies. For each size and
round, fresh processes run in turn: `tokenizers` alone on texts that are in memory (its two batch calls), and the whole of
prepare.py. Writes results/corpus.csv and results/corpus.md; compare ratios, not seconds, as machines are noisy.
"""

import argparse
import csv
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
WORDS, BATCH = 300, 1024
MOST = 50_000  # documents for `tokenizers` alone, whose speed does not depend on how many there are


def write_articles(path: Path, count: int, tokenizer) -> None:
    """Synthetic articles, always the same; stop words are among the frequent ones, so that their language is seen."""
    from nanoprune.data.language import STOP_WORDS

    rng = np.random.default_rng(0)
    spaced = sorted(token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ") and len(token) > 3)
    spaced = [word for word in spaced if word.isascii() and word.isalpha() and word.islower()]
    words = np.array(STOP_WORDS["EN"] + [spaced[i] for i in rng.permutation(len(spaced))[:30_000]])
    ends = np.cumsum(1 / np.arange(1, len(words) + 1))
    with open(path, "w", encoding="utf-8") as file:
        for i in tqdm(range(count), f"writing {count:,} articles", disable=None):
            drawn = words[np.searchsorted(ends, rng.random(WORDS) * ends[-1])].tolist()
            sentences = [" ".join(drawn[k : k + 15]).capitalize() + "." for k in range(0, WORDS, 15)]
            sentences[i % 20] += f" The new motor has an output of {100 + i % 397} kW and of {200 + i % 211} Nm at most."
            text = "\n\n".join(" ".join(sentences[k : k + 4]) for k in range(0, len(sentences), 4))
            file.write(json.dumps({"id": f"S{i}", "title": " ".join(drawn[:6]), "text": text,
                                   "date": str(np.datetime64("2000-01-01") + i * 9000 // count)}) + "\n")


def tokenizers_alone(articles: Path, tokenizer_folder: Path, call: str) -> dict:
    """Seconds that the library's own batch call takes; reading is not counted."""
    from nanoprune.data.tokenizer import load_tokenizer
    from nanoprune.io.jsonl import JsonLines as Lines

    tokenizer, lines, seconds, tokens = load_tokenizer(tokenizer_folder), Lines(articles), 0.0, 0
    for start in range(0, min(MOST, len(lines)), BATCH):
        texts = [lines[i]["text"] for i in range(start, min(start + BATCH, len(lines)))]
        began = time.perf_counter()
        encoded = getattr(tokenizer, call)(texts)
        seconds += time.perf_counter() - began
        tokens += sum(map(len, encoded))
        del encoded
    return {"seconds": seconds, "tokens": tokens}


def whole(articles: Path, tokenizer_folder: Path, out: Path) -> dict:
    """prepare.py as a user starts it; `seconds` of all, `writing` of tokenizing and writing, peak memory in GB."""
    import prepare

    writing, write_split = [], prepare.write_split
    def timed(*args):
        began = time.perf_counter()
        entry = write_split(*args)
        writing.append((time.perf_counter() - began, entry["tokens"] - entry["documents"]))
        return entry

    prepare.write_split = timed
    sys.argv = ["prepare.py", str(articles), "--out", str(out), "--tokenizer", str(tokenizer_folder)]
    began = time.perf_counter()
    prepare.main()
    seconds = time.perf_counter() - began
    own, child = (resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "writing": sum(s for s, _ in writing), "tokens": sum(n for _, n in writing),
            "memory_gb": own, "worker_gb": child}


def fresh(*args) -> dict:
    """One measurement in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.corpus", "--one", *map(str, args)], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="Qwen/Qwen3-0.6B-Base", help="hub name or folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3, help="of the sizes up to 100,000; larger ones run once")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--work", type=Path, default=Path("data/benchmark"), help="for the articles and datasets; emptied")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, *given = args.one
        print(json.dumps({"alone": tokenizers_alone, "whole": whole}[kind](*map(Path, given[:2]), *given[2:])))
        return

    from nanoprune.data.tokenizer import load_tokenizer
    from nanoprune.io.hub import TOKENIZER_FILES, locate

    folder, rows = locate(args.tokenizer, files=TOKENIZER_FILES), []
    args.work.mkdir(parents=True, exist_ok=True)
    for size in args.sizes:
        articles = args.work / f"articles-{size}.jsonl"
        write_articles(articles, size, load_tokenizer(folder))
        for _ in range(args.rounds if size <= 100_000 else 1):
            out = args.work / "dataset"
            ours = fresh("whole", articles, folder, out)
            peers = {call: fresh("alone", articles, folder, call) for call in ("encode_batch", "encode_batch_fast")}
            shutil.rmtree(out)
            rate = {call: peer["tokens"] / peer["seconds"] for call, peer in peers.items()}
            best = max(rate.values())
            rows.append({"documents": size, "tokens": ours["tokens"], "seconds": ours["seconds"],
                         "ms_per_document": 1000 * ours["seconds"] / size, "memory_gb": ours["memory_gb"],
                         "worker_gb": ours["worker_gb"], **{f"{call}_tokens_per_s": r for call, r in rate.items()},
                         "writing_ratio": ours["tokens"] / ours["writing"] / best,
                         "whole_ratio": ours["tokens"] / ours["seconds"] / best})
            print({k: round(v, 3) for k, v in rows[-1].items()}, file=sys.stderr)
        articles.unlink()
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "corpus.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| documents | ms a document | peak memory, GB | tokenizing and writing | all of it |", "|---|---|---|---|---|"]
    for size in args.sizes:
        found = [row for row in rows if row["documents"] == size]
        cells = [f"{statistics.median(row[key] for row in found):.2f}" + (
                 f" ({min(row[key] for row in found):.2f} to {max(row[key] for row in found):.2f})" if len(found) > 1 else "")
                 for key in ("ms_per_document", "memory_gb", "writing_ratio", "whole_ratio")]
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    (args.out / "corpus.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), f"\nwrote {args.out / 'corpus.csv'} and {args.out / 'corpus.md'}")


if __name__ == "__main__":
    main()
