"""How a coordinator reaches a participant: to admit it, and to run captures and restores there.

A *doorbell* runs capture and restore where its owner works off its calls, one after the other, so
that nothing mutates the state meanwhile. Reports and orders travel over the control plane; a
doorbell only begins a call. A member without one has its calls sent over the line, and looks for
them with `Participant.poll`.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Protocol

from stepseal.actors._admission import Admission
from stepseal.errors import CheckpointError, CoordinatorLost, InvalidInput
from stepseal.protocol import BeginSave

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor
    from multiprocessing.connection import Connection

    from stepseal.actors._participant import Participant
    from stepseal.protocol import Apply, Begin, BeginRestore, Candidate, RestoreAnswer
    from stepseal.session import ShareOfRestore

__all__ = ["Doorbell", "InProcess", "Member", "Process", "in_process", "processes", "serve"]

_ADMITTED = b"admitted"


class Doorbell(Protocol):
    """Begins calls in the owner's own queue or thread; each returns when the owner is free."""

    async def capture(self, begin: BeginSave) -> None:
        """Run `Participant.capture` there."""
        ...

    async def restore(self, begin: BeginRestore) -> None:
        """Run `Participant.restore` there."""
        ...

    def is_death(self, error: BaseException) -> bool:
        """Return whether an error of a call says that the owner is dead for good."""
        ...


class Member(Protocol):
    """A participant as the coordinator sees it."""

    @property
    def id(self) -> str:
        """Id of the participant."""
        ...

    @property
    def doorbell(self) -> Doorbell | None:
        """Where its calls begin; None if they are sent over its line."""
        ...

    async def admit(self, admission: Admission, executor: Executor) -> None:
        """Hand over the admission; return when the participant has connected.

        Args:
            admission: what it needs.
            executor: threads for what blocks.
        """
        ...

    def leave(self, *, is_lost: bool) -> None:
        """Take note that this life takes no part any more; called before the next `admit`.

        Args:
            is_lost: it ended by a loss, and not because it was released.
        """
        ...


class InProcess:
    """A participant whose owner lives on the event loop of the coordinator's user."""

    def __init__(self, participant: Participant) -> None:
        self.id = participant.id
        self.doorbell = self
        self._participant = participant
        self._executor: Executor | None = None

    async def admit(self, admission: Admission, executor: Executor) -> None:
        """Connect on another thread."""
        self._executor = executor
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(executor, self._participant.admit, admission)

    def leave(self, *, is_lost: bool) -> None:
        """Do nothing: its owner closes the participant."""

    async def capture(self, begin: BeginSave) -> None:
        """Capture on the loop's thread: no other task runs meanwhile.

        Raises:
            InvalidInput: an engine of the participant would block the loop, or it is to be frozen.
        """
        refuse_to_freeze(self.id, begin)
        if self._participant.has_engines:
            raise InvalidInput(
                f"{self.id}: an external component cannot be saved on the controller's event loop, "
                "which its engine would block. Let the engine live in a process of its own.",
                participant=self.id,
            )
        async with self._participant._turn:
            self._participant.capture(begin)

    async def begin(self, begin: Begin) -> None:
        """Carry out a call of either kind."""
        if isinstance(begin, BeginSave):
            await self.capture(begin)
        else:
            await self.restore(begin)

    async def restore(self, begin: BeginRestore) -> None:
        """Check and apply on the loop's thread, and wait for orders on another.

        The controller may hear of the outcome, and open the next call, before this is over: that
        call then waits for its turn.
        """
        async with self._participant._turn:
            share = self._participant.join(begin)
            loop = asyncio.get_running_loop()
            while share is not None and not share.part.ended:
                waiting = loop.run_in_executor(self._executor, share.part.wait)
                await asyncio.wait([waiting])
                share.guard(functools.partial(_follow, share, waiting))

    def is_death(self, error: BaseException) -> bool:
        """Return False: it lives and dies with the coordinator."""
        del error
        return False


def refuse_to_freeze(participant: str, begin: BeginSave) -> None:
    """Refuse to freeze what the controller holds, as its own event loop goes on.

    Raises:
        InvalidInput: this is asked for.
    """
    if begin.freeze:
        raise InvalidInput(
            f"{participant}: what lives in the controller cannot be frozen, because its event loop "
            "goes on. Leave its role out of freeze=, or let its owner live in an actor or process.",
            participant=participant,
        )


def _follow(
    share: ShareOfRestore, waiting: asyncio.Future[Candidate | Apply | RestoreAnswer]
) -> None:
    share.part.follow(waiting.result())


def in_process(*participants: Participant) -> list[InProcess]:
    """Return members for participants on this event loop."""
    return [InProcess(one) for one in participants]


class Process:
    """A participant in another process, which is admitted over a pipe and serves its own calls."""

    doorbell = None

    def __init__(self, participant: str, connection: Connection) -> None:
        self.id = participant
        self._connection = connection

    async def admit(self, admission: Admission, executor: Executor) -> None:
        """Send the admission, and wait until the process has connected."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(executor, self._admit, admission)

    def leave(self, *, is_lost: bool) -> None:
        """Do nothing: the process is not ours."""

    def _admit(self, admission: Admission) -> None:
        limit_s = admission.deadlines.connect_s
        try:
            self._connection.send_bytes(admission.encode())
            if not self._connection.poll(limit_s):
                raise CoordinatorLost(f"{self.id} did not answer within {limit_s:g} s")
            answer = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise CoordinatorLost(f"{self.id}: its process is gone: {error!r}") from error
        if answer != _ADMITTED:
            raise CoordinatorLost(f"{self.id}: {answer.decode(errors='replace')}")


def processes(role: str, connections: Sequence[Connection]) -> list[Process]:
    """Return members for processes, by rank, each at the other end of a pipe."""
    return [Process(f"{role}/{rank}", one) for rank, one in enumerate(connections)]


def serve(participant: Participant, connection: Connection, timeout_s: float = 0.0) -> bool:
    """Serve what the coordinator asks of this process; call it between two pieces of work.

    Takes admissions from the pipe, and calls from the line; both run on the thread that calls.

    Args:
        participant: this process's own.
        connection: pipe to the process of the coordinator.
        timeout_s: seconds to wait for something to serve.

    Returns:
        False once the other end of the pipe is closed.
    """
    try:
        waits = timeout_s if participant.is_lost else 0.0
        if connection.poll(waits):
            connection.send_bytes(_admitted(participant, connection.recv_bytes()))
    except (EOFError, OSError):
        return False
    participant.poll(0.0 if participant.is_lost else timeout_s)
    return True


def _admitted(participant: Participant, data: bytes) -> bytes:
    try:
        participant.admit(Admission.decode(data))
    except CheckpointError as error:
        return f"{error.kind}: {error}".encode()
    return _ADMITTED
