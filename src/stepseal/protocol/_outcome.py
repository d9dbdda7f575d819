"""Finds the outcome of a save for one participant: from the coordinator, or else from storage.

If neither knows, the outcome is UNKNOWN. This is a separate error, not a failed save: the step may
exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.layout import Area
from stepseal.protocol import _messages as messages
from stepseal.protocol._failures import details_of, error_from, messages_of

if TYPE_CHECKING:
    from stepseal.protocol._participant import SaveState
    from stepseal.protocol._steps import ResolveAttempt

__all__ = ["resolve_save"]


def resolve_save(
    state: SaveState, step: int, steps: ResolveAttempt, area: Area = Area.STEPS
) -> messages.Committed:
    """Return the commit of a settled save, or raise the error that prevented it.

    Args:
        state: a settled state.
        step: step number, or version.
        steps: the step store; used if the coordinator is gone.
        area: whether it is a step or a publication, for messages.

    Raises:
        ParticipantFailed: a participant failed; any other error of `stepseal.errors` is raised if
            the coordinator reported it.
        CoordinatorLost: the coordinator is gone and the step was not committed.
        CommitTimeout: the coordinator did not decide in time, and this participant had not
            prepared.
        OutcomeUnknown: the coordinator is gone and storage does not show the outcome yet, or the
            coordinator could not confirm the commit.
    """
    if isinstance(state.outcome, messages.Committed):
        return state.outcome
    if isinstance(state.outcome, messages.Aborted):
        raise _aborted(state.outcome)
    if isinstance(state.outcome, messages.Unresolved):
        raise errors.OutcomeUnknown(
            f"{state.outcome.message} Read the root again later.", step=step
        )
    assert state.lost is not None
    if state.prepared and state.write is not None:
        text = f"{area.title(step)}: {state.lost.message}"
        return _from_storage(state.write, text, step, steps)
    raise error_from(
        state.lost.kind,
        f"{area.title(step)}: {state.lost.message}. This participant had not prepared, so the "
        f"{area.noun} was not committed; older steps are untouched.",
        step=step,
    )


def _aborted(outcome: messages.Aborted) -> errors.CheckpointError:
    return error_from(
        outcome.kind,
        outcome.message,
        step=outcome.step,
        failures=messages_of(outcome.failures),
        **details_of(outcome.cause, outcome.failures),
    )


def _from_storage(
    write: messages.Write, text: str, step: int, steps: ResolveAttempt
) -> messages.Committed:
    """Return the commit if storage shows it, or raise."""
    try:
        found = steps.resolve(step, write.attempt, write.staging)
    except errors.StorageUnavailable as error:
        raise errors.OutcomeUnknown(
            f"{text}. This participant had prepared, and storage does not answer: {error} Nothing "
            "was deleted. Call wait() again, or restart the job: restore() finds out.",
            step=step,
        ) from error
    if found.state == "committed":
        return messages.Committed(write.call, write.attempt, step, found.manifest_sha256)
    if found.state == "not committed":
        raise errors.CoordinatorLost(
            f"{text}. Storage shows that this attempt was not committed; older steps are "
            "untouched. Restart the job.",
            step=step,
        )
    raise errors.OutcomeUnknown(
        f"{text}. This participant had prepared, and storage does not show yet whether the step "
        "was committed; nothing was deleted. Call wait() again, or restart the job: restore() "
        "finds out.",
        step=step,
    )
