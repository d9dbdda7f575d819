"""An object that is used as a context manager, and refuses calls once it is closed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from stepseal.errors import CheckpointError, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from typing_extensions import Self

    from stepseal.components import Topology
    from stepseal.session._inflight import InFlight
    from stepseal.session._wiring import Wiring

__all__ = ["Closing", "end_all"]

_log = logging.getLogger("stepseal")


class _Watch(Protocol):
    def end(self) -> None: ...


def end_all(flight: InFlight, wiring: Wiring, watches: Iterable[_Watch]) -> None:
    """Wait for the save in flight, close the connections, and watch no more signals.

    Raises:
        CheckpointError: the save in flight failed, and nobody saw it yet.
    """
    try:
        flight.end(wiring.close)
    finally:
        for watch in watches:
            watch.end()


class Closing:
    """What `with` does to a `Checkpointer`."""

    _closed = False
    _wiring: Wiring
    _root: str
    _topology: Topology
    _flight: InFlight

    def __repr__(self) -> str:
        """Return whose it is, where, and what is in flight; does not block."""
        me, others = self._topology.me, self._topology.world_size
        state = "closed" if self._closed else self._flight.title() or "idle"
        return f"<Checkpointer of {me} (of {others}) at {self._root}: {state}>"

    def close(self) -> None:
        """Free everything."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError as error:
            if exc is None:
                raise
            _log.error("stepseal: while leaving after %s: %s", exc_type, error)

    def _check_open(self) -> None:
        self._wiring.own("this Checkpointer")
        if self._closed:
            raise InvalidInput("this Checkpointer is closed; make a new one")
