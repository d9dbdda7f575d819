"""Which process owns an attempt, and whether it lives, as far as another process of its host sees.

Process ids mean something only in one id namespace of one start of one machine, and are given again
there. So the text of an owner names all three, and when the process began.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["host_of", "lives", "own_process"]

_PROC = Path("/proc")
_START_FIELD = 19
"""Position of the start time behind the name of the program in `/proc/PID/stat`."""
_MAX_HOST = 64


def own_process() -> str:
    """Return the text that names this process; it has no spaces and is ASCII."""
    host = socket.gethostname()[:_MAX_HOST].encode("ascii", "replace").decode().replace(" ", "?")
    return f"{host}/{_space()}/{os.getpid()}/{_start(os.getpid())}"


def host_of(owner: str) -> str:
    """Return the name of the host of an owner, for people."""
    return owner.partition("/")[0]


def lives(owner: str) -> bool | None:
    """Return whether an owner lives; None where that cannot be seen from here.

    It cannot from another host or container, and on systems without `/proc`.
    """
    space, _, process = owner.partition("/")[2].rpartition("/")[0].rpartition("/")
    start = owner.rpartition("/")[2]
    if not (process.isdecimal() and start and space) or space != _space():
        return None
    return _start(int(process)) == start


def _space() -> str:
    """Return what names the id namespace of this process; empty where the system hides it."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _start(process: int) -> str:
    """Return when a process began, in clock ticks of the machine; empty if there is none."""
    try:
        text = (_PROC / f"{process}/stat").read_text("ascii", "replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[:1] in (["Z"], ["X"]) else fields[_START_FIELD]
