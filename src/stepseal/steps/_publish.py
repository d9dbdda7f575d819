"""The commit of one attempt on POSIX storage, and what becomes of whatever stood in its place.

Order: all parts checked -> index and manifest written and synced -> staging synced -> still the
current incarnation, deadline not passed -> rename (or exchange) -> root synced. The rename is the
commit point. Where the file system has no exchange, what stands in the way is first moved to the
superseded area: it is damaged or outside the lineage, so a crash before the rename loses nothing
that counts. Nothing is overwritten in place and nothing that was committed is deleted here. An
answer that is an error is never believed: storage is read, and where it does not tell, the outcome
is unknown.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Protocol

from stepseal.errors import CommitTimeout, Corrupt, OutcomeUnknown, StepExists, StorageUnavailable
from stepseal.layout import MANIFEST, encode_manifest, manifest_digest, step_name
from stepseal.steps._attempts import NONCE, aside_key, attempt_at, put_aside, to_trash
from stepseal.steps._catalog import read_folder
from stepseal.steps._claims import check_current, in_lineage, lineage_limits, read_claims
from stepseal.steps._roots import STAGING, SUPERSEDED
from stepseal.storage import (
    KeyExists,
    KeyNotFound,
    NotSupported,
    create_durable,
    exists,
    remove_tree,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.layout import Manifest
    from stepseal.storage import Storage

__all__ = ["Indexer", "check_place", "publish"]

_REFUSALS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EINVAL,
        errno.ENOSPC,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EPERM,
        errno.EROFS,
        errno.EXDEV,
    }
)
"""Answers that say that a rename was not carried out and never will be."""


class Indexer(Protocol):
    """The part of a commit that knows what the bytes mean; wired in by the session."""

    def write_index(self, storage: Storage, staging: str, draft: Manifest) -> Manifest:
        """Write and sync the coordinator's own files, and return the manifest that lists them."""
        ...

    def inspect(
        self, storage: Storage, key: str, manifest: Manifest, *, exact: bool
    ) -> Sequence[str]:
        """Return what is wrong with a step's files (sizes, kinds, coverage), one line each.

        Args:
            storage: the root.
            key: the step's folder, in staging or in its place.
            manifest: what must be there.
            exact: files that the manifest does not list are wrong, too (they are ignored by
                readers).
        """
        ...


def publish(
    storage: Storage,
    staging: str,
    draft: Manifest,
    *,
    indexer: Indexer,
    deadline_passed: Callable[[], bool],
) -> str:
    """Commit a fully prepared attempt; return the manifest's digest.

    Coordinator only, once per attempt, after every participant prepared.

    Args:
        storage: the root.
        staging: the attempt's folder, holding exactly the parts and the nonce.
        draft: the manifest without the coordinator's own files.
        indexer: writes the index and inspects the files.
        deadline_passed: asked right before the commit point, rename or exchange.

    Raises:
        Corrupt: files or coverage are not what the parts say.
        StepExists: a good step of our lineage, or a foreign folder, has this number.
        NotCurrent: a newer incarnation owns the root.
        CommitTimeout: the deadline passed before the commit point.
        OutcomeUnknown: the commit point may have been passed, but is not confirmed durable.
        StorageUnavailable: the storage refused before the commit point.

    Durability: on return the step survives power loss, where the storage honours sync.
    """
    check_current(storage, draft.incarnation)  # a newer one may have swept staging: say so first
    storage.remove_file(f"{staging}/{NONCE}")
    try:
        manifest = indexer.write_index(storage, staging, draft)
        problems = tuple(indexer.inspect(storage, staging, manifest, exact=True))
    except (Corrupt, StorageUnavailable):
        check_current(storage, draft.incarnation)  # then it was swept under us, which says more
        raise
    if problems:
        check_current(storage, draft.incarnation)
        raise Corrupt(
            f"save of step {draft.step}: the parts on storage are not what participants reported: "
            f"{'; '.join(problems[:5])}. Nothing was committed.",
            step=draft.step,
            path=staging,
            problems=problems,
        )
    data = encode_manifest(manifest)
    create_durable(storage, f"{staging}/{MANIFEST}", data)
    storage.sync_dir(staging)

    def last_look() -> None:
        check_current(storage, draft.incarnation)
        if deadline_passed():
            raise CommitTimeout(
                f"save of step {draft.step}: the coordinator's own work took past the deadline. "
                "Nothing was committed; raise Deadlines.commit_s if the storage is this slow.",
                step=draft.step,
            )

    _commit(storage, staging, manifest, last_look)
    return manifest_digest(data)


def check_place(storage: Storage, step: int, run_id: str, *, key: str | None = None) -> None:
    """Raise if what has the number of a new step must stay there.

    May be put aside: a step outside the lineage, or one of ours that is damaged.

    Args:
        storage: the root.
        step: number of the new step.
        run_id: run of the new step.
        key: look here instead, at what was just put out of that place.

    Raises:
        StepExists: a good step of our own lineage, or a folder that stepseal did not write.
    """
    name = step_name(step)
    try:
        entry = read_folder(storage, key or name, step, run_id)
    except KeyNotFound:
        return
    if entry.state in ("foreign", "newer"):
        raise StepExists(
            f"save of step {step}: {name} is in the way: {entry.problem}. It is left alone: move "
            "it away, or save into another root.",
            step=step,
            path=name,
        )
    if entry.state == "damaged" or entry.manifest is None:
        return
    if in_lineage(lineage_limits(read_claims(storage)), entry.manifest.incarnation, step):
        raise StepExists(
            f"save of step {step}: already committed (incarnation {entry.manifest.incarnation}, "
            f"attempt {entry.manifest.attempt}). Steps are never overwritten.",
            step=step,
            path=name,
        )


def _commit(
    storage: Storage, staging: str, manifest: Manifest, last_look: Callable[[], None]
) -> None:
    """Pass the commit point; `last_look` raises if it must not be passed any more."""
    target = step_name(manifest.step)
    superseding = False
    last_look()
    try:
        storage.rename(staging, target)
    except KeyExists:
        superseding = not _is_ours(storage, staging, manifest)
    except StorageUnavailable as error:
        _require_happened(storage, staging, manifest, error)
    if superseding:
        check_place(storage, manifest.step, manifest.run_id)
        last_look()
        superseding = _take_place(storage, staging, manifest, last_look)
    try:
        storage.sync_dir("")
        storage.sync_dir(STAGING)
    except StorageUnavailable as error:
        raise _unconfirmed(manifest, "it stands in its place, but the root", error) from error
    if superseding:
        with contextlib.suppress(StorageUnavailable):  # then `sweep` does it
            put_aside(storage, staging)


def _take_place(
    storage: Storage, staging: str, manifest: Manifest, last_look: Callable[[], None]
) -> bool:
    """Put our folder in the place of what may be superseded; True if that is now in staging."""
    target = step_name(manifest.step)
    try:
        storage.exchange(staging, target)
    except NotSupported:
        _take_place_in_two_moves(storage, staging, manifest)
        return False
    except KeyNotFound as error:
        if _has_left(storage, staging, manifest):  # pruned meanwhile, or moved by hand
            last_look()
            _take_free_place(storage, staging, manifest)
            return False
        _require_happened(storage, staging, manifest, error)
    except StorageUnavailable as error:
        _require_happened(storage, staging, manifest, error)
    _check_displaced(storage, staging, manifest)
    return True


def _has_left(storage: Storage, staging: str, manifest: Manifest) -> bool:
    """Tell whether nothing stands in the step's place any more, and ours is still in staging."""
    try:
        free = not exists(storage, step_name(manifest.step))
        return free and attempt_at(storage, staging) == manifest.attempt
    except StorageUnavailable as error:
        raise _unconfirmed(manifest, f"whether it left {staging}", error) from error


def _take_free_place(storage: Storage, staging: str, manifest: Manifest) -> None:
    """Rename to a place that was just found, or made, free."""
    try:
        storage.rename(staging, step_name(manifest.step))
    except KeyExists:
        if not _is_ours(storage, staging, manifest):
            check_place(storage, manifest.step, manifest.run_id)
            raise
    except StorageUnavailable as error:
        _require_happened(storage, staging, manifest, error)


def _take_place_in_two_moves(storage: Storage, staging: str, manifest: Manifest) -> None:
    """Move out what stands there, durably, look at it once more, and only then rename.

    A crash between the moves leaves no step of this number, which is what counted before, too.
    """
    target = step_name(manifest.step)
    aside = aside_key(staging)
    try:
        storage.rename(target, aside)
    except KeyNotFound:
        pass  # it has left meanwhile, or the answer is a retry's
    except StorageUnavailable:
        if not exists(storage, aside):
            raise
    if exists(storage, aside):
        storage.sync_dir(SUPERSEDED)
        storage.sync_dir("")
        _return_if_good(storage, aside, manifest)
    _take_free_place(storage, staging, manifest)


def _return_if_good(storage: Storage, aside: str, manifest: Manifest) -> None:
    """Move back a good step, committed between the look and the move."""
    try:
        check_place(storage, manifest.step, manifest.run_id, key=aside)
    except StepExists:
        try:
            storage.rename(aside, step_name(manifest.step))
            storage.sync_dir("")
            storage.sync_dir(SUPERSEDED)
        except StorageUnavailable as error:
            raise _unconfirmed(manifest, f"the step it displaced, now {aside},", error) from error
        raise


def _is_ours(storage: Storage, staging: str, manifest: Manifest) -> bool:
    """Tell whether our attempt stands in its step's place: an answer may come from a retry."""
    try:
        return attempt_at(storage, step_name(manifest.step)) == manifest.attempt
    except StorageUnavailable as error:
        raise _unconfirmed(manifest, f"whether it left {staging}", error) from error


def _require_happened(
    storage: Storage, staging: str, manifest: Manifest, error: StorageUnavailable
) -> None:
    """Return if the rename or exchange did happen; raise its error if it never will.

    The server may still carry out a call that was given up. So where it has not happened, our
    folder is first moved away from the name that the call knows.

    Raises:
        OutcomeUnknown: storage does not tell.
        StorageUnavailable: `error`; the folder still has its name only if that was a refusal.
    """
    if _is_ours(storage, staging, manifest):
        return
    if error.errno in _REFUSALS:
        raise error
    try:
        trash = to_trash(storage, staging)
        held = attempt_at(storage, trash)
    except StorageUnavailable as refusal:
        if _is_ours(storage, staging, manifest):
            return
        raise _unconfirmed(manifest, f"whether it left {staging}", refusal) from error
    if held != manifest.attempt:  # exchanged meanwhile: this is what stood there before
        raise _unconfirmed(manifest, f"what it was exchanged for, now {trash},", error) from error
    with contextlib.suppress(StorageUnavailable):
        remove_tree(storage, trash)
    raise error


def _check_displaced(storage: Storage, staging: str, manifest: Manifest) -> None:
    """Undo an exchange that took out a good step, committed between the look and the exchange."""
    try:
        check_place(storage, manifest.step, manifest.run_id, key=staging)
    except StepExists:
        try:
            storage.exchange(staging, step_name(manifest.step))
            storage.sync_dir("")
            storage.sync_dir(STAGING)
        except StorageUnavailable as error:
            raise _unconfirmed(manifest, f"the step it displaced, now {staging},", error) from error
        raise
    except StorageUnavailable as error:
        raise _unconfirmed(manifest, f"what it displaced, now {staging},", error) from error


def _unconfirmed(manifest: Manifest, what: str, error: StorageUnavailable) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"step {manifest.step}: {what} could not be confirmed: {error} The step may be visible; "
        "whether it survives power loss is not known.",
        step=manifest.step,
        path=step_name(manifest.step),
        errno=error.errno,
    )
