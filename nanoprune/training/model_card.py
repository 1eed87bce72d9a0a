"""The model card: README.md of a model's folder, with the hub's YAML head, made from what the files tell."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from nanoprune.config import config_from_dict, read_fields
from nanoprune.data.dataset import Meta
from nanoprune.io.files import json_hash, read_json
from nanoprune.io.folders import replace_text
from nanoprune.io.hub import LICENCES, copy_tokenizer, names_the_hub
from nanoprune.io.markdown import table, with_interval
from nanoprune.nn.identity import model_identity
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.nf4 import is_quantised
from nanoprune.nn.peft import is_adapter

HEAD = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)
MOST_HEAD = 2**16  # characters
TAKEN = ("base_model", "nanoprune_base", "license", "license_name", "license_link", "language")
SETTINGS = ("lr", "max_steps", "tokens_per_step", "seed", "dtype", "optimizer", "keep", "lora", "lora_rank",
            "frozen", "teacher")
MEASURES = ("perplexity", "nll", "bits_per_byte", "accuracy")
LOAD = """\
## Load it

FOLDER is this folder, or its name on the hub.

| with | how |
|---|---|
| transformers | `AutoModelForCausalLM.from_pretrained("FOLDER")`, and `AutoTokenizer` alike |
| nanoprune | `Decoder.from_pretrained("FOLDER")`, a class of `model.py` |
| llama.cpp | `python convert_hf_to_gguf.py FOLDER --outfile model.gguf`, then `llama-cli -m model.gguf` |
| vLLM | `vllm serve FOLDER` |
| Ollama | llama.cpp's file: `FROM ./model.gguf` in `Modelfile`, then `ollama create NAME -f Modelfile` |
"""
ADAPTER = """
These files are an adapter: merge it with its base first, `python -m nanoprune merge FOLDER --out MERGED`.
"""
HALVES = """
Some blocks lack their attention or MLP: no other tool than nanoprune loads that.
"""
FOUR_BITS = """
The matrices are in four bits (NF4): transformers and vLLM need bitsandbytes, llama.cpp does not convert them.
"""
NOT_EVALUATED = ["Not evaluated. `python eval.py FOLDER --data DATA --out results` measures it; then "
                 "`python -m nanoprune card FOLDER --results results` writes this card anew."]


class Origin(NamedTuple):
    """The model that another was made from."""

    name: str
    sha256: dict[str, str]  # of its weights' files
    folder: Path


def write_card(folder: Path, origin: Origin | None = None, results: Path | None = None) -> bool:
    """Write the card of a model's folder; False where another README.md is there, or one that was changed.

    Without an `origin` the earlier card's holds. `results`: folder of an evaluation.
    """
    config, run = ModelConfig.read(folder), folder.parent
    history = config.extra.get("nanoprune_history", [])
    tuned = folder.name == "model" and (run / "train.csv").is_file()
    head = describe_origin(origin, history) if origin else read_head(folder)
    if origin:
        copy_tokenizer(origin.folder, folder, LICENCES)
    base = str(head.get("nanoprune_base", "random weights" if tuned else "not known"))
    without = ",".join(str(entry.get("original")) for entry in history)
    lines = [f"# {code(base.partition(' (')[0])}" + (f" without {code(without)}" if without else "")
             + (", fine-tuned" if tuned else ""), "", f"- Base, and SHA-256 of its weights: {code(base)}"]
    lines += [f"- Dropped, in the original's numbers: {code(entry.get('original'))} of "
              f"{code(entry.get('base'))}, chosen by {code(entry.get('method'))}" for entry in history]
    lines += [f"- {config.num_hidden_layers} blocks, in the original's numbers: {code(list(config.blocks))}"]
    lines += describe_run(run) if tuned else []
    lines += ["", "## Results [95 %]", "", *describe_results(folder, results), "", LOAD]
    notes = {ADAPTER: is_adapter(folder), HALVES: any(config.without), FOUR_BITS: is_quantised(folder)}
    lines += [note for note, holds in notes.items() if holds]
    head |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["nanoprune"]}
    text = f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n".join(lines)
    return replace_text(folder / "README.md", text, "model")


def code(value) -> str:
    """A value from outside in Markdown that it cannot leave: code on one line."""
    text = "".join(c if c.isprintable() and c != "`" else " " for c in str(value)[:2000])
    return f"`{text.strip() or '-'}`"


def read_head(folder: Path) -> dict:
    """What a card's head tells of origin and licence; nothing where it has none."""
    try:
        with open(folder / "README.md", encoding="utf-8") as file:
            content = yaml.safe_load(HEAD.match(file.read(MOST_HEAD))[1])
        return {key: content[key] for key in TAKEN if key in content}
    except (OSError, TypeError, ValueError, RecursionError, yaml.YAMLError):
        return {}


def describe_origin(origin: Origin, history: list[dict]) -> dict:
    """The head's entries on the base; of a card that is not ours the licence and the language alone."""
    head = read_head(origin.folder)
    if "nanoprune_base" not in head:
        head.pop("base_model", None)
    for name in (origin.name, *(entry.get("base") for entry in reversed(history))):
        if names_the_hub(name):
            head["base_model"] = name
    name = origin.name if names_the_hub(origin.name) else Path(origin.name).name
    hashes = ", ".join(f"{file} {sha256}" for file, sha256 in origin.sha256.items())
    return head | {"nanoprune_base": f"{name} ({hashes})"}


def describe_run(run: Path) -> list[str]:
    """The settings of a run, and the counts and days of its data."""
    config = config_from_dict(read_json(run / "config.json"), f"{run}/config.json")
    meta = Path(config.data) / "meta.json"
    splits = read_fields(Meta, read_json(meta), meta).splits if meta.is_file() else {}
    values = [f"{name} {code(getattr(config, name))}" for name in SETTINGS if getattr(config, name)]
    return [f"- Settings: {', '.join(values)}",
            f"- Data: {code(Path(config.data).name)}", "",
            *table([{"split": code(name)} | {key: code(value) for key, value in split.items()}
                    for name, split in splits.items() if isinstance(split, dict)])]


def describe_results(folder: Path, results: Path | None) -> list[str]:
    """The last evaluation of exactly this model; how to evaluate it where there is none."""
    if not results:
        return NOT_EVALUATED
    path = results / "results.json"
    content, identity = read_json(path), json_hash(model_identity(folder))
    try:
        models = [model for model in content["models"] if identity in model["identities"]]
        if not models:
            return NOT_EVALUATED
        tables, runs = {"test split": models[0]["test"]} | models[0]["qa"], len(models[0]["identities"])
        measured = [(f"{measure}, {name}", row[measure], row[f"{measure}_interval"])
                    for name, row in tables.items() for measure in MEASURES if measure in row]
        about = [code(content["about"][key]) for key in ("data", "protocol", "machine")]
        return [f"Runs like this: {runs}. {', '.join(about)}.", "", *table([
            {"measure": code(name), "value [95 %]": with_interval(value, interval)}
            for name, value, interval in measured if None not in (value, *interval)])]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not of eval.py, or of an earlier version ({error!r})") from error
