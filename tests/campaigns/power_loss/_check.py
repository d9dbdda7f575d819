"""What must hold of a root after a power loss, checked hundreds of times a second.

What was verified once is not verified again while its bytes are the same. Torch is used only where
a step with new bytes turns up, and where the job goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.campaigns.harness._lives import Life
from tests.campaigns.harness._log import Event, Log, timelines_of
from tests.campaigns.harness._recovery import (
    Violation,
    check_newest,
    check_step,
    resume_and_save,
    superseded,
    survey_storage,
)

from stepseal import errors
from stepseal.layout import parse_step_name
from stepseal.session import Run, Step
from stepseal.session._indexer import DcpIndexer
from stepseal.steps import PosixSteps, _select
from stepseal.steps._catalog import read_step

if TYPE_CHECKING:
    from tests.campaigns.harness._log import Timeline
    from tests.campaigns.power_loss._disk import Image

    from stepseal.steps import StepEntry
    from stepseal.storage import Storage

__all__ = ["Checker"]

_AREAS = (".stepseal/superseded", ".stepseal/staging", ".stepseal/trash")
_INCARNATIONS = ".stepseal/incarnations"


class _Events(Log):
    """A log in memory."""

    def __init__(self, events: list[Event]) -> None:
        self._events = list(events)

    def add(self, event: Event) -> None:
        """Append one event."""
        self._events.append(event)

    def events(self) -> list[Event]:
        """Return all events, oldest first."""
        return self._events


@dataclass(frozen=True, slots=True)
class _Judged:
    """A folder with a step's name."""

    entry: StepEntry
    violations: tuple[Violation, ...]


class Checker:
    """Remembers what it has seen of one recording.

    Args:
        num_participants: of the job.
        keep: how many of the newest steps it keeps; None: all.
    """

    def __init__(self, num_participants: int, keep: int | None) -> None:
        self._num_participants = num_participants
        self._keep = keep
        self._seen: set[tuple[int, int]] = set()
        self._steps: dict[tuple[int, int], _Judged] = {}
        self._aside: dict[tuple[int, ...], set[tuple[int, object]]] = {}
        self._newest: dict[tuple[int, ...], StepEntry | None] = {}
        self._timelines: tuple[int, list[Timeline]] = (-1, [])
        self._inspect = partial(DcpIndexer().inspect, exact=False)

    def is_new(self, image: Image, events: list[Event]) -> bool:
        """Tell whether this content was not seen yet since the job was last told something."""
        key = (image.signature, len(events))
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def check(self, image: Image, events: list[Event]) -> list[Violation]:
        """Return what a reader, or the next restore, would find wrong."""
        if self._timelines[0] != len(events):
            self._timelines = (len(events), timelines_of(events))
        timelines = self._timelines[1]
        try:
            run = Run(PosixSteps(image.storage), "")
        except errors.RootNotFound:
            return survey_storage(image.storage, events, set(), self._keep)
        except errors.CheckpointError as error:
            return [Violation("damaged", f"marker: {error}")]
        names = [name for name in image.signatures if "/" not in name]
        steps = {step: name for name in names if (step := parse_step_name(name)) is not None}
        judged = [self._judge(run, step, name, image, events) for step, name in steps.items()]
        found = [violation for each in judged for violation in each.violations]
        if found:
            return found
        found += self._check_kept(image, [each.entry for each in judged], events)
        newest = self._select(image, run, tuple(image.signatures[n] for n in steps.values()))
        manifest = None if newest is None else newest.manifest
        latest = None if manifest is None else Step(PosixSteps(image.storage), "", manifest)
        return found + check_newest(latest, timelines)

    def go_on(self, image: Image, events: list[Event]) -> list[Violation]:
        """Let the next incarnation restore and save on the image, then look at all of it again."""
        log = _Events(events)
        life = Life(8, Path(), log, lambda _: image.storage, self._num_participants, self._keep)
        found = resume_and_save(life)
        return found or survey_storage(image.storage, log.events(), set(), self._keep)

    def _judge(self, run: Run, step: int, name: str, image: Image, events: list[Event]) -> _Judged:
        key = (step, image.signatures[name])
        if key not in self._steps:
            entry = read_step(image.storage, step, run.run_id)
            found = [Violation("damaged", f"{name} is {entry.state}: {entry.problem}")]
            if entry.state == "committed":
                found = check_step(run.step(step), events, set())
            self._steps[key] = _Judged(entry, tuple(found))
        return self._steps[key]

    def _check_kept(
        self, image: Image, entries: list[StepEntry], events: list[Event]
    ) -> list[Violation]:
        kept = {(e.step, e.manifest.cut.get("life")) for e in entries if e.manifest is not None}
        told = {(event.step, event.life) for event in events if event.kind == "acknowledged"}
        if told <= kept:
            return []
        key = tuple(image.signatures.get(area, 0) for area in _AREAS)
        if key not in self._aside:
            self._aside[key] = superseded(image.storage)
        return [
            Violation("lost", f"step {step} of life {life} was acknowledged and is nowhere")
            for step, life in sorted(told - kept - self._aside[key])
            if self._keep is None or sum(newer > step for newer, _ in kept) < self._keep
        ]

    def _select(self, image: Image, run: Run, steps: tuple[int, ...]) -> StepEntry | None:
        """Return what a restore would choose."""
        key = (image.signatures.get(_INCARNATIONS, 0), *steps)
        if key not in self._newest:
            storage: Storage = image.storage
            chosen = _select.select(
                storage, run.run_id, step=None, exclude=(), inspect=self._inspect
            )
            self._newest[key] = chosen.entry
        return self._newest[key]
