"""Whether the saves of a job will find room, on its disk and in memory: told before it trains.

It is told, never raised: sizes are estimated, leftovers of earlier lives are still being swept, and
others may free space in time. What does not fit in the end, the save says for certain.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError
from stepseal.layout import size_text
from stepseal.retention import most_kept
from stepseal.session._saving import collection_paused
from stepseal.steps import in_lineage
from stepseal.transfer import StepReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.components import Registry, Topology
    from stepseal.retention import Retention
    from stepseal.session._inflight import InFlight
    from stepseal.session._reports import Restored
    from stepseal.session._wiring import Wiring
    from stepseal.steps import StepStore
    from stepseal.storage import FreeSpace

__all__ = ["Need", "Room", "judge_room"]

_log = logging.getLogger("stepseal")
_FEW_STEPS = 10
"""A job whose steps all stay is warned if fewer than these still fit."""


@dataclass(frozen=True, slots=True)
class Need:
    """What the steps of a job take up."""

    step_bytes: int
    """Size of a step, at least 1."""
    retention: Retention | None
    unknown: tuple[str, ...] = ()
    """What is not in that size, each with the reason."""

    @property
    def text(self) -> str:
        """The size of a step, in words."""
        size = size_text(self.step_bytes)
        if not self.unknown:
            return f"a step takes about {size}"
        return f"a step takes at least {size}, without {', '.join(self.unknown)}"


def judge_room(
    need: Need, free: FreeSpace, num_older: Callable[[], int], root: str
) -> tuple[bool, str]:
    """Return whether room runs out, and the figures in words.

    Args:
        need: what the steps take up.
        free: what is left.
        num_older: returns how many steps are there that will be pruned for new ones; called only
            where this may decide.
        root: the root, for the text.
    """
    size, left = need.step_bytes, free.size_bytes
    doubts = "".join(f" ({doubt})" for doubt in free.doubts)
    there = f"{size_text(left)} are free in {root}{doubts}"
    rule = None if need.retention is None else need.retention.keep
    kept = None if rule is None else most_kept(rule)
    if kept is None:
        which = "all stay" if rule is None else f"keep={rule} sets no bound to their number"
        text = f"{need.text}, and {which}. {there}: {left // size} more steps fit."
        if left >= _FEW_STEPS * size:
            return False, text
        return True, f"{text} Free space, pass keep=ss.latest(3), or choose another root."
    at_once = (kept + 1) * size  # a step is pruned only after a newer one was committed
    text = f"{need.text}; {rule} and the one that is being written take {size_text(at_once)}"
    if left >= at_once:
        return False, f"{text}. {there}."
    older = num_older() * size
    text = f"{text}. {there}, and older steps that will be pruned hold {size_text(older)}."
    missing = max(at_once - older, size) - left
    if missing <= 0:
        return False, text
    first = "The next step does not fit" if left < size else "Later steps will not fit"
    advice = f"free {size_text(missing)}, keep fewer steps, or choose another root."
    return True, f"{text} {first}: {advice}"


class Room:
    """Tells once in a life of the job, in the log of whoever is concerned."""

    def __init__(self) -> None:
        self._restored_bytes = 0
        """Size of the restored step; 0 if none is known."""
        self._warned = self._informed = self._looked = False

    def say_nothing(self) -> None:
        """Tell nothing: the job saves once."""
        self._warned = self._looked = True

    def restored(
        self, wiring: Wiring, registry: Registry, topology: Topology, found: Restored | None
    ) -> None:
        """Tell after a restore how it is with the disk; every rank calls it.

        After a fresh start, only what exists already is known.
        """
        if self._warned:
            return
        hosts = wiring.coordinator is not None
        if found is not None and not found.unverified:
            if hosts:
                self.of_step(wiring.steps, wiring.retention, found.step)
            return
        with collection_paused():
            size = registry.measure(topology, under_way=False)
        if hosts and size.whole_bytes:
            need = Need(size.whole_bytes, wiring.retention, size.unknown)
            self._tell(wiring.steps, need, only_warn=True)

    def of_step(self, steps: StepStore, retention: Retention | None, step: int) -> None:
        """Tell how it is with the disk, by the size of a committed step."""
        self._restored_bytes = _bytes_of(steps, step)
        if self._restored_bytes:
            self._tell(steps, Need(self._restored_bytes, retention))

    def look_ahead(
        self,
        wiring: Wiring,
        registry: Registry,
        topology: Topology,
        flight: InFlight,
        *,
        stages: bool,
    ) -> None:
        """Tell once training is under way, when all state exists; every rank calls it.

        Args:
            wiring: connections.
            registry: the components.
            topology: who takes part.
            flight: holds the private memory.
            stages: whether saves copy the state.
        """
        if self._looked:
            return
        self._looked = True
        with collection_paused():
            size = registry.measure(topology, under_way=True)
        if stages:
            _tell_memory(size.staged_bytes, topology, flight)
        step_bytes = max(size.whole_bytes, self._restored_bytes if size.unknown else 0)
        if wiring.coordinator is not None and step_bytes:
            self._tell(wiring.steps, Need(step_bytes, wiring.retention, size.unknown))

    def _tell(self, steps: StepStore, need: Need, *, only_warn: bool = False) -> None:
        if self._warned:
            return
        try:
            free = steps.storage.free_space()
            if free is None:
                return
            root = steps.storage.local_path("") or "the root"
            self._warned, text = judge_room(need, free, lambda: _num_older(steps), root)
        except CheckpointError as error:
            text = f"not known: {error}"
        if self._warned:
            _log.warning("stepseal: room: %s", text)
        elif not (self._informed or only_warn):
            self._informed = True
            _log.info("stepseal: room: %s", text)


def _bytes_of(steps: StepStore, step: int) -> int:
    """Return the size of a committed step, 0 if it cannot be read any more."""
    try:
        entry = steps.entry(step)
        if entry.manifest is None:
            return 0
        reader = StepReader(steps.storage, entry.name, entry.manifest)
        return sum(file.size_bytes for file in entry.manifest.files) + reader.parts_bytes()
    except CheckpointError as error:
        _log.info("stepseal: room: the size of step %d is not known: %s", step, error)
        return 0


def _num_older(steps: StepStore) -> int:
    """Return how many steps are there that a keep rule may remove."""
    guards, limits = steps.removal().guards(), steps.lineage_limits()
    manifests = [entry.manifest for entry in steps.entries() if entry.state == "committed"]
    return sum(
        one.resumable
        and in_lineage(limits, one.incarnation, one.step)
        and not guards.reasons(one.step)
        for one in manifests
        if one is not None
    )


def _tell_memory(staged_bytes: int, topology: Topology, flight: InFlight) -> None:
    why = flight.shortage(staged_bytes, topology.num_on_node)
    if why and topology.is_lowest_on_node:
        ranks = f" on each of {topology.num_on_node} ranks" if topology.num_on_node > 1 else ""
        _log.warning(
            "stepseal: room: an asynchronous save copies %s%s, and %s: it will be refused. Use "
            "mode='sync', or raise the limit.",
            size_text(staged_bytes),
            ranks,
            why,
        )
