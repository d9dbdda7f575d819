"""What a root holds: its format marker, its steps and what is wrong with them. Reads only, creates
nothing.

Discovery looks at canonical step names and at manifests. Nothing else makes a step: not a folder,
not an index file, not `latest`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stepseal.errors import CheckpointError, Corrupt, IncompatibleFormat, RootNotFound, StepNotFound
from stepseal.layout import (
    CONTROL,
    MANIFEST,
    MARKER,
    MAX_MANIFEST_BYTES,
    Lineage,
    Manifest,
    decode_manifest,
    manifest_digest,
    parse_step_name,
    step_name,
    unseal,
)
from stepseal.storage import KeyNotFound, read_bytes

if TYPE_CHECKING:
    from stepseal.storage import Entry, Storage

__all__ = ["FORMAT_VERSION", "StepEntry", "list_foreign", "list_steps", "read_marker", "read_step"]

FORMAT_VERSION = 1
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MAX_MARKER_BYTES = 4096
_STEP_LIKE = re.compile(r"step|ckpt|checkpoint|iter|epoch|global_step", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StepEntry:
    """One folder with a canonical step name."""

    step: int
    state: Literal["committed", "damaged", "foreign"]
    """`damaged`: stepseal wrote it, but its manifest is missing, unreadable or not its own.
    `foreign`: somebody else wrote it, or another run did."""
    problem: str = ""
    """Why it is not `committed`."""
    manifest: Manifest | None = None
    manifest_sha256: str = ""

    @property
    def name(self) -> str:
        """Folder name."""
        return step_name(self.step)

    def lineage(self) -> Lineage:
        """Return the reference by which a later step names this one as its parent."""
        assert self.manifest is not None
        return Lineage(self.step, self.manifest_sha256, self.manifest.incarnation)


def read_marker(storage: Storage) -> str:
    """Return the run id of a root.

    Raises:
        RootNotFound: there is no format marker.
        IncompatibleFormat: the root was made by a newer format version.
        Corrupt: the marker is damaged.
    """
    try:
        data = read_bytes(storage, MARKER, _MAX_MARKER_BYTES)
    except KeyNotFound as error:
        raise RootNotFound(
            f"root has no {MARKER}: expected a stepseal root. Nothing was ever saved here, or the "
            "path is wrong.",
            path=MARKER,
        ) from error
    value = unseal(data, what=MARKER, max_bytes=_MAX_MARKER_BYTES)
    version = value.get("format_version") if isinstance(value, dict) else None
    run_id = value.get("run_id") if isinstance(value, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise IncompatibleFormat(
            f"{MARKER}: format version {version}: this release reads up to {FORMAT_VERSION}. "
            "Update stepseal to use this root.",
            path=MARKER,
            expected=FORMAT_VERSION,
            found=version,
        )
    if version != FORMAT_VERSION or not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise Corrupt(
            f"{MARKER}: expected format_version {FORMAT_VERSION} and a 32-digit run_id, found "
            f"{value!r:.200}. "
            "Steps are not touched; restore the marker from a backup or from any manifest's "
            "run_id.",
            path=MARKER,
        )
    return run_id


def read_step(storage: Storage, step: int, run_id: str | None) -> StepEntry:
    """Say what the folder of a step holds; damage is an answer, not an error.

    Args:
        storage: the root.
        step: step number.
        run_id: run that the manifest must name; None accepts any.

    Raises:
        StepNotFound: there is no folder of that name.
        StorageUnavailable: the storage refused for a reason other than absence.
    """
    name = step_name(step)
    try:
        entry = storage.stat(name)
    except KeyNotFound as error:
        raise StepNotFound(f"step {step}: not in this root", step=step, path=name) from error
    if entry.kind != "directory":
        return StepEntry(step, "foreign", f"expected a directory, found a {entry.kind}")
    try:
        data = read_bytes(storage, f"{name}/{MANIFEST}", MAX_MANIFEST_BYTES)
    except KeyNotFound:
        return _without_manifest(storage, step)
    except Corrupt as error:
        return StepEntry(step, "damaged", str(error))
    return _judge(step, data, run_id)


def _without_manifest(storage: Storage, step: int) -> StepEntry:
    try:
        ours = storage.stat(f"{step_name(step)}/parts").kind == "directory"
    except KeyNotFound:
        ours = False
    if ours:
        return StepEntry(step, "damaged", f"{MANIFEST} is missing")
    return StepEntry(step, "foreign", "not written by stepseal (no manifest, no parts)")


def _judge(step: int, data: bytes, run_id: str | None) -> StepEntry:
    try:
        manifest = decode_manifest(data)
    except CheckpointError as error:
        return StepEntry(step, "damaged", str(error))
    if manifest.step != step:
        problem = (
            f"{MANIFEST} is of step {manifest.step}: the folder was renamed or the file replaced"
        )
        return StepEntry(step, "damaged", problem)
    if run_id is not None and manifest.run_id != run_id:
        return StepEntry(step, "foreign", f"belongs to run {manifest.run_id}", manifest)
    return StepEntry(step, "committed", "", manifest, manifest_digest(data))


def list_steps(storage: Storage, run_id: str | None = None) -> tuple[StepEntry, ...]:
    """Return every folder with a canonical step name, in step order.

    Raises:
        StorageUnavailable: the storage refused to list or read.
    """
    found = [parse_step_name(entry.name) for entry in storage.list_dir("")]
    return tuple(_read_listed(storage, sorted(s for s in found if s is not None), run_id))


def _read_listed(storage: Storage, steps: list[int], run_id: str | None) -> list[StepEntry]:
    entries = []
    for step in steps:
        try:
            entries.append(read_step(storage, step, run_id))
        except StepNotFound:
            continue  # removed between the listing and the look
    return entries


def list_foreign(storage: Storage) -> tuple[Entry, ...]:
    """Return the entries of the root that look like checkpoints of somebody else; never touched, never resumed."""
    return tuple(
        entry
        for entry in storage.list_dir("")
        if _STEP_LIKE.search(entry.name)
        and parse_step_name(entry.name) is None
        and entry.name not in (MARKER, CONTROL)
    )
