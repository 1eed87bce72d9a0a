"""Low-rank adapters on a frozen base, which may be kept in four bits: LoRA (arXiv:2106.09685), QLoRA (arXiv:2305.14314).

    python train.py configs/recipes/pairs_lora.py                                    (runs/NAME/model is the adapter)
    python -m nanoprune merge runs/pairs_lora --out models/merged                         (base and adapter as one plain model)
    python -m nanoprune quantise Qwen/Qwen3-0.6B-Base --out models/qwen3-nf4              (a base in four bits)

An adapter's folder is PEFT's (adapter_config.json, adapter_model.safetensors), and nanoprune.json beside it says what it
belongs to: the base, the hash of its weights, and the blocks that were dropped from it.
"""

import argparse
from pathlib import Path

import torch

from nanoprune import command_line
from nanoprune.config import FROZEN
from nanoprune.io.files import replace_folder
from nanoprune.io.hub import check_out, copy_tokenizer, locate
from nanoprune.nn.lora import count_parameters, load_frozen, save_quantised
from nanoprune.nn.peft import is_adapter, load_adapted, locate_base, merge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("merge", "an adapter and its base as one plain model"), ("quantise", "a base in NF4")):
        command = commands.add_parser(name, help=about)
        command.add_argument("model", help="a hub name, a folder or a run")
        command.add_argument("--out", required=True, help="folder to write")
        if name == "merge":
            command.add_argument("--base", help="where the base is, if not where it was when the adapter was trained")
            command.add_argument("--dtype", default="float32", choices=FROZEN[1:4], help="of the weights that are written")
        else:
            command.add_argument("--revision", help="hub branch, tag or commit")
    args = parser.parse_args()
    folder, out = locate(args.model, None if args.command == "merge" else args.revision), Path(args.out)
    if args.command == "merge":
        if not is_adapter(folder):
            raise ValueError(f"{args.model} is no adapter (it has no adapter_config.json): there is nothing to merge")
        base = locate_base(folder, args.base)
        check_out(out, folder, base)
        model = load_adapted(folder, base=args.base)
        tokenizer = folder if (folder / "tokenizer.json").is_file() else base
        merge(model)
        model.to(getattr(torch, args.dtype))
    else:
        check_out(out, folder)
        model, tokenizer = load_frozen(folder, "nf4"), folder
    with replace_folder(out) as beside:
        model.save_pretrained(beside) if args.command == "merge" else save_quantised(model, beside)
        copy_tokenizer(tokenizer, beside)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(f"wrote {out}: {model.config.num_hidden_layers} blocks, {count_parameters(model)[0]:,} parameters, "
          f"{size / 1e6:,.1f} MB")


if __name__ == "__main__":
    command_line.run(main)
