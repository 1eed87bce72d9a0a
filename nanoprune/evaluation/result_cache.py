"""What was measured, kept on disk by what it was measured of."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np

from nanoprune.distributed import Ranks
from nanoprune.io.files import file_hash, read_json, write_csv, write_json

PIECE = 32  # documents, questions or answers that are measured, and kept, at a time


class ResultCache:
    """Rows that were measured, by what they are of: CSV files with their checksums beside, so that none is measured twice.

    A piece of PIECE documents or questions is a file: a kill costs the one that was on its way.
    """

    def __init__(self, folder: Path, ranks: Ranks):
        self.folder, self.ranks = folder, ranks

    def of(self, name: str, about: dict, items: list, measure) -> list[dict]:
        """The rows of the items, kept under this description of how they are measured or measured now: measure(some, label)."""
        rows = []
        for start in range(0, len(items), PIECE):
            some = items[start : start + PIECE]
            hashes = hashlib.sha256(json.dumps(some, sort_keys=True, default=np.ndarray.tolist).encode()).hexdigest()
            label = f"{name} {start + 1} to {start + len(some)} of {len(items)}"
            rows += self._piece(name, about | {"items": hashes}, lambda some=some, label=label: measure(some, label))
        return rows

    def _piece(self, name: str, about: dict, measure) -> list[dict]:
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{key}.csv"
        if path.is_file():
            try:
                kept = read_json(path.with_suffix(".json"))
                if kept["about"] == json.loads(json.dumps(about)) and kept["sha256"] == file_hash(path):
                    with open(path, newline="", encoding="utf-8") as file:
                        return [{k: json.loads(v) for k, v in row.items()} for row in csv.DictReader(file)]
                raise ValueError(f"{path} does not match its checksum")
            except (ValueError, KeyError, OSError) as error:
                print(f"warning: {error}; measuring it again")
        self.ranks.wait()
        rows = measure()
        if self.ranks.rank == 0:
            write_csv(path, [{k: json.dumps(v) for k, v in row.items()} for row in rows])
            write_json(path.with_suffix(".json"), {"about": about, "sha256": file_hash(path)})
        self.ranks.wait()
        return rows
