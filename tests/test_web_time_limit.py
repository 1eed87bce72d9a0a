"""The bound on time holds in loops, in C that asks for signals, and where exceptions are swallowed."""

import re
import threading
import time

import pytest

from nanoprune.web.time_limit import time_limit


def loop() -> None:
    while True:
        pass


def swallow() -> None:
    while True:
        try:
            time.sleep(1)
        except Exception:  # noqa: BLE001
            pass


@pytest.mark.parametrize("work", [loop, swallow, lambda: re.fullmatch("(a|a)*b", "a" * 60)])
def test_what_takes_too_long_is_stopped(work):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"takes more than 0\.2 s"):
        time_limit(0.2)(work)()
    assert time.monotonic() - began < 2


def test_what_is_in_time_is_left_alone():
    with pytest.raises(ValueError, match=r"more than 0\.3 s"), time_limit(0.3):
        with time_limit(5):
            pass
        with pytest.raises(ValueError, match=r"more than 0\.1 s"), time_limit(0.1):
            loop()
        loop()  # the outer limit goes on
    with pytest.raises(KeyError), time_limit(0.1):
        raise KeyError
    time.sleep(0.2)


def test_a_thread_has_no_limit():
    done = []

    @time_limit(0.05)
    def work() -> None:
        time.sleep(0.15)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
