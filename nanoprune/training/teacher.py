"""A teacher's likeliest next tokens for every training row, computed once and kept on disk for all runs that see these rows.

    <runs>/teachers/<key>/rows-00000000.safetensors     ids and log-probabilities (rows, context, k) of ROWS rows
                          meta.json                     what the key stands for
"""

import hashlib
import json
import time
from pathlib import Path

import torch

from model import Decoder
from nanoprune.config import Config
from nanoprune.data.dataset import Dataset
from nanoprune.data.packing import TrainingRows
from nanoprune.device import to_device
from nanoprune.distributed import Ranks
from nanoprune.io.files import file_hashes, read_json, write_json
from nanoprune.io.hub import locate
from nanoprune.io.tensors import map_tensors, write_tensors
from nanoprune.nn.losses import likeliest

ROWS = 32  # a file's rows


class Teacher:
    """`teacher.batch(first, rows)`: (ids, log-probabilities), (rows, context, k) each, of a run's rows."""

    def __init__(self, config: Config, dataset: Dataset, rows: TrainingRows, device: torch.device, ranks: Ranks):
        """Computes what is not on the disk yet, every rank its share; ValueError where the teacher does not fit the data."""
        with ranks.one_first():
            source = locate(config.teacher)
        shape = Decoder.read_config(source)
        dataset.check_model(config.teacher, source, shape.vocab_size)
        if config.teacher_top >= shape.vocab_size or config.context > shape.max_position_embeddings:
            raise ValueError(f"teacher: {config.teacher} has {shape.vocab_size} tokens and {shape.max_position_embeddings} "
                             f"positions; given teacher_top {config.teacher_top} and context {config.context}")
        about = {"teacher": file_hashes(source), "data": file_hashes(dataset.folder), "temperature": config.teacher_temperature,
                 "top": config.teacher_top, "context": config.context, "seed": config.seed, "pair_repeats": config.pair_repeats}
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(config.runs) / "teachers" / key
        count = config.max_steps * config.batch_size * config.accumulation
        began, meta = time.perf_counter(), self.folder / "meta.json"
        missing = [first for first in range(0, count, ROWS) if not self._file(first).is_file()]
        if missing:
            model = Decoder.from_pretrained(source, device=device).eval()
            for first in ranks.turns(missing, "teacher"):
                self._compute(model, rows, first, config)
        before = read_json(meta)["seconds"] if meta.is_file() else 0.0
        self.seconds = before + (time.perf_counter() - began if missing else 0.0)  # that all of it took
        self.hashes = about["teacher"]
        ranks.wait()
        if ranks.rank == 0:
            write_json(meta, about | {"seconds": self.seconds})
        ranks.wait()  # nobody reads before all have written

    def _file(self, first: int) -> Path:
        return self.folder / f"rows-{first:08d}.safetensors"

    @torch.no_grad()
    def _compute(self, model: Decoder, rows: TrainingRows, first: int, config: Config) -> None:
        found = []
        for start in range(first, first + ROWS, config.batch_size):
            ids, _, documents = rows.batch(start, min(config.batch_size, first + ROWS - start))
            x = model.model(model.config, to_device(ids, model.head_weight.device), model.model.embed_tokens, documents)
            top = likeliest(x.flatten(0, 1), model.head_weight, config.teacher_top, config.teacher_temperature)
            found.append([part.view(*ids.shape, -1).cpu() for part in top])
        ids, log_p = map(torch.cat, zip(*found, strict=True))
        write_tensors(self._file(first), {"ids": ids.int(), "log_p": log_p.float()})

    def batch(self, first: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = []
        for start in range(first - first % ROWS, first + rows, ROWS):
            held, within = map_tensors(self._file(start)), slice(max(0, first - start), first + rows - start)
            parts.append([torch.from_numpy(held[name][within].copy()) for name in ("ids", "log_p")])
        return tuple(map(torch.cat, zip(*parts, strict=True)))
