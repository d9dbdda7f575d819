"""Starts the members of a campaign as actors of Ray or of Monarch, and calls them."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from tests.campaigns.actors._member import Member

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.actors._doorbell import Member as OfCoordinator

__all__ = ["FRAMEWORKS", "Framework", "MonarchFramework", "RayFramework", "why_not"]


class Framework(Protocol):
    """What starts actors, each in a process of its own, and calls their methods."""

    def start(self, participant: str, size: int) -> Any:  # noqa: ANN401 - a handle
        """Start an actor that holds a participant."""
        ...

    async def call(self, handle: Any, method: str, *arguments: object) -> Any:  # noqa: ANN401
        """Call a method in the actor's queue."""
        ...

    def member(self, participant: str, handles: Mapping[str, Any]) -> OfCoordinator:
        """Return an actor as the coordinator sees it."""
        ...

    def end(self) -> None:
        """End all actors."""
        ...


def why_not(name: str | None = None) -> str | None:
    """Return what this machine lacks for a framework, or for any of them."""
    if any(find_spec(one) for one in FRAMEWORKS if name in (one, None)):
        return None
    return f"{name.title() if name else 'neither Ray nor Monarch'} is not installed"


def _by_rank(participant: str, handles: Mapping[str, Any]) -> tuple[str, int, list[Any]]:
    """Return role, rank, and all handles of the role by rank."""
    role, _, rank = participant.partition("/")
    num_ranks = sum(one.startswith(f"{role}/") for one in handles)
    return role, int(rank), [handles[f"{role}/{number}"] for number in range(num_ranks)]


class RayFramework:
    """Ray, on this machine; the last role has async actors."""

    def __init__(self) -> None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        self._ray = importlib.import_module("ray")
        self._ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)

    def start(self, participant: str, size: int) -> Any:  # noqa: ANN401 - a handle
        kind = _AsyncMember if participant.startswith("dataset/") else Member
        return self._ray.remote(num_cpus=0)(kind).remote(participant, size)

    async def call(self, handle: Any, method: str, *arguments: object) -> Any:  # noqa: ANN401
        return await getattr(handle, method).remote(*arguments)

    def member(self, participant: str, handles: Mapping[str, Any]) -> OfCoordinator:
        role, rank, actors = _by_rank(participant, handles)
        return ss.ray.members(role, *actors)[rank]

    def end(self) -> None:
        self._ray.shutdown()


class _AsyncMember(ss.ray.AsyncActor, Member):
    """The same as an async actor."""


class MonarchFramework:
    """Monarch, on this machine."""

    def __init__(self) -> None:
        self._monarch = importlib.import_module("monarch.actor")
        self._kind = type("MonarchMember", (ss.monarch.Actor, self._monarch.Actor, Member), {})

    def start(self, participant: str, size: int) -> Any:  # noqa: ANN401 - a handle
        procs = self._monarch.this_host().spawn_procs(per_host={"procs": 1})
        return procs.spawn(participant.replace("/", ""), self._kind, participant, size)

    async def call(self, handle: Any, method: str, *arguments: object) -> Any:  # noqa: ANN401
        return await self._monarch.as_endpoint(getattr(handle, method)).call_one(*arguments)

    def member(self, participant: str, handles: Mapping[str, Any]) -> OfCoordinator:
        role, rank, actors = _by_rank(participant, handles)
        return ss.monarch.members(role, *actors)[rank]

    def end(self) -> None:
        self._monarch.shutdown_context().get(timeout=60)


FRAMEWORKS: dict[str, type[Framework]] = {"ray": RayFramework, "monarch": MonarchFramework}
