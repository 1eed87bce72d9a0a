"""PEFT's files of an adapter, and nanoprune.json beside them, which says what base it belongs to."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from nanoprune.config import Positive, PositiveFloat, ShareBelow1, read_fields
from nanoprune.io.files import read_json, write_json
from nanoprune.io.hub import locate
from nanoprune.io.tensors import missing_weights, read_tensors, write_tensors
from nanoprune.nn.lora import FrozenBase, LoraSettings, add_lora, frozen_layers
from nanoprune.nn.model_config import read_foreign, read_parts, record_removal
from nanoprune.nn.nf4 import is_quantised

if TYPE_CHECKING:
    from model import Decoder

PREFIX = "base_model.model."  # before the names of tensors in PEFT's files
# Settings that PEFT reads and nanoprune does not: refused unless they are off.
OFF = ("alora_invocation_tokens", "alpha_pattern", "arrow_config", "fan_in_fan_out", "kasa_config",
       "layer_replication", "lora_bias", "megatron_config", "modules_to_save", "monteclora_config",
       "rank_pattern", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
       "velora_config")
# Settings of PEFT that change no output of a saved adapter; what stands on no list is named once.
HARMLESS = ("auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode",
            "layers_pattern", "loftq_config", "lora_ga_config", "megatron_core", "peft_version",
            "qalora_group_size", "runtime_config", "task_type")


@dataclass(frozen=True)
class PeftFile:
    """The entries of adapter_config.json that nanoprune reads, with PEFT's defaults."""

    peft_type: Literal["LORA"]
    base_model_name_or_path: str | None = None
    revision: str | None = None
    bias: Literal["none"] | None = "none"
    init_lora_weights: bool | Literal["gaussian"] | None = True
    use_rslora: bool | None = False
    r: Positive = 8
    lora_alpha: PositiveFloat = 8
    lora_dropout: ShareBelow1 | None = 0.0
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder and its settings, checked; its tensors are not read yet."""

    folder: Path
    peft: PeftFile
    settings: LoraSettings
    base: FrozenBase


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def check_no_adapter(name: str | Path, folder: Path) -> None:
    """ValueError where a folder holds an adapter, and not a model of its own."""
    if is_adapter(folder):
        raise ValueError(f"{name} is an adapter on another model; make one model of both: "
                         f"python -m nanoprune merge {name} --out FOLDER")


def check_weights_can_change(name: str | Path, folder: Path) -> None:
    """ValueError where a folder holds an adapter or four bits: neither can be pruned or trained in full."""
    check_no_adapter(name, folder)
    if is_quantised(folder):
        raise ValueError(f"{name} is quantised: its weights cannot be changed; give the model that it was "
                         "made from (or, to train, name layers in `lora`)")


# ---------------------------------------------------------------- writing
def save_adapter(model: "Decoder", folder: Path) -> None:
    """Write the adapters alone: PEFT's two files, nanoprune.json, and the config of the adapted model."""
    settings, base = model.adapter, model.base
    base_name = base.base
    if base.dropped:
        base_name += f" without blocks {','.join(map(str, base.dropped))}"
    write_tensors(folder / "adapter_model.safetensors", _parameters(model))
    record = replace(base, blocks=model.config.blocks, without=model.config.without)
    write_json(folder / "nanoprune.json", asdict(record))
    model.save_config(folder)
    write_json(folder / "adapter_config.json", {  # last: it makes the folder an adapter
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name,
        "revision": base.revision, "r": settings.rank, "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout, "use_rslora": settings.rslora,
        "target_modules": _target_modules(model), "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "modules_to_save": None, "use_dora": False})


def _parameters(model: "Decoder") -> dict[str, torch.nn.Parameter]:
    """The adapters' matrices by their names in PEFT's file."""
    return {f"{PREFIX}{name}.weight": p for name, p in model.named_parameters() if ".lora_" in name}


def _target_modules(model: "Decoder") -> list[str]:
    """PEFT's names of the layers with adapters: the ends of their names, if these name no other layer."""
    layers = frozen_layers(model)
    adapted = [name for name, layer in layers.items() if layer.adapted]
    leaves = {name.rpartition(".")[2] for name in adapted}
    named = [name for name in layers if name.rpartition(".")[2] in leaves]
    return sorted(leaves) if named == adapted else adapted


# ---------------------------------------------------------------- reading
def read_adapter(folder: Path) -> Adapter:
    """An adapter's settings and its base's; ValueError where they are damaged or not supported."""
    path = folder / "adapter_config.json"
    peft = read_foreign(PeftFile, read_json(path), path, OFF, HARMLESS)
    settings = LoraSettings(peft.r, peft.lora_alpha, peft.lora_dropout or 0.0, bool(peft.use_rslora))
    record = folder / "nanoprune.json"
    if not record.is_file():  # written by PEFT
        return Adapter(folder, peft, settings, FrozenBase(peft.base_model_name_or_path, peft.revision))
    where = f"{record}, which says what base the adapter belongs to, is damaged"
    return Adapter(folder, peft, settings, read_fields(FrozenBase, read_json(record), where))


def base_folder(adapter: Adapter) -> Path:
    """The folder of an adapter's base; ValueError where it is not there."""
    if not adapter.base.base:
        raise ValueError(f"{adapter.folder} is an adapter and names no base")
    try:
        return locate(adapter.base.base, adapter.base.revision)
    except ValueError as error:
        raise ValueError(f"{adapter.folder} is an adapter, and its base is not to be found: {error}. If the "
                         "base was moved, write its new place into the adapter's nanoprune.json (PEFT's: "
                         "adapter_config.json); its weights are checked") from error


def config_folder(folder: Path) -> Path:
    """The folder of a model's config.json and tokenizer: its base's for an adapter that PEFT wrote."""
    if is_adapter(folder) and not (folder / "config.json").is_file():
        return base_folder(read_adapter(folder))
    return folder


# ---------------------------------------------------------------- putting an adapter on its base
def restore_adapter(model: "Decoder", adapter: Adapter) -> None:
    """Add a saved adapter to its frozen base, in place, less the blocks that it was trained without.

    ValueError where it was trained on another base, or where its files do not belong together.
    """
    check_base(model, adapter)
    base = adapter.base
    if parts := read_parts(base.dropped, model.config):
        record_removal(model.config, base.base, base.base_sha256, parts, method="the adapter's config")
        model.drop_blocks(parts)
    model.base.dropped = base.dropped
    if base.config_sha256 and (base.blocks, base.without) != (model.config.blocks, model.config.without):
        raise ValueError(f"{adapter.folder}/nanoprune.json is damaged: it names the blocks "
                         f"{list(base.blocks)}, its base without {list(base.dropped)} has "
                         f"{list(model.config.blocks)}")
    path = adapter.folder / "adapter_model.safetensors"
    if not path.is_file():
        raise missing_weights(path, "adapter_model.bin")
    tensors = read_tensors(path)
    names = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors}
    layers = list(frozen_layers(model))
    adapted = [name for name in layers if name in names]
    expected = _named_layers(adapter.peft, layers)
    if not adapted or expected not in (None, adapted):
        named = layers if expected is None else expected
        raise ValueError(f"{adapter.folder} has adapters for {len(adapted)} layers, its settings name "
                         f"{len(named)} in this base: it was trained on another one, or is not whole")
    _check_tensors(adapter, tensors, {name: frozen_layers(model)[name].shape for name in adapted})
    add_lora(model, ",".join(adapted), adapter.settings)
    with torch.no_grad():
        for key, parameter in _parameters(model).items():
            parameter.copy_(tensors[key])


def check_base(model: "Decoder", adapter: Adapter) -> None:
    """ValueError where an adapter was trained on another base than this frozen model's.

    The base's name may differ, the hashes of its weights and its config may not; both are those before blocks
    were dropped. PEFT's own adapters hold no hashes.
    """
    trained_on = adapter.base
    if not trained_on.config_sha256:
        print(f"warning: {adapter.folder} was not written by nanoprune and does not say what weights it was "
              "trained on")
        return
    where = f"{adapter.folder} was trained on {trained_on.base}"
    for what, key in (("weights", "base_sha256"), ("settings in config.json", "config_sha256")):
        if getattr(trained_on, key) != getattr(model.base, key):
            raise ValueError(f"{where}; this base ({model.base.base}) has other {what}. "
                             "Give the base it was trained on")
    if trained_on.frozen != model.base.frozen and "nf4" in (trained_on.frozen, model.base.frozen):
        raise ValueError(f"{where}, kept as {trained_on.frozen}; this base is kept as {model.base.frozen}")


def _check_tensors(adapter: Adapter, tensors: dict[str, torch.Tensor], layers: dict[str, tuple]) -> None:
    """ValueError where an adapter's tensors do not fit layers of these shapes, or are not finite."""
    rank, stored = adapter.settings.rank, {(key, tuple(tensor.shape)) for key, tensor in tensors.items()}
    needed = {(f"{PREFIX}{name}.lora_A.weight", (rank, fan_in)) for name, (_, fan_in) in layers.items()}
    needed |= {(f"{PREFIX}{name}.lora_B.weight", (fan_out, rank)) for name, (fan_out, _) in layers.items()}
    if misfits := sorted({key for key, _ in stored ^ needed}):
        raise ValueError(f"{adapter.folder} does not fit this base: {misfits[0]} is missing, of another "
                         "shape, or of a layer that is not there or gets no adapters, as embedding and head "
                         f"do not ({len(misfits)} such)")
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{adapter.folder}/adapter_model.safetensors is damaged: {key} holds values "
                             "that are no finite numbers")


def _named_layers(peft: PeftFile, layers: Iterable[str]) -> list[str] | None:
    """Layers that PEFT's settings name by the ends of their names; None where these hold a pattern."""
    targets, blocks = peft.target_modules, peft.layers_to_transform
    if not isinstance(targets, tuple) or peft.exclude_modules:
        return None
    ends = tuple(f".{target}" for target in targets)
    named = [name for name in layers if f".{name}".endswith(ends)]
    if blocks is None:
        return named
    block_numbers = blocks if isinstance(blocks, tuple) else [blocks]
    return [name for name in named if int(name.split(".")[2]) in block_numbers]
