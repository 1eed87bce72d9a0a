"""Trackers: the rows of train.csv and eval.csv, sent to where many runs are watched.

A tracker that fails never ends a run: a warning says so, and the run goes on without it.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nanoprune.config import Config
from nanoprune.io.files import write_text

PROJECT = "nanoprune"


def wandb() -> Callable:
    from wandb import init

    return lambda config, identity: init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), name=config.name, id=identity, resume="allow",
        config=config.to_dict(), dir=config.folder, reinit="finish_previous",
        settings={"console": "off"})  # stdout and stderr stay as they are


def trackio() -> Callable:
    from trackio import init

    return lambda config, identity: init(PROJECT, f"{config.name}-{identity}", config=config.to_dict(),
                                         resume="allow")


def tensorboard() -> Callable:
    from torch.utils.tensorboard import SummaryWriter

    class Events:
        """A writer of event files, with the methods that other trackers have."""

        def __init__(self, config: Config, _):
            self.writer = SummaryWriter(config.folder / "tensorboard")
            self.finish = self.writer.close

        def log(self, values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()  # a kill loses nothing

    return Events


TRACKERS = {function.__name__: function for function in (wandb, trackio, tensorboard)}


class Tracker:
    """The tracker that a config names, if it names one."""

    def __init__(self, config: Config):
        """ValueError if its package is not installed."""
        self.name, self.run = config.log, None
        try:
            self.open = TRACKERS[self.name]() if self.name != "none" else None
        except ImportError as error:
            raise ValueError(f"log: given {self.name}, which cannot be imported ({error}): pip install "
                             f"{self.name}, or leave log out") from error

    def begin(self, config: Config, resume: bool) -> None:
        """Begin or, by the identity that the run's folder keeps, go on."""
        kept = config.folder / ".tracker"
        with self._warning():
            if self.open:
                if not (resume and kept.is_file()):
                    write_text(kept, secrets.token_hex(4))
                self.run = self.open(config, kept.read_text())

    def log(self, table: str, row: dict) -> None:
        """Send a row's numbers."""
        with self._warning():
            if self.run:
                values = {f"{table}/{key}": value for key, value in row.items()
                          if isinstance(value, int | float)}
                self.run.log(values, step=row["step"])

    def finish(self) -> None:
        with self._warning():
            if self.run:
                self.run.finish()

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a service may raise
            print(f"warning: {self.name} failed ({error}); the run goes on without it")
            self.run = None
