"""Prompts for a model, read from a file."""

from pathlib import Path


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a text file that are not empty; ValueError if there are none."""
    text = Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts {path}: no such file, or an empty one; give a text file with a prompt a "
                         "line, such as qa/continue.txt")
    return prompts
