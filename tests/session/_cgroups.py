"""Real memory cgroups for tests, where this machine lets us make them."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_WAIT_S = 20.0


class MemoryCgroup:
    """A cgroup whose memory can be limited, and one inside it that processes join.

    Args:
        path: of the outer one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        is_v1 = path.parent == _V1
        self.inner = path / "inner"
        self._limit = "memory.limit_in_bytes" if is_v1 else "memory.max"
        self._used = "memory.usage_in_bytes" if is_v1 else "memory.current"
        self.limit_file = path / self._limit

    def limit(self, size_bytes: int) -> None:
        """Limit the outer one; nothing limits the inner one."""
        self.limit_file.write_text(str(size_bytes))

    def used_bytes(self) -> int:
        """Return what the processes use, and page cache of files."""
        return int((self.path / self._used).read_text())

    def anonymous_bytes(self) -> int:
        """Return what cannot be dropped."""
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        cache = (stat.get(f"total_{n}", stat.get(n)) for n in ("inactive_file", "active_file"))
        return self.used_bytes() - sum(int(n) for n in cache if n is not None)

    def join(self) -> None:
        """Move this process into the inner one."""
        (self.inner / "cgroup.procs").write_text(str(os.getpid()))


@contextlib.contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """Make one, and remove it with all processes in it; skip the test where that is not allowed."""
    is_v1 = (_V1 / "memory.limit_in_bytes").exists()
    top = _V1 if is_v1 else _V2
    made = top / f"stepseal-test-{secrets.token_hex(4)}"
    found = MemoryCgroup(made)
    try:
        found.inner.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made in {top}: {error}")
    try:
        with contextlib.suppress(OSError):
            if not is_v1:
                (made / "cgroup.subtree_control").write_text("+memory")
        if not found.limit_file.exists():
            pytest.skip(f"{top}: the memory controller is not on for cgroups made there")
        yield found
    finally:
        _remove(found)


def _remove(group: MemoryCgroup) -> None:
    end = time.monotonic() + _WAIT_S
    for path in (group.inner, group.path):
        for process in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        while True:
            try:
                path.rmdir()
                break
            except OSError:  # a process that was killed leaves it a moment later
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
