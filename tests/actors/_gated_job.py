"""Two actors and a critic that save on their own, and their coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from tests.actors._owners import participant
from tests.protocol._conversations import PATIENT

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from stepseal.protocol import Deadlines

__all__ = ["Held", "Job", "job", "raises", "writes"]

T = TypeVar("T")


def writes(text: str, name: str = "state.txt") -> Callable[[str], None]:
    """Return a save function that writes one file."""

    def save(folder: str) -> None:
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write(text)

    return save


def raises(_folder: str) -> None:
    raise OSError("disk full")


class Held:
    """A save function that waits until it is let go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, folder: str) -> None:
        self.begun.set()
        assert self.go_on.wait(60)
        writes("held")(folder)


class Job:
    """Two actors and a critic, on threads of their own as in other processes."""

    def __init__(self, root: Path, coord: ss.Coordinator) -> None:
        self.root = root
        self.coord = coord
        self.loaded: dict[str, str] = {}
        self.actors = [participant("actor", rank=rank, size=2) for rank in range(2)]
        self.critic = participant("critic")
        for one in (*self.actors, self.critic):
            one.add(one.id.partition("/")[0], ss.External(load=self._take(one.id)))

    def _take(self, who: str) -> Callable[[str], None]:
        def load(folder: str) -> None:
            self.loaded[who] = "+".join(sorted(os.listdir(folder)))

        return load

    @property
    def everybody(self) -> list[ss.Participant]:
        return [*self.actors, self.critic]

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401
        """Run what a writer does, where it does not hold the controller."""
        return await asyncio.to_thread(work, *arguments)

    async def save_actors(self, step: int) -> None:
        await asyncio.gather(
            *(
                self.run(one.save_sync, writes("a", f"rank{rank}"), step)
                for rank, one in enumerate(self.actors)
            )
        )

    async def save_all(self, step: int) -> None:
        await self.save_actors(step)
        self.critic.save_async("critic", writes("c"), step)

    async def wait_all(self) -> None:
        for one in self.everybody:
            await self.run(one.wait_all)

    def steps(self) -> tuple[int, ...]:
        return ss.open(self.root).steps()


@contextlib.asynccontextmanager
async def job(root: Path, deadlines: Deadlines = PATIENT, **options: Any) -> AsyncIterator[Job]:  # noqa: ANN401
    usual: dict[str, Any] = {"gates": ("actor", "critic"), "deadlines": deadlines}
    async with ss.Coordinator(root, **(usual | options)) as coord:
        held = Job(root, coord)
        await coord.admit(*ss.in_process(*held.everybody))
        await coord.restore()
        yield held
        for one in held.everybody:
            one.close()
