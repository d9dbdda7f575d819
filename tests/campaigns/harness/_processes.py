"""Real processes at the price of a fork: a warm parent, children that join over sockets, and a
relay that parts them.

The parent imports torch once, uses one thread of it, and only forks. Participants find the
coordinator by a file outside the root instead of torch.distributed's store; everything after that
is what a real job uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import multiprocessing as mp
import os
import secrets
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from stepseal.errors import CoordinatorLost
from stepseal.protocol import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.context import ForkProcess

    from stepseal.protocol import Deadlines

__all__ = [
    "Child", "address_in", "each", "fast_directory", "new_token", "read_address", "warm_up",
    "write_address",
]  # fmt: skip

Item = TypeVar("Item")
T = TypeVar("T")
_DIE_WITH_PARENT = 1
_LOOK_S = 0.005
_context = mp.get_context("fork")


def warm_up() -> None:
    """Make this process one that may fork: torch has one thread, children collect nothing."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    gc.disable()


def fast_directory() -> str | None:
    """Return a file system in memory, where there is one: dying processes lose nothing on it."""
    memory = "/dev/shm"
    return memory if os.path.isdir(memory) and os.access(memory, os.W_OK) else None


class Child:
    """One forked process, which dies with its parent, and a pipe to it.

    Args:
        work: what it does, given its end of the pipe; it ends without any clean-up.
        stack: file for its stacks, should it still run after `limit_s`.
        limit_s: far above what `work` takes.
    """

    def __init__(
        self, work: Callable[[Any], None], stack: Path | None = None, limit_s: float = 60.0
    ) -> None:
        self.pipe, theirs = _context.Pipe()
        self._process: ForkProcess = _context.Process(
            target=_live, args=(work, os.getpid(), theirs, self.pipe, stack, limit_s)
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """What `connection.wait` takes; ready once the process has ended."""
        return self._process.sentinel

    @property
    def running(self) -> bool:
        """True until it has ended, also while it is stopped."""
        return self._process.is_alive()

    def exit_code(self) -> int | None:
        """Return what it ended with, once `sentinel` is ready; negative for a signal."""
        self._process.join(10.0)  # the sentinel is ready a moment earlier
        return self._process.exitcode

    def signal(self, number: int) -> float:
        """Send a signal; return when its process was dead or stopped."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self._process.join(10.0)
        while number == signal.SIGSTOP and self.running and _state(self.pid) != "T":
            time.sleep(0.002)
        return time.monotonic()

    def end(self) -> None:
        """Kill it if it still runs, and free everything."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.pipe.close()


def _live(
    work: Callable[[Any], None],
    parent: int,
    pipe: Any,  # noqa: ANN401 - a connection
    theirs: Any,  # noqa: ANN401 - a connection
    stack: Path | None,
    limit_s: float,
) -> None:
    os.setpgid(0, 0)  # else the kernel wakes stopped ones when the shell that began this ends
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before that
    theirs.close()
    torch.set_num_threads(1)  # makes this process's pool anew; two threads at once may not
    code = 0
    try:
        if stack is not None:
            faulthandler.dump_traceback_later(limit_s, file=stack.open("w"))
        work(pipe)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "X"


def each(
    items: Iterable[Item], work: Callable[[Item], T], lanes: int, limit_s: float
) -> Iterator[tuple[Item, T | None]]:
    """Run `work` on each item in a child of its own, `lanes` at once; yield results as they come.

    A child that dies, or still runs after `limit_s`, gives None.
    """
    waiting = iter(items)
    running: dict[Any, tuple[Item, Child, float]] = {}
    more = True
    try:
        while more or running:
            while more and len(running) < lanes:
                try:
                    item = next(waiting)
                except StopIteration:
                    more = False
                    break
                child = Child(lambda pipe, item=item: pipe.send(work(item)))  # type: ignore[misc]
                running[child.pipe] = (item, child, time.monotonic() + limit_s)
            ready = list(connection.wait(list(running), 0.5)) if running else []
            late = [p for p, (_, _, end) in running.items() if end < time.monotonic()]
            for pipe in {*ready, *late}:
                item, child, _ = running.pop(pipe)
                result: T | None = None
                if pipe in ready:
                    with contextlib.suppress(EOFError):
                        result = pipe.recv()
                child.end()
                yield item, result
    finally:
        for _, child, _ in running.values():
            child.end()


def write_address(folder: Path, address: Address, name: str = "address") -> None:
    """Tell where the coordinator listens."""
    descriptor, partial = tempfile.mkstemp(dir=folder, prefix=".address-")
    with os.fdopen(descriptor, "w") as file:
        json.dump([address.host, address.port, address.token], file)
    os.rename(partial, folder / name)


def address_in(folder: Path, name: str = "address") -> Address | None:
    """Return the coordinator's address if it was written."""
    with contextlib.suppress(FileNotFoundError):
        return Address(*json.loads((folder / name).read_text()))
    return None


def read_address(folder: Path, deadlines: Deadlines, name: str = "address") -> Address:
    """Wait for the coordinator's address.

    Raises:
        CoordinatorLost: nobody wrote it within `connect_s`.
    """
    end = time.monotonic() + deadlines.connect_s
    while time.monotonic() < end:
        found = address_in(folder, name)
        if found is not None:
            return found
        time.sleep(_LOOK_S)
    raise CoordinatorLost(f"control plane: no address of the coordinator, rank 0, in {folder}")


def new_token() -> str:
    """Return a secret for one life of a job."""
    return secrets.token_hex(16)
