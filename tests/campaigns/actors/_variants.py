"""Broken coordinators of actors, each a patch of the controller: what the rounds must catch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from stepseal import errors
from stepseal.actors import _coordinator
from stepseal.protocol import Failure, SocketHub, resolve_save

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable

__all__ = ["VARIANTS", "Variant"]

_RESOLVE = "stepseal.actors._coordinator.resolve_save"


@dataclass(frozen=True)
class Variant:
    """A coordinator to run instead of the real one."""

    patch: Callable[[], contextlib.AbstractContextManager[object]]
    phase: str
    """Hit there, it shows."""
    told: str
    """What a violation must say."""


def _losses_unheard() -> contextlib.AbstractContextManager[object]:
    """The end of a line is not reported, only the deadlines of phases are."""
    start = SocketHub.start

    def deaf(self: SocketHub, on_message: Callable[[str, Any, str], None]) -> None:
        def deliver(participant: str, message: Any, life: str) -> None:  # noqa: ANN401
            if not isinstance(message, Failure):
                on_message(participant, message, life)

        start(self, deliver)

    return mock.patch.object(SocketHub, "start", deaf)


def _another_blamed() -> contextlib.AbstractContextManager[object]:
    """A failed save names somebody else."""

    def blame(*args: Any) -> Any:  # noqa: ANN401 - as resolved
        try:
            return resolve_save(*args)
        except errors.ParticipantFailed as error:
            others = {f"not-{one}": text for one, text in error.failures.items()}
            raise errors.ParticipantFailed(str(error), failures=others) from error

    return mock.patch(_RESOLVE, blame)


def _failed_yet_committed() -> contextlib.AbstractContextManager[object]:
    """Who died after it was prepared fails the save, which is committed nevertheless."""

    def fail(state: Any, step: int, steps: Any) -> Any:  # noqa: ANN401 - as resolved
        resolved = resolve_save(state, step, steps)
        if step == 2:  # the one that is hit
            raise errors.ParticipantFailed("gone", failures={"buffer/0": "gone"})
        return resolved

    return mock.patch(_RESOLVE, fail)


def _nothing_restored() -> contextlib.AbstractContextManager[object]:
    """A restore is over when the participants have checked the step; nobody applies it."""
    restore = _coordinator.Coordinator._restore

    async def check(self: _coordinator.Coordinator, opening: Any) -> Any:  # noqa: ANN401
        found = await restore(self, dataclasses.replace(opening, check_only=True))
        self._progress.went_on_from(found)
        return found

    return mock.patch.object(_coordinator.Coordinator, "_restore", check)


VARIANTS = {
    "losses-unheard": Variant(_losses_unheard, "in writing", "hangs: save"),
    "another-blamed": Variant(_another_blamed, "in capture", "that names buffer/0"),
    "failed-yet-committed": Variant(_failed_yet_committed, "after Prepared", "half-committed"),
    "nothing-restored": Variant(_nothing_restored, "before capture", "restored wrong values"),
}
