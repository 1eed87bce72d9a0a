"""A teacher's likeliest next tokens for every training row, computed once for all runs that see the same
rows.

<runs>/teachers/<key>/rows-00000000.safetensors     ids and log-probabilities (rows, context, k) of ROWS rows
meta.json                     what the key stands for
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nanoprune.config import Config
from nanoprune.data.dataset import Dataset
from nanoprune.data.packing import TrainingRows
from nanoprune.device import to_device
from nanoprune.distributed import Ranks
from nanoprune.io.files import json_hash, read_json, write_json
from nanoprune.io.hub import locate
from nanoprune.io.tensors import read_tensors, write_tensors
from nanoprune.nn.identity import model_identity
from nanoprune.nn.losses import SoftTargets, likeliest
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.peft import check_weights_can_change
from nanoprune.training.base import Base

if TYPE_CHECKING:
    from model import Decoder

VERSION = 1  # of the predictions and the rows: raise it when the same settings give others
ROWS = 32  # of a file


class Teacher:
    """Predictions for a run's rows; `record`: the teacher's identity, and the seconds that they took."""

    def __init__(
        self, config: Config, source: Path, rows: TrainingRows, open_model: Callable[..., "Decoder"],
        device: torch.device, ranks: Ranks,
    ):
        """Compute the predictions that are not on the disk yet.

        `source` is what `find_teacher` gives, `open_model` is `Decoder.from_pretrained`.
        """
        self.config, self.rows = config, rows
        about = {"teacher": model_identity(source), "rows": rows.identity(), "rows_of_a_file": ROWS,
                 "temperature": config.teacher_temperature, "top": config.teacher_top, "tf32": config.tf32,
                 "version": VERSION}
        self.folder = Path(config.runs) / "teachers" / json_hash(about)[:16]
        meta = self.folder / "meta.json"
        seconds = read_json(meta)["seconds"] if meta.is_file() else 0.0
        missing = [row for row in range(0, config.max_steps * config.rows_per_step, ROWS)
                   if not self._file(row).is_file()]
        ranks.barrier()  # until every rank has looked
        if missing:
            began = time.perf_counter() - seconds
            model = open_model(source, device=device).eval()
            for first_row in ranks.shard(missing, "teacher"):
                self._predict(model, first_row)
                seconds = time.perf_counter() - began
                if ranks.rank == 0:
                    write_json(meta, about | {"seconds": seconds})
        ranks.barrier()  # no rank reads before all have written
        self.record = {"teacher": about["teacher"], "teacher_seconds": seconds}

    def _file(self, first_row: int) -> Path:
        return self.folder / f"rows-{first_row:08d}.safetensors"

    @torch.no_grad()
    def _predict(self, model: "Decoder", first_row: int) -> None:
        """Write one file."""
        tops, size = [], self.config.batch_size
        for start in range(first_row, first_row + ROWS, size):
            ids, _, documents = self.rows.batch(start, min(size, first_row + ROWS - start))
            x = model.hidden_states(to_device(ids, model.device), documents)
            tops.append(likeliest(model, x, self.config.teacher_top, self.config.teacher_temperature))
        ids, log_p = (torch.cat(parts).cpu() for parts in zip(*tops, strict=True))
        write_tensors(self._file(first_row), {"ids": ids.int(), "log_p": log_p.float()})

    def soft_targets(self, first_row: int, count: int) -> SoftTargets:
        """The predictions for `count` rows, (count, context, k) each."""
        skipped = first_row % ROWS
        files = [read_tensors(self._file(start))
                 for start in range(first_row - skipped, first_row + count, ROWS)]
        ids, log_p = (torch.cat([tensors[name] for tensors in files])[skipped : skipped + count]
                      for name in ("ids", "log_p"))
        return SoftTargets(ids, log_p, self.config.teacher_share, self.config.teacher_temperature)


def find_teacher(config: Config, base: Base, dataset: Dataset, ranks: Ranks) -> Path:
    """The teacher's folder; ValueError if there is none, or if it does not fit the data or the base."""
    with ranks.local_first():  # so that one process of a machine downloads it
        teacher = locate(config.teacher)
    check_weights_can_change(config.teacher, teacher)  # the key covers the weights of one folder
    shape = ModelConfig.read(teacher)
    dataset.check_model(config.teacher, teacher, shape.vocab_size)
    if shape.vocab_size > base.config.vocab_size:
        raise ValueError(f"teacher: {config.teacher} has {shape.vocab_size:,} rows of a vocabulary, the "
                         f"model {base.config.vocab_size:,}: give a teacher with no more")
    if config.teacher_top >= shape.vocab_size or config.context > shape.max_position_embeddings:
        raise ValueError(f"teacher: {config.teacher} has {shape.vocab_size} tokens and "
                         f"{shape.max_position_embeddings} positions; given teacher_top {config.teacher_top} "
                         f"and context {config.context}")
    return teacher
