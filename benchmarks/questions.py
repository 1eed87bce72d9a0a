"""Questions a second at Qwen3-0.6B's shape: eval.py's choices beside lm-evaluation-harness.

    python -m benchmarks.questions --tokenizer models/Qwen3-0.6B

Contexts of 500 random words' tokens, four choices of several tokens or of one; random weights, the same dtype; both sides in
turn, in fresh processes, on the same files; lm-evaluation-harness one row at a time and four. The first question warms up.
Writes results/questions.csv and results/questions.md.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.train import ROOT, WHOLE, machine, peak, write_rows

SIDES = {"nanoprune": 0, "lm-eval, rows of 1": 1, "lm-eval, rows of 4": 4}  # and its batch size
KINDS = {"several tokens": " ".join, "one token": lambda words: words[0]}


def make(work: Path, tokenizer: Path, kind: str, count: int, context: int) -> tuple[Path, list[dict]]:
    """(model's folder, questions); the words are such that each is one token after a space."""
    from model import Decoder
    from nanoprune.data.tokenizer import load_tokenizer
    from nanoprune.io.hub import copy_tokenizer
    from nanoprune.nn.model_config import ModelConfig

    folder, known = work / "base", load_tokenizer(tokenizer)
    if not folder.is_dir():
        torch.manual_seed(0)
        Decoder(ModelConfig.from_dict(WHOLE)).save_pretrained(folder)
        copy_tokenizer(tokenizer, folder)
    words = [w for w in (known.id_to_token(i) for i in range(5000, 20000)) if w and w.startswith("Ġ") and w[1:].isalpha()]
    words = [w[1:] for w in words if w[1:].isascii()]
    rng = np.random.default_rng(0)
    questions = []
    for _ in range(count):
        text = " ".join(rng.choice(words, context - 10))
        choices = [KINDS[kind]([str(w) for w in rng.choice(words, 4)]) for _ in range(4)]
        questions.append({"question": "Which?", "context": text, "choices": choices, "answer": int(rng.integers(4))})
    return folder, questions


def ours(folder: Path, questions: list[dict], dtype: str) -> dict:
    from model import Decoder
    from nanoprune.data.tokenizer import load_tokenizer
    from nanoprune.device import keep_freed_memory
    from nanoprune.evaluation.multiple_choice import encode_questions as encode
    from nanoprune.evaluation.multiple_choice import score_questions as answer

    keep_freed_memory()
    model = Decoder.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    groups, _ = encode(load_tokenizer(folder), questions, 32_768)
    asked = list(zip(range(len(questions)), questions, groups, strict=True))
    answer(model, asked[:1])
    began = time.perf_counter()
    rows = answer(model, asked[1:])
    return {"seconds": time.perf_counter() - began, "loglikelihoods": [row["loglikelihood"] for row in rows]}


def theirs(folder: Path, questions: list[dict], dtype: str, batch_size: int) -> dict:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from nanoprune.data.chat_format import question_prompt as prompt_of

    model = HFLM(pretrained=str(folder), dtype=dtype, device="cpu", batch_size=batch_size)

    def ask(asked: list[dict]) -> list[float]:
        requests = [Instance("loglikelihood", {}, (prompt_of(q["question"], q["context"]), " " + choice), i)
                    for q in asked for i, choice in enumerate(q["choices"])]
        found = model.loglikelihood(requests, disable_tqdm=True)
        return [found[4 * k + q["answer"]][0] for k, q in enumerate(asked)]

    ask(questions[:1])
    began = time.perf_counter()
    found = ask(questions[1:])
    return {"seconds": time.perf_counter() - began, "loglikelihoods": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with Qwen3's tokenizer.json")
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--context", type=int, default=500)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("data/benchmark-questions"))
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, side = args.one
        folder, questions = make(args.work, args.tokenizer, kind, args.questions + 1, args.context)
        batch = SIDES[side]
        found = theirs(folder, questions, args.dtype, batch) if batch else ours(folder, questions, args.dtype)
        print(json.dumps(found | {"memory_gb": peak()}))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    found = []
    for kind in KINDS:
        make(args.work, args.tokenizer, kind, 1, args.context)
        for turn in range(args.rounds):
            for side in SIDES:
                command = [sys.executable, "-m", "benchmarks.questions", "--one", kind, side, f"--work={args.work.resolve()}"]
                command += [f"--{name}={getattr(args, name)}" for name in ("tokenizer", "questions", "context", "dtype")]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                if done.returncode:
                    raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
                one = json.loads(done.stdout.splitlines()[-1])
                if not SIDES[side]:
                    own = one
                apart = max(abs(a - b) for a, b in zip(one["loglikelihoods"], own["loglikelihoods"], strict=True))
                found.append({"choices": kind, "round": turn, "side": side, "questions_per_s": args.questions / one["seconds"],
                              "ratio": one["seconds"] / own["seconds"], "memory_gb": one["memory_gb"], "apart": apart})
                print(found[-1], file=sys.stderr, flush=True)
    lines = ["| choices | side | questions/s | nanoprune's to it | peak memory, GB | log-likelihoods differ by |",
             "|" + "---|" * 6]
    for kind in KINDS:
        for side in SIDES:
            rows = [row for row in found if (row["choices"], row["side"]) == (kind, side)]
            rates, ratios = ([row[key] for row in rows] for key in ("questions_per_s", "ratio"))
            lines.append(f"| {kind} | {side} | {np.median(rates):.3f} | {np.median(ratios):.2f} ({min(ratios):.2f} to "
                         f"{max(ratios):.2f}) | {np.median([row['memory_gb'] for row in rows]):.1f} | "
                         f"{max(row['apart'] for row in rows):.1e} |")
    write_rows(args.out / "questions.csv", found)
    table = "\n".join([*lines, "", f"{args.rounds} rounds of {args.questions} questions, {args.context} tokens; {args.dtype}; "
                       f"{machine()}; torch {torch.__version__}"]) + "\n"
    (args.out / "questions.md").write_text(table)
    print(f"{table}\nwrote {args.out}/questions.csv and {args.out}/questions.md")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"benchmarks.questions: {error}", file=sys.stderr)
        sys.exit(2)
