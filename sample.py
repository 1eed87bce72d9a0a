"""Text from one or several checkpoints, side by side.

    python sample.py runs/full runs/reduced --prompt "Munich. The new BMW iX3"
"""

import argparse
import json
import math
import textwrap
from pathlib import Path

import torch
from tqdm import tqdm

from nanoprune import command_line
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.device import pick_device
from nanoprune.io.files import make_folder, write_text
from nanoprune.io.hub import locate
from nanoprune.nn.peft import config_folder, load_model
from nanoprune.nn.sampling import generate

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="hub names, folders or runs")
    parser.add_argument("--prompt", action="append", required=True, help="give it several times for several prompts")
    parser.add_argument("--tokens", type=int, default=100, help="at most this many new tokens")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens only (0: all)")
    parser.add_argument("--top-p", type=float, default=0.95, help="draw from the fewest tokens that hold this probability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--out", help="also write the texts to this JSONL file")
    args = parser.parse_args()
    if args.tokens < 1 or not 0 <= args.temperature < math.inf or args.top_k < 0 or not 0 < args.top_p <= 1:
        raise ValueError("--tokens must be at least 1, --temperature and --top-k 0 or more, --top-p above 0 and at most 1; "
                         f"given {args.tokens}, {args.temperature}, {args.top_k}, {args.top_p}")
    if args.out:
        make_folder(Path(args.out).parent)
    lines, folders = [], {name: locate(name) for name in args.models}  # all found before the first is loaded
    try:
        for name in tqdm(args.models, desc="models", disable=None):
            model = load_model(folders[name], device=pick_device(args.device)).eval()
            tokenizer = load_tokenizer(config_folder(folders[name]))
            stop = model.stop_tokens | {tokenizer.token_to_id(token) for token in END_TOKENS} - {None}
            for prompt in args.prompt:
                ids = torch.tensor([tokenizer.encode(prompt).ids or sorted(stop)[:1]], dtype=torch.int64)
                room = model.config.max_position_embeddings - args.tokens
                if not 0 < ids.shape[1] <= room:
                    raise ValueError(f"{name} was made for {room + args.tokens} tokens: a prompt of {ids.shape[1]} and "
                                     f"--tokens {args.tokens} do not fit; change one of them")
                new = generate(model, ids, args.tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
                               seed=args.seed, stop=stop)[0]
                lines.append({"model": name, "prompt": prompt, "text": tokenizer.decode(new)})
    finally:  # what one model wrote is shown also where another fails
        show(args.prompt, lines)
    if args.out:
        write_text(args.out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        print(f"\nwrote {args.out}")


def show(prompts: list[str], lines: list[dict]) -> None:
    """Print the models' texts under their prompts."""
    for prompt in prompts if lines else []:
        print(f"\n> {prompt}")
        for line in lines:
            if line["prompt"] == prompt:
                print(f"\n[{line['model']}]")
                for paragraph in line["text"].splitlines():
                    print(textwrap.fill(paragraph, 110, initial_indent="  ", subsequent_indent="  "))


if __name__ == "__main__":
    command_line.run(main)
