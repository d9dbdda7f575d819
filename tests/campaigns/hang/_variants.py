"""Protocols that hang, each a small patch of all processes: what the proofs must catch."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.campaigns.kill._variants import replace
from tests.multi._job import Log

from stepseal.protocol import (
    Coordinator,
    ParticipantDriver,
    SocketHub,
    SocketLink,
    _agreement,
    _save_round,
)
from stepseal.protocol._actions import Send
from stepseal.protocol._coordinator_driver import CoordinatorDriver
from stepseal.protocol._messages import Aborted, RestoreFailed
from stepseal.protocol._participant import Participant
from stepseal.transfer import StepReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepseal.protocol._failures import Failure

__all__ = ["HANGING", "Hanging"]


@dataclass(frozen=True)
class Hanging:
    """A protocol to run instead of the real one, and the case that must tell."""

    patch: Callable[[], None]
    case: str
    told: str
    """What a violation must say; to die of the patch is no finding."""


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


def _blame_another() -> None:
    """The coordinator names the participant after the one that failed."""
    real = _agreement.summary

    def summary(what: str, failures: Mapping[str, Failure], next_step: str) -> str:
        others = {f"trainer/{int(name[-1]) + 1}": cause for name, cause in failures.items()}
        return real(what, others, next_step)

    replace(_save_round, "summary", summary)


def _tell_only_who() -> None:
    """The coordinator names who failed, not in which phase and why."""
    replace(_save_round, "summary", lambda _what, failures, _next: ", ".join(failures))


def _leave_tensors_out() -> None:
    """A restore leaves tensors as they were."""
    replace(StepReader, "stream", lambda _self, _requests, **_options: None)


def _die_of_failures() -> None:
    """A participant whose save failed dies with its error."""
    raised = Log._raised

    def die(self: Log, name: str, error: Exception) -> None:
        raised(self, name, error)
        os._exit(77)

    replace(Log, "_raised", die)


HANGING = {
    "wait-without-deadline": Hanging(
        _wait_for_ever, "block:coordinator/publish:0of2", "never came back"
    ),
    "no-deadline-of-phases": Hanging(
        _no_phase_deadlines, "block:save/capture:1of2", "does not say who"
    ),
    "silence-ignored": Hanging(_ignore_silence, "stop:save/write:1of2", "participant 0 hangs"),
    "failure-not-told": Hanging(_tell_nobody, "kill:save/write:1of3", "does not say who"),
    "close-waits-for-ever": Hanging(_close_for_ever, "block:close/before:1of2", "never came back"),
    "coordinators-death-unnoticed": Hanging(
        _ignore_the_coordinators_end, "kill:save/write:0of2", "never came back"
    ),
    "innocent-blamed": Hanging(_blame_another, "kill:save/write:1of3", "who: expected trainer/1"),
    "only-who-is-told": Hanging(_tell_only_who, "stop:save/capture:1of2", "where: 'save of step"),
    "tensors-not-restored": Hanging(
        _leave_tensors_out, "kill:save/write:1of2", "restored wrong values"
    ),
    "survivor-dies": Hanging(_die_of_failures, "kill:save/write:1of2", "ended with exit code 77"),
}
