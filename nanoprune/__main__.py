"""What is done to a model's folder: merge, quantise, check it, write its card, push it to the hub.

    python -m nanoprune merge runs/pairs_lora --out models/merged              (adapter and base as one model)
    python -m nanoprune quantise Qwen/Qwen3-0.6B-Base --out models/qwen3-nf4   (a base in four bits)
    python -m nanoprune check models/less-25 --data data/bmw                   (a line a fault)
    python -m nanoprune card runs/reduced --results results                    (README.md, with results)
    python -m nanoprune push runs/reduced YOUR_NAME/qwen3-less-25              (--yes sends it)

train.py writes an adapter where its config names layers in `lora` (configs/recipes/pairs_lora.py). The files
are PEFT's, adapter_config.json and adapter_model.safetensors. nanoprune.json beside them names the base, the
hashes of its weights, and the blocks that were dropped from it.
"""

import argparse
from pathlib import Path

import torch

from model import Decoder
from nanoprune import command_line
from nanoprune.evaluation.model_check import check_data, check_model
from nanoprune.io.folders import replace_output
from nanoprune.io.hub import copy_tokenizer, locate, push
from nanoprune.nn.lora import count_parameters, merge, save_quantised
from nanoprune.nn.peft import base_folder, is_adapter, read_adapter
from nanoprune.training.model_card import Origin, write_card


def merge_adapter(name: str, out: Path, dtype: torch.dtype) -> None:
    """Write an adapter and its base as one plain model."""
    folder = locate(name)
    if not is_adapter(folder):
        raise ValueError(f"{name} is no adapter (it has no adapter_config.json): there is nothing to merge")
    adapter = read_adapter(folder)
    source = base_folder(adapter)
    with replace_output(out, "model", (folder, source)) as beside:
        model = Decoder.from_pretrained(folder)
        merge(model)
        model.to(dtype).save_pretrained(beside)
        for place in (source, folder):
            copy_tokenizer(place, beside)
        write_card(beside, Origin(adapter.base.base, adapter.base.base_sha256, source))
    describe(model, out)


def quantise_base(name: str, out: Path, revision: str | None) -> None:
    """Write a model with the matrices of its blocks in NF4."""
    folder = locate(name, revision)
    with replace_output(out, "model", [folder]) as beside:
        model = Decoder.from_pretrained(folder, frozen="nf4")
        save_quantised(model, beside)
        copy_tokenizer(folder, beside)
        write_card(beside, Origin(name, model.base.base_sha256, folder))
    describe(model, out)


def describe(model: Decoder, out: Path) -> None:
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(f"wrote {out}: {model.config.num_hidden_layers} blocks, "
          f"{count_parameters(model).total:,} parameters, {size / 1e6:,.1f} MB")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nanoprune", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    merging = commands.add_parser("merge", help="an adapter and its base as one plain model")
    quantising = commands.add_parser("quantise", help="a base in NF4")
    checking = commands.add_parser("check", help="what is wrong with a reduced model")
    carding = commands.add_parser("card", help="README.md of a model's folder, written anew")
    pushing = commands.add_parser("push", help="a folder to the hub; without --yes a list of what would go")
    for command in commands.choices.values():
        command.add_argument("model", help="a hub name, a folder or a run")
    for command in (merging, quantising):
        command.add_argument("--out", type=Path, required=True, help="folder to write")
    merging.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"),
                         help="of the weights that are written")
    for command in (quantising, pushing):
        command.add_argument("--revision", help="hub branch, tag or commit")
    checking.add_argument("--data", type=Path, help="dataset folder: are its test documents trained on?")
    carding.add_argument("--results", type=Path, help="folder of eval.py that measured this model")
    pushing.add_argument("repository", help="YOUR_NAME/NAME, made if it is not there")
    pushing.add_argument("--public", action="store_true", help="everybody may read it")
    pushing.add_argument("--yes", action="store_true", help="send it")
    args = parser.parse_args()
    if args.command == "merge":
        merge_adapter(args.model, args.out, getattr(torch, args.dtype))
    elif args.command == "quantise":
        quantise_base(args.model, args.out, args.revision)
    elif args.command == "check":
        folder = locate(args.model)
        findings = [*check_model(folder), *(check_data(args.data) if args.data else ())]
        print("\n".join(findings) or f"nothing is wrong with {folder}")
        return int(bool(findings))
    elif args.command == "card":
        folder = locate(args.model)
        if not write_card(folder, results=args.results):
            raise ValueError(f"{folder}/README.md is not ours, or was changed: move it away, or edit it")
        print(f"wrote {folder}/README.md")
    else:
        push(locate(args.model), args.repository, args.revision, args.public, args.yes)
    return 0


if __name__ == "__main__":
    command_line.run(main)
