"""Merge an adapter with its base, or quantise a base to four bits.

    python -m nanoprune merge runs/pairs_lora --out models/merged              (adapter and base as one model)
    python -m nanoprune quantise Qwen/Qwen3-0.6B-Base --out models/qwen3-nf4   (a base in four bits)

train.py writes an adapter where its config names layers in `lora` (configs/recipes/pairs_lora.py). The files
are PEFT's, adapter_config.json and adapter_model.safetensors. nanoprune.json beside them names the base, the
hashes of its weights, and the blocks that were dropped from it.
"""

import argparse
from pathlib import Path

import torch

from model import Decoder
from nanoprune import command_line
from nanoprune.io.folders import replace_output
from nanoprune.io.hub import copy_tokenizer, locate
from nanoprune.nn.lora import count_parameters, merge, save_quantised
from nanoprune.nn.peft import base_folder, is_adapter, read_adapter


def merge_adapter(name: str, out: Path, base: str | None, dtype: torch.dtype) -> None:
    """Write an adapter and its base as one plain model; `base`: the base's folder, where it was moved."""
    folder = locate(name)
    if not is_adapter(folder):
        raise ValueError(f"{name} is no adapter (it has no adapter_config.json): there is nothing to merge")
    source = base_folder(read_adapter(folder), base)
    with replace_output(out, "model", (folder, source)) as beside:
        model = Decoder.from_pretrained(folder, base=base)
        merge(model)
        model.to(dtype)
        model.save_pretrained(beside)
        copy_tokenizer(folder if (folder / "tokenizer.json").is_file() else source, beside)
    describe(model, out)


def quantise_base(name: str, out: Path, revision: str | None) -> None:
    """Write a model with the matrices of its blocks in NF4."""
    folder = locate(name, revision)
    with replace_output(out, "model", [folder]) as beside:
        model = Decoder.from_pretrained(folder, frozen="nf4")
        save_quantised(model, beside)
        copy_tokenizer(folder, beside)
    describe(model, out)


def describe(model: Decoder, out: Path) -> None:
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(f"wrote {out}: {model.config.num_hidden_layers} blocks, "
          f"{count_parameters(model).total:,} parameters, {size / 1e6:,.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nanoprune", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    merging = commands.add_parser("merge", help="an adapter and its base as one plain model")
    quantising = commands.add_parser("quantise", help="a base in NF4")
    for command in (merging, quantising):
        command.add_argument("model", help="a hub name, a folder or a run")
        command.add_argument("--out", type=Path, required=True, help="folder to write")
    merging.add_argument("--base", help="the base's folder, if it was moved since the adapter was trained")
    merging.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"),
                         help="of the weights that are written")
    quantising.add_argument("--revision", help="hub branch, tag or commit")
    args = parser.parse_args()
    if args.command == "merge":
        merge_adapter(args.model, args.out, args.base, getattr(torch, args.dtype))
    else:
        quantise_base(args.model, args.out, args.revision)


if __name__ == "__main__":
    command_line.run(main)
