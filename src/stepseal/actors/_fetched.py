"""State that an object only hands out and takes back by calls, saved by the controller itself."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepseal.actors._doorbell import refuse_to_freeze
from stepseal.components import Sharing
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from stepseal.actors._admission import Admission
    from stepseal.actors._participant import Participant
    from stepseal.protocol import BeginRestore, BeginSave, Link

__all__ = ["Fetched", "Hosted", "fetched"]


@dataclass(frozen=True, slots=True)
class Fetched:
    """The two calls of a component that the controller fetches."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]


def fetched(get: Callable[[], Any], set: Callable[[Any], Any]) -> Fetched:  # noqa: A002 - the pair
    """Return a component that the controller fetches with `get`, and puts back with `set`.

    For small state of an actor that has such endpoints and cannot be a participant itself. Either
    call may return its value, or an awaitable of it, such as a reference to the result of an
    actor's method. The value is a tree: plain values and tensors.
    """
    if not callable(get) or not callable(set):
        raise InvalidInput(f"fetched: expected two functions, found {get!r:.80} and {set!r:.80}")
    return Fetched(get, set)


class Hosted:
    """A participant in the controller, whose one component is fetched.

    Args:
        participant: made for the component, which is added here.
        name: name of the component.
        state: the calls.
        link: connection inside the coordinator's process, for one life.
        loop: event loop on which awaitables are awaited.
        limit_s: how long one of the calls may take.
    """

    def __init__(
        self,
        participant: Participant,
        name: str,
        state: Fetched,
        link: Callable[[str], Link],
        loop: Callable[[], asyncio.AbstractEventLoop],
        limit_s: float,
    ) -> None:
        self.id = participant.id
        self.doorbell = self
        self._participant = participant
        self._state = state
        self._link = link
        self._loop = loop
        self._limit_s = limit_s
        self._executor: Executor | None = None
        participant.add(name, (self._get, self._set), sharing=Sharing.GLOBAL, kind="tree")

    async def admit(self, admission: Admission, executor: Executor) -> None:
        """Connect inside this process."""
        self._executor = executor
        link = self._link(admission.life)
        await self._run(self._participant.admit, admission, link)

    async def capture(self, begin: BeginSave) -> None:
        """Fetch the value and capture it, on another thread."""
        refuse_to_freeze(self.id, begin)
        await self._run(self._participant.capture, begin)

    async def restore(self, begin: BeginRestore) -> None:
        """Restore the value and put it back, on another thread."""
        await self._run(self._participant.restore, begin)

    def is_death(self, error: BaseException) -> bool:
        """Return False: it lives and dies with the coordinator."""
        del error
        return False

    def leave(self, *, is_lost: bool) -> None:
        """Leave the participant to `end`."""

    def end(self) -> None:
        """End the participant; blocks."""
        self._participant.close()

    async def _run(self, work: Callable[..., object], *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def _get(self) -> Any:  # noqa: ANN401 - any tree
        return self._finished(self._state.get())

    def _set(self, value: Any) -> None:  # noqa: ANN401 - any tree
        self._finished(self._state.set(value))

    def _finished(self, value: Any) -> Any:  # noqa: ANN401 - any tree
        """Return what a call returned, or what the awaitable that it returned becomes."""
        if not inspect.isawaitable(value):
            return value
        future = asyncio.run_coroutine_threadsafe(_awaited(value), self._loop())
        return future.result(self._limit_s)


async def _awaited(value: Awaitable[Any]) -> Any:  # noqa: ANN401 - any tree
    return await value
