"""Text from one or several checkpoints, side by side.

    python sample.py runs/full runs/reduced --prompt "Munich. The new BMW iX3"
"""

import argparse
import math
import textwrap
from pathlib import Path

import torch

from model import Decoder
from nanoprune import command_line
from nanoprune.data.chat_format import chat_form
from nanoprune.data.conversations import encode_prompt
from nanoprune.data.tokenizer import END_TOKENS, load_tokenizer
from nanoprune.device import pick_device
from nanoprune.io.folders import claim
from nanoprune.io.hub import locate
from nanoprune.io.jsonl import write_jsonl
from nanoprune.nn.peft import config_folder
from nanoprune.nn.sampling import generate
from nanoprune.progress import progress

TURN_END_TOKENS = ("<|im_end|>", "<|eot_id|>")  # of a chat's turn, for Qwen and Llama 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="hub names, folders or runs")
    parser.add_argument("--prompt", action="append", required=True, help="repeat it for several prompts")
    parser.add_argument("--chat", action="store_true",
                        help="a prompt is the user's turn, written by the model's chat template")
    parser.add_argument("--tokens", type=int, default=100, help="at most this many new tokens")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens only (0: all)")
    parser.add_argument("--top-p", type=float, default=0.95,
                        help="draw from the fewest tokens that hold this probability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--out", help="also write the texts to this JSONL file")
    args = parser.parse_args()
    if args.tokens < 1 or not 0 <= args.temperature < math.inf or args.top_k < 0 or not 0 < args.top_p <= 1:
        given = f"{args.tokens}, {args.temperature}, {args.top_k}, {args.top_p}"
        raise ValueError("--tokens must be at least 1, --temperature and --top-k 0 or more, --top-p above 0 "
                         f"and at most 1; given {given}")
    if args.out:
        claim("text", args.out)
    device = pick_device(args.device)
    folders = [locate(name) for name in args.models]  # all are located before the first is loaded
    sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed,
                "chat": args.chat}
    rows = []
    try:
        for name, folder in zip(progress(args.models, "models"), folders, strict=True):
            rows += complete(name, folder, args.prompt, args.tokens, device, **sampling)
    finally:  # one model's failure does not hide the texts of those before it
        print_texts(args.prompt, rows)
    if args.out:
        write_jsonl(args.out, rows)
        print(f"\nwrote {args.out}")


def complete(
    name: str, folder: Path, prompts: list[str], tokens: int, device: torch.device, chat: bool, **sampling
) -> list[dict]:
    """A row for each prompt with a model's continuation of it, or its answer with `chat`.

    `sampling` as in `generate`.
    """
    model = Decoder.from_pretrained(folder, device=device).eval()
    tokenizer = load_tokenizer(config_folder(folder))
    ends = {tokenizer.token_to_id(token) for token in END_TOKENS + TURN_END_TOKENS}
    form = chat_form(config_folder(folder), tokenizer) if chat else None
    if form and form.end_of_turn:
        ends.add(tokenizer.token_to_id(form.end_of_turn))
    stop = model.stop_tokens | ends - {None}
    context = model.config.max_position_embeddings
    rows = []
    for prompt in prompts:
        if form:
            ids = encode_prompt([{"role": "user", "content": prompt}], tokenizer, form).tokens
        else:
            ids = tokenizer.encode(prompt).ids or sorted(stop)[:1]  # an empty one begins with an end of text
        if not 0 < len(ids) <= context - tokens:
            raise ValueError(f"{name} was made for {context} tokens: a prompt of {len(ids)} and --tokens "
                             f"{tokens} do not fit; change one of them")
        continuation = generate(model, torch.tensor([ids]), tokens, stop=stop, **sampling)[0]
        rows.append({"model": name, "prompt": prompt, "text": tokenizer.decode(continuation)})
    return rows


def print_texts(prompts: list[str], rows: list[dict]) -> None:
    """Print all models' texts under each prompt."""
    for prompt in prompts if rows else ():
        print(f"\n> {prompt}")
        for row in rows:
            if row["prompt"] == prompt:
                print(f"\n[{row['model']}]")
                for paragraph in row["text"].splitlines():
                    print(textwrap.fill(paragraph, 110, initial_indent="  ", subsequent_indent="  "))


if __name__ == "__main__":
    command_line.run(main)
