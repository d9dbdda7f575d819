"""One participant's share of a restore: check a candidate, touch nothing, then stream it in.

Invariants: nothing live changes before the coordinator's `Apply`; no byte reaches a sink before its
digest matched; the RNG comes last, so that nothing that loads can disturb it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal import protocol
from stepseal.components import SavedComponent, SavedTensor, outside_inference_mode
from stepseal.errors import CheckpointError, Corrupt, InvalidInput
from stepseal.layout import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Sharing,
    check_step,
    decode_manifest,
    manifest_digest,
    payload_owner,
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
    details_of,
    error_from,
    failure_of,
    messages_of,
)
from stepseal.session._saving import collection_paused
from stepseal.session._targets import apply_all, reported
from stepseal.session._unverified import CheckedFolder, check_folder
from stepseal.storage import read_bytes
from stepseal.transfer import ReadRequest, StepReader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from stepseal.components import Component, RestorePlan, Topology
    from stepseal.layout import ComponentEntry, Manifest
    from stepseal.protocol import Deadlines, ParticipantDriver, RestoreCalled
    from stepseal.session._targets import Targets
    from stepseal.storage import Storage

__all__ = ["Restored", "check_choice", "take_part"]

_log = logging.getLogger("stepseal")


class RestoreGivenUp(CheckpointError):
    """The restore failed while this participant was still applying; the coordinator knows why."""

    kind = "restore_given_up"


@dataclass(frozen=True, slots=True)
class CheckedStep:
    """A candidate that fits: what is left is to stream its tensors and to apply the rest."""

    reader: StepReader
    plans: tuple[tuple[Component, RestorePlan], ...]

    def report(self) -> dict[str, str]:
        """Return, per component, what was taken."""
        return {component.name: reported(component, plan) for component, plan in self.plans}

    def apply(self, check_cancelled: Callable[[], None]) -> None:
        """Stream every tensor needed here, then finish each component; changes live state.

        Args:
            check_cancelled: called before every read and every component; raises to give up.

        Raises:
            Corrupt: a digest did not match; live state may hold a mix of old and new by now.
        """
        requests = [
            ReadRequest(stored, sink)
            for component, plan in self.plans
            for key, sink in plan.sinks.items()
            for stored in self.reader.stored(component.name)[key]
        ]
        self.reader.stream(requests, check_cancelled=check_cancelled)
        apply_all(self.plans, check_cancelled)


def check_choice(
    step: int | None, fresh: bool, skip: Collection[str], unverified: bool = False
) -> None:
    """Refuse arguments of `restore` that exclude each other.

    Raises:
        InvalidInput: `step` is no step number, `fresh` comes with `step` or `unverified`, or `skip`
            is one string.
    """
    if step is not None:
        check_step(step)
    if step is not None and fresh:
        raise InvalidInput("restore(step=..., fresh=True): expected one of the two, found both")
    if unverified and fresh:
        raise InvalidInput("restore(unverified=True, fresh=True): expected one of the two")
    if isinstance(skip, str):
        raise InvalidInput(
            f"restore(skip={skip!r}): expected a list of component names, found one string. "
            f"Write skip=[{skip!r}]."
        )


def check_candidate(storage: Storage, candidate: Candidate, targets: Targets) -> CheckedStep:
    """Verify manifest, indexes and trees, and plan how live state takes them; touch nothing.

    Raises:
        Corrupt: bytes do not match their digest, or the manifest is not the chosen one.
        StateMismatch: saved and live state differ; `.problems` lists every difference.
    """
    manifest = _read_manifest(storage, candidate)
    reader = StepReader(storage, step_name(candidate.step), manifest)
    entries = {entry.name: entry for entry in manifest.components}
    plans = targets.plans(
        candidate.step,
        entries,
        lambda one: _saved_component(reader, manifest, entries[one.name], targets.topology),
    )
    return CheckedStep(reader, plans)


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


def _saved_component(
    reader: StepReader, manifest: Manifest, entry: ComponentEntry, topology: Topology
) -> SavedComponent:
    tensors = {}
    if entry.kind == "tensors":
        for key, boxes in reader.stored(entry.name).items():
            first = boxes[0].tensor
            digests = frozenset((box.tensor.box, box.tensor.chunk_digests) for box in boxes)
            tensors[key] = SavedTensor(key, first.dtype, first.shape, digests)
    sharing = Sharing(entry.sharing)
    owner = payload_owner(sharing, entry.payloads, topology.me)
    tree = None
    if owner is not None and reader.has_tree(entry.name, owner):
        tree = reader.read_tree(entry.name, owner)
    return SavedComponent(
        entry.name, entry.kind, sharing, tensors, tree, len(manifest.participants)
    )


@dataclass(frozen=True, slots=True)
class Restored:
    """What `Checkpointer.restore` brought back; the same on all participants."""

    step: int
    path: str
    """Folder of the step."""
    incarnation: int
    """Number of this life of the job."""
    skipped: Mapping[str, str]
    """Newer steps that were passed over, by folder name, each with the reason."""
    report: Mapping[str, str]
    """Component to what was done with it."""
    unverified: bool = False
    """It came from a foreign DCP folder: no digest says that its bytes are what was written."""


def take_part(
    driver: ParticipantDriver,
    call: RestoreCalled,
    storage: Storage,
    root: str,
    targets: Targets,
    deadlines: Deadlines,
) -> Restored | None:
    """Follow the coordinator through one restore; None for a fresh start.

    Raises:
        NoResumableStep, StepNotFound, Corrupt, StateMismatch, ParticipantFailed: as the coordinator
            decided, alike on all participants; `.tainted` of the error tells whether live state was
            changed.
        CoordinatorLost, CommitTimeout: the coordinator is gone, or silent.
    """
    driver.call_restore(call)
    checked: CheckedStep | CheckedFolder | None = None
    cause: BaseException | None = None
    touched = False
    while True:
        try:
            order = driver.wait_order(call.call, deadlines.restore_s)
        except CheckpointError as error:
            error.tainted = touched  # who else applied, nobody tells any more
            raise
        match order:
            case Candidate():
                checked = _vote_on(driver, order, storage, targets)
            case Apply() if checked is not None:
                touched = True
                cause = _apply(driver, order, checked)
            case protocol.Restored():
                path = f"{root}/{step_name(order.step)}"
                report = {} if checked is None else checked.report()
                report |= dict.fromkeys(targets.skip, "left as it was (skip)")
                facts = (order.incarnation, order.skipped, report, order.unverified)
                return Restored(order.step, path, *facts)
            case Fresh():
                return None
            case RestoreFailed():
                raise _failed(order, call) from cause


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
    driver.vote(Checked(order.call, order.round))
    return checked


def _apply(
    driver: ParticipantDriver, order: Apply, checked: CheckedStep | CheckedFolder
) -> BaseException | None:
    """Apply and vote; return what a component raised, which does not travel."""

    def check_cancelled() -> None:
        if driver.restore_ended(order.call):
            raise RestoreGivenUp("restore: given up: it has failed already, elsewhere")

    try:
        with outside_inference_mode():
            checked.apply(check_cancelled)
    except RestoreGivenUp:
        return None  # the answer is here
    except Exception as error:
        _log_unexpected(error, "applying")
        driver.vote(Rejected(order.call, order.round, touched=True, cause=failure_of(error)))
        return error.__cause__ or error
    except BaseException as error:  # interrupted: the others need not wait for the deadline
        driver.vote(Rejected(order.call, order.round, touched=True, cause=failure_of(error)))
        raise
    driver.vote(Applied(order.call, order.round))
    return None


def _log_unexpected(error: Exception, doing: str) -> None:
    """Keep the traceback of what a user's component raised; only its message travels."""
    cause = error.__cause__ or error
    if not isinstance(cause, (CheckpointError, OSError)):
        _log.error("stepseal: restore, %s: %s", doing, error, exc_info=cause)


def _failed(order: RestoreFailed, call: RestoreCalled) -> CheckpointError:
    return error_from(
        order.kind,
        order.message,
        step=call.step,
        **details_of(order.cause, order.failures),
        reasons=order.reasons,
        failures=messages_of(order.failures),
        tainted=order.tainted,
    )
