"""Protocols that hang, each a small patch of all processes: what the proofs must catch."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.campaigns._variants import replace

from stepseal.commit import Coordinator, ParticipantDriver, SocketHub, SocketLink
from stepseal.commit._actions import Send
from stepseal.commit._coordinator_driver import CoordinatorDriver
from stepseal.commit._messages import Aborted, RestoreFailed
from stepseal.commit._participant import Participant

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HANGING", "Hanging"]


@dataclass(frozen=True)
class Hanging:
    """A protocol to run instead of the real one, and the case that must tell."""

    patch: Callable[[], None]
    case: str


def _wait_for_ever() -> None:
    """A participant trusts that the coordinator will decide."""
    wait = ParticipantDriver._wait
    replace(Participant, "on_time", lambda _self, _now: None)
    replace(
        ParticipantDriver,
        "_wait",
        lambda self, condition, _timeout_s: wait(self, condition, None),
    )


def _no_phase_deadlines() -> None:
    """The coordinator waits for a participant as long as it gives signs of life."""
    replace(Coordinator, "next_deadline", lambda _self: float("inf"))
    replace(Coordinator, "on_time", lambda _self, _now: [])


def _ignore_silence() -> None:
    """The coordinator sends signs of life and does not look for those of others."""
    beat = SocketHub._beat

    def beat_only(self: SocketHub, now: float) -> None:
        for line in self._all():
            line.last_seen = line.opened_at = now
        beat(self, now)

    replace(SocketHub, "_beat", beat_only)


def _tell_nobody() -> None:
    """The coordinator drops a failed save or restore, and tells only itself."""
    perform = CoordinatorDriver._perform

    def quietly(self: CoordinatorDriver, todo: list[Any]) -> None:
        perform(self, [action for action in todo if not _tells_others(action)])

    replace(CoordinatorDriver, "_perform", quietly)


def _tells_others(action: object) -> bool:
    failed = isinstance(action, Send) and isinstance(action.message, (Aborted, RestoreFailed))
    return failed and isinstance(action, Send) and not action.to.endswith("/0")


def _close_for_ever() -> None:
    """The coordinator lingers until everybody said goodbye."""
    close = CoordinatorDriver.close

    def linger(self: CoordinatorDriver) -> None:
        self._left.wait()
        close(self)

    replace(CoordinatorDriver, "close", linger)


def _ignore_the_coordinators_end() -> None:
    """A participant whose line ends goes on to wait for what was promised."""

    def serve(self: SocketLink, on_message: Callable[[Any], None]) -> None:
        self._receive_all(on_message)
        threading.Event().wait(60.0)

    replace(SocketLink, "_serve", serve)


HANGING = {
    "wait-without-deadline": Hanging(_wait_for_ever, "block:coordinator/publish:0of2"),
    "no-deadline-of-phases": Hanging(_no_phase_deadlines, "block:save/capture:1of2"),
    "silence-ignored": Hanging(_ignore_silence, "stop:save/write:1of2"),
    "failure-not-told": Hanging(_tell_nobody, "kill:save/write:1of3"),
    "close-waits-for-ever": Hanging(_close_for_ever, "block:close/before:1of2"),
    "coordinators-death-unnoticed": Hanging(
        _ignore_the_coordinators_end, "kill:save/write:0of2"
    ),
}  # fmt: skip
