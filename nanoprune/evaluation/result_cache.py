"""Rows of results on disk, found again by a hash of everything that decides them."""

from collections.abc import Callable
from pathlib import Path

from nanoprune.data.token_file import Example
from nanoprune.distributed import Ranks
from nanoprune.io.files import json_hash, read_json, write_json

PIECE = 32  # items that are measured, and stored, at a time


class ResultCache:
    """JSON files of rows with their checksums, so that nothing is measured twice.

    PIECE items share a file: a kill costs the piece that was being measured.
    """

    def __init__(self, folder: Path, ranks: Ranks):
        self.folder, self.ranks = folder, ranks

    def rows(
        self, name: str, settings: dict, items: list, measure: Callable[[list, Ranks, str], list[dict]]
    ) -> list[dict]:
        """A row per item, read from disk or else from `measure(items, ranks, label)`.

        `settings`: everything besides the items that decides the rows.
        """
        rows = []
        for start in range(0, len(items), PIECE):
            piece = items[start : start + PIECE]
            identity = settings | {"items": json_hash(piece, example_as_lists)}
            path = self.folder / f"{name}-{json_hash(identity)[:16]}.json"
            stored = self._read(path, identity)
            if stored is None:
                self.ranks.barrier()  # until every rank has looked
                label = f"{name} {start + 1} to {start + len(piece)} of {len(items)}"
                stored = measure(piece, self.ranks, label)
                if self.ranks.rank == 0:
                    write_json(path, {"about": identity, "rows": stored, "sha256": json_hash(stored)})
                self.ranks.barrier()
            rows += stored
        return rows

    def _read(self, path: Path, identity: dict) -> list[dict] | None:
        """The rows of a file; None where there is none, or with a warning where it is damaged."""
        try:
            content = read_json(path) if path.is_file() else {}
            rows = content.get("rows")
            if content and content != {"about": identity, "rows": rows, "sha256": json_hash(rows)}:
                raise ValueError(f"{path} does not match its checksum")
            return rows
        except ValueError as error:
            print(f"warning: {error}; measuring it again")
            return None


def example_as_lists(example: Example) -> list:
    """The form of an Example in the hash of items: its tokens, and the mask where not all are learned."""
    if example.learned.all():
        return example.tokens.tolist()
    return [example.tokens.tolist(), example.learned.astype(int).tolist()]
