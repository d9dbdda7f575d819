"""Tells the user's functions of each commit, in order, on a thread that nobody else waits for.

Invariant: whatever such a function does, the step is committed, and the next save goes on.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepseal.errors import InvalidInput
from stepseal.layout import Metrics, step_name
from stepseal.process import start_thread
from stepseal.session._pending import Saved

if TYPE_CHECKING:
    from stepseal.layout import Manifest
    from stepseal.protocol import Cost
    from stepseal.storage import Storage

__all__ = ["Announcer", "Commit", "OnCommit", "as_functions"]

_log = logging.getLogger("stepseal")


@dataclass(frozen=True, slots=True)
class Commit(Saved):
    """A committed, durable step, and what its manifest says of it."""

    metrics: Mapping[str, float]
    tags: tuple[str, ...]
    cut: Mapping[str, Any]


OnCommit = Callable[[Commit], object]
"""Called with each commit, on the coordinator."""


def as_functions(on_commit: OnCommit | Iterable[OnCommit] | None) -> tuple[OnCommit, ...]:
    """Return the functions that were given, one or several.

    Raises:
        InvalidInput: something else was given.
    """
    if on_commit is None:
        return ()
    given = (on_commit,) if callable(on_commit) else on_commit
    functions = tuple(given) if isinstance(given, Iterable) else (given,)
    for one in functions:
        if not callable(one):
            raise InvalidInput(
                f"on_commit: expected a function that takes a Commit, or a list of them, found "
                f"{one!r:.80}"
            )
    return functions


class Announcer:
    """Calls functions with each commit.

    Args:
        functions: called one after the other.
        storage: the root.
        close_s: how long `close` waits for them.

    Raises:
        ParticipantFailed: there are functions, and no thread for them can be had.
    """

    def __init__(self, functions: Iterable[OnCommit], storage: Storage, close_s: float) -> None:
        self._functions = tuple(functions)
        self._storage = storage
        self._close_s = close_s
        self._commits: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self._untold: list[int] = []
        """Steps that some function was not called with yet."""
        self._thread = threading.Thread(target=self._run, name="stepseal-on-commit", daemon=True)
        if self._functions:
            start_thread(self._thread)

    def commit(self, manifest: Manifest, sha256: str, cost: Cost) -> None:
        """Hand on a commit; never blocks and never raises."""
        if not self._functions:
            return
        name = step_name(manifest.step)
        path = self._storage.local_path(name) or name
        facts = (Metrics(manifest.metrics), tuple(manifest.tags), dict(manifest.cut))
        self._untold.append(manifest.step)
        self._commits.put(Commit(manifest.step, path, sha256, *cost, *facts))

    def close(self) -> None:
        """Wait until the functions have returned, but not longer than the limit."""
        if not self._functions:
            return
        self._commits.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(self._close_s)
        if self._untold:
            _log.error(
                "stepseal: on_commit: still running %g s after the end, for steps %s: they are "
                "committed, but what on_commit does for them may be missing",
                self._close_s,
                ", ".join(map(str, self._untold)),
            )

    def _run(self) -> None:
        while (commit := self._commits.get()) is not None:
            for function in self._functions:
                try:
                    function(commit)
                except BaseException as error:  # the next one is told nevertheless
                    _log.error(
                        "stepseal: on_commit: %r raised for step %d, which is committed and stays",
                        function,
                        commit.step,
                        exc_info=error,
                    )
            self._untold.remove(commit.step)
