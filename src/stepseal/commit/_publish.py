"""One attempt on POSIX storage: staging, the commit point, and what happens to whatever stood there
before.

Order of a commit: all parts checked -> index and manifest written and synced -> staging synced ->
still the current incarnation, deadline not passed -> rename (or exchange) -> root synced. The
rename is the commit point. Nothing is overwritten in place and nothing that was committed is
deleted here.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stepseal.commit._catalog import StepEntry, read_step
from stepseal.commit._claims import check_current, in_lineage, lineage_limits, read_claims
from stepseal.commit._roots import STAGING, SUPERSEDED, TRASH
from stepseal.errors import CommitTimeout, Corrupt, StepExists, StepNotFound, StorageUnavailable
from stepseal.layout import MANIFEST, encode_manifest, manifest_digest, step_name
from stepseal.storage import KeyExists, KeyNotFound, create_durable, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.layout import Manifest
    from stepseal.storage import Storage

__all__ = [
    "NONCE",
    "Finisher",
    "PublishUnconfirmed",
    "begin",
    "discard",
    "publish",
    "supersedable",
    "sweep",
]

NONCE = ".nonce"


class PublishUnconfirmed(StorageUnavailable):
    """The step was renamed into place, but the root could not be synced: whether it survives power loss is open."""

    kind = "publish_unconfirmed"


class Finisher(Protocol):
    """The part of a commit that knows what the bytes mean; wired in by the session."""

    def finish(self, storage: Storage, staging: str, draft: Manifest) -> Manifest:
        """Write and sync the coordinator's own files, and return the manifest that lists them."""
        ...

    def inspect(
        self, storage: Storage, key: str, manifest: Manifest, *, exact: bool
    ) -> Sequence[str]:
        """Return what is wrong with the step's files (sizes, kinds, coverage); empty when all is
        well.

        Args:
            storage: the root.
            key: the step's folder, in staging or in its place.
            manifest: what must be there.
            exact: files that the manifest does not list are wrong, too (they are ignored by
                readers).
        """
        ...


@dataclass(frozen=True, slots=True)
class Staging:
    """A new attempt's folder."""

    key: str
    nonce: str


def staging_key(step: int, incarnation: int, attempt: str) -> str:
    """Return the key of an attempt's staging folder."""
    return f"{STAGING}/{step_name(step)}.{incarnation}.{attempt}"


def begin(storage: Storage, step: int, incarnation: int, attempt: str) -> Staging:
    """Make an attempt's staging folder with a nonce by which participants recognise the same root.

    Durability: the folder's name is durable; the nonce need not be.
    """
    key = staging_key(step, incarnation, attempt)
    nonce = secrets.token_hex(16)
    storage.make_dir(key)
    storage.sync_dir(STAGING)
    create_durable(storage, f"{key}/{NONCE}", nonce.encode())
    return Staging(key, nonce)


def publish(
    storage: Storage,
    staging: str,
    draft: Manifest,
    *,
    finisher: Finisher,
    deadline_passed: Callable[[], bool],
) -> str:
    """Commit a fully prepared attempt; return the manifest's digest.

    Coordinator only, once per attempt, after every participant prepared.

    Args:
        storage: the root.
        staging: the attempt's folder, holding exactly the parts.
        draft: the manifest without the coordinator's own files.
        finisher: writes the index and inspects the files.
        deadline_passed: asked right before the commit point.

    Raises:
        Corrupt: files or coverage are not what the parts say.
        StepExists: a good step of our lineage, or a foreign folder, has this number.
        NotCurrent: a newer incarnation owns the root.
        CommitTimeout: the deadline passed before the commit point.
        PublishUnconfirmed: the commit point was passed, but not confirmed durable.
        StorageUnavailable: the storage refused before the commit point.

    Durability: on return the step survives power loss, where the storage honours sync.
    """
    storage.remove_file(f"{staging}/{NONCE}")
    manifest = finisher.finish(storage, staging, draft)
    problems = tuple(finisher.inspect(storage, staging, manifest, exact=True))
    if problems:
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
    check_current(storage, draft.incarnation)
    if deadline_passed():
        raise CommitTimeout(
            f"save of step {draft.step}: the coordinator's own work took past the deadline. "
            "Nothing was committed; raise Deadlines.commit_s if the storage is this slow.",
            step=draft.step,
        )
    _commit(storage, staging, manifest)
    return manifest_digest(data)


def _commit(storage: Storage, staging: str, manifest: Manifest) -> None:
    target = step_name(manifest.step)
    superseding = False
    try:
        storage.rename(staging, target)
    except KeyExists:
        superseding = not _is_ours(storage, manifest)
    except StorageUnavailable:
        if not _is_ours(storage, manifest):
            raise
    if superseding:
        supersedable(storage, manifest)
        try:
            storage.exchange(staging, target)
        except StorageUnavailable:
            if not _is_ours(storage, manifest):
                raise
    try:
        storage.sync_dir("")
        storage.sync_dir(STAGING)
    except StorageUnavailable as error:
        raise PublishUnconfirmed(
            f"step {manifest.step}: renamed into place, but the root could not be synced: {error}. "
            "The step is visible; whether it survives power loss is not known.",
            step=manifest.step,
            path=target,
            errno=error.errno,
        ) from error
    if superseding:
        _put_aside(storage, staging)


def _is_ours(storage: Storage, manifest: Manifest) -> bool:
    """A rename whose answer was lost did happen if the target carries our attempt."""
    try:
        entry = read_step(storage, manifest.step, None)
    except StepNotFound:
        return False
    return entry.manifest is not None and entry.manifest.attempt == manifest.attempt


def supersedable(storage: Storage, manifest: Manifest) -> StepEntry:
    """Return what stands in the place of a new step, if it may be put aside.

    May be put aside: a step outside the lineage, or one of ours that is damaged.

    Raises:
        StepExists: a good step of our own lineage, or a folder that stepseal did not write.
    """
    entry = read_step(storage, manifest.step, manifest.run_id)
    if entry.state == "foreign":
        raise StepExists(
            f"save of step {manifest.step}: {entry.name} is in the way: {entry.problem}. "
            "It is left alone: move it away, or save into another root.",
            step=manifest.step,
            path=entry.name,
        )
    if entry.state == "committed" and entry.manifest is not None:
        limits = lineage_limits(read_claims(storage))
        if in_lineage(limits, entry.manifest.incarnation, manifest.step):
            raise StepExists(
                f"save of step {manifest.step}: already committed (incarnation "
                f"{entry.manifest.incarnation}, "
                f"attempt {entry.manifest.attempt}). Steps are never overwritten.",
                step=manifest.step,
                path=entry.name,
            )
    return entry


def _put_aside(storage: Storage, staging: str) -> None:
    """Move what was exchanged out of a step's place from staging to the superseded area; best
    effort.

    If this fails or never runs, `sweep` does it later: it recognises the folder by the committed
    attempt.
    """
    name = staging.rsplit("/", 1)[-1]
    with contextlib.suppress(StorageUnavailable):
        storage.rename(staging, f"{SUPERSEDED}/{name}")
        storage.sync_dir(SUPERSEDED)
        storage.sync_dir(STAGING)


def discard(storage: Storage, staging: str) -> None:
    """Remove an aborted attempt's folder: first out of sight, then for good.

    Raises:
        StorageUnavailable: something could not be removed; it lies in the trash or in staging,
        harmless.
    """
    trash = f"{TRASH}/{staging.rsplit('/', 1)[-1]}.{secrets.token_hex(4)}"
    try:
        storage.rename(staging, trash)
    except KeyNotFound:
        return  # never made, or removed by an earlier try
    remove_tree(storage, trash)


def sweep(storage: Storage, incarnation: int) -> tuple[str, ...]:
    """Remove what older incarnations left in staging; return the names that were removed.

    Coordinator only, after its first commit. A folder whose attempt is the one committed under its
    step number holds what that commit superseded (the job died between exchange and putting aside):
    it is kept.

    Raises:
        StorageUnavailable: something could not be listed or removed.
    """
    removed = []
    for entry in storage.list_dir(STAGING):
        step, owner, attempt = _parse_staging(entry.name)
        if owner is None or owner >= incarnation or entry.kind != "directory":
            continue
        key = f"{STAGING}/{entry.name}"
        if _committed_attempt(storage, step) == attempt:
            _put_aside(storage, key)
        else:
            discard(storage, key)
            removed.append(entry.name)
    return tuple(removed)


def _parse_staging(name: str) -> tuple[int, int | None, str]:
    parts = name.split(".")
    if len(parts) != 3 or not parts[1].isdecimal() or not parts[0].startswith("step-"):
        return 0, None, ""
    number = parts[0].removeprefix("step-")
    return (int(number), int(parts[1]), parts[2]) if number.isdecimal() else (0, None, "")


def _committed_attempt(storage: Storage, step: int) -> str | None:
    try:
        entry = read_step(storage, step, None)
    except StepNotFound:
        return None
    return None if entry.manifest is None else entry.manifest.attempt
