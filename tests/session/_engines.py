"""Engines that write files of their own, and jobs on threads that use them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import stepseal as ss
from stepseal.storage import LocalStorage
from stepseal.testing import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage

T = TypeVar("T")

QUICK = ss.Deadlines(
    connect_s=20, capture_s=20, write_s=20, commit_s=20, check_s=20, apply_s=20, close_s=5
)


class FilePerRank:
    """Writes one file per rank, as DeepSpeed does, and one more on rank 0.

    Args:
        rank: whose.
        value: its state.
    """

    def __init__(self, rank: int, value: int = 0) -> None:
        self.rank = rank
        self.value = value
        self.folders: list[tuple[str, str]] = []
        """What was called, and with which folder."""

    def save(self, folder: str) -> None:
        self.folders.append(("save", folder))
        if self.rank == 0:
            Path(folder, "latest").write_text("global_step1")
        inside = Path(folder, "global_step1")
        inside.mkdir(exist_ok=True)
        (inside / f"mp_rank_{self.rank:02}_model_states.pt").write_text(str(self.value))

    def load(self, folder: str) -> None:
        self.folders.append(("load", folder))
        inside = Path(folder, Path(folder, "latest").read_text())
        self.value = int((inside / f"mp_rank_{self.rank:02}_model_states.pt").read_text())

    def external(self, **options: Any) -> ss.External:  # noqa: ANN401 - of External
        return ss.External(save=self.save, load=self.load, **options)


class InStep:
    """A collective of threads: everybody waits for everybody, or raises once one has left."""

    def __init__(self, num: int) -> None:
        self._barrier = threading.Barrier(num)

    def meet(self) -> None:
        self._barrier.wait(20)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self._barrier.abort()


def world(root: Path, num: int, storage: Callable[[Storage], Storage] | None = None) -> World:
    """Return a job whose participants share a root in a directory."""
    wrap = storage or (lambda inner: inner)
    return World(num, lambda _: wrap(LocalStorage.create(root)), deadlines=QUICK)


def run(
    root: Path,
    num: int,
    work: Callable[[int, ss.Checkpointer], T],
    *,
    mode: str = "async",
    storage: Callable[[Storage], Storage] | None = None,
) -> list[T]:
    """Run one life of a job."""

    def one(rank: int, checkpointer: ss.Checkpointer) -> T:
        with checkpointer:
            return work(rank, checkpointer)

    return world(root, num, storage).run(one, mode=mode)


def save_steps(root: Path, num: int, *steps: int, mode: str = "async") -> None:
    """Save steps in which each rank's engine holds ten times the step, plus the rank."""

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        engine = FilePerRank(rank)
        ckpt.add("engine", engine.external())
        ckpt.add("counter", {"rank": rank}, sharing=ss.PER_RANK)
        ckpt.restore()
        for step in steps:
            engine.value = 10 * step + rank
            ckpt.save(step).wait()

    run(root, num, work, mode=mode)


def staged(root: Path) -> list[str]:
    """Return what lies in the staging folder."""
    return sorted(path.name for path in (root / ".stepseal" / "staging").iterdir())
