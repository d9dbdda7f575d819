"""Ray actors as members of a `Coordinator`: each call runs in the actor's own queue.

An actor keeps its `Participant` in an attribute, `ss` by default. Sync actors need nothing else: a
doorbell runs a function on them in queue order (`__ray_call__`). On async actors that function
would run beside their methods, so their class inherits `AsyncActor`. Threaded actors are refused,
because their methods run side by side and nothing is quiet at any time. Ray is imported when it is
used.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stepseal.actors import Admission, InProcess, participant_of
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from stepseal.protocol import Begin, BeginRestore, BeginSave

_RETRY_S = 0.2
"""Seconds between two tries to admit an actor that is restarting."""

__all__ = ["AsyncActor", "RayMember", "address", "members"]


def members(role: str, *actors: Any, attribute: str = "ss") -> list[RayMember]:  # noqa: ANN401
    """Return members for actors of one role, by rank.

    Args:
        role: role of their participants.
        actors: handles, or lists of them, in the order of their ranks.
        attribute: where each actor keeps its `Participant`.

    Raises:
        InvalidInput: Ray is not installed or not started, or is used through Ray Client.
    """
    _started()
    handles: list[Any] = []
    for one in actors:
        handles += one if isinstance(one, (list, tuple)) else [one]
    return [RayMember(f"{role}/{rank}", one, attribute) for rank, one in enumerate(handles)]


def address() -> str:
    """Return this node's address, as `control_host` of a Coordinator that all nodes can reach."""
    _started()
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


class AsyncActor:
    """What the class of an async actor inherits, so that captures run between its methods."""

    async def stepseal_admit(self, attribute: str, data: bytes) -> None:
        """Begin a life; connecting does not block the actor."""
        loop = asyncio.get_running_loop()
        participant = participant_of(self, attribute)
        await loop.run_in_executor(None, participant.admit, Admission.decode(data))

    async def stepseal_begin(self, attribute: str, begin: Begin) -> None:
        """Carry out a call on the actor's loop."""
        await InProcess(participant_of(self, attribute)).begin(begin)


class RayMember:
    """A Ray actor as the coordinator sees it; also its doorbell."""

    def __init__(self, participant: str, handle: Any, attribute: str) -> None:  # noqa: ANN401
        self.id = participant
        self.doorbell = self
        self._handle = handle
        self._attribute = attribute
        self._is_async = False

    async def admit(self, admission: Admission, executor: Executor) -> None:
        """Hand over the admission in the actor's queue.

        Raises:
            InvalidInput: the actor is threaded, or async without `AsyncActor`.
        """
        del executor
        data = admission.encode()
        found = await self._admitted(data)
        self._is_async = found == "async"
        if self._is_async:
            method = getattr(self._handle, "stepseal_admit", None)
            if method is None:
                raise InvalidInput(
                    f"{self.id} is an async actor, whose methods run side by side: let its class "
                    "inherit ss.ray.AsyncActor, so that captures run between them.",
                    participant=self.id,
                )
            await _awaited(method.remote(self._attribute, data))

    def leave(self, *, is_lost: bool) -> None:
        """Do nothing: Ray's actors live on."""

    async def _admitted(self, data: bytes) -> object:
        """Begin a life; an actor that Ray is restarting is tried again until the deadline."""
        from ray.exceptions import ActorUnavailableError

        while True:  # the coordinator gives up after `connect_s`
            try:
                return await self._run(_admit, self._attribute, data)
            except ActorUnavailableError:  # may have run: an admission can be repeated
                await asyncio.sleep(_RETRY_S)

    async def capture(self, begin: BeginSave) -> None:
        """Capture in the actor's queue."""
        await self._begin(begin)

    async def restore(self, begin: BeginRestore) -> None:
        """Restore in the actor's queue."""
        await self._begin(begin)

    def is_death(self, error: BaseException) -> bool:
        """Return whether Ray says that the actor is dead; one that is unavailable may come back."""
        from ray.exceptions import ActorDiedError

        return isinstance(error, ActorDiedError)

    async def _begin(self, begin: Begin) -> None:
        if self._is_async:
            await _awaited(self._handle.stepseal_begin.remote(self._attribute, begin))
        else:
            await self._run(_begin, self._attribute, begin)

    async def _run(self, work: Callable[..., object], *arguments: object) -> object:
        return await _awaited(self._handle.__ray_call__.remote(work, *arguments))


async def _awaited(reference: Any) -> object:  # noqa: ANN401 - of Ray
    """Return the result of a call; raise the actor's own exception without Ray's wrapper."""
    from ray.exceptions import RayTaskError

    try:
        return await reference
    except RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, Exception) else error) from error


def _admit(actor: object, attribute: str, data: bytes) -> str:
    """Begin a life in the actor's queue; for an async actor only say that it is one."""
    from ray._private.worker import global_worker

    worker = global_worker.core_worker
    if worker.current_actor_is_asyncio():
        return "async"
    participant = participant_of(actor, attribute)
    most = worker.current_actor_max_concurrency()
    if most > 1:
        raise InvalidInput(
            f"{participant.id} is a threaded actor (max_concurrency={most}): its methods run side "
            "by side, so no capture would be whole. Start it with max_concurrency=1.",
            participant=participant.id,
        )
    participant.admit(Admission.decode(data))
    return "sync"


def _begin(actor: object, attribute: str, begin: Begin) -> None:
    participant_of(actor, attribute).begin(begin)


def _started() -> None:
    """Refuse to go on without Ray in this process."""
    try:
        import ray
    except ImportError as error:
        text = "ss.ray needs Ray, which is not installed: pip install 'stepseal[ray]'"
        raise InvalidInput(text) from error
    from ray.util.client import ray as client

    if client.is_connected():
        raise InvalidInput(
            "ss.ray: this process uses Ray Client (ray://), which has no actors of its own. Run "
            "the controller on a node of the cluster: ray.init(address='auto'), or ray job submit."
        )
    if not ray.is_initialized():
        raise InvalidInput("ss.ray: Ray is not started in this process: call ray.init() first")
