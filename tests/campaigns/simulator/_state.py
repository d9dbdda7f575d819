"""What a disk of the simulation holds, looked at from outside of all processes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tests.campaigns.simulator._parts import (
    engine_file,
    engine_payload_of,
    has_engines,
    is_payload_of,
    listed_in,
    read_part,
)

from stepseal.errors import CheckpointError
from stepseal.layout import MANIFEST, MAX_MANIFEST_BYTES, decode_manifest
from stepseal.storage import read_bytes, walk_files

if TYPE_CHECKING:
    from stepseal.layout import Manifest
    from stepseal.testing import MemoryStorage

__all__ = ["exists", "manifest_at", "wrong_with"]


def manifest_at(disk: MemoryStorage, folder: str) -> Manifest | None:
    """Return the sound manifest in a folder, or None."""
    try:
        return decode_manifest(read_bytes(disk, f"{folder}/{MANIFEST}", MAX_MANIFEST_BYTES))
    except CheckpointError:
        return None


def exists(disk: MemoryStorage, key: str) -> bool:
    """Tell whether anything has this key."""
    try:
        disk.stat(key)
    except CheckpointError:
        return False
    return True


def wrong_with(disk: MemoryStorage, manifest: Manifest) -> str:
    """Return how a commit differs from what its participants wrote for this attempt."""
    step = manifest.step
    try:
        num_files = len(walk_files(disk, manifest.key))
        if num_files != 1 + (2 + has_engines(manifest)) * len(manifest.parts):
            return f"step {step}: {num_files} files for {len(manifest.parts)} parts"
        if has_engines(manifest) and (wrong := _wrong_with_engines(disk, manifest)):
            return f"step {step}: {wrong}"
        for index, part in enumerate(manifest.parts):
            data = read_part(disk, step, manifest, index)
            if not is_payload_of(data, manifest.attempt, part.participant):
                return f"step {step}: {part.participant} has {data!r}, of another attempt"
    except CheckpointError as error:
        return f"step {step}: {error}"
    return ""


def _wrong_with_engines(disk: MemoryStorage, manifest: Manifest) -> str:
    """Return how the files of engines, or the lists of them, differ from what engines wrote."""
    name = manifest.key
    wanted = {engine_file(p): engine_payload_of(manifest.attempt, p) for p in manifest.participants}
    listed = listed_in(disk, name, manifest)
    if listed.keys() != wanted.keys():
        return f"its parts list {sorted(listed)} of the files of engines"
    for path, data in wanted.items():
        found = read_bytes(disk, f"{name}/{path}", MAX_MANIFEST_BYTES)
        if found != data or hashlib.sha256(found).hexdigest() != listed[path]:
            return f"{path} has {found!r}"
    return ""
