"""Adapters in PEFT's files, each with its base: saved, loaded, merged."""

from pathlib import Path

import torch
from torch import nn

from model import Decoder
from nanoprune.config import FROZEN
from nanoprune.io.files import read_json, write_json
from nanoprune.io.hub import locate
from nanoprune.io.tensors import open_tensors, write_tensors
from nanoprune.nn.lora import add_lora, check_sizes, frozen_layers, is_quantised, load_frozen
from prune import drop_blocks

PREFIX = "base_model.model."  # before the names of tensors in PEFT's files


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def save_adapter(model: Decoder, folder: Path) -> None:
    """Write the adapters alone: PEFT's two files, ours that says what they belong to, and the config of the model with them."""
    about, layers = model.adapter, frozen_layers(model)
    tensors = {f"{PREFIX}{name}.lora_{part}.weight": getattr(layers[name], f"lora_{part}")
               for name in about["names"] for part in "AB"}
    blocks = {"blocks": list(model.config.blocks), "without": list(model.config.without)}
    dropped = model.base["dropped"]
    base = model.base["base"] + (f" without blocks {','.join(map(str, dropped))}" if dropped else "")
    leaves = {name.rsplit(".", 1)[1] for name in about["names"]}
    every = {leaf: [n for n in layers if n.endswith(f".{leaf}")] for leaf in leaves}
    whole = all(set(names) <= set(about["names"]) for names in every.values())
    write_tensors(folder / "adapter_model.safetensors", tensors)
    write_json(folder / "nanoprune.json", model.base | blocks)
    model.save_config(folder)
    write_json(folder / "adapter_config.json", {  # last: what makes the folder an adapter
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": model.base["revision"],
        "r": about["rank"], "lora_alpha": about["alpha"], "lora_dropout": about["dropout"], "use_rslora": about["root"],
        "target_modules": sorted(leaves) if whole else about["names"], "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "modules_to_save": None, "use_dora": False})


def read_adapter(folder: Path) -> tuple[dict, dict | None]:
    """(adapter_config.json's content, nanoprune.json's or None); ValueError for what PEFT can do and nanoprune cannot."""
    path = folder / "adapter_config.json"
    about = read_json(path)
    plain = {"peft_type": ("LORA",), "bias": ("none", None), "use_dora": (False, None), "fan_in_fan_out": (False, None),
             "modules_to_save": (None, []), "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "lora_bias": (False, None),
             "init_lora_weights": (True, False, "gaussian", None), "use_rslora": (False, True, None)}
    for key, allowed in plain.items():
        if about.get(key) not in allowed:
            raise ValueError(f"{path}: {key} {about.get(key)!r} is not supported; supported is {allowed[0]!r}")
    check_sizes(f"{path}: r, lora_alpha, lora_dropout", *map(about.get, ("r", "lora_alpha")), about.get("lora_dropout") or 0)
    targets = about.get("target_modules")
    if not (isinstance(targets, str) or isinstance(targets, list) and all(isinstance(name, str) for name in targets)):
        raise ValueError(f"{path}: target_modules must be a pattern or a list of names, given {targets!r}")
    ours = folder / "nanoprune.json"
    if not ours.is_file():
        return about, None
    record = read_json(ours)

    def many(key: str, *kinds: type) -> bool:
        return isinstance(record.get(key), list) and all(type(item) in kinds for item in record[key])

    right = {"base": type(record.get("base")) is str, "revision": type(record.get("revision", 0)) in (str, type(None)),
             "base_sha256": type(record.get("base_sha256")) is dict, "config_sha256": type(record.get("config_sha256")) is str,
             "frozen": record.get("frozen") in FROZEN, "dropped": many("dropped", int, str), "blocks": many("blocks", int),
             "without": many("without", str)}
    if wrong := [key for key, holds in right.items() if not holds]:
        raise ValueError(f"{ours} is damaged ({', '.join(wrong)}); it says which base the adapter belongs to")
    return about, record


def locate_base(folder: Path, given: str | None = None) -> Path:
    """The folder of an adapter's base, or of the one that is `given` for it; ValueError where it is not there."""
    about, record = read_adapter(folder)
    where = folder / ("nanoprune.json" if record else "adapter_config.json")
    name = given or (record["base"] if record else about.get("base_model_name_or_path"))
    if type(name) is not str or not name:
        raise ValueError(f"{where} names no base")
    try:
        return locate(name, record["revision"] if record and not given else None)
    except ValueError as error:
        raise ValueError(f"{folder} is an adapter, and its base is not to be found: {error}. If the base was moved, write "
                         f"where it is now into {where}; its weights are checked") from error


def config_folder(folder: Path) -> Path:
    """Where a model's config.json and tokenizer are: in its folder, or in that of the base of an adapter from PEFT."""
    return locate_base(folder) if is_adapter(folder) and not (folder / "config.json").is_file() else folder


def check_base(model: Decoder, folder: Path, record: dict | None) -> None:
    """ValueError where an adapter was trained on other weights than this frozen model's, before any block was dropped.

    The base's name may differ, the hash of its weights may not. An adapter from elsewhere tells nothing.
    """
    if record is None:
        print(f"warning: {folder} was not written by nanoprune and does not say what weights it was trained on")
        return
    given = f"{folder} was trained on {record['base']}"
    for what, key in (("weights", "base_sha256"), ("settings in config.json", "config_sha256")):
        if record[key] != model.base[key]:
            raise ValueError(f"{given}; this base ({model.base['base']}) has other {what}. Give the base it was trained on")
    if "nf4" in (record["frozen"], model.base["frozen"]) and record["frozen"] != model.base["frozen"]:
        raise ValueError(f"{given}, kept as {record['frozen']}; this base is kept as {model.base['frozen']}")


def add_adapter(model: Decoder, folder: Path) -> None:
    """Put a saved adapter on a frozen model, in place; ValueError where it was trained on another one.

    The blocks that it has, and the layers that the adapter's settings name in it, are those that the adapter is for.
    """
    about, record = read_adapter(folder)
    if record and (record["blocks"], record["without"]) != (list(model.config.blocks), list(model.config.without)):
        raise ValueError(f"{folder} belongs to a model of {len(record['blocks'])} blocks ({_gaps(record['blocks'])}), this one "
                         f"has {len(model.config.blocks)} ({_gaps(list(model.config.blocks))}): load the adapter by its "
                         f"folder, which drops the blocks it was trained without, on its own base ({record['base']})")
    check_base(model, folder, record)
    with open_tensors(folder / "adapter_model.safetensors") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    rank, layers, wanted = about["r"], frozen_layers(model), {}
    names = sorted({key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors})
    for name in names:
        outs, ins = layers[name].shape if name in layers else (0, 0)
        wanted |= {f"{PREFIX}{name}.lora_A.weight": (rank, ins), f"{PREFIX}{name}.lora_B.weight": (outs, rank)}
    strange = [key for key, tensor in tensors.items() if tuple(tensor.shape) != wanted.get(key) or 0 in tensor.shape]
    if strange := strange + [key for key in wanted if key not in tensors]:
        raise ValueError(f"{folder} does not fit this base: {strange[0]} is missing, of another shape, or of a layer that is "
                         f"not there or gets no adapters, as embedding and head do not ({len(strange)} such)")
    if broken := [key for key, tensor in tensors.items() if not (tensor.is_floating_point() and tensor.isfinite().all())]:
        raise ValueError(f"{folder}/adapter_model.safetensors is damaged: {broken[0]} holds values that are no finite numbers")
    named = _named_layers(about, list(layers))
    if not names or (named is not None and named != set(names)):
        raise ValueError(f"{folder} has adapters for {len(names)} layers, its settings name {len(named or layers)} in this "
                         "base: it was trained on another one, or is not whole")
    add_lora(model, names, rank, about["lora_alpha"], about.get("lora_dropout") or 0.0, bool(about.get("use_rslora")))
    with torch.no_grad():
        for name in names:
            for part in "AB":
                getattr(layers[name], f"lora_{part}").copy_(tensors[f"{PREFIX}{name}.lora_{part}.weight"])


def _named_layers(about: dict, layers: list[str]) -> set[str] | None:
    """Those of the layers that PEFT's settings name by their ends; None where they say it in another way."""
    targets, only = about.get("target_modules"), about.get("layers_to_transform")
    if not isinstance(targets, list) or about.get("exclude_modules"):
        return None
    only = only if isinstance(only, list) else [only]
    return {name for name in layers if any(name == target or name.endswith(f".{target}") for target in targets)
            and (only == [None] or int(name.split(".")[2]) in only)}


def _gaps(blocks: list[int]) -> str:
    """Which of the unpruned model's blocks these are: "0 to 27 without 25"."""
    if not blocks:
        return "not named"
    missing = sorted(set(range(max(blocks) + 1)) - set(blocks))
    return f"0 to {max(blocks)}" + (f" without {', '.join(map(str, missing))}" if missing else "")


def load_adapted(folder: Path, *, base: str | None = None, device="cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """An adapter on its base less the blocks it was trained without; `base`: where the base is, if it was moved."""
    _, record = read_adapter(folder)
    kept = record["frozen"] if record else "stored"
    frozen = str(dtype).removeprefix("torch.") if kept == "stored" else kept
    model = load_frozen(locate_base(folder, base), frozen, device=device, wide=dtype)
    if record and record["dropped"]:
        check_base(model, folder, record)
        drop_blocks(model, record["dropped"])
        model.base["dropped"] = record["dropped"]
    add_adapter(model, folder)
    assert record is None or model.config.num_hidden_layers == len(record["blocks"])
    return model


def load_model(folder: Path, *, device="cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """A model to evaluate, whatever the folder holds: all its weights, a base in four bits, or an adapter on its base."""
    if is_adapter(folder):
        return load_adapted(folder, device=device, dtype=dtype)
    if is_quantised(folder):
        return load_frozen(folder, "stored", device=device, wide=dtype)
    return Decoder.from_pretrained(folder, device=device, dtype=dtype)


@torch.no_grad()
def merge(model: Decoder) -> None:
    """Fold the adapters into the weights, in place, in fp32: a plain model is left."""
    for name, layer in frozen_layers(model).items():
        plain = nn.Linear(*reversed(layer.shape), bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.merged())
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.float())
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain)
    model.float()
    model.config.extra.pop("quantization_config", None)
