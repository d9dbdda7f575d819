"""Actors with Monarch's endpoint adverbs and the services of torchforge, on one event loop."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["Endpoint", "Mesh", "Store", "Values"]


class Values:
    """What all ranks answered, by rank."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def get(self, rank: int) -> Any:  # noqa: ANN401 - of any endpoint
        """Return the answer of one rank."""
        return self._values[rank]

    def items(self) -> list[tuple[int, Any]]:
        """Return ranks and answers."""
        return list(enumerate(self._values))


class Endpoint:
    """A method of all actors of a mesh; an adverb says which of them run it."""

    def __init__(self, actors: list[Any], name: str) -> None:
        self._methods = [getattr(actor, name) for actor in actors]

    async def call(self, *arguments: Any) -> Values:  # noqa: ANN401
        """Run it on all ranks."""
        return Values([await _run(method, arguments) for method in self._methods])

    async def call_one(self, *arguments: Any) -> Any:  # noqa: ANN401
        """Run it on the only rank."""
        (method,) = self._methods
        return await _run(method, arguments)

    async def choose(self, *arguments: Any) -> Any:  # noqa: ANN401
        """Run it on any rank; a service calls this `route`."""
        return await _run(self._methods[0], arguments)

    route = choose

    async def fanout(self, *arguments: Any) -> list[Any]:  # noqa: ANN401
        """Run it on all replicas of a service."""
        return [value for _, value in (await self.call(*arguments)).items()]


class Mesh:
    """A handle to actors: each public method of theirs is an endpoint."""

    def __init__(self, *actors: Any) -> None:  # noqa: ANN401
        self._actors = list(actors)

    def __getattr__(self, name: str) -> Endpoint:
        return Endpoint(self._actors, name)


class Store:
    """An actor that holds plain state: a replay buffer, or a data source."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {"samples": [], "next": 0}

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state."""
        self._state = dict(state)

    def draw(self) -> int:
        """Return the next prompt."""
        self._state["next"] += 1
        return int(self._state["next"])

    def add(self, sample: int) -> None:
        """Keep a sample."""
        self._state["samples"].append(sample)

    def sample(self) -> list[int]:
        """Return a batch."""
        return list(self._state["samples"][-4:])


async def _run(method: Any, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401
    value = method(*arguments)
    return await value if inspect.isawaitable(value) else value
