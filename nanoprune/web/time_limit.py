"""A bound on the time that foreign content may take, in Python or in what Python calls."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread


class _Alarm(BaseException):
    """No Exception: libraries catch those and go on."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let a `with` block or a decorated function take this long; ValueError after that.

    Signals reach the main thread alone: in others there is no limit. C code ends before it is stopped.
    """
    if current_thread() is not main_thread():
        yield
        return

    def ring(*_) -> None:
        raise _Alarm

    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
    except _Alarm:
        raise ValueError(f"takes more than {seconds:g} s") from None
    finally:
        signal.signal(signal.SIGALRM, handler)
