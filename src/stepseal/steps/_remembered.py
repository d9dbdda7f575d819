"""The steps of a root for one prune after another: a manifest is read again only if it changed.

Every call lists the root and compares the mark of each manifest. What is remembered are facts of a
sound manifest, with the mark that it had before it was read. So a step that was removed, replaced
or damaged since is never taken for what it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt
from stepseal.layout import MANIFEST, Area
from stepseal.steps._catalog import look_again, read_step
from stepseal.storage import KeyNotFound

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from stepseal.steps._catalog import StepEntry, StepState
    from stepseal.storage import Storage

__all__ = ["KnownStep", "RememberedSteps", "StepInfo"]


@dataclass(frozen=True, slots=True)
class StepInfo:
    """The facts about a step that keep rules may use."""

    step: int
    created_at: str = ""
    """UTC, ISO 8601."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KnownStep:
    """What a prune knows of a folder with the name of a step, or of a publication.

    It is small, because a root may hold thousands, for the whole life of a job.
    """

    facts: StepInfo
    state: StepState
    problem: str
    """Why it is not `committed`."""
    area: Area
    incarnation: int = 0
    """This and all below are only known of a committed one."""
    attempt: str = ""
    resumable: bool = False

    @property
    def step(self) -> int:
        """Step number, or version."""
        return self.facts.step


class RememberedSteps:
    """The entries of one area, read again where a manifest changed; used by one thread.

    Args:
        storage: the root.
        run_id: run that the manifests must name.
        area: which ones.
    """

    def __init__(self, storage: Storage, run_id: str, area: Area) -> None:
        self._storage = storage
        self._run_id = run_id
        self._area = area
        self._known: dict[str, tuple[Hashable, KnownStep]] = {}
        """Name of the folder to the mark of its manifest, and what that says."""

    def entries(self) -> tuple[KnownStep, ...]:
        """Return every entry with a canonical name, ascending; see `list_steps`.

        Raises:
            StorageUnavailable: the storage refused to list or read, or steps vanished on each try.
        """
        return look_again(self._look)

    def _look(self) -> tuple[KnownStep, ...]:
        known: dict[str, tuple[Hashable, KnownStep]] = {}
        found = []
        for name, mark in self._marks().items():
            seen = self._known.get(name)
            if seen is None or seen[0] != mark:
                step = self._area.parse(name)
                if step is None:
                    continue
                entry = read_step(self._storage, step, self._run_id, self._area)
                seen = (mark, _known_of(entry))
            if mark is not None and seen[1].state == "committed":
                known[name] = seen
            found.append(seen[1])
        self._known = known
        return tuple(sorted(found, key=lambda one: one.facts.step))

    def _marks(self) -> dict[str, Hashable | None]:
        try:
            return self._storage.list_marks(self._area.folder, MANIFEST)
        except (KeyNotFound, Corrupt):
            if not self._area.folder:
                raise
            return {}  # nothing was published, whatever has the name of the folder


def _known_of(entry: StepEntry) -> KnownStep:
    manifest = entry.manifest
    if manifest is None or entry.state != "committed":
        return KnownStep(StepInfo(entry.step), entry.state, entry.problem, entry.area)
    return KnownStep(
        StepInfo(entry.step, manifest.created_at, manifest.metrics, manifest.tags),
        entry.state,
        entry.problem,
        entry.area,
        manifest.incarnation,
        manifest.attempt,
        manifest.resumable,
    )
