"""An actor of the job that is hit: what it holds, and the traps in which it kills itself.

An actor knows best in which phase it is. So it kills itself, right after it has written where and
when it died; what it sent before is on its way, as its line sends at once.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from zlib import crc32

import torch

import stepseal as ss
from stepseal.actors import _participant
from stepseal.protocol import ParticipantDriver
from stepseal.steps import PosixSteps
from stepseal.storage import LocalStorage
from stepseal.testing import FaultyStorage

if TYPE_CHECKING:
    from stepseal.protocol import BeginSave

__all__ = ["PHASES", "Member", "expected_value", "write_marker"]

PHASES = (
    "before capture",
    "in capture",
    "after Captured",
    "in writing",
    "after Prepared",
    "in publish",
    "in restore",
)
"""In `in publish` the coordinator hits the actor, which waits for the outcome."""
_BYTES = 64 * 1024


def expected_value(participant: str, step: int) -> int:
    """Return what an actor holds at a step: nobody else does, at any step."""
    return crc32(f"{participant}@{step}".encode()) & 0xFFFF


def write_marker(path: str, phase: str) -> None:
    """Write where an actor dies, and when, by the clock that all processes of a host share."""
    Path(path).write_text(json.dumps({"phase": phase, "at": time.monotonic()}), "utf-8")


class Traps:
    """Kills this process in one phase."""

    def __init__(self) -> None:
        self.phase = self.path = ""

    def reach(self, phase: str) -> None:
        """Die here, if this is the phase."""
        if phase == self.phase:
            self._die(phase)

    def _die(self, phase: str) -> NoReturn:
        write_marker(self.path, phase)
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()
        raise AssertionError("unreachable")


TRAPS = Traps()


class Driver(ParticipantDriver):
    """A participant that may die after it has reported."""

    def send_captured(self, *args: Any) -> None:  # noqa: ANN401 - as it is sent
        super().send_captured(*args)
        TRAPS.reach("after Captured")

    def send_prepared(self, *args: Any) -> bool:  # noqa: ANN401 - as it is sent
        sent = super().send_prepared(*args)
        TRAPS.reach("after Prepared")
        return sent


class Participant(ss.Participant):
    """One that may die before it captures."""

    def capture(self, begin: BeginSave) -> None:
        TRAPS.reach("before capture")
        super().capture(begin)


def _open_root(root: str, *_options: object) -> PosixSteps:
    """Open the root; die before what was written is durable."""

    def before(_index: int, operation: str, _key: str) -> None:
        if operation == "sync" and threading.current_thread().name.startswith("stepseal-write"):
            TRAPS.reach("in writing")

    return PosixSteps(FaultyStorage(LocalStorage.create(root), before=before))


def _set_traps() -> None:
    _participant.ParticipantDriver = Driver  # type: ignore[attr-defined]
    _participant.open_late_root = _open_root  # type: ignore[assignment, attr-defined]


class Member:
    """Holds one value, in all of its state."""

    def __init__(self, participant: str, size: int) -> None:
        _set_traps()
        self.id = participant
        role, _, rank = participant.partition("/")
        self.value = 0
        self.tensor = torch.zeros(_BYTES // 8, dtype=torch.int64)
        self.ss = Participant(role, rank=int(rank), size=size, cut=lambda: {role: size})
        self.ss.add(f"{role}-state", self, sharing=ss.PER_RANK)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, for a save."""
        TRAPS.reach("in capture")
        return {"value": self.value, "tensor": self.tensor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a step."""
        TRAPS.reach("in restore")
        self.value, self.tensor = state["value"], state["tensor"]

    def fill(self, step: int) -> int:
        """Hold what belongs to a step; return the process id."""
        self.value = expected_value(self.id, step)
        self.tensor = torch.full_like(self.tensor, self.value)
        return os.getpid()

    def holds(self) -> list[int]:
        """Return the values that are held, without repetition."""
        return sorted({self.value, *self.tensor.tolist()})

    def arm(self, phase: str, path: str) -> None:
        """Die in this phase, and leave a marker in that file."""
        TRAPS.phase, TRAPS.path = phase, path
