"""Text from one or several checkpoints, side by side.

    python sample.py runs/full runs/reduced --prompt "Munich. The new BMW iX3"
"""

import argparse
import json
import math
import sys
import textwrap
from pathlib import Path

import torch
from tqdm import tqdm

from dataset import load_tokenizer
from files import locate, make_folder, write_text
from lora import home, load_model
from model import Cache, Decoder, pick_device

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>")


@torch.no_grad()
def generate(
    model: Decoder,
    ids: torch.Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: set[int] = frozenset(),
) -> list[list[int]]:
    """Continue prompts ids (B, T) of equal length; per row the new tokens, without the stop token that ended it.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave the distribution whole. Draws come from a CPU generator with
    its own seed, so they are the same on every device and disturb no other random state.
    """
    B, T = ids.shape
    weight = model.head_weight
    cache = Cache(model.config, B, T + max_new_tokens, weight.device, model.dtype)
    generator = torch.Generator().manual_seed(seed)
    rows, done, feed = [[] for _ in range(B)], [False] * B, ids.to(weight.device)
    for _ in range(max_new_tokens):
        logits = model.last_logits(feed, cache).float().cpu()
        if not logits.isfinite().all():
            raise ValueError("the model's logits are not finite: its weights are broken, or its numbers too large for the "
                             "dtype; try float32 or an earlier checkpoint")
        chosen = logits.argmax(-1) if temperature == 0 else draw(logits / temperature, top_k, top_p, generator)
        for row, token in enumerate(chosen.tolist()):
            done[row] = done[row] or token in stop
            if not done[row]:
                rows[row].append(token)
        if all(done):
            break
        feed = chosen[:, None].to(weight.device)
    return rows


def draw(logits: torch.Tensor, top_k: int, top_p: float, generator: torch.Generator) -> torch.Tensor:
    """One token a row (B,) from logits (B, V): of the k likeliest, and of the fewest that hold `top_p` (nucleus sampling,
    arXiv:1904.09751)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    if top_k:
        probabilities[:, top_k:] = 0
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p * probabilities.sum(-1, keepdim=True)] = 0  # the likeliest token always stays
    return order.gather(1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]


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
            tokenizer = load_tokenizer(home(folders[name]))
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
    try:
        main()
    except ValueError as error:
        print(f"sample.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nsample.py: stopped", file=sys.stderr)
        sys.exit(130)
