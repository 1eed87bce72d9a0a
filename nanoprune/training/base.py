"""The base of a run: located and checked before any of its weights are read."""

from dataclasses import dataclass
from pathlib import Path

from nanoprune.config import Config
from nanoprune.data.dataset import Dataset
from nanoprune.distributed import Ranks
from nanoprune.io.files import file_hashes
from nanoprune.io.hub import locate
from nanoprune.nn.model_config import ModelConfig, Part, read_parts
from nanoprune.nn.peft import check_no_adapter, check_weights_can_change


@dataclass(frozen=True)
class Base:
    """The model that a run begins with."""

    folder: Path | None  # None: random weights
    config: ModelConfig  # with the blocks that the run drops
    dropped: list[Part]
    record: dict  # for env.json, the hashes that a run's states belong to: `base` of its files, by name


def find_base(config: Config, dataset: Dataset, ranks: Ranks, resume: bool = False) -> Base:
    """Locate a config's base; ValueError if it is absent, or does not fit the dataset or the settings."""
    if isinstance(config.base, dict):  # the shape of a model with random weights
        folder, smallest = None, dataset.meta["vocab_size"]
        model = ModelConfig.from_dict({"vocab_size": smallest} | config.base, "base")
        if model.vocab_size < smallest:
            raise ValueError(f"base: vocab_size {model.vocab_size} is below the tokenizer's {smallest}")
        model.extra.setdefault("eos_token_id", dataset.meta["end_token"])
    else:
        folder = _locate(config, ranks, resume)
        if config.lora:
            check_no_adapter(config.base, folder)
        else:
            check_weights_can_change(config.base, folder)
        model = ModelConfig.read(folder)
        dataset.check_model(config.base, folder, model.vocab_size)
    if config.context > model.max_position_embeddings:
        raise ValueError(f"context: given {config.context}, the base allows up to "
                         f"{model.max_position_embeddings}")
    record = {"data": file_hashes(dataset.folder), "base": file_hashes(folder) if folder else {},
              "base_config": model.fingerprint()}
    return Base(folder, model, read_parts(config.drop_blocks, model), record)


def _locate(config: Config, ranks: Ranks, resume: bool) -> Path:
    try:
        with ranks.local_first():  # so that one process of a machine downloads it
            return locate(config.base, config.revision)
    except ValueError as error:
        if not resume:
            raise
        raise ValueError(f"{error}. A run resumes with its own base: restore it, or put a link in its "
                         "place") from error
