"""A step folder (or a publication) that was copied out of its root: read without a root.

All that a reader needs is in the folder. Nobody prunes a copy, so that it needs no lease.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, RootNotFound, StepNotFound
from stepseal.layout import (
    MANIFEST,
    MARKER,
    MAX_MANIFEST_BYTES,
    Area,
    decode_manifest,
    manifest_digest,
)
from stepseal.steps._catalog import StepEntry
from stepseal.steps._open import locate_root, open_store
from stepseal.steps._posix import PosixSteps
from stepseal.steps._reading import Reading
from stepseal.storage import KeyNotFound, read_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

    from stepseal.layout import Manifest
    from stepseal.storage import Storage

__all__ = ["CopiedStep", "is_step_folder", "open_step_folder"]


class _Unleased(Reading):
    """A reading of what nobody takes away: damage is damage."""

    def __enter__(self) -> Self:
        return self

    def require_standing(self) -> None:
        """Return: a copy stands where it is."""


class CopiedStep(PosixSteps):
    """A step folder as a step store of one step, whose key is empty; for readers only.

    Args:
        storage: the folder itself.
        path: its path, for messages.

    Raises:
        StepNotFound: there is no manifest.
        Corrupt: the manifest is damaged.
        IncompatibleFormat: a newer release wrote it.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        super().__init__(storage, path)
        try:
            data = read_bytes(storage, MANIFEST, MAX_MANIFEST_BYTES)
        except KeyNotFound as error:
            raise StepNotFound(
                f"{path}: expected the folder of a step, such as runs/a/step-40, found no "
                f"{MANIFEST} in it.",
                path=path,
            ) from error
        self.manifest = decode_manifest(data)
        found = manifest_digest(data)
        manifest = self.manifest
        self._entry = StepEntry(manifest.step, "committed", "", manifest, found, manifest.area)

    def run_id(self) -> str:
        """Return the run that the step belongs to."""
        return self.manifest.run_id

    def entries(self, run_id: str | None = None, area: Area = Area.STEPS) -> tuple[StepEntry, ...]:
        """Return the one step, or publication."""
        return (self._entry,) if area is self.manifest.area else ()

    def entry(self, step: int, run_id: str | None = None, area: Area = Area.STEPS) -> StepEntry:
        """Return the step if it has this number; StepNotFound otherwise."""
        if step != self.manifest.step or area is not self.manifest.area:
            raise StepNotFound(
                f"{area.noun} {step}: expected a root, found the folder of {self._entry.name} "
                "alone.",
                step=step,
            )
        return self._entry

    def newest(self, run_id: str) -> StepEntry | None:
        """Return the step; None for a publication."""
        return self._entry if self.manifest.area is Area.STEPS else None

    def lineage_limits(self) -> dict[int, int | None]:
        """Return a lineage of this step."""
        return {self.manifest.incarnation: None}

    def reading(self, manifest: Manifest) -> Reading:
        """Return what reads the step without a lease."""
        return _Unleased(self.storage, manifest)


def is_step_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a path looks like the folder of a step: it has a manifest, and is no root."""
    place = locate_root(path)
    return os.path.lexists(os.path.join(place, MANIFEST)) and not os.path.lexists(
        os.path.join(place, MARKER)
    )


def open_step_folder(path: str | os.PathLike[str]) -> tuple[PosixSteps, Manifest, str]:
    """Return a store that holds the step of a folder, its manifest, and the folder's key there.

    In its own root the step is read as one of the root's, under a lease; anywhere else as a copy.

    Raises:
        StepNotFound: there is no such folder, or no manifest in it.
        Corrupt, IncompatibleFormat: of the manifest.
    """
    place = locate_root(path, "step folder")
    try:
        copied = CopiedStep(open_store(place).storage, place)
    except RootNotFound as error:
        raise StepNotFound(f"{place}: no such folder.", path=place) from error
    manifest = copied.manifest
    key = manifest.key
    if place.endswith(f"{os.sep}{key.replace('/', os.sep)}"):
        try:
            steps = open_store(place[: -len(key) - 1] or os.sep)
            if steps.run_id() == manifest.run_id:
                return steps, manifest, key
        except CheckpointError:  # no root, or none that can say anything about the folder
            pass
    return copied, manifest, ""
