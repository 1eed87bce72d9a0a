"""What is wrong with a model's folder, also one that no decoder opens, or with a dataset."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from nanoprune.config import read_fields
from nanoprune.data.conversations import said
from nanoprune.data.dataset import Dataset
from nanoprune.data.duplicates import near_duplicates, signature
from nanoprune.data.language import words_of
from nanoprune.data.tokenizer import load_tokenizer, vocabulary
from nanoprune.io.files import file_hashes, read_json
from nanoprune.io.jsonl import read_jsonl
from nanoprune.io.tensors import EMBEDDING, HEAD, Stored, read_stored, stored_tensors
from nanoprune.nn.model_config import ConfigFile
from nanoprune.nn.peft import base_folder, is_adapter, read_adapter

IN_BLOCK = re.compile(r".*\blayers\.(\d+)\.(.+\.(?:weight|bias))")
HALVES = {"attn": ("self_attn.", "input_layernorm."), "mlp": ("mlp.", "post_attention_layernorm.")}
OUTPUTS = {"self_attn.o_proj.weight": "the attention", "mlp.down_proj.weight": "the MLP"}
NF4_ZEROS = 0x77  # two codes of zero in a byte


def check_model(folder: Path) -> Iterator[str]:
    """A line on each thing that is wrong; ValueError where a file is missing, damaged or of another kind."""
    if is_adapter(folder):
        yield from check_adapter(folder)
        return
    path = folder / "config.json"
    raw = read_json(path)
    config, tensors = read_fields(ConfigFile, raw, path), stored_tensors(folder)
    yield from check_config(config, raw)
    yield from check_blocks(config, tensors)
    yield from check_values(tensors)
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    both = [read_stored(tensor).float() for tensor in (head, embedding) if tensor]
    if config.tie_word_embeddings and both and not torch.equal(both[0], both[-1]):
        yield f"{HEAD} differs from the embedding, and config.json ties both (tie_word_embeddings)"
    if not config.tie_word_embeddings and not head:
        yield f"{HEAD} is missing, and config.json does not tie it to the embedding (tie_word_embeddings)"
    size = vocabulary(load_tokenizer(folder)) if (folder / "tokenizer.json").is_file() else 0
    if embedding and size > embedding.shape[0]:
        yield f"the tokenizer has {size:,} tokens, the embedding {embedding.shape[0]:,} rows"


def check_config(config: ConfigFile, raw: dict) -> Iterator[str]:
    """Entries of config.json that do not fit each other."""
    count = config.num_hidden_layers
    for key in ("layer_types", "nanoprune_blocks", "nanoprune_without"):
        values = getattr(config, key)
        if values is not None and len(values) != count:
            yield f"{key} has {len(values)} entries for {count} blocks (num_hidden_layers)"
    if raw.get("max_window_layers") and config.max_window_layers > count:
        yield f"max_window_layers is {config.max_window_layers}, above the {count} blocks (num_hidden_layers)"
    names = ",".join(str(entry.get("original")) for entry in config.nanoprune_history).split(",")
    dropped = {int(name) for name in names if name.isdecimal()}
    blocks = list(config.nanoprune_blocks or range(count))
    if dropped and sorted(dropped | set(blocks)) != list(range(len(blocks) + len(dropped))):
        yield f"nanoprune_history has dropped the blocks {sorted(dropped)}, and nanoprune_blocks is {blocks}"


def check_blocks(config: ConfigFile, tensors: dict[str, Stored]) -> Iterator[str]:
    """Blocks of the weights that are not those of config.json, or lack tensors that others have."""
    blocks, count = blocks_of(tensors), config.num_hidden_layers
    if sorted(blocks) != list(range(count)):
        yield f"the weights have the blocks {sorted(blocks)}, config.json has {count} (num_hidden_layers)"
    names, lost = set().union(*blocks.values()), dict(enumerate(config.nanoprune_without or ()))
    for block in sorted(blocks):
        expected = {name for name in names if not name.startswith(HALVES.get(lost.get(block), ()))}
        if differing := sorted(blocks[block] ^ expected):
            yield (f"block {block} differs from others, or from nanoprune_without, in {differing[0]} "
                   f"({len(differing)} such)")


def blocks_of(names) -> dict[int, set[str]]:
    """By block, the names in it of its weights and biases."""
    blocks = defaultdict(set)
    for match in filter(None, map(IN_BLOCK.fullmatch, names)):
        blocks[int(match[1])].add(match[2])
    return blocks


def check_values(tensors: dict[str, Stored]) -> Iterator[str]:
    """Values that are not finite, and halves of blocks that add nothing."""
    for name, stored in tensors.items():
        tensor, match = read_stored(stored), IN_BLOCK.fullmatch(name)
        zero = NF4_ZEROS if tensor.dtype == torch.uint8 else 0
        largest = float((tensor.float() - zero).abs().max()) if tensor.numel() else math.nan
        if not math.isfinite(largest):
            yield f"{name} holds no values, or values that are not finite"
        if not largest and match and match[2] in OUTPUTS:
            yield (f"{OUTPUTS[match[2]]} of block {match[1]} is zeroed and not removed ({match[2]}): it adds "
                   f"nothing, and costs what it did; prune.py --drop {match[1]} removes the block")


def check_adapter(folder: Path) -> Iterator[str]:
    """As `check_model`, of an adapter and its base."""
    adapter = read_adapter(folder)
    base, trained_on = base_folder(adapter), adapter.base
    yield from (f"the base, {base}: {finding}" for finding in check_model(base))
    tensors = stored_tensors(folder, [folder / "adapter_model.safetensors"])
    yield from check_values(tensors)
    dropped = sum(str(name).isdecimal() for name in trained_on.dropped)
    left = len(blocks_of(stored_tensors(base))) - dropped
    blocks = len(trained_on.blocks) or max(blocks_of(tensors), default=-1) + 1
    if blocks != left and not adapter.peft.layers_to_transform:
        yield f"it was trained on {blocks} blocks, and the base, {base}, has {left} to put it on"
    if trained_on.base_sha256 not in ({}, file_hashes(base)):
        yield f"it was trained on other weights than those of the base, {base}"


def check_data(folder: Path) -> Iterator[str]:
    """Test documents that stand in the training split, too, in the same words or nearly."""
    dataset = Dataset(folder)
    train = dataset.documents("train") if not dataset.conversations else [
        {"id": f"line {number}", "text": "\n\n".join(map(said, row["messages"]))}
        for number, row in enumerate(read_jsonl(dataset.folder / "pairs.jsonl", required=("messages",)), 1)]
    rows = [*train, *dataset.documents("test")]
    signatures = np.stack([signature(words_of(row["text"])) for row in rows])
    pairs = near_duplicates(signatures, lambda i: rows[i]["text"])
    leaks = {j: i for i, j in pairs if i < len(train) <= j}
    for j, i in leaks.items():
        how = "in the same words" if words_of(rows[i]["text"]) == words_of(rows[j]["text"]) else "nearly"
        yield f"test document {rows[j]['id']} stands in the training split {how}, as {rows[i]['id']}"
