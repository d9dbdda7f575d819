"""The read side: what a run's root holds, offline; creates, claims and joins nothing."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.layout import Area, check_step
from stepseal.session._step import Publication, Step
from stepseal.session._waiting import PublishedWait
from stepseal.steps import locate_root, open_step_folder, open_store, refuse_newer

if TYPE_CHECKING:
    import os

    from stepseal.layout import Manifest
    from stepseal.steps import ReadSteps, StepEntry

__all__ = ["Run", "open_run", "open_step"]


class Run:
    """All steps and publications of one root, for reading; every call looks anew.

    Made by `open_run`.
    """

    def __init__(self, steps: ReadSteps, root: str) -> None:
        self.root = root
        self.run_id = steps.run_id()
        self._steps = steps
        self._watch = steps.watch_publisher()

    def __repr__(self) -> str:
        """Return where it is; looks at nothing."""
        return f"<Run {self.run_id} at {self.root}>"

    def steps(self) -> tuple[int, ...]:
        """Return the committed steps of this run, ascending."""
        return tuple(e.step for e in self.entries() if e.state == "committed")

    def entries(self) -> tuple[StepEntry, ...]:
        """Return every folder with a step's name, with its state: committed, damaged or foreign."""
        return self._steps.entries(self.run_id)

    def foreign(self) -> tuple[str, ...]:
        """Return names in the root that look like checkpoints of somebody else."""
        return self._steps.foreign()

    def latest(self) -> Step | None:
        """Return the newest step that a restore would choose by lineage, or None."""
        entry = self._steps.newest(self.run_id)
        if entry is None or entry.manifest is None:
            return None
        return Step(self._steps, self.root, entry.manifest)

    def step(self, step: int) -> Step:
        """Return one committed step.

        Raises:
            StepNotFound: it is not there, or not of this run.
            Corrupt: it is there, but its manifest is damaged.
            IncompatibleFormat: a newer release wrote it.
        """
        return Step(self._steps, self.root, self._commit(check_step(step), Area.STEPS))

    def _commit(self, number: int, area: Area) -> Manifest:
        entry = self._steps.entry(number, self.run_id, area)
        refuse_newer(entry)
        what = f"{area.noun} {number}"
        if entry.state == "damaged":
            raise errors.Corrupt(
                f"{what}: {entry.problem}",
                step=number,
                path=entry.name,
                problems=(entry.problem,),
            )
        if entry.state == "foreign" or entry.manifest is None:
            raise errors.StepNotFound(f"{what}: {entry.problem}", step=number, path=entry.name)
        return entry.manifest

    def published(self) -> tuple[int, ...]:
        """Return the versions that are published and sound, ascending."""
        entries = self._steps.entries(self.run_id, Area.PUBLISHED)
        return tuple(entry.step for entry in entries if entry.state == "committed")

    def publication(self, version: int) -> Publication:
        """Return one publication.

        Raises:
            StepNotFound, Corrupt, IncompatibleFormat: see `step`.
        """
        version = check_step(version, "version")
        manifest = self._commit(version, Area.PUBLISHED)
        return Publication(self._steps, self.root, manifest)

    def wait_published(self, min_version: int, timeout_s: float) -> Publication:
        """Wait until `min_version` or a higher one is published; return the newest.

        Looks at the root at growing intervals of up to two seconds. What it returns is whole. Read
        it in a `with` block (`with run.wait_published(7, 60) as found:`), so that it stays until it
        was read.

        Args:
            min_version: lowest version that will do.
            timeout_s: seconds to wait at most.

        Raises:
            WaitTimeout: the time is over; `.found` is the newest version.
            CoordinatorLost: the job that publishes died: it gave no sign of life for 90 s.
            StepNotFound: the job that publishes has finished.
            IncompatibleFormat: a newer release wrote it.
        """
        wait = self._wait(min_version, timeout_s)
        while (found := wait.look()) is None:
            time.sleep(wait.pause_s())
        return self._awaited(found)

    async def wait_published_async(self, min_version: int, timeout_s: float) -> Publication:
        """Do the same on an event loop, without blocking it; see `wait_published`."""
        wait = self._wait(min_version, timeout_s)
        while (found := await asyncio.to_thread(wait.look)) is None:  # noqa: ASYNC110 - of files
            await asyncio.sleep(wait.pause_s())
        return self._awaited(found)

    def _awaited(self, manifest: Manifest) -> Publication:
        found = Publication(self._steps, self.root, manifest)
        return found.or_newer(lambda: self.wait_published(manifest.step, 0.0))

    def _wait(self, min_version: int, timeout_s: float) -> PublishedWait:
        return PublishedWait(self._steps, self.run_id, self._watch, min_version, timeout_s)

    def best(self, metric: str, *, mode: str = "min") -> Step | None:
        """Return the committed step with the best value of a metric, or None where no step has it.

        Args:
            metric: name as given to `save(metrics=...)`; NaN never wins.
            mode: `min` or `max`.

        Raises:
            InvalidInput: `mode` is neither.
        """
        if mode not in ("min", "max"):
            raise errors.InvalidInput(f"mode={mode!r}: expected 'min' or 'max'", found=mode)
        sign = 1.0 if mode == "min" else -1.0
        scored = [
            (sign * value, entry.manifest)
            for entry in self.entries()
            if entry.state == "committed" and entry.manifest is not None
            for value in (entry.manifest.metrics.get(metric),)
            if value is not None and value == value
        ]
        if not scored:
            return None
        return Step(self._steps, self.root, min(scored, key=lambda item: item[0])[1])


def open_run(root: str | os.PathLike[str]) -> Run:
    """Open a root for reading.

    Args:
        root: directory of the run.

    Raises:
        RootNotFound: there is no such directory, or neither a format marker nor a step in it.
        Corrupt: the marker is damaged, or missing although there are steps.
        IncompatibleFormat: it was made by a newer format version.
    """
    path = locate_root(root)
    return Run(open_store(path), path)


def open_step(path: str | os.PathLike[str]) -> Step:
    """Open the folder of one step, or publication, wherever it was copied to, under any name.

    Args:
        path: of the folder.

    Raises:
        StepNotFound: there is no such folder, or no manifest in it.
        Corrupt: the manifest is damaged.
        IncompatibleFormat: a newer release wrote it.
    """
    steps, manifest, key = open_step_folder(path)
    place = locate_root(path)
    root = place[: -len(key) - 1] if key else place
    kind = Publication if manifest.area is Area.PUBLISHED else Step
    return kind(steps, root, manifest, key=key)
