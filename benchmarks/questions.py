"""Questions a second: eval.py's choices beside lm-evaluation-harness.

    python -m benchmarks.questions --tokenizer models/Qwen3-0.6B    random weights of Qwen3-0.6B's shape
    python -m benchmarks.questions --base models/smollm2

Contexts of 500 random words' tokens, four choices of several tokens or of one; the same dtype; both sides in
turn, in fresh processes whose allocator keeps freed memory, on the same files; lm-evaluation-harness one row
at a time and four. The first question warms up. Writes results/questions.csv and results/questions.md. """

import json
import statistics
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import (
    KEEP_FREED_MEMORY,
    WHOLE,
    machine,
    make_parser,
    median_and_range,
    peak,
    random_model,
    record,
    report,
    run_fresh,
    select,
)
from benchmarks.tables import markdown
from nanoprune import command_line

BATCH_SIZES = {"lm-eval, rows of 1": 1, "lm-eval, rows of 4": 4}
SIDES = ("nanoprune", *BATCH_SIZES)
CHOICE_WORDS = {"several tokens": 4, "one token": 1}


def make(work: Path, tokenizer: Path, layers: int) -> Path:
    """The model's folder with random weights, made once."""
    from nanoprune.io.hub import copy_tokenizer

    folder = random_model(WHOLE | {"num_hidden_layers": layers}, work / f"base-{layers}")
    copy_tokenizer(tokenizer, folder)
    return folder


def random_questions(tokenizer: Path, kind: str, count: int, context: int) -> list[dict]:
    """Questions of random words, each of which is one token after a space."""
    from nanoprune.data.tokenizer import load_tokenizer

    vocabulary = load_tokenizer(tokenizer)
    tokens = (vocabulary.id_to_token(i) or "" for i in range(5000, 20000))
    words = [token[1:] for token in tokens if token.startswith("Ġ")]
    words = [word for word in words if word.isascii() and word.isalpha()]
    rng, questions = np.random.default_rng(0), []
    for _ in range(count):
        text = " ".join(rng.choice(words, context - 10))
        choices = [" ".join(rng.choice(words, 4)[: CHOICE_WORDS[kind]]) for _ in range(4)]
        answer = int(rng.integers(4))
        questions.append({"question": "Which?", "context": text, "choices": choices, "answer": answer})
    return questions


def answer_ours(folder: Path, questions: list[dict], dtype: str) -> dict:
    from model import Decoder
    from nanoprune.data.tokenizer import load_tokenizer
    from nanoprune.evaluation.multiple_choice import encode_questions, score_questions

    model = Decoder.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    encoded, _ = encode_questions(load_tokenizer(folder), questions, 32_768)
    score_questions(model, encoded[:1])
    began = time.perf_counter()
    rows = score_questions(model, encoded[1:])
    return {"seconds": time.perf_counter() - began,
            "loglikelihoods": [row["loglikelihoods"][row["answer"]] for row in rows]}


def answer_lm_eval(folder: Path, questions: list[dict], dtype: str, batch_size: int) -> dict:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from nanoprune.data.chat_format import question_prompt

    model = HFLM(pretrained=str(folder), dtype=dtype, device="cpu", batch_size=batch_size)

    def answer(questions: list[dict]) -> list[float]:
        requests = []
        for q in questions:
            prompt = question_prompt(q["question"], q["context"])
            requests += [Instance("loglikelihood", {}, (prompt, " " + choice), i)
                         for i, choice in enumerate(q["choices"])]
        scores = model.loglikelihood(requests, disable_tqdm=True)
        return [scores[4 * k + q["answer"]][0] for k, q in enumerate(questions)]

    answer(questions[:1])
    began = time.perf_counter()
    loglikelihoods = answer(questions[1:])
    return {"seconds": time.perf_counter() - began, "loglikelihoods": loglikelihoods}


def main() -> None:
    parser = make_parser(__doc__, work="data/benchmark-questions")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--base", type=Path, help="a model's folder")
    source.add_argument("--tokenizer", type=Path, help="a folder with Qwen3's tokenizer.json")
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--context", type=int, default=500)
    parser.add_argument("--layers", type=int, default=28, help="of Qwen3-0.6B's 28, without --base")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kind", choices=CHOICE_WORDS, help="of choices to measure alone, with --side")
    args = parser.parse_args()
    work = args.work.resolve()
    folder = args.base.resolve() if args.base else make(work, args.tokenizer.resolve(), args.layers)
    if args.side:
        questions = random_questions(folder, args.kind, args.questions + 1, args.context)
        if args.side == "nanoprune":
            result = answer_ours(folder, questions, args.dtype)
        else:
            result = answer_lm_eval(folder, questions, args.dtype, BATCH_SIZES[args.side])
        print(json.dumps(result | {"memory_gb": peak()}))
        return
    measurements = []
    for kind, turn, side in product(CHOICE_WORDS, range(args.rounds), SIDES):
        result = run_fresh("benchmarks.questions", "--side", side, "--kind", kind, "--base", folder,
                           "--questions", args.questions, "--context", args.context, "--dtype", args.dtype,
                           environment=KEEP_FREED_MEMORY)
        if side == "nanoprune":
            ours = result
        apart = np.abs(np.subtract(result["loglikelihoods"], ours["loglikelihoods"])).max()
        row = {"choices": kind, "round": turn, "side": side,
               "questions_per_s": args.questions / result["seconds"],
               "ratio": result["seconds"] / ours["seconds"], "memory_gb": result["memory_gb"],
               "apart": float(apart)}
        record(measurements, row, args.out / "questions.csv")
    model = args.base.name if args.base else f"{args.layers} blocks of Qwen3-0.6B's shape"
    about = (f"{model}; {args.rounds} rounds of {args.questions} questions, {args.context} tokens; "
             f"{args.dtype}; {machine()}; torch {torch.__version__}")
    report([*tabulate(measurements), "", about], args.out, "questions")


def tabulate(measurements: list[dict]) -> list[str]:
    rows = []
    for kind, side in product(CHOICE_WORDS, SIDES):
        runs = select(measurements, choices=kind, side=side)
        rate = statistics.median(row["questions_per_s"] for row in runs)
        memory = statistics.median(row["memory_gb"] for row in runs)
        rows.append([kind, side, f"{rate:.3f}", median_and_range([row["ratio"] for row in runs], ".2f"),
                     f"{memory:.1f}", f"{max(row['apart'] for row in runs):.1e}"])
    return markdown(["choices", "side", "questions/s", "nanoprune's to it", "peak memory, GB",
                     "log-likelihoods differ by"], rows)


if __name__ == "__main__":
    command_line.run(main)
