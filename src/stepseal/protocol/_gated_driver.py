"""What the driver of a participant does for gated saves only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.process import own_time_s
from stepseal.protocol import _messages as messages
from stepseal.protocol._failures import error_from

if TYPE_CHECKING:
    from stepseal.protocol._participant_driver import ParticipantDriver

__all__ = ["ask_save", "is_prepared"]

_log = logging.getLogger("stepseal")


def ask_save(driver: ParticipantDriver, step: int, name: str) -> messages.SaveGranted | None:
    """Ask for the call of a step that this participant has something to write for.

    Returns:
        The call, whose deadline starts here; None if the step was decided without us, which
        the log tells.

    Raises:
        InvalidInput: the coordinator does not expect this component of us.
        CoordinatorLost: the coordinator is gone.
        CommitTimeout: no answer arrived within `capture_s`.
    """
    found: list[messages.SaveAnswer] = []

    def arrived() -> bool:
        answer = driver._protocol.answer(step, name)
        if answer is not None:
            found.append(answer)
        return bool(found) or driver._is_lost()

    driver._link.send(messages.SaveAsked(step, name))
    driver._wait(arrived, driver.deadlines.capture_s)
    if not found:
        with driver._changed:
            lost = driver._protocol.lost
        kind = errors.CommitTimeout.kind if lost is None else lost.kind
        limit_s = driver.deadlines.capture_s
        why = f"no answer within {limit_s:g} s" if lost is None else lost.message
        what = f"save of step {step}: {driver.participant}: component {name}"
        raise error_from(kind, f"{what}: {why}", step=step, component=name)
    (answer,) = found
    if isinstance(answer, messages.SaveRefused):
        if not answer.is_late:
            raise error_from(answer.kind, answer.message, step=step, component=name)
        _log.warning("stepseal: %s", answer.message)
        return None
    with driver._changed:
        driver._protocol.captured(answer.call, own_time_s())
    return answer


def is_prepared(driver: ParticipantDriver, call: int) -> bool:
    """Return whether the part was reported, and not a failure."""
    with driver._changed:
        return driver._protocol.save(call).prepared
