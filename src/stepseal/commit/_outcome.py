"""What came of a save, as one participant can know it: the coordinator's word, else storage's.

Where neither tells, the outcome is UNKNOWN, which is an error of its own and never a failure: the
step may exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stepseal import errors
from stepseal.commit import _causes as causes
from stepseal.commit import _messages as messages
from stepseal.commit._catalog import read_step
from stepseal.commit._claims import newest_claim
from stepseal.commit._folders import parse_folder
from stepseal.commit._out_of_place import find_pruned
from stepseal.storage import exists

if TYPE_CHECKING:
    from stepseal.commit._participant import SaveState
    from stepseal.storage import Storage

__all__ = ["resolve_save"]


def resolve_save(state: SaveState, step: int, storage: Storage) -> messages.Committed:
    """Return the commit of a settled save, or raise what prevented it.

    Args:
        state: a settled state.
        step: step number.
        storage: the root, read when the coordinator cannot be asked any more.

    Raises:
        ParticipantFailed: and every other error of the tree, as the coordinator named it.
        CoordinatorLost: the coordinator is gone and the step was not committed.
        CommitTimeout: the coordinator did not decide in time, and this participant had not
            prepared.
        OutcomeUnknown: the coordinator is gone and storage does not tell yet, or the coordinator
            could not confirm the commit itself.
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
        return _from_storage(state.write, state.lost, step, storage)
    raise causes.error_from(
        state.lost.kind,
        f"save of step {step}: {state.lost.message}. This participant had not prepared, so the "
        "step was not committed; older steps are untouched.",
        step=step,
    )


def _aborted(outcome: messages.Aborted) -> errors.CheckpointError:
    return causes.error_from(
        outcome.kind,
        outcome.message,
        step=outcome.step,
        failures=causes.messages_of(outcome.failures),
        **causes.details_of(outcome.cause, outcome.failures),
    )


def _from_storage(
    write: messages.Write, lost: messages.Cause, step: int, storage: Storage
) -> messages.Committed:
    """Read the outcome.

    Durability: a step that is found is synced here too, because the coordinator may have died
    before it did.
    """
    text = f"save of step {step}: {lost.message}"
    try:
        found = _look(write, step, storage)
        if found == "not committed":
            raise errors.CoordinatorLost(
                f"{text}. Storage shows that this attempt was not committed; older steps are "
                "untouched. Restart the job.",
                step=step,
            )
        if found != "unknown":
            storage.sync_dir("")
            return found
    except errors.StorageUnavailable as error:
        raise errors.OutcomeUnknown(
            f"{text}. This participant had prepared, and storage does not answer: {error} Nothing "
            "was deleted. Call wait() again, or restart the job: restore() finds out.",
            step=step,
        ) from error
    raise errors.OutcomeUnknown(
        f"{text}. This participant had prepared, and storage does not show yet whether the step "
        "was committed; nothing was deleted. Call wait() again, or restart the job: restore() "
        "finds out.",
        step=step,
    )


def _look(
    write: messages.Write, step: int, storage: Storage
) -> messages.Committed | Literal["not committed", "unknown"]:
    """Look at staging between two looks at the step's place.

    A commit moves the one to the other, and the coordinator may be doing so right now: only if
    staging is gone, and the step still does not stand in its place, it was not committed. Nor is
    that known while the step lies in the trash: a prune that moved it may put it back.

    What stands in its place may still leave it if staging is there, too, and a newer incarnation:
    a coordinator that was replaced takes back an exchange that put out a step of the newer one.
    """
    found = _find(storage, step, write.attempt)
    if exists(storage, write.staging):
        if found is None or _is_replaced(storage, write.staging):
            return "unknown"
        return found
    again = _find(storage, step, write.attempt)
    if again is not None:
        return again
    if found is not None or find_pruned(storage, step, write.attempt) is not None:
        return "unknown"
    return _find(storage, step, write.attempt) or "not committed"  # it may be back by now


def _is_replaced(storage: Storage, staging: str) -> bool:
    """Tell whether a newer incarnation than that of an attempt has claimed the root."""
    name, claim = parse_folder(staging), newest_claim(storage)
    return name is None or (claim is not None and claim.incarnation > name.incarnation)


def _find(storage: Storage, step: int, attempt: str) -> messages.Committed | None:
    try:
        entry = read_step(storage, step, None)
    except errors.StepNotFound:
        return None
    if entry.state == "damaged":  # whose it was cannot be told: perhaps ours
        raise errors.StorageUnavailable(f"{entry.name}: {entry.problem}", step=step)
    if entry.manifest is None or entry.manifest.attempt != attempt:
        return None
    return messages.Committed(0, attempt, step, entry.manifest_sha256)
