"""A dataset folder and a model small enough to train in milliseconds, and scripts run as a user runs them."""

import csv
import json
import runpy
import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model import Decoder
from nanoprune.config import Config
from nanoprune.data.chat_format import question_prompt
from nanoprune.data.token_file import Example, write_documents, write_examples
from nanoprune.data.tokenizer import end_token, load_tokenizer, tokenizer_hash
from nanoprune.io.files import write_json
from nanoprune.io.hub import copy_tokenizer
from nanoprune.io.jsonl import write_jsonl
from nanoprune.nn import sampling
from nanoprune.nn.model_config import ModelConfig

ROOT = Path(__file__).parent.parent
SHAPE = dict(
    model_type="qwen3",
    num_hidden_layers=3,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    rope_theta=1000.0,
    tie_word_embeddings=True,
)
TIMING = ("tokens_per_s", "mfu", "memory_gb", "seconds")  # the columns that two equal runs do not share
CITIES = ("Munich", "Leipzig", "Oxford", "Debrecen", "Spartanburg")


def release(i: int) -> str:
    """A press release of 20 to 100 tokens."""
    city = CITIES[i % len(CITIES)]
    return f"{city}. Plant {i} opens. " + f"It builds {7 * i + 3} cars a day in {city}. " * (i % 3 + 1)


def make_data(
    folder: Path, train: int = 12, val: int = 4, test: int = 6, text: str = "", vocab: int = 280
) -> Path:
    """A prepared dataset folder; `text` changes what the tokenizer is trained on, and with it the tokenizer.
    """
    releases = [release(i) for i in range(train + val + test)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(releases + [text] * 99, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer, size = load_tokenizer(folder), tokenizer.get_vocab_size()
    end = end_token(tokenizer, folder)
    meta = {"tokenizer_hash": tokenizer_hash(folder), "vocab_size": size, "end_token": end}
    write_json(folder / "meta.json", meta)
    at = 0
    for name, count in (("train", train), ("val", val), ("test", test)):
        texts, at = releases[at : at + count], at + count
        write_jsonl(folder / f"{name}.jsonl", [{"id": f"{name}{i}", "text": t} for i, t in enumerate(texts)])
        tokens = [[*tokenizer.encode(text).ids, end] for text in texts]
        nbytes = [len(tokenizer.decode(row[1:-1]).encode()) for row in tokens]
        write_documents(folder / f"{name}.safetensors", zip(tokens, nbytes, strict=True), len(tokens), size)

    messages, examples = [], []
    for i in range(train):
        question, answer = f"Where is plant {i}?", CITIES[i % len(CITIES)]
        messages.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
        prompt = question_prompt(question)
        row, learned_from = tokenizer.encode(f"{prompt} {answer}").ids, len(tokenizer.encode(prompt).ids)
        examples.append(Example(np.array([*row, end]), np.arange(len(row) + 1) >= learned_from))
    write_jsonl(folder / "pairs.jsonl", [{"messages": m} for m in messages])
    write_examples(folder / "pairs.safetensors", examples, size)

    places = [{"question": f"Where is plant {i}?", "choices": list(CITIES[:4]), "answer": i % 4,
               "category": "place", "source": f"plant {i // 2}"} for i in range(8)]
    counts = [{"question": f"How many cars does plant {i} build?",
               "choices": [f"{7 * i + 3}", f"{i + 100} cars"],
               "answer": 0, "context": release(i)} for i in range(4)]
    write_jsonl(folder / "qa" / "places.jsonl", places)
    write_jsonl(folder / "qa" / "counts.jsonl", counts)
    return folder


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(folder, specials: tuple[str, ...], **config):
    """A folder with a tokenizer of single bytes and these special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | config)
    return folder


def make_model(folder: Path, data: Path, seed: int = 0, **shape) -> Path:
    """A model's folder with random weights, large enough for its predictions to differ from token to token.
    """
    torch.manual_seed(seed)
    meta = json.loads((data / "meta.json").read_text())
    shape = SHAPE | {"vocab_size": meta["vocab_size"], "initializer_range": 0.2,
                     "eos_token_id": meta["end_token"]} | shape
    Decoder(ModelConfig.from_dict(shape)).save_pretrained(folder)
    copy_tokenizer(data, folder)
    return folder


WORDS = ["steel", "motor", "city", "light", "river", "window", "paint", "wheel", "road", "bridge", "garden",
         "signal", "tower"]


def text(i: int, length: int = 120) -> str:
    """An article's text: words that no two share in order, with figures and a day to ask for."""
    body = " ".join(WORDS[(i * 7 + k * k + k * i) % len(WORDS)] + ("." if k % 9 == 8 else "")
                    for k in range(length))
    return (f"The plant in town number {i} is on show and it has been built with the help of many people. "
            f"{body}.\n\n"
            f"The new motor of the series that was shown today has an output of {200 + i} kW, which is more "
            f"than it was.\n\n"
            f"Work on the new hall of the plant began on {i % 28 + 1} May 2024 with {i + 50} employees and "
            f"some guests there.")


def article(i: int, **changes) -> dict:
    day = date(2024, 1, 1) + timedelta(days=3 * i)
    return {"id": f"T{i:07d}EN", "url": "", "title": f"News number {i} of the plant", "teaser": "",
            "date": day.isoformat(),
            "category": "", "tags": [], "text": text(i)} | changes


class World:
    """A dataset folder (`data`) and a base (`model`) below a temporary folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = make_data(folder / "data")
        self.model = make_model(folder / "base", self.data)

    def config(self, folder: Path, **changes) -> Config:
        """A config of a few quick steps, with its run below `folder`."""
        settings = dict(
            name="run", base=str(self.model), data=str(self.data), runs=str(folder), context=32, batch_size=2,
            accumulation=1, max_steps=4, warmup_steps=1, lr=1e-2, device="cpu", dtype="float32",
            log_every=100,
            eval_every=0, save_every=0, keep="last",
        )
        return Config(**(settings | changes))

    def config_file(self, path: Path, **changes) -> Path:
        """The same as a file that train.py reads; its runs go beside it."""
        config = self.config(path.parent / "runs", **changes)
        path.write_text(f"from configs import Config\n\nconfig = Config(**{config.to_dict()!r})\n")
        return path


def write_little(monkeypatch) -> None:
    """A few tokens of each text that a model writes are enough."""
    stream = sampling.stream
    monkeypatch.setattr(sampling, "stream", lambda model, prompts, room, *how: stream(
        model, prompts, min(room, 5), *how))


def run_main(monkeypatch, capsys, script: str, *arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a script, as a user runs it but in this process, which has torch loaded.
    """
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    code = 0
    capsys.readouterr()
    try:
        if script.endswith(".py"):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def read_rows(path: Path, without: tuple[str, ...] = ()) -> list[dict]:
    """The rows of a CSV file, less some columns."""
    with open(path, newline="") as file:
        return [{key: value for key, value in row.items() if key not in without}
                for row in csv.DictReader(file)]


IDS = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(5))


def random_base(folder: Path, dtype=torch.float32, seed: int = 0, **shape) -> Path:
    """A random model's folder, without a tokenizer."""
    torch.manual_seed(seed)
    Decoder(ModelConfig.from_dict(SHAPE | {"vocab_size": 256} | shape)).to(dtype).save_pretrained(folder)
    return folder
