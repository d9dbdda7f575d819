"""Attempts in staging, for people: saves in flight, and what others left over; changes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stepseal.steps._attempts import NONCE
from stepseal.steps._claims import highest_claim
from stepseal.steps._folders import FolderName, parse_folder
from stepseal.steps._owners import host_of, lives
from stepseal.steps._roots import STAGING
from stepseal.storage import KeyNotFound, read_bytes, walk_files

if TYPE_CHECKING:
    from stepseal.layout import Area
    from stepseal.storage import Entry, Storage

__all__ = ["MAX_NONCE_BYTES", "Unfinished", "list_unfinished"]

MAX_NONCE_BYTES = 512


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An attempt that is not committed."""

    step: int
    """Number of the step, or version of the publication."""
    area: Area
    incarnation: int
    attempt: str
    state: Literal["in flight", "left over", "unclear"]
    """`in flight`: its coordinator lives and owns the root. `left over`: it does not; the next
    start of the job removes it. `unclear`: its coordinator is on another host or in another
    container."""
    host: str
    """Of its coordinator; empty where nobody knows."""
    size_bytes: int
    """Bytes of its files so far."""
    age_s: float | None
    """Seconds since it began, and since a file last changed, by the clocks of this host and of the
    file system; None where the file system does not tell."""
    idle_s: float | None


def list_unfinished(storage: Storage) -> tuple[Unfinished, ...]:
    """Return all attempts in staging, in the order of their steps.

    Raises:
        StorageUnavailable: the storage refused.
    """
    try:
        entries = storage.list_dir(STAGING)
    except KeyNotFound:
        return ()
    newest = highest_claim(storage)
    found = []
    for entry in entries:
        name = parse_folder(entry.name, None)
        if name is None or name.moved_at_s is not None or entry.kind != "directory":
            continue
        try:
            found.append(_look(storage, f"{STAGING}/{entry.name}", name, newest))
        except KeyNotFound:
            continue  # it was committed or removed meanwhile
    return tuple(sorted(found, key=lambda one: (one.area.name, one.step, one.incarnation)))


def _look(storage: Storage, key: str, name: FolderName, newest: int) -> Unfinished:
    files = dict(walk_files(storage, key))
    owner = _owner(storage, key)
    seen = lives(owner) if name.incarnation >= newest else False
    state: Literal["in flight", "left over", "unclear"] = "in flight" if seen else "left over"
    if seen is None:
        state = "unclear"
    changed = max((one.modified_ns for one in files.values()), default=0)
    return Unfinished(
        name.step,
        name.area,
        name.incarnation,
        name.attempt,
        state,
        host_of(owner),
        sum(one.size_bytes for one in files.values() if one.kind == "file"),
        _since(_began_ns(files)),
        _since(changed),
    )


def _owner(storage: Storage, key: str) -> str:
    """Return the text that names the owner; the nonce goes when the attempt is published."""
    try:
        text = read_bytes(storage, f"{key}/{NONCE}", MAX_NONCE_BYTES).decode("ascii", "replace")
    except KeyNotFound:
        return ""
    return text.partition(" ")[2]


def _began_ns(files: dict[str, Entry]) -> int:
    """Return when the oldest file was written, which is the nonce while there is one."""
    return min((one.modified_ns for one in files.values()), default=0)


def _since(at_ns: int) -> float | None:
    return max(0.0, time.time() - at_ns / 1e9) if at_ns else None
