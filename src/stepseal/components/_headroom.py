"""How much memory this process may still take until the system kills it for that.

The kernel tells it: each memory cgroup that the process is in, and each one above (v1 and v2), has
a limit, and so has the host. Page cache of files does not count as used, because the kernel drops
it first; free swap counts as room. A cgroup that this process cannot see is not known here.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.errors import StorageUnavailable
from stepseal.layout import size_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Headroom", "find_headroom", "out_of_memory"]

_CACHE_V2 = ("inactive_file", "active_file", "slab_reclaimable")
_CACHE_V1 = ("total_inactive_file", "total_active_file")
_UNLIMITED = 1 << 62
"""Limits of cgroup v1 from here on are none."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """What is left until the nearest limit."""

    left_bytes: int
    """At least 0."""
    limit: str
    """The file that sets the limit, and its value."""


def find_headroom(root: str = "/") -> Headroom | None:
    """Return what is left until the nearest limit; None where the system tells of none.

    Args:
        root: where `proc` and `sys` are; tests pass their own.
    """
    memory = _figures(os.path.join(root, "proc/meminfo"))
    free_swap = 1024 * memory.get("SwapFree:", 0)
    found = [one for level in _levels(root) if (one := _left_in(level, free_swap)) is not None]
    if (available := memory.get("MemAvailable:")) is not None:
        total = size_text(1024 * memory.get("MemTotal:", 0))
        found.append(Headroom(1024 * available + free_swap, f"the memory of this host ({total})"))
    return min(
        reversed(found), key=lambda one: one.left_bytes, default=None
    )  # the topmost of equals


def out_of_memory(needed_bytes: int, found: Headroom, advice: str) -> StorageUnavailable:
    """Return the error for memory that is not there; it was not touched.

    Args:
        needed_bytes: more than is left.
        found: what is left.
        advice: what to do, as sentences.
    """
    return StorageUnavailable(
        f"staging memory: expected room for {size_text(needed_bytes)} more, found "
        f"{size_text(found.left_bytes)} until {found.limit}, beyond which the system kills "
        f"processes. {advice}",
        expected=needed_bytes,
        found=found.left_bytes,
        errno=errno.ENOMEM,
    )


def _left_in(level: str, free_swap: int) -> Headroom | None:
    """Return what is left in one cgroup; None without a limit."""
    if (is_v1 := _number(level, "memory.limit_in_bytes")) is not None:
        return _left_in_v1(level, is_v1, free_swap)
    limits = {name: _number(level, name) for name in ("memory.max", "memory.high")}
    set_here = {name: limit for name, limit in limits.items() if limit is not None}
    used = _number(level, "memory.current")
    if not set_here or used is None:
        return None
    # Beyond `high` nothing is killed, but all is slowed down until it stands still.
    name = min(set_here, key=lambda one: set_here[one])
    stat, swap_limit = (
        _figures(os.path.join(level, "memory.stat")),
        _number(level, "memory.swap.max"),
    )
    left = set_here[name] - used + sum(stat.get(one, 0) for one in _CACHE_V2)
    if swap_limit is not None:
        free_swap = min(free_swap, swap_limit - (_number(level, "memory.swap.current") or 0))
    return _headroom(left + max(0, free_swap), level, name, set_here[name])


def _left_in_v1(level: str, limit: int, free_swap: int) -> Headroom | None:
    stat = _figures(os.path.join(level, "memory.stat"))
    # Also of cgroups above that are not visible from inside a container.
    limit = min(limit, stat.get("hierarchical_memory_limit", limit))
    used = _number(level, "memory.usage_in_bytes")
    if limit >= _UNLIMITED or used is None:
        return None
    cache = sum(stat.get(one, 0) for one in _CACHE_V1)
    left = limit - used + cache + free_swap
    with_swap = min(
        _number(level, "memory.memsw.limit_in_bytes") or _UNLIMITED,
        stat.get("hierarchical_memsw_limit", _UNLIMITED),
    )
    if with_swap < _UNLIMITED:
        left = min(left, with_swap - (_number(level, "memory.memsw.usage_in_bytes") or 0) + cache)
    return _headroom(left, level, "memory.limit_in_bytes", limit)


def _headroom(left: int, level: str, name: str, limit: int) -> Headroom:
    return Headroom(max(0, left), f"{os.path.join(level, name)} ({size_text(limit)})")


def _levels(root: str) -> Iterator[str]:
    """Yield the directory of each memory cgroup of this process, up to the topmost visible one."""
    mounts = _mounts(root)
    for line in _read(root, "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        kind = "v2" if not controllers else "v1" if "memory" in controllers.split(",") else ""
        if kind not in mounts:
            continue
        point, top = mounts[kind]
        # What a container is in may be named as its host names it, or lie outside its namespace.
        inside = path == top or path.startswith(f"{top.rstrip('/')}/")
        names = path[len(top.rstrip("/")) :].split("/") if inside and "/.." not in path else []
        names = [name for name in names if name]
        for depth in range(len(names), -1, -1):
            yield os.path.join(root, point.lstrip("/"), *names[:depth])


def _mounts(root: str) -> dict[str, tuple[str, str]]:
    """Return, for `v1` and `v2`, where memory cgroups are mounted, and which one is the topmost."""
    found = {}
    for line in _read(root, "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if rest[0] == "cgroup2":
            found["v2"] = (fields[4], fields[3])
        elif rest[0] == "cgroup" and "memory" in rest[-1].split(","):
            found["v1"] = (fields[4], fields[3])
    return found


def _number(level: str, name: str) -> int | None:
    """Return the one number of a file; None where it is not there, or says `max`."""
    text = _read(level, name).strip()
    return int(text) if text.isdecimal() else None


def _figures(path: str) -> Mapping[str, int]:
    """Return the lines `name number` of a file; none where it is not there."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _read(*path: str) -> str:
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:  # not this kind of system: what it does not tell is no limit that is known
        return ""
