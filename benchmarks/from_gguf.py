"""A Hugging Face model folder out of a GGUF file, to repeat numbers of a four-bit file's weights.

    python -m benchmarks.from_gguf qwen2.5-coder-0.5b-instruct-q4_k_m.gguf models/qwen2.5-coder

The weights are those that the file gives back, in bfloat16. They differ from the published ones, which were
rounded to make the file. It reads the architectures llama and qwen2 with byte-level tokenizers. OUT must be
new or empty. Needs the package gguf: pip install ".[gguf]"
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model import Decoder
from nanoprune import command_line
from nanoprune.data.tokenizer import END_TOKENS
from nanoprune.io.files import write_json
from nanoprune.io.folders import replace_output
from nanoprune.io.tensors import weights_hash, write_tensors
from nanoprune.progress import progress

ARCHITECTURES = ("llama", "qwen2")
# Parts of tensor names, in llama.cpp's and in Hugging Face's words.
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "blk": "model.layers", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Mean difference of one matrix rounded twice, relative to its mean size. Four bits give 0.1, two unrelated
# matrices 1.4.
SAME_MATRIX = 0.2
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # gguf.TokenType


def byte_level(splits: bool) -> dict:
    """A step of tokenizer.json that spells bytes as characters; `splits`: by GPT-2's words, too."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": splits, "use_regex": splits}


# Parts of tokenizer.json by the GGUF file's name for them.
PRE_TOKENIZERS = {
    "smollm": {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level(splits=True)]},
        "post_processor": None,
        "decoder": byte_level(splits=True)},
    "qwen2": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex":
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"}},
            byte_level(splits=False)]},
        "post_processor": byte_level(splits=False),
        "decoder": byte_level(splits=False)},
}


class Metadata(dict):
    """A GGUF file's keys; ValueError where one is missing."""

    def __missing__(self, key: str):
        raise ValueError(f"the GGUF file has no key {key}; convert the model to GGUF with a newer llama.cpp")


# ---------------------------------------------------------------- the file


def read_gguf(path: Path) -> tuple[Metadata, list]:
    """Keys and tensors (gguf's ReaderTensor, mapped) of a GGUF file; ValueError if it cannot be converted."""
    if not path.is_file():
        raise ValueError(f"no file {path}; give a GGUF file")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError('GGUF files need the package gguf: pip install ".[gguf]"') from None
    try:
        reader = GGUFReader(path)
        metadata = Metadata((key, field.contents()) for key, field in reader.fields.items())
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ValueError(f"{path} is not a GGUF file that can be read "
                         f"({type(error).__name__}: {error}); fetch it again") from error
    for kind, key, known in (("architecture", "general.architecture", ARCHITECTURES),
                             ("pre-tokenizer", "tokenizer.ggml.pre", PRE_TOKENIZERS)):
        if metadata[key] not in known:
            raise ValueError(f"{path}: {kind} {metadata[key]!r} is not supported; supported: "
                             f"{', '.join(known)}")
    return metadata, reader.tensors


def hub_name(name: str) -> str:
    """Hugging Face's name of a tensor; a part that is not known stays as it is."""
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def undo_interleaving(rows: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys with each head's first half before its second.

    llama.cpp rotates neighbouring rows and stores a head of d rows as 0, d/2, 1, d/2 + 1, ...
    """
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def read_weights(metadata: Metadata, stored: list) -> dict[str, Tensor]:
    """The tensors in bfloat16, by Hugging Face's names and in its order of rows."""
    from gguf.quants import dequantize

    heads = {}  # of the parts whose rows are interleaved
    if metadata["general.architecture"] == "llama":
        heads = {"attn_q": metadata["llama.attention.head_count"],
                 "attn_k": metadata["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in progress(stored, "tensors"):
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = undo_interleaving(values, heads[part])
        weights[hub_name(tensor.name)] = values.bfloat16()
    return weights


def tie_head(weights: dict[str, Tensor], nbytes: dict[str, int]) -> bool:
    """Remove a head that is the embedding; True if the model's head is tied.

    Of one matrix stored twice the finer copy stays: the one of more `nbytes` in the file.
    """
    if HEAD not in weights:
        return True
    head, embedding = weights[HEAD].float(), weights[EMBEDDING].float()
    if (head - embedding).abs().mean() > SAME_MATRIX * head.abs().mean():
        return False
    finer = max(EMBEDDING, HEAD, key=nbytes.get)
    weights[EMBEDDING] = weights[finer]
    del weights[HEAD]
    print(f"the file holds the tied embedding twice: took {finer}, the finer copy")
    return True


# ---------------------------------------------------------------- the folder


def model_config(metadata: Metadata, vocab_size: int, tied: bool) -> dict:
    """config.json's content; ValueError if the positions are scaled."""
    family = metadata["general.architecture"]
    scaling = metadata.get(f"{family}.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"rope scaling {scaling!r} is not supported; take a model without it")

    def number(key: str) -> float:
        """A 32-bit number by its shortest digits: 1e-05, not 9.999999747378752e-06."""
        return float(str(np.float32(metadata[f"{family}.{key}"])))

    hidden, heads = metadata[f"{family}.embedding_length"], metadata[f"{family}.attention.head_count"]
    return {
        "architectures": [f"{family.capitalize()}ForCausalLM"], "model_type": family,
        "vocab_size": vocab_size, "hidden_size": hidden,
        "intermediate_size": metadata[f"{family}.feed_forward_length"],
        "num_hidden_layers": metadata[f"{family}.block_count"], "num_attention_heads": heads,
        "num_key_value_heads": metadata[f"{family}.attention.head_count_kv"],
        "head_dim": metadata.get(f"{family}.attention.key_length", hidden // heads),
        "hidden_act": "silu", "max_position_embeddings": metadata[f"{family}.context_length"],
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"), "rope_theta": number("rope.freq_base"),
        "tie_word_embeddings": tied, "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"], "torch_dtype": "bfloat16"}


def tokenizer_json(metadata: Metadata) -> dict:
    """tokenizer.json's content: a byte-level BPE and its added tokens.

    As in published files, added tokens at its end are no part of the vocabulary, and tokens that only fill
    the last rows of the embedding are left out.
    """
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    rows = 1 + max(i for i, kind in enumerate(types) if kind != UNUSED)
    size = 1 + max(i for i, kind in enumerate(types[:rows]) if kind not in (CONTROL, USER_DEFINED))
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": kind == CONTROL}
             for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
             if kind in (CONTROL, USER_DEFINED)]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
             "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {token: i for i, token in enumerate(tokens[:size])},
             "merges": metadata["tokenizer.ggml.merges"]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            **PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]], "model": model}


def tokenizer_config(metadata: Metadata) -> dict:
    """tokenizer_config.json's content, with the chat template if the file has one."""
    tokens, end = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.eos_token_id"]
    template = metadata.get("tokenizer.chat_template")
    return {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokens[end],
            "pad_token": tokens[metadata.get("tokenizer.ggml.padding_token_id", end)],
            "clean_up_tokenization_spaces": False} | ({"chat_template": template} if template else {})


def generation_config(metadata: Metadata) -> dict:
    """generation_config.json's content: an answer ends at the end of a turn or of a document."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ends = {tokens.index(token) for token in END_TOKENS if token in tokens}
    return {"eos_token_id": sorted(ends | {metadata["tokenizer.ggml.eos_token_id"]})}


def check_shapes(folder: Path, weights: dict[str, Tensor]) -> None:
    """ValueError if the weights are not those of the model that the folder's config.json describes."""
    state = Decoder.without_weights(folder).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [f"\n  {name}: {given.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
             for name in sorted(given.keys() | expected.keys()) if given.get(name) != expected.get(name)]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors do not fit the file's description of the model:"
                         f"{''.join(wrong[:8])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("out", type=Path, metavar="OUT", help="the model's folder, new or empty")
    args = parser.parse_args()
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"{args.out} exists and is not an empty folder; choose another place to write to")
    metadata, stored = read_gguf(args.file)
    weights = read_weights(metadata, stored)
    tied = tie_head(weights, {hub_name(tensor.name): tensor.n_bytes for tensor in stored})
    config = model_config(metadata, len(weights[EMBEDDING]), tied)
    with replace_output(args.out, "model", [args.file]) as folder:
        write_json(folder / "config.json", config)
        check_shapes(folder, weights)
        write_json(folder / "generation_config.json", generation_config(metadata))
        write_json(folder / "tokenizer.json", tokenizer_json(metadata))
        write_json(folder / "tokenizer_config.json", tokenizer_config(metadata))
        write_tensors(folder / "model.safetensors", weights)
    types = Counter(tensor.tensor_type.name for tensor in stored)
    print(f"wrote {args.out}: {config['model_type']}, {config['num_hidden_layers']} blocks, "
          f"{sum(tensor.numel() for tensor in weights.values()):,} parameters")
    print(f"tensors in the file: {', '.join(f'{kind} {count}' for kind, count in types.most_common())}")
    print(f"sha256 of the weights, as studies record it: {weights_hash(args.out)}")


if __name__ == "__main__":
    command_line.run(main)
