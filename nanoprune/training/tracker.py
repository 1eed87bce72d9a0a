"""Trackers: the rows of train.csv and eval.csv, sent to where many runs are watched.

A tracker that fails never ends a run: a warning says so, and the run goes on without it.
"""

import importlib
import secrets
from collections.abc import Callable

from nanoprune.config import Config
from nanoprune.io.files import write_text

TRACKERS = {  # module, and its function or class that opens a run
    "wandb": ("wandb", "init"),
    "trackio": ("trackio", "init"),
    "tensorboard": ("torch.utils.tensorboard", "SummaryWriter"),
}


class Tracker:
    """The tracker that a config names, if it names one."""

    def __init__(self, config: Config):
        """ValueError if its package is not installed."""
        self.name, self.run = config.log, None
        if self.name != "none":
            module, function = TRACKERS[self.name]
            try:
                self.open = getattr(importlib.import_module(module), function)
            except (ImportError, AttributeError) as error:  # a folder of this name is a module without it
                raise ValueError(f"log: given {self.name}, which cannot be imported ({error}): pip install "
                                 f"{self.name}, or leave log out") from error

    def begin(self, config: Config, resume: bool) -> None:
        """Begin or, by the identity that the run's folder keeps, go on."""
        if self.name == "none":
            return
        kept = config.folder / ".tracker"
        if not (resume and kept.is_file()):
            write_text(kept, secrets.token_hex(4))
        settings = {"project": "nanoprune", "name": f"{config.name}-{kept.read_text()}", "resume": "allow",
                    "config": config.to_dict()}
        if self.name == "wandb":  # which leaves stdout and stderr as they are
            settings |= {"id": kept.read_text(), "reinit": "finish_previous", "settings": {"console": "off"}}
        elif self.name == "tensorboard":
            settings = {"log_dir": config.folder / "tensorboard", "flush_secs": 10}
        self.run = self._try(self.open, **settings)

    def log(self, table: str, row: dict) -> None:
        """Send a row's numbers."""
        if self.run:
            self._try(self._send, row["step"], {f"{table}/{key}": value for key, value in row.items()
                                                if isinstance(value, int | float)})

    def finish(self) -> None:
        if self.run:
            self._try(self.run.close if self.name == "tensorboard" else self.run.finish)

    def _send(self, step: int, values: dict[str, float]) -> None:
        if self.name != "tensorboard":
            self.run.log(values, step=step)
            return
        for name, value in values.items():
            self.run.add_scalar(name, value, step)

    def _try(self, call: Callable, *values, **settings):
        try:
            return call(*values, **settings)
        except Exception as error:  # whatever a service may raise
            print(f"warning: {self.name} failed ({error}); the run goes on without it")
            self.run = None
