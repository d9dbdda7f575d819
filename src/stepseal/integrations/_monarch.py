"""Monarch actors as members of a `Coordinator`: each call runs in the actor's own queue.

An actor keeps its `Participant` in an attribute, `ss` by default, and its class inherits `Actor`.
The two methods of `Actor` are no endpoints, so they suit sync and async endpoints alike: a class
must not mix these. Monarch runs one message of an actor at a time; on an async actor a call also
blocks its event loop, so that its concurrent endpoints stand still, each at an `await`.

A member is a slice of one rank: once a rank is dead, calls of the whole mesh fail, and calls of
other slices work. Monarch is imported when it is used.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from stepseal.actors import Admission, participant_of
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from stepseal.protocol import Begin, BeginRestore, BeginSave

__all__ = ["Actor", "Faults", "MonarchMember", "members"]

_log = logging.getLogger("stepseal")


def members(role: str, *meshes: Any, attribute: str = "ss") -> list[MonarchMember]:  # noqa: ANN401
    """Return members for the actors of one role, by rank.

    Args:
        role: role of their participants.
        meshes: actor meshes, or slices of them, in the order of their ranks; the actors of a mesh
            in row-major order.
        attribute: where each actor keeps its `Participant`.

    Raises:
        InvalidInput: Monarch is not installed, or the class of an actor does not inherit `Actor`.
    """
    faults = _faults()
    slices: list[Any] = []
    for mesh in meshes:
        if not hasattr(mesh, "stepseal_begin"):
            raise InvalidInput(
                f"ss.monarch.members({role!r}): expected actors whose class inherits "
                f"ss.monarch.Actor, found {mesh!r:.160}. Let it inherit that beside "
                "monarch.actor.Actor, and pass the mesh of actors."
            )
        axes, sizes = tuple(mesh.sizes), mesh.sizes.values()
        places = itertools.product(*map(range, sizes))
        slices += [mesh.slice(**dict(zip(axes, place, strict=True))) for place in places]
    return [MonarchMember(f"{role}/{n}", one, attribute, faults) for n, one in enumerate(slices)]


class Actor:
    """What the class of an actor inherits beside `monarch.actor.Actor`, so that calls reach it."""

    def stepseal_admit(self, attribute: str, data: bytes) -> None:
        """Begin a life."""
        participant_of(self, attribute).admit(Admission.decode(data))

    def stepseal_begin(self, attribute: str, begin: Begin) -> None:
        """Carry out a call in the actor's queue."""
        participant_of(self, attribute).begin(begin)


class MonarchMember:
    """A Monarch actor as the coordinator sees it; also its doorbell."""

    def __init__(self, participant: str, handle: Any, attribute: str, faults: Faults) -> None:  # noqa: ANN401
        self.id = participant
        self.doorbell = self
        self._handle = handle
        self._attribute = attribute
        self._faults = faults
        self._mesh: str | None = None
        """Name of the mesh whose faults are decided here, while it takes part."""

    async def admit(self, admission: Admission, executor: Executor) -> None:
        """Hand over the admission in the actor's queue; from now on its death ends nobody else."""
        del executor
        self._mesh = str(await self._handle._name)
        self._faults.take(self._mesh)
        await self._call(self._handle.stepseal_admit, admission.encode())

    def leave(self, *, is_lost: bool) -> None:
        """Decide the faults of its mesh no more; the fault of a loss is still to come."""
        mesh, self._mesh = self._mesh, None
        if mesh is not None:
            self._faults.give_back(mesh, is_lost=is_lost)

    async def capture(self, begin: BeginSave) -> None:
        """Capture in the actor's queue."""
        await self._call(self._handle.stepseal_begin, begin)

    async def restore(self, begin: BeginRestore) -> None:
        """Restore in the actor's queue."""
        await self._call(self._handle.stepseal_begin, begin)

    def is_death(self, error: BaseException) -> bool:
        """Return whether Monarch says that the actor failed: it never comes back."""
        from monarch._rust_bindings.monarch_hyperactor.supervision import SupervisionError

        return isinstance(error, SupervisionError)

    async def _call(self, method: Any, argument: object) -> None:  # noqa: ANN401
        """Await a call; raise the actor's own exception without Monarch's wrapper."""
        from monarch.actor import ActorError, as_endpoint

        try:
            await as_endpoint(method).call_one(self._attribute, argument)
        except ActorError as error:
            cause = error.exception
            raise (cause if isinstance(cause, Exception) else error) from error


class Faults:
    """Decides the faults of meshes that take part, and leaves all others to the earlier hook.

    Where nobody handles a fault, Monarch calls `unhandled_fault_hook`, which ends the process. For
    members this is wrong: the coordinator's user is told of a loss by an error. The hook is chained
    while a mesh takes part. A death is reported up to 10 s late, so after a loss it stays chained.

    Args:
        module: `monarch.actor`, whose `unhandled_fault_hook` it is.
    """

    def __init__(self, module: Any) -> None:  # noqa: ANN401 - of Monarch
        self._module = module
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()
        self._lost: set[str] = set()
        self._chained: functools.partial[None] | None = None

    def take(self, mesh: str) -> None:
        """Decide the faults of a mesh, once more."""
        with self._lock:
            self._taken[mesh] += 1
            earlier = self._module.unhandled_fault_hook
            if earlier is not self._chained:  # also where somebody has put a hook on top of ours
                self._chained = functools.partial(self._decide, earlier)
                self._module.unhandled_fault_hook = self._chained

    def give_back(self, mesh: str, *, is_lost: bool) -> None:
        """Undo one `take`; after the last one the earlier hook is back, unless one was lost."""
        with self._lock:
            self._taken -= Counter([mesh])
            if is_lost:
                self._lost.add(mesh)
            hook, is_over = self._chained, not (self._taken or self._lost)
            if is_over and hook is not None and hook is self._module.unhandled_fault_hook:
                (self._module.unhandled_fault_hook,) = hook.args

    def _decide(self, earlier: Callable[[Any], None], failure: Any) -> None:  # noqa: ANN401
        with self._lock:
            meshes = {*self._taken, *self._lost}
        if _is_of(failure, meshes):
            report = failure.report()
            _log.warning("stepseal: Monarch reports a fault of a member: %s", report)
        else:
            earlier(failure)


def _is_of(failure: Any, meshes: set[str]) -> bool:  # noqa: ANN401 - of Monarch
    """Return whether a fault is of these meshes, or of what Monarch itself keeps beside them.

    That is its logger in each process, which dies with the process, as every mesh there does, and
    a call of ours that no actor could take any more.
    """
    if not meshes:
        return False
    name, report = str(failure.mesh_name), str(failure.report())
    is_logger = name.startswith("logger-") and report.startswith(f"The actor {name}{{")
    is_call = "undeliverable message for " in report and ".stepseal_" in report
    return name in meshes or is_logger or is_call


@functools.cache
def _faults_of(module: Any) -> Faults:  # noqa: ANN401 - of Monarch
    return Faults(module)


def _faults() -> Faults:
    """Return who decides faults in this process; refuse to go on without Monarch."""
    try:
        import monarch.actor
    except ImportError as error:
        text = "ss.monarch needs Monarch, which is not installed: pip install 'stepseal[monarch]'"
        raise InvalidInput(text) from error
    return _faults_of(monarch.actor)
