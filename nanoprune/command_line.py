"""The guard around every script's main, and what it does with signals."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from nanoprune.printing import print_safely


def run(main: Callable[[], int | None], interrupted: str = "stopped") -> NoReturn:
    """Run a script's main and exit with its code.

    A ValueError is the user's to mend: its message stands without a traceback, exit code 2. After Ctrl-C
    `interrupted` says what is left and how to resume, exit code 130.
    """
    print_safely(sys.stdout)
    print_safely(sys.stderr)
    path = Path(sys.argv[0])
    name = path.parent.name if path.stem == "__main__" else path.name
    try:
        code = main()
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
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
        os.write(2, b"\nthis step is finished and saved first; once more, and it ends at once\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return received
