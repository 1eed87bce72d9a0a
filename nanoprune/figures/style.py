"""What all figures share: colours, tables read, files written."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, also where there is a display
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f", "#c98b2b", "#5c6b73")


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict]:
    """Whole rows of a CSV file that must have these columns."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]  # a kill can leave half a last line
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if not rows or (missing := [c for c in columns if c not in rows[0]]):
        raise ValueError(f"{path} holds no rows" if not rows else f"{path} lacks the column(s) {', '.join(missing)}")
    return rows


def _has_rows(path: Path) -> bool:
    return path.is_file() and len(path.read_text(encoding="utf-8").splitlines()) > 1


def running_mean(values: list[float], width: int) -> list[float]:
    """Mean over the last `width` values (fewer at the start)."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def save(figure, out: Path) -> Path:
    out = out if out.suffix else out.with_suffix(".png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150, metadata={"Software": None} if out.suffix == ".png" else None)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write the figure {out}: {error}; give a .png, .pdf or .svg in another folder") from error
    finally:
        plt.close(figure)
    return out
