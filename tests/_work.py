"""How much work a call does, in measures that do not depend on how fast the machine is."""

from __future__ import annotations

import sys
import time
import tracemalloc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["num_calls", "traced_peak_bytes", "yardstick_s"]


def num_calls(call: Callable[[], object]) -> int:
    """Return the number of functions that a call calls, those written in C included."""
    found = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


def traced_peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak memory of Python's allocators during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def yardstick_s() -> float:
    """Return the processor time of a fixed piece of work, to compare that of other work with."""
    begun = time.process_time()
    found: dict[int, int] = {}
    for number in range(500_000):
        found[number & 4095] = number
    return time.process_time() - begun
