"""Reads the contents of a root: its format marker and its commits, with their problems; read-only.

Discovery uses only canonical step names and manifests. A folder without a manifest, an index file
or `latest` does not make a step.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from stepseal.errors import (
    CheckpointError,
    Corrupt,
    IncompatibleFormat,
    RootNotFound,
    StepNotFound,
    StorageUnavailable,
)
from stepseal.layout import (
    CONTROL,
    FORMAT_VERSION,
    MANIFEST,
    MARKER,
    MAX_MANIFEST_BYTES,
    Area,
    Manifest,
    StepRef,
    decode_manifest,
    manifest_digest,
    parse_step_name,
    unseal,
)
from stepseal.storage import KeyNotFound, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.storage import Entry, Storage

__all__ = [
    "StepEntry",
    "StepState",
    "list_foreign",
    "list_steps",
    "look_again",
    "read_folder",
    "read_marker",
    "read_step",
    "refuse_newer",
    "step_numbers",
]

T = TypeVar("T")

StepState: TypeAlias = Literal["committed", "damaged", "newer", "foreign"]
"""What a folder with the name of a step holds; see `StepEntry.state`."""

_LOOKS = 16
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MAX_MARKER_BYTES = 4096
_STEP_LIKE = re.compile(r"step|ckpt|checkpoint|iter|epoch|global_step", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StepEntry:
    """One folder with the canonical name of a step, or of a publication."""

    step: int
    state: StepState
    """`damaged`: stepseal wrote it, but its manifest is missing, unreadable or not its own.
    `newer`: a newer format version wrote it; nothing more is known.
    `foreign`: another library or another run wrote it (for another run, `manifest` is set), or it
    was moved here from the other area."""
    problem: str = ""
    """Why it is not `committed`."""
    manifest: Manifest | None = None
    manifest_sha256: str = ""
    area: Area = Area.STEPS

    @property
    def is_commit(self) -> bool:
        """True if stepseal committed it, in any run; it may be damaged now."""
        return self.state != "foreign" or self.manifest is not None

    @property
    def name(self) -> str:
        """Key of the folder."""
        return self.area.key(self.step)

    def ref(self) -> StepRef:
        """Return the reference that a later step uses to name this one as its parent."""
        assert self.manifest is not None
        return StepRef(self.step, self.manifest_sha256, self.manifest.incarnation)


def read_marker(storage: Storage, root: str = "root") -> str:
    """Return the run id of a root.

    Args:
        storage: the root.
        root: its path, for messages.

    Raises:
        RootNotFound: there is neither a format marker nor a step.
        IncompatibleFormat: the root was made by a newer format version.
        Corrupt: the marker is damaged, or missing although there are steps.
    """
    data = _marker_bytes(storage)
    if data is None:
        commits = [entry for entry in list_steps(storage) if entry.is_commit]
        # a job may have started on this root since the first read
        data = _marker_bytes(storage) if commits else None
        if data is None:
            raise _unmarked(root, commits)
    try:
        value = unseal(data, what=MARKER, max_bytes=_MAX_MARKER_BYTES)
    except Corrupt as error:
        raise Corrupt(
            f"{MARKER} is damaged: {'; '.join(error.problems)}. Steps are not touched; restore the "
            "marker from a backup, or save into another root.",
            path=MARKER,
            problems=error.problems,
        ) from error
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
    if (
        type(version) is not int  # True == 1 == 1.0
        or version != FORMAT_VERSION
        or not isinstance(value, dict)
        or value.keys() != {"format_version", "run_id"}
        or not isinstance(run_id, str)
        or not _RUN_ID.fullmatch(run_id)
    ):
        raise Corrupt(
            f"{MARKER}: expected format_version {FORMAT_VERSION} and a 32-digit run_id, found "
            f"{value!r:.200}. Steps are not touched; restore the marker from a backup or from any "
            "manifest's run_id.",
            path=MARKER,
        )
    return run_id


def _marker_bytes(storage: Storage) -> bytes | None:
    try:
        return read_bytes(storage, MARKER, _MAX_MARKER_BYTES)
    except KeyNotFound:
        return None


def _unmarked(root: str, commits: Sequence[StepEntry]) -> CheckpointError:
    """Return the error for a root without a marker; a new run id would make its steps foreign."""
    if not commits:
        return RootNotFound(
            f"{root} has no {MARKER}: expected a stepseal root. Nothing was ever saved here, or "
            "the path is wrong, or it is the folder of a step: stepseal.open_step reads that.",
            path=MARKER,
        )
    run_ids = sorted({entry.manifest.run_id for entry in commits if entry.manifest is not None})
    return Corrupt(
        f"{root} has steps up to {commits[-1].name} ({len(commits)} in all), but no {MARKER}: "
        f"expected it, with the run id of the steps ({', '.join(run_ids) or 'not known'}). Restore "
        "the file from a backup, or save into another root.",
        path=MARKER,
        expected=tuple(run_ids),
    )


def read_step(
    storage: Storage, step: int, run_id: str | None, area: Area = Area.STEPS
) -> StepEntry:
    """Return what the folder of a step holds; damage is reported in the entry, not raised.

    Args:
        storage: the root.
        step: step number, or version.
        run_id: run that the manifest must name; None accepts any.
        area: where it lies.

    Raises:
        StepNotFound: there is no folder of that name.
        StorageUnavailable: the storage refused to read it.
    """
    name = area.key(step)
    try:
        return read_folder(storage, name, step, run_id, area)
    except KeyNotFound as error:
        raise StepNotFound(
            f"{area.noun} {step}: expected {name} in this root, found no such entry. "
            "`stepseal ls` lists the contents of the root.",
            step=step,
            path=name,
        ) from error


def read_folder(
    storage: Storage, key: str, step: int, run_id: str | None, area: Area = Area.STEPS
) -> StepEntry:
    """Return what a folder holds that is, or was, at the final name of a step.

    Args:
        storage: the root.
        key: the folder.
        step: step number, or version, that the manifest must name.
        run_id: run that the manifest must name; None accepts any.
        area: where the folder is, or was.

    Raises:
        KeyNotFound: there is no folder of that name.
        StorageUnavailable: the storage refused to read it.
    """
    found = None
    with suppress(KeyNotFound):
        found = _judge_file(storage, key, step, run_id, area)
    if found is not None and found.state != "damaged":
        return found
    entry = storage.stat(key)
    if entry.kind != "directory":
        problem = f"expected a directory, found a {entry.kind}"
        return StepEntry(step, "foreign", problem, area=area)
    return found or _without_manifest(storage, key, step, run_id, area)


def _without_manifest(
    storage: Storage, key: str, step: int, run_id: str | None, area: Area
) -> StepEntry:
    try:
        ours = storage.stat(f"{key}/parts").kind == "directory"
    except KeyNotFound:
        storage.stat(key)  # raises if the folder was moved away meanwhile
        ours = False
    except Corrupt as error:  # the folder was swapped for something else meanwhile
        return StepEntry(step, "foreign", str(error), area=area)
    if not ours:
        problem = "not written by stepseal (no manifest, no parts)"
        return StepEntry(step, "foreign", problem, area=area)
    with suppress(KeyNotFound):  # a prune may have moved the folder away and back meanwhile
        return _judge_file(storage, key, step, run_id, area)
    return StepEntry(step, "damaged", f"{MANIFEST} is missing", area=area)


def _judge_file(storage: Storage, key: str, step: int, run_id: str | None, area: Area) -> StepEntry:
    """Judge a folder by its manifest; raise KeyNotFound if it has none."""
    try:
        data = read_bytes(storage, f"{key}/{MANIFEST}", MAX_MANIFEST_BYTES)
    except Corrupt as error:
        return StepEntry(step, "damaged", str(error), area=area)
    return _judge(step, data, run_id, area)


def _judge(step: int, data: bytes, run_id: str | None, area: Area) -> StepEntry:
    try:
        manifest = decode_manifest(data)
    except IncompatibleFormat as error:
        return StepEntry(step, "newer", str(error), area=area)
    except CheckpointError as error:
        return StepEntry(step, "damaged", str(error), area=area)
    if manifest.kind != area.kind:
        problem = f"the folder of {manifest.key}, moved or copied here"
        return StepEntry(step, "foreign", problem, area=area)
    if manifest.step != step:
        problem = (
            f"{MANIFEST} is of {area.noun} {manifest.step}: the folder was renamed or the file "
            "replaced"
        )
        return StepEntry(step, "damaged", problem, area=area)
    if run_id is not None and manifest.run_id != run_id:
        problem = f"belongs to run {manifest.run_id}"
        return StepEntry(step, "foreign", problem, manifest, area=area)
    return StepEntry(step, "committed", "", manifest, manifest_digest(data), area)


def refuse_newer(entry: StepEntry) -> None:
    """Raise if a newer release wrote this step; it may be good, so it is never skipped.

    Raises:
        IncompatibleFormat: the step's format version is newer than this release.
    """
    if entry.state == "newer":
        raise IncompatibleFormat(
            f"{entry.name}: {entry.problem} To use an older step, pass its number.",
            step=entry.step,
            path=entry.name,
        )


def step_numbers(storage: Storage, area: Area = Area.STEPS) -> list[int]:
    """Return the number of every entry with a canonical name, ascending; reads no manifest."""
    try:
        entries = storage.list_dir(area.folder)
    except (KeyNotFound, Corrupt):
        if not area.folder:
            raise
        return []  # nothing was published, whatever has the name of the folder
    found = (area.parse(entry.name) for entry in entries)
    return sorted(step for step in found if step is not None)


def list_steps(
    storage: Storage, run_id: str | None = None, area: Area = Area.STEPS
) -> tuple[StepEntry, ...]:
    """Return every entry with a canonical name, in the order of their numbers.

    If a listed step vanishes, the root is listed again: a prune removed it because of a newer step,
    which the first listing may lack. So a root with steps never looks empty.

    Args:
        storage: the root.
        run_id: run that the manifests must name; None accepts any.
        area: which ones.

    Raises:
        StorageUnavailable: the storage refused to list or read, or steps vanished on each try.
    """

    def look() -> tuple[StepEntry, ...]:
        numbers = step_numbers(storage, area)
        return tuple(read_step(storage, step, run_id, area) for step in numbers)

    return look_again(look)


def look_again(look: Callable[[], T]) -> T:
    """Return what `look` finds; list and look again if a listed step vanished meanwhile.

    Raises:
        StorageUnavailable: steps vanished on each try.
    """
    for _ in range(_LOOKS):
        with suppress(StepNotFound):  # removed between the listing and the look
            return look()
    raise StorageUnavailable(
        f"root: in each of {_LOOKS} tries, a step vanished after it was listed. Is another process "
        "moving step folders away? Wait until it ends, and try again."
    )


def list_foreign(storage: Storage) -> tuple[Entry, ...]:
    """Return entries that look like checkpoints of other libraries; never changed or resumed."""
    return tuple(
        entry
        for entry in storage.list_dir("")
        if _STEP_LIKE.search(entry.name)
        and parse_step_name(entry.name) is None
        and entry.name not in (MARKER, CONTROL)
    )
