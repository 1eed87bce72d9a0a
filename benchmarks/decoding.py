"""Tokens a second of greedy text: sample.py's decoding beside transformers' `generate` and llama.cpp.

    python -m benchmarks.decoding models/smollm2 --rounds 3
    python -m benchmarks.decoding models/smollm2 --gguf smollm2.Q4_1.gguf smollm2.bf16.gguf

One sequence and eight, each side in turn in a fresh process that keeps freed memory, on the same prompts,
weights and products in --dtype; `plain` is nanoprune without packed matrices. A first text warms up.
llama.cpp takes GGUF files in their own types, one sequence, by the server of xllamacpp (`pip install
xllamacpp`). Writes results/decoding.csv and .md.
"""

import json
import time
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import torch

from benchmarks.common import (
    KEEP_FREED_MEMORY,
    machine,
    make_parser,
    median_and_range,
    peak,
    record,
    report,
    run_fresh,
    select,
)
from benchmarks.tables import markdown
from nanoprune import command_line
from nanoprune.data.prompts import read_prompts

SIDES = ("nanoprune", "plain", "generate")
BATCHES = (1, 8)


def encode(folder: Path, batch: int) -> list[list[int]]:
    """The hand-written prompts' tokens."""
    from nanoprune.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    return [tokenizer.encode(prompt).ids for prompt in read_prompts("qa/continue.txt")[:batch]]


def write_ours(folder: Path, prompts: list[list[int]], count: int, dtype: torch.dtype, plain: bool) -> dict:
    from model import Decoder
    from nanoprune.nn import sampling
    from nanoprune.nn.packed import pack

    if plain:
        sampling.packed = lambda model: nullcontext()
    model = Decoder.from_pretrained(folder, dtype=dtype).eval()
    if not plain:
        pack(model)  # as sample.py does, once
    return timed(lambda count: sampling.generate(model, prompts, count), count)


def write_theirs(folder: Path, prompts: list[list[int]], count: int, dtype: torch.dtype) -> dict:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generation_config.eos_token_id = None

    def write(count: int) -> list[list[int]]:
        texts = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False,
                               pad_token_id=0)
        return texts[:, length:].tolist()

    return timed(write, count)


def write_llama(file: Path, folder: Path, count: int) -> dict:
    from benchmarks.hops import LlamaServer

    server, prompt = LlamaServer(file), encode(folder, 1)[0]

    def write(count: int) -> list[list[int]]:
        return [[token["id"] for token in server.complete(prompt, count, ignore_eos=True)]]

    try:
        return timed(write, count)
    finally:
        server.close()


def timed(write, count: int) -> dict:
    """Steps a second of a text of `count` tokens, its prompt with it, after a text of eight."""
    write(8)
    began = time.perf_counter()
    texts = write(count)
    return {"steps_per_s": count / (time.perf_counter() - began), "texts": texts}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path, help="a model's folder with its tokenizer")
    parser.add_argument("--gguf", type=Path, nargs="+", default=[], help="GGUF files of the same model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="sequences of the one measurement, with --side")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    if args.side:
        if args.side in SIDES:
            prompts = encode(args.model, args.batch)
            result = (write_theirs(args.model, prompts, args.tokens, dtype) if args.side == "generate" else
                      write_ours(args.model, prompts, args.tokens, dtype, args.side == "plain"))
        else:
            result = write_llama(Path(args.side), args.model, args.tokens)
        print(json.dumps(result | {"memory_gb": peak()}))
        return
    measurements = []
    sides = {1: (*SIDES, *map(str, args.gguf)), 8: SIDES}
    for batch, turn in product(BATCHES, range(args.rounds)):
        for side in sides[batch]:
            result = run_fresh("benchmarks.decoding", args.model, "--side", side, "--batch", batch,
                               "--tokens", args.tokens, "--dtype", args.dtype,
                               environment=KEEP_FREED_MEMORY)
            if side == "nanoprune":
                ours = result
            same = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in
                    zip(result["texts"], ours["texts"], strict=True)]
            row = {"sequences": batch, "round": turn, "side": Path(side).name,
                   "tokens_per_s": batch * result["steps_per_s"],
                   "ratio": ours["steps_per_s"] / result["steps_per_s"], "memory_gb": result["memory_gb"],
                   "same_tokens": sum(same) / batch / args.tokens}
            record(measurements, row, args.out / "decoding.csv")
    about = (f"{args.model.name}, {args.rounds} rounds of {args.tokens} tokens; {args.dtype}; {machine()}; "
             f"torch {torch.__version__}")
    report([*tabulate(measurements), "", about], args.out, "decoding")


def tabulate(measurements: list[dict]) -> list[str]:
    rows = []
    for batch, side in dict.fromkeys((row["sequences"], row["side"]) for row in measurements):
        runs = select(measurements, sequences=batch, side=side)
        rows.append([batch, side, median_and_range([row["tokens_per_s"] for row in runs], ".0f"),
                     median_and_range([row["ratio"] for row in runs], ".2f"),
                     f"{max(row['memory_gb'] for row in runs):.1f}",
                     f"{min(row['same_tokens'] for row in runs):.0%}"])
    return markdown(["sequences", "side", "tokens/s", "nanoprune's to it", "peak memory, GB",
                     "the same tokens"], rows)


if __name__ == "__main__":
    command_line.run(main)
