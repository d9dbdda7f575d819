"""What a call costs in a process of its own: processor time, and memory beyond what was there."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests._work import yardstick_s

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Cost", "cost_of", "peak_bytes", "reset_peak"]

_HEADROOM = 4 << 30
_MORE_TRIES = 4


@dataclass(frozen=True)
class Cost:
    """What one call took and came to."""

    seconds: float
    """Processor time."""
    yardstick_s: float
    """That of a fixed piece of work, soon after."""
    extra_bytes: int
    """Growth of the largest resident set."""
    came_to: str
    """Name of the exception's class, or `value`."""
    message: str

    @property
    def work(self) -> float:
        """Processor time in multiples of that of the fixed piece of work."""
        return self.seconds / self.yardstick_s


def cost_of(call: Callable[[], object], *, enough: float = 0.0) -> Cost:
    """Return what a call costs; on a busy machine, as little as several measurements say.

    Other processes only add to processor time. So the shortest of the call is compared with the
    shortest of the fixed piece of work.

    Args:
        call: made anew for each measurement.
        enough: measure again, some times, while the work is more than this; 0 measures once.
    """
    found = _cost_once(call)
    for _ in range(_MORE_TRIES if enough else 0):
        if found.work <= enough:
            break
        again = _cost_once(call)
        seconds = min(found.seconds, again.seconds)
        yardstick = min(found.yardstick_s, again.yardstick_s)
        found = replace(again, seconds=seconds, yardstick_s=yardstick)
    return found


def _cost_once(call: Callable[[], object]) -> Cost:
    """Make a call in a forked child, which may not take more than 4 GiB of address space anew."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        with os.fdopen(write_end, "wb") as answer:
            answer.write(pickle.dumps(_measured(call)))
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        data = answer.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}"
    found: Cost = pickle.loads(data)
    return found


def _measured(call: Callable[[], object]) -> Cost:
    taken = int(_status("VmSize")) + _HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (taken, taken))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    gc.freeze()  # what the test process holds is not the call's to walk, nor to copy
    before, begun = reset_peak(), time.process_time()
    came_to, message = "value", ""
    try:
        call()
    except BaseException as error:
        came_to, message = type(error).__name__, str(error)[:500]
    seconds, extra_bytes = time.process_time() - begun, peak_bytes() - before
    return Cost(seconds, yardstick_s(), extra_bytes, came_to, message)


def reset_peak() -> int:
    """Forget how large the resident set of this process ever was; return how large it is now.

    The peak that `getrusage` tells is that of the whole life of a process, whatever came before.
    """
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the largest resident set since `reset_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
