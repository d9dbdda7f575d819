"""What the tests of bad input share: a whole root as a value, and jobs of few participants."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import stepseal as ss
from stepseal.errors import CheckpointError
from stepseal.storage import LocalStorage
from stepseal.testing import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage

T = TypeVar("T")

QUICK = ss.Deadlines(
    connect_s=20, capture_s=20, write_s=20, commit_s=20, check_s=20, apply_s=20, close_s=5
)


def contents(root: Path) -> dict[str, Any]:
    """Return every name below a root with its kind, and the bytes of files and links."""
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[str(path.relative_to(root))] = _described(path)
    return found


def _described(path: Path) -> tuple[str, bytes]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "link", os.fsencode(path.readlink())
    if stat.S_ISREG(mode):
        return "file", path.read_bytes()
    return ("folder" if stat.S_ISDIR(mode) else "other"), b""


def steps_of(root: Path) -> dict[str, Any]:
    """Return all that lies in folders with a step's name."""
    return {
        f"{folder.name}/{name}": found
        for folder in root.glob("step-*")
        for name, found in contents(folder).items()
    }


def save_steps(root: Path, *steps: int) -> dict[str, Any]:
    """Save `{"seen": step}` at each step as the job of one participant; return the root's bytes."""
    state = {"seen": 0}
    with ss.Checkpointer(root) as checkpointer:
        checkpointer.add("counters", state)
        checkpointer.restore()
        for step in steps:
            state["seen"] = step
            checkpointer.save(step).wait()
    return contents(root)


def restored_value(root: Path, step: int | None = None) -> tuple[int, int]:
    """Return the step that a new life restores, and the value that it finds there."""
    state = {"seen": -1}
    with ss.Checkpointer(root) as checkpointer:
        checkpointer.add("counters", state)
        restored = checkpointer.restore(step)
    assert restored is not None
    return restored.step, state["seen"]


def outcomes(
    root: Path,
    work: Callable[[int, ss.Checkpointer], T],
    *,
    num_participants: int = 2,
    storage: Callable[[int], Storage] | None = None,
) -> list[T | CheckpointError]:
    """Return per participant of one life what `work` returned or raised."""

    def one(rank: int, checkpointer: ss.Checkpointer) -> T | CheckpointError:
        try:
            with checkpointer:
                return work(rank, checkpointer)
        except CheckpointError as error:
            return error

    world = World(
        num_participants, storage or (lambda _: LocalStorage.create(str(root))), deadlines=QUICK
    )
    return world.run(one)
