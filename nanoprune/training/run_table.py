"""A table of runs: the settings that differ, the best validation, and where each run ended."""

import math
from pathlib import Path

from nanoprune.config import MOST_OVERFLOWS, Config, config_from_dict
from nanoprune.figures.style import read_csv
from nanoprune.io.files import read_json
from nanoprune.io.folders import is_locked


def run_table(folder: Path) -> tuple[list[dict], list[str]]:
    """A row for each run in a folder or in groups of runs there, such as a study's.

    Also a line for each folder that is no run, or is damaged.
    """
    rows, passed_over = [], []
    for child in sorted(folder.glob("*/")):
        members = [] if (child / "config.json").is_file() else sorted(child.glob("*/config.json"))
        for run in [path.parent for path in members] or [child]:
            try:
                config = config_from_dict(read_json(run / "config.json"), "config.json")
                settings = {key: one_line(value) for key, value in config.to_dict().items()}
                rows.append({"run": one_line(run)} | settings | {"name": "", "runs": ""}
                            | describe_end(run, config))
            except (ValueError, OSError, LookupError, TypeError) as error:
                passed_over.append(f"passed over {run}: {one_line(error)[:120]}")
    same = [key for key in Config.__dataclass_fields__ if len({row[key] for row in rows}) == 1]
    return [{key: row[key] for key in row if key not in same} for row in rows], passed_over


def describe_end(run: Path, config: Config) -> dict:
    """The columns of a run that its logs and its newest state tell."""
    steps = read_csv(run / "train.csv", ("step", "tokens", "seconds"), log=True)
    validations = read_csv(run / "eval.csv", ("step", "nll"), log=True)
    last = steps[-1] if steps else {"step": 0, "tokens": 0, "seconds": 0}
    step = int(last["step"])
    counters = {"finished": step == config.max_steps, "in_a_row": 0}
    for state in sorted(run.glob("state/*/state.json"))[-1:]:
        counters = read_json(state)["counters"]
    status = f"stopped at step {step} of {config.max_steps}"
    if (run / ".lock").is_file() and is_locked(run / ".lock"):
        status = f"still going, at step {step} of {config.max_steps}"
    elif counters["finished"]:
        status = f"finished at step {step}"
    elif counters["in_a_row"] >= (MOST_OVERFLOWS if config.dtype == "float16" else 1):
        status = f"diverged at step {step + 1}"
    losses = [(float(row["nll"]), row["step"]) for row in validations]
    best, best_step = min((loss for loss in losses if math.isfinite(loss[0])), default=("", ""))
    return {"best_validation": best, "best_step": best_step, "tokens": int(last["tokens"]),
            "seconds": float(last["seconds"]), "status": status}


def one_line(value) -> str:
    return " ".join(str(value).split())
