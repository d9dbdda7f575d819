"""Commits one attempt on POSIX storage, and supersedes an existing step of the same number.

A publication is committed alike, into an area of its own, and supersedes nothing.

Order: check all parts -> write and sync index and manifest -> sync staging -> check that the
incarnation is current and the deadline not passed -> rename (or exchange) -> sync the root. The
rename is the commit point. If the file system has no exchange, the existing step is first moved to
the superseded area. That step is damaged or outside the lineage, so a crash before the rename
loses no step of the lineage. This module never overwrites a file and never deletes a committed
step. If a rename returns an error, the storage is read, because the rename may have happened
anyway. If the storage does not show it, the outcome is unknown.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Protocol

from stepseal.errors import CommitTimeout, Corrupt, OutcomeUnknown, StepExists, StorageUnavailable
from stepseal.layout import MANIFEST, Area, encode_manifest, manifest_digest, step_name
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
"""Errors after which a rename has not happened and never will."""


class Indexer(Protocol):
    """The part of a commit that knows the format of the files; provided by the session."""

    def write_index(self, storage: Storage, staging: str, draft: Manifest) -> Manifest:
        """Write and sync the coordinator's own files, and return the manifest that lists them."""
        ...

    def inspect(
        self, storage: Storage, key: str, manifest: Manifest, *, exact: bool
    ) -> Sequence[str]:
        """Return the problems of a step's files (sizes, kinds, coverage), one line each.

        Args:
            storage: the root.
            key: the step's folder, in staging or at its final name.
            manifest: lists the expected files.
            exact: also report files that the manifest does not list (readers ignore them).
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
        deadline_passed: called right before the commit point; True aborts the commit.

    Raises:
        Corrupt: files or coverage differ from the parts.
        StepExists: a good step of our lineage, or a foreign folder, has this number.
        NotCurrent: a newer incarnation owns the root.
        CommitTimeout: the deadline passed before the commit point.
        OutcomeUnknown: the commit may have happened, but is not confirmed to be durable.
        StorageUnavailable: the storage refused before the commit point.

    Durability: on return the step survives power loss if the storage honours sync.
    """
    check_current(storage, draft.incarnation)  # a newer one may have swept staging: report that
    what = draft.area.title(draft.step)
    storage.remove_file(f"{staging}/{NONCE}")
    try:
        manifest = indexer.write_index(storage, staging, draft)
        problems = tuple(indexer.inspect(storage, staging, manifest, exact=True))
    except (Corrupt, StorageUnavailable):
        check_current(storage, draft.incarnation)  # a newer one swept it: the better error
        raise
    if problems:
        check_current(storage, draft.incarnation)
        raise Corrupt(
            f"{what}: the parts on storage differ from the reported ones: "
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
                f"{what}: the coordinator's own work missed the deadline. "
                "Nothing was committed; raise Deadlines.commit_s if the storage is this slow.",
                step=draft.step,
            )

    _commit(storage, staging, manifest, last_look)
    return manifest_digest(data)


def check_place(storage: Storage, step: int, run_id: str, *, key: str | None = None) -> None:
    """Raise if a new step must not supersede the existing entry with its number.

    It may supersede a step outside the lineage, and a damaged step of this run.

    Args:
        storage: the root.
        step: number of the new step.
        run_id: run of the new step.
        key: check this folder instead, which was just moved away from the step's final name.

    Raises:
        StepExists: the entry is a good step of our lineage, or stepseal did not write it.
    """
    name = step_name(step)
    try:
        entry = read_folder(storage, key or name, step, run_id)
    except KeyNotFound:
        return
    if entry.state in ("foreign", "newer"):
        raise StepExists(
            f"save of step {step}: {name} is in the way: {entry.problem}. It was not changed: move "
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
    """Commit; `last_look` raises if the commit is not allowed any more."""
    area = manifest.area
    superseding = False
    last_look()
    try:
        storage.rename(staging, manifest.key)
    except KeyExists:
        superseding = not _is_ours(storage, staging, manifest)
    except StorageUnavailable as error:
        _require_happened(storage, staging, manifest, error)
    if superseding and area is not Area.STEPS:
        raise _was_published(manifest)
    if superseding:
        check_place(storage, manifest.step, manifest.run_id)
        last_look()
        superseding = _take_place(storage, staging, manifest, last_look)
    try:
        storage.sync_dir(area.folder)
        storage.sync_dir(STAGING)
    except StorageUnavailable as error:
        place = area.folder or "the root"
        raise _unconfirmed(manifest, f"it was renamed, but the sync of {place}", error) from error
    if superseding:
        with contextlib.suppress(StorageUnavailable):  # otherwise `sweep` does it
            put_aside(storage, staging)


def _take_place(
    storage: Storage, staging: str, manifest: Manifest, last_look: Callable[[], None]
) -> bool:
    """Move our folder to the step's final name; True if a superseded step is now in staging."""
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
    """Return whether the step's final name is free now, and our folder still in staging."""
    try:
        free = not exists(storage, step_name(manifest.step))
        return free and attempt_at(storage, staging) == manifest.attempt
    except StorageUnavailable as error:
        raise _unconfirmed(manifest, f"whether it left {staging}", error) from error


def _take_free_place(storage: Storage, staging: str, manifest: Manifest) -> None:
    """Rename our folder to the step's final name, which is known to be free."""
    try:
        storage.rename(staging, step_name(manifest.step))
    except KeyExists:
        if not _is_ours(storage, staging, manifest):
            check_place(storage, manifest.step, manifest.run_id)
            raise
    except StorageUnavailable as error:
        _require_happened(storage, staging, manifest, error)


def _take_place_in_two_moves(storage: Storage, staging: str, manifest: Manifest) -> None:
    """Move the existing entry away, durably, check it once more, and only then rename ours.

    A crash between the moves leaves no step of this number. That is safe, because the moved entry
    is damaged or outside the lineage.
    """
    target = step_name(manifest.step)
    aside = aside_key(staging)
    try:
        storage.rename(target, aside)
    except KeyNotFound:
        pass  # it was moved meanwhile, or the error came from a retry after a success
    except StorageUnavailable:
        if not exists(storage, aside):
            raise
    if exists(storage, aside):
        storage.sync_dir(SUPERSEDED)
        storage.sync_dir("")
        _return_if_good(storage, aside, manifest)
    _take_free_place(storage, staging, manifest)


def _return_if_good(storage: Storage, aside: str, manifest: Manifest) -> None:
    """Move back a good step that was committed between the check and the move."""
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
    """Return whether our attempt is at the step's final name, even if the rename failed."""
    try:
        return attempt_at(storage, manifest.key) == manifest.attempt
    except StorageUnavailable as error:
        raise _unconfirmed(manifest, f"whether it left {staging}", error) from error


def _require_happened(
    storage: Storage, staging: str, manifest: Manifest, error: StorageUnavailable
) -> None:
    """Return if the rename or exchange has happened; raise its error if it never will.

    A server may still carry out a call that has failed. So if it has not happened yet, our folder
    is first moved to another name, where the call cannot find it.

    Raises:
        OutcomeUnknown: storage does not show whether it happened.
        StorageUnavailable: `error`; the folder keeps its name only if the call can never happen.
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
    if held != manifest.attempt:  # exchanged meanwhile: this is the superseded step
        raise _unconfirmed(manifest, f"what it was exchanged for, now {trash},", error) from error
    with contextlib.suppress(StorageUnavailable):
        remove_tree(storage, trash)
    raise error


def _check_displaced(storage: Storage, staging: str, manifest: Manifest) -> None:
    """Undo an exchange that displaced a good step, committed between the check and the exchange."""
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
    noun = manifest.area.noun
    return OutcomeUnknown(
        f"{noun} {manifest.step}: {what} could not be confirmed: {error} The {noun} may be "
        "visible; it is not known whether it survives power loss.",
        step=manifest.step,
        path=manifest.key,
        errno=error.errno,
    )


def _was_published(manifest: Manifest) -> StepExists:
    return StepExists(
        f"{manifest.area.title(manifest.step)}: {manifest.key} appeared while this one was "
        "written. A version is published once. Is another start of the job running? Stop it.",
        step=manifest.step,
        path=manifest.key,
    )
