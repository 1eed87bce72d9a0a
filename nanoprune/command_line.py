"""A script's options, and the guard around its main, with what it does with signals."""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import field, fields
from datetime import date
from pathlib import Path
from typing import Any, NoReturn, get_args

from nanoprune.printing import SafeText

MOST_CHARACTERS = 9999  # of an error that is printed: what was given may be large


# ---------------------------------------------------------------- options
def option(help: str, default: Any = None, **settings) -> Any:
    """A field of a dataclass of options: its help, its default and the settings of argparse's add_argument.

    Besides those there are `least`, the least value that is allowed, and `name`, that of a positional option.
    """
    return field(default=default, metadata={"help": help} | settings)


def parse_options(kind: type, description: str) -> Any:
    """The command line as a dataclass of `option`s. ValueError if a value is below the least allowed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(kind):
        settings = {"name": f"--{f.name.replace('_', '-')}"} | f.metadata
        settings.pop("least", None)
        if f.type is bool:
            settings["action"] = "store_true"
        else:
            own_type = next(iter(get_args(f.type)), f.type)  # of `int | None` it is int
            settings = {"type": own_type, "default": f.default} | settings
        parser.add_argument(settings.pop("name"), **settings)
    options = kind(**vars(parser.parse_args()))
    for f in fields(kind):
        value, least = getattr(options, f.name), f.metadata.get("least")
        if None not in (value, least) and not value >= least:
            raise ValueError(f"--{f.name.replace('_', '-')} must be at least {least}, given {value}")
    return options


def iso_day(text: str) -> str:
    """The type of an option that takes a day: YYYY-MM-DD."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no date; write one such as 2025-09-01") from error


# ---------------------------------------------------------------- running
class Unread(io.FileIO):
    """A stream that takes what nobody reads any more (`| head`, a closed terminal), so that work goes on."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return memoryview(data).nbytes


def guard_streams() -> None:
    """Let stdout and stderr outlive their reader, and print the numbers of characters that do not print."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed from the start
            setattr(sys, name, open(os.devnull, "w"))
        elif stream is getattr(sys, f"__{name}__"):  # and not a test's
            raw = io.BufferedWriter(Unread(stream.fileno(), "w", closefd=False))
            setattr(sys, name, SafeText(raw, stream.encoding, "backslashreplace",
                                        line_buffering=stream.line_buffering or stream.write_through))


def run(main: Callable[[], int | None], interrupted: str = "stopped") -> NoReturn:
    """Run a script's main and exit with its code.

    A ValueError or an OSError is the user's to mend: its message stands without a traceback, exit code 2.
    After Ctrl-C `interrupted` says what is left and how to resume, exit code 130.
    """
    guard_streams()
    path = Path(sys.argv[0])
    name = path.parent.name if path.stem == "__main__" else path.name
    try:
        code = main()
    except (ValueError, OSError) as error:
        print(f"{name}: {str(error):.{MOST_CHARACTERS}}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"\n{name}: {interrupted}", file=sys.stderr)
        code = 130
    sys.exit(code)


def catch_signals() -> list[str]:
    """A list to which Ctrl-C and SIGTERM add their names from now on.

    The same signal again is a KeyboardInterrupt.
    """
    received = []

    def note(number: int, _) -> None:
        name = signal.Signals(number).name
        if name in received:  # torchrun passes a Ctrl-C on as SIGTERM besides
            raise KeyboardInterrupt
        received.append(name)
        with contextlib.suppress(OSError):  # nobody may read it any more
            os.write(2, b"\nthis step is finished and saved first; once more, and it ends at once\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return received
