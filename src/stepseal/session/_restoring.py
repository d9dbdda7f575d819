"""One participant's share of a restore: check a candidate, touch nothing, then stream it in.

Invariants: nothing live changes before the coordinator's `Apply`; no byte reaches a sink before its
digest matched; the RNG comes last, so that nothing that loads can disturb it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from stepseal import protocol
from stepseal.components import outside_inference_mode
from stepseal.errors import CheckpointError, Corrupt, InvalidInput, ParticipantFailed
from stepseal.layout import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    check_step,
    decode_manifest,
    manifest_digest,
    step_name,
)
from stepseal.protocol import (
    Applied,
    Apply,
    Candidate,
    Checked,
    Fresh,
    Rejected,
    RestoreFailed,
    Teller,
    details_of,
    error_from,
    failure_of,
    messages_of,
)
from stepseal.session._checked import CheckedStep, check_step_fits
from stepseal.session._reports import Restored
from stepseal.session._saving import collection_paused
from stepseal.session._targets import listed
from stepseal.session._unverified import CheckedFolder, check_folder
from stepseal.storage import read_bytes

if TYPE_CHECKING:
    from stepseal.layout import Manifest
    from stepseal.protocol import Deadlines, ParticipantDriver, RestoreAnswer, RestoreCalled
    from stepseal.session._targets import Targets
    from stepseal.storage import Storage

__all__ = ["RestorePart", "check_choice", "restore_error"]

_log = logging.getLogger("stepseal")


class RestoreGivenUp(CheckpointError):
    """The restore failed while this participant was still applying; the coordinator knows why."""

    kind = "restore_given_up"


def check_choice(step: int | None, *, fresh: bool, unverified: bool) -> int | None:
    """Return `step` as an int; refuse arguments of `restore` that exclude each other.

    Raises:
        InvalidInput: `step` is no step number, or `fresh` comes with `step` or `unverified`.
    """
    if step is not None:
        step = check_step(step)
    if step is not None and fresh:
        raise InvalidInput("restore(step=..., fresh=True): expected one of the two, found both")
    if unverified and fresh:
        raise InvalidInput("restore(unverified=True, fresh=True): expected one of the two")
    return step


def check_candidate(storage: Storage, candidate: Candidate, targets: Targets) -> CheckedStep:
    """Verify manifest, indexes and trees, and plan how live state takes them; touch nothing.

    Raises:
        Corrupt: bytes do not match their digest, or the manifest is not the chosen one.
        StateMismatch: saved and live state differ; `.problems` lists every difference.
    """
    manifest = _read_manifest(storage, candidate)
    return check_step_fits(storage, manifest, candidate.manifest_sha256, targets)


def _read_manifest(storage: Storage, candidate: Candidate) -> Manifest:
    path = f"{step_name(candidate.step)}/{MANIFEST}"
    data = read_bytes(storage, path, MAX_MANIFEST_BYTES)
    found = manifest_digest(data)
    if found != candidate.manifest_sha256:
        raise Corrupt(
            f"restore of step {candidate.step}: {path}: expected the manifest with SHA-256 "
            f"{candidate.manifest_sha256}, found {found}: it changed, or this participant sees "
            "another root.",
            step=candidate.step,
            path=path,
            expected=candidate.manifest_sha256,
            found=found,
        )
    return decode_manifest(data)


class RestorePart:
    """One participant's part in one restore, order by order.

    `follow` raises what the coordinator decided, alike on all participants (NoResumableStep,
    StepNotFound, Corrupt, StateMismatch, ParticipantFailed); `.tainted` of the error tells whether
    live state was changed. `wait` raises CoordinatorLost or CommitTimeout.

    Args:
        driver: line to the coordinator; told here that this participant joins.
        call: what was called.
        storage: the root.
        root: its path.
        targets: live state.
        deadlines: limits.
    """

    def __init__(
        self,
        driver: ParticipantDriver,
        call: RestoreCalled,
        storage: Storage,
        root: str,
        targets: Targets,
        deadlines: Deadlines,
    ) -> None:
        self.ended = False
        self.restored: Restored | None = None
        """What was restored, once it has ended; None for a fresh start."""
        self._driver = driver
        self._call = call
        self._storage = storage
        self._root = root
        self._targets = targets
        self._limit_s = deadlines.restore_s
        self._checked: CheckedStep | CheckedFolder | None = None
        self._sha256: str | None = None
        self._cause: BaseException | None = None
        self._touched = False
        num = targets.topology.world_size
        self._teller = Teller(driver, call.call, num, time.monotonic())
        driver.call_restore(call)

    def wait(self) -> Candidate | Apply | RestoreAnswer:
        """Wait for the next order, on any thread; see `ParticipantDriver.wait_order`."""
        try:
            return self._driver.wait_order(self._call.call, self._limit_s)
        except CheckpointError as error:
            error.tainted = self._touched  # who else applied, nobody tells any more
            raise

    def follow(self, order: Candidate | Apply | RestoreAnswer) -> None:
        """Carry out an order, on the thread that may touch live state; raise if all failed."""
        match order:
            case Candidate():
                self._sha256 = None if order.unverified else order.manifest_sha256
                self._checked = _vote_on(self._driver, order, self._storage, self._targets)
            case Apply() if self._checked is not None:
                self._touched = True
                self._cause = _apply(self._driver, order, self._checked, self._teller)
            case protocol.Restored():
                checked = self._checked
                assert checked is not None, "nobody restores what this participant rejected"
                self.ended = True
                self.restored = Restored(
                    step=order.step,
                    path=f"{self._root}/{step_name(order.step)}",
                    report=checked.decisions.report,
                    incarnation=order.incarnation,
                    skipped=order.skipped,
                    fresh=checked.decisions.fresh,
                    manifest_sha256=self._sha256,
                    unverified=order.unverified,
                )
            case Fresh():
                self.ended = True
            case RestoreFailed():
                raise restore_error(order, self._call.step, self._checked) from self._cause


def _vote_on(
    driver: ParticipantDriver, order: Candidate, storage: Storage, targets: Targets
) -> CheckedStep | CheckedFolder | None:
    check = check_folder if order.unverified else check_candidate
    try:
        with collection_paused(), outside_inference_mode():
            checked = check(storage, order, targets)
    except Exception as error:
        _log_unexpected(error, "checking")
        driver.vote(Rejected(order.call, order.round, touched=False, cause=failure_of(error)))
        return None
    decisions = checked.decisions
    driver.vote(Checked(order.call, order.round, decisions.left(), dict(decisions.report)))
    return checked


def _apply(
    driver: ParticipantDriver, order: Apply, checked: CheckedStep | CheckedFolder, teller: Teller
) -> BaseException | None:
    """Apply and vote; return what a component raised, which does not travel."""

    def check_cancelled() -> None:
        if driver.restore_ended(order.call):
            raise RestoreGivenUp("restore: given up: it has failed already, elsewhere")

    try:
        with outside_inference_mode():
            checked.apply(check_cancelled, teller.count)
    except RestoreGivenUp:
        return None  # the answer is here
    except Exception as error:
        _log_unexpected(error, "applying")
        driver.vote(Rejected(order.call, order.round, touched=True, cause=failure_of(error)))
        return error.__cause__ or error
    except BaseException as error:  # interrupted: the others need not wait for the deadline
        driver.vote(Rejected(order.call, order.round, touched=True, cause=failure_of(error)))
        raise
    teller.tell()
    driver.vote(Applied(order.call, order.round))
    return None


def _log_unexpected(error: Exception, doing: str) -> None:
    """Keep the traceback of what a user's component raised; only its message travels."""
    cause = error.__cause__ if isinstance(error, ParticipantFailed) else error
    if not isinstance(cause, (CheckpointError, OSError)):
        _log.error("stepseal: restore, %s: %s", doing, error, exc_info=cause)


def restore_error(
    order: RestoreFailed, step: int | None, checked: CheckedStep | CheckedFolder | None = None
) -> CheckpointError:
    """Return the error that a failed restore raises on all participants.

    Args:
        order: why it failed.
        step: the step that was asked for.
        checked: the candidate as it was checked here, if it was.
    """
    details, message = details_of(order.cause, order.failures), order.message
    if order.left and checked is not None:  # the coordinator knows numbers, not names
        details["problems"] = checked.decisions.nobody_takes(order.left)
        if details["problems"]:
            message = f"{message} Left over: {listed(details['problems'], '; ')}."
    return error_from(
        order.kind,
        message,
        step=step,
        **details,
        reasons=order.reasons,
        failures=messages_of(order.failures),
        tainted=order.tainted,
    )
