"""Saves that a participant makes by itself, each in a named slot: `save_async` and `save_sync`.

A slot is a component: its name is that of the component. Invariants: two saves of one slot never
overlap; a save that failed here is raised once, by the next call; one that failed elsewhere is told
to the coordinator's user, and only logged here.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from stepseal.actors._roster import check_roster
from stepseal.errors import InvalidInput, ParticipantFailed
from stepseal.layout import check_component_name, check_step
from stepseal.process import start_thread
from stepseal.protocol import ask_save
from stepseal.session import GatedPart

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.components import Topology
    from stepseal.session import Wiring

    SaveFn = Callable[[str], object]

__all__ = ["Slots"]

_log = logging.getLogger("stepseal")


class Slots:
    """The slots of one participant.

    Args:
        topology: its role.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._lock = threading.Lock()
        self._parts: dict[int, GatedPart] = {}
        """Call to what is written for it."""
        self._threads: dict[str, threading.Thread] = {}
        self._errors: list[Exception] = []
        """What writers met before they had a call."""

    def save_async(self, wiring: Wiring, name: str, save_fn: SaveFn, step: int) -> None:
        """See `Participant.save_async`."""
        self._begin(name, step)

        def run() -> None:
            try:
                self._save(wiring, name, save_fn, step)
            except Exception as error:
                self._errors.append(error)

        label = f"stepseal-save-{name}-{step}"
        thread = threading.Thread(target=run, name=label, daemon=True)
        try:
            start_thread(thread)
        except ParticipantFailed as error:
            part = self._part(wiring, name, step)
            if part is not None:
                part.failed(name, error)
            self._raise_failures()
            raise
        self._threads[name] = thread

    def save_sync(self, wiring: Wiring, name: str, save_fn: SaveFn, step: int) -> None:
        """See `Participant.save_sync`."""
        self._begin(name, step)
        self._save(wiring, name, save_fn, step)
        self._raise_failures()

    def wait_all(self) -> None:
        """See `Participant.wait_all`."""
        for thread in list(self._threads.values()):
            thread.join()
        self._threads.clear()
        for part in self._held():
            part.wait_prepared()
        self._raise_failures()

    def end(self, limit_s: float) -> None:
        """Wait for all saves within a limit, and log what nobody saw."""
        thread = threading.Thread(target=self._finish, name="stepseal-slots-end", daemon=True)
        try:
            start_thread(thread)
        except ParticipantFailed:  # then until they have ended
            self._finish()
        else:
            thread.join(limit_s)
        if thread.is_alive():
            names = ", ".join(n for n, one in self._threads.items() if one.is_alive()) or "parts"
            _log.error(
                "stepseal: %s: %s still being written %g s after close(): given up",
                self._topology.me,
                names,
                limit_s,
            )
        self._parts.clear()

    def _finish(self) -> None:
        while True:
            try:
                self.wait_all()
            except Exception as error:
                _log.error("stepseal: %s: %s", self._topology.me, error)
            else:
                return

    def _begin(self, name: str, step: int) -> None:
        check_component_name(name)
        check_step(step)
        earlier = self._threads.pop(name, None)
        if earlier is not None:
            earlier.join()
        self._raise_failures()

    def _save(self, wiring: Wiring, name: str, save_fn: SaveFn, step: int) -> None:
        part = self._part(wiring, name, step)
        if part is None:
            return
        try:
            folder = part.folder(name)
            if folder is None:
                part.stopped()
                return
            save_fn(folder)
        except BaseException as error:
            part.failed(name, error)
            if not isinstance(error, Exception):
                raise  # interrupted
        else:
            part.returned(name)

    def _part(self, wiring: Wiring, name: str, step: int) -> GatedPart | None:
        """Return what is written for the step, and take the slot in it; None if it is too late."""
        granted = ask_save(wiring.driver, step, name)
        if granted is None:
            return None
        with self._lock:
            part = self._parts.get(granted.call)
            if part is None:
                part = self._parts[granted.call] = GatedPart(granted, self._topology, wiring)
        if not part.take(name):
            raise InvalidInput(
                f"save of step {step}: {self._topology.me}: component {name} was saved for this "
                "step before, and the step is not decided: each save counts once.",
                step=step,
                component=name,
            )
        try:
            check_roster(self._topology, granted.participants)
        except InvalidInput as error:
            part.failed(name, error)
            return None
        return part

    def _held(self) -> list[GatedPart]:
        with self._lock:
            return list(self._parts.values())

    def _raise_failures(self) -> None:
        """Raise the first failure that nobody saw; forget what is settled."""
        if self._errors:
            raise self._errors.pop(0)
        for part in self._held():
            if part.cause is None and not part.is_settled:
                continue
            failure = part.own_failure()
            if part.is_idle:
                with self._lock:
                    self._parts.pop(part.call, None)
                part.forget()
            if failure is not None:
                raise failure from part.cause
