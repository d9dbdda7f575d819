"""Who takes part: admits members in new lives, releases them, and dismisses all at the end."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from stepseal._version import __version__
from stepseal.actors._admission import Admission
from stepseal.actors._fetched import Fetched, Hosted
from stepseal.actors._letters import RankMember
from stepseal.actors._participant import Participant
from stepseal.errors import CommitTimeout, InvalidInput, ParticipantFailed
from stepseal.layout import check_component_name, role_of
from stepseal.protocol import failure_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from concurrent.futures import Executor, Future

    from stepseal.actors._bells import BellHub
    from stepseal.actors._doorbell import Member
    from stepseal.protocol import CoordinatorDriver, Deadlines, SocketHub

__all__ = ["Members"]


class Members:
    """The members of a coordinator.

    Args:
        root: absolute path of the root.
        sockets: where participants connect.
        bells: rings them.
        driver: decides; is told who is there.
        token: secret that each connection must show.
        deadlines: how long anybody waits for anybody.
        executor: threads for what blocks.
    """

    def __init__(
        self,
        root: str,
        sockets: SocketHub,
        bells: BellHub,
        driver: CoordinatorDriver,
        token: str,
        deadlines: Deadlines,
        executor: Executor,
    ) -> None:
        self._root = root
        self._sockets = sockets
        self._bells = bells
        self._driver = driver
        self._token = token
        self._deadlines = deadlines
        self._executor = executor
        self._waiting: list[Hosted] = []
        """Components to fetch whose participants are admitted by the next call."""

    def host(self, name: str, state: Fetched) -> None:
        """Let the controller hold a component itself, from the next call on.

        Raises:
            InvalidInput: no name of a component, or no `ss.fetched`.
        """
        check_component_name(name)
        if not isinstance(state, Fetched):
            raise InvalidInput(
                f"add({name!r}): expected ss.fetched(get, set), found {state!r:.80}. What lives in "
                "another process is added to its Participant there.",
                component=name,
            )
        hosted = Hosted(
            Participant(name),
            name,
            state,
            lambda life: self._sockets.link(f"{name}/0", life),
            self._bells.loop_of,
            self._deadlines.capture_s,
        )
        self._waiting.append(hosted)

    async def admit_waiting(self) -> None:
        """Admit the participants of `host`."""
        self._bells.loop = asyncio.get_running_loop()
        await self.admit(self._waiting)
        self._waiting.clear()

    async def admit(self, members: Sequence[Member]) -> None:
        """Admit each in a new life.

        Raises:
            ParticipantFailed: some could not be admitted; the others were.
        """
        found = await asyncio.gather(*map(self._admit_one, members), return_exceptions=True)
        failures: dict[str, BaseException] = {
            one.id: error
            for one, error in zip(members, found, strict=True)
            if isinstance(error, BaseException)
        }
        for error in failures.values():
            if not isinstance(error, Exception):
                raise error
        if failures:
            texts = {one: failure_of(error).message for one, error in failures.items()}
            listed = "; ".join(f"{one}: {text}" for one, text in list(texts.items())[:8])
            raise ParticipantFailed(
                f"admit: {listed}. Start them again, and call admit again.", failures=texts
            ) from next(iter(failures.values()))

    def release(self, participant: str) -> None:
        """Let a participant take no part in later calls."""
        self._bells.remove(participant)
        self._driver.release(participant)

    def check_some(self) -> None:
        """Refuse a call in which nobody would take part.

        Raises:
            InvalidInput: nobody was admitted.
        """
        if not self._bells.members():
            raise InvalidInput("no participant was admitted: call admit() first")

    def check_roles(self, roles: Collection[str]) -> None:
        """Refuse participants that a gated save would leave out.

        Args:
            roles: those with a gate.

        Raises:
            InvalidInput: another role was admitted.
        """
        others = {role_of(one.id) for one in self._bells.members()} - set(roles)
        if others:
            raise InvalidInput(
                f"role {', '.join(sorted(others))}: a coordinator with gates saves only what is "
                "declared in them. Declare it, and save it with save_async or save_sync; or give "
                "facts of the controller as cut=."
            )

    def dismiss(self) -> None:
        """Release all, and end those that the controller holds itself."""
        for one in self._bells.members():
            self.release(one.id)
            if isinstance(one, Hosted):
                one.end()

    async def _admit_one(self, member: Member) -> None:
        life, one = secrets.token_hex(8), member.id
        self._bells.put(member, life)
        self._sockets.admit(one, life)
        connected = self._driver.admit(one, life, steps=isinstance(member, RankMember))
        place = self._sockets.address
        admission = Admission(
            one,
            life,
            self._root,
            place.host,
            place.port,
            self._token,
            __version__,
            self._deadlines,
        )
        try:
            limit_s = self._deadlines.connect_s
            await asyncio.wait_for(self._connect(member, admission, connected), limit_s)
        except asyncio.TimeoutError as error:
            self.release(one)
            raise CommitTimeout(
                f"did not connect within {limit_s:g} s. A rank calls wait_admitted on the root; an "
                "address that reaches the coordinator from other hosts is control_host=.",
                participant=one,
            ) from error
        except BaseException:
            self.release(one)
            raise

    async def _connect(self, member: Member, admission: Admission, connected: Future[None]) -> None:
        await member.admit(admission, self._executor)
        await asyncio.wrap_future(connected)
