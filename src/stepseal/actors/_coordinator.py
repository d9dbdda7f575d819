"""The coordinator of participants that make no calls of their own: actors, processes, objects.

Invariants: one call at a time; the outcome of a call is never lost, also if the one who awaits it
is cancelled; nobody is waited for beyond `Deadlines`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from stepseal._version import __version__
from stepseal.actors._admission import Admission
from stepseal.actors._bells import BellHub
from stepseal.actors._fetched import Fetched, Hosted
from stepseal.actors._participant import Participant
from stepseal.components import Topology
from stepseal.errors import CheckpointError, InvalidInput, ParticipantFailed
from stepseal.layout import check_component_name, check_step, step_name
from stepseal.protocol import (
    Deadlines,
    Fresh,
    Opening,
    Relation,
    RestoreFailed,
    SaveState,
    SocketHub,
    failure_of,
    resolve_save,
)
from stepseal.protocol import Restored as RestoredMessage
from stepseal.retention import as_retention
from stepseal.session import (
    JobOptions,
    Progress,
    Restored,
    Saved,
    check_annotations,
    coordinate,
    restore_error,
)
from stepseal.steps import locate_root, open_store
from stepseal.storage import Access

if TYPE_CHECKING:
    import os
    from collections.abc import Coroutine, Mapping, Sequence

    from typing_extensions import Self

    from stepseal.actors._doorbell import Member
    from stepseal.retention import KeepRule, Retention
    from stepseal.session import Policy

__all__ = ["Coordinator"]

T = TypeVar("T")
_log = logging.getLogger("stepseal")
_MAX_THREADS = 256


class Coordinator:
    """Saves and restores participants of several roles as one step, at one agreed cut.

    It lives in the controller of an actor job, on an event loop. Use it with `async with`, or call
    `close`. Made on the thread that later runs the loop; makes the root if it is missing.

    Args:
        root: directory of the run's steps.
        order: roles in the order in which they are captured: consumers before producers. Others
            come last.
        relations: what must hold between fields of the cut: `"watermark <= position"`, `"a == b"`.
        keep: which steps stay; None keeps all.
        deadlines: how long anybody waits for anybody.
        access: see `Checkpointer`.
        control_host: own address that participants can reach; loopback reaches this host alone.

    Raises:
        InvalidInput: an argument is wrong, or the root is a DCP folder itself.
        StorageUnavailable: the root cannot be made or written.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        order: Sequence[str] = (),
        relations: Sequence[str] = (),
        keep: KeepRule | Retention | None = None,
        deadlines: Deadlines | None = None,
        access: Access | None = None,
        control_host: str = "127.0.0.1",
    ) -> None:
        if isinstance(order, str) or isinstance(relations, str):
            raise InvalidInput("order, relations: expected lists of str, found one str")
        self._order = tuple(order)
        self._relations = tuple(Relation.parse(text) for text in relations)
        self._root = locate_root(root)
        self._deadlines = deadlines or Deadlines()
        access = access or Access()
        self._steps = open_store(self._root, access=access, create=True)
        self._token = secrets.token_hex(16)
        self._sockets = SocketHub(control_host, (), self._token, self._deadlines, __version__)
        self._bells = BellHub(self._sockets)
        options = JobOptions(self._deadlines, as_retention(keep), access)
        self._driver = coordinate(self._steps, Topology(0, ()), options, self._bells)
        self._bells.driver = self._driver
        self._executor = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="stepseal-actors")
        self._lock = asyncio.Lock()
        self._progress = Progress()
        self._unseen: CheckpointError | None = None
        self._running: set[asyncio.Task[object]] = set()
        self._waiting: list[Hosted] = []
        """Components to fetch whose participants are admitted by the next call."""
        self._closed = False

    def add(self, name: str, state: Fetched) -> None:
        """Let the controller save a component by itself; see `ss.fetched`.

        The component is a role of its own, with the same name; `order` may name it.
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

    async def admit(self, *members: Member) -> None:
        """Let participants take part from the next call on, each in a new life.

        Also for one that was admitted before, and whose process was started again: its old life
        ends here. It then needs a restore.

        Raises:
            ParticipantFailed: some could not be admitted; `.failures` says why for each. The others
                were.
        """
        await self._one_at_a_time(self._admit(members))

    async def release(self, *ids: str) -> None:
        """Let participants take no part in later calls."""

        async def release() -> None:
            for one in ids:
                self._bells.remove(one)
                self._driver.release(one)

        await self._one_at_a_time(release())

    async def save(
        self,
        step: int,
        *,
        cut: Mapping[str, str | int | float | bool | None] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] = (),
    ) -> Saved:
        """Save all participants as `step`; return when it is committed and durable.

        If the one who awaits this is cancelled, the save goes on, and the next call waits for it;
        a failure that nobody saw is raised by the next call.

        Args:
            step: above every step that was restored or committed here.
            cut: fields of the cut that the controller knows.
            metrics: facts for the manifest.
            tags: words for the manifest.

        Raises:
            ParticipantFailed: a participant failed; nothing was committed. `.failures` names them.
            StepExists, NotRestored, CommitTimeout, OutcomeUnknown: see `Checkpointer.save`.
        """
        step = check_step(step)
        notes = check_annotations(metrics, tags, cut)
        metrics = {name: float(value) for name, value in notes.metrics.items()}
        opening = Opening(
            "save", step, self._order, self._relations, notes.cut, metrics, tuple(notes.tags)
        )
        return await self._one_at_a_time(self._save(opening, step))

    async def restore(
        self,
        step: int | None = None,
        *,
        fresh: bool = False,
        policies: Mapping[str, Policy] | None = None,
        check_only: bool = False,
    ) -> Restored | None:
        """Bring all participants back to one committed step; see `Checkpointer.restore`.

        Returns:
            What was restored, or None where there is nothing to restore, or `fresh`.

        Raises:
            StateMismatch: saved and live state differ, or nobody holds what a role saved.
            ParticipantFailed, NoResumableStep, Corrupt: see `Checkpointer.restore`.
        """
        if step is not None:
            step = check_step(step)
        opening = Opening(
            "restore", step, fresh=fresh, policies=dict(policies or {}), check_only=check_only
        )
        return await self._one_at_a_time(self._restore(opening))

    async def close(self) -> None:
        """Wait for the call in flight, dismiss all participants, and free everything. Idempotent.

        Raises:
            CheckpointError: a call failed, and nobody saw it.
        """
        if self._closed:
            return
        self._closed = True
        async with self._lock:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor, self._end)
        self._executor.shutdown(wait=False)
        self._raise_unseen()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            await self.close()
        except CheckpointError as error:
            if exc_type is None:
                raise
            _log.error("stepseal: while leaving after %s: %s", exc_type, error)

    def _end(self) -> None:
        for one in self._bells.members():
            self._bells.remove(one.id)
            self._driver.release(one.id)
            if isinstance(one, Hosted):
                one.leave()
        self._driver.close()

    # -- one call --------------------------------------------------------------------------------

    async def _one_at_a_time(self, work: Coroutine[None, None, T]) -> T:
        """Run a call to its end, after the one before it, whoever is cancelled meanwhile."""
        if self._closed:
            work.close()
            raise InvalidInput("this Coordinator is closed; make a new one")
        left = asyncio.Event()
        task = asyncio.ensure_future(self._locked(work, left))
        self._running.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            left.set()
            task.add_done_callback(_retrieve)
            raise

    async def _locked(self, work: Coroutine[None, None, T], left: asyncio.Event) -> T:
        """Run a call; keep its failure for the next one if nobody awaits it any more."""
        async with self._lock:
            self._bells.loop = asyncio.get_running_loop()
            try:
                self._raise_unseen()
                await self._admit(self._waiting)
                self._waiting.clear()
            except BaseException:
                work.close()
                raise
            try:
                return await work
            except CheckpointError as error:
                if left.is_set():
                    self._unseen = error
                raise

    def _raise_unseen(self) -> None:
        unseen, self._unseen = self._unseen, None
        if unseen is not None:
            raise unseen

    async def _admit(self, members: Sequence[Member]) -> None:
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

    async def _admit_one(self, member: Member) -> None:
        life, one = secrets.token_hex(8), member.id
        self._sockets.admit(one, life)
        self._driver.admit(one, life)
        self._bells.put(member, life)
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
            await asyncio.wait_for(member.admit(admission, self._executor), limit_s)
        except BaseException:
            self._bells.remove(one)
            self._driver.release(one)
            raise

    async def _save(self, opening: Opening, step: int) -> Saved:
        self._check_members()
        self._progress.check_not_tainted()
        self._progress.check_grows(step)
        told = await asyncio.wrap_future(self._driver.open(opening))
        outcome = told.outcome
        assert not isinstance(outcome, (RestoredMessage, Fresh, RestoreFailed)), "of a save"
        state = SaveState(outcome.call, outcome=outcome)
        committed = resolve_save(state, step, self._steps)
        self._progress.newest = step
        return Saved(step, f"{self._root}/{step_name(step)}", committed.manifest_sha256)

    async def _restore(self, opening: Opening) -> Restored | None:
        self._check_members()
        told = await asyncio.wrap_future(self._driver.open(opening))
        outcome, restored = told.outcome, None
        with self._progress.tainting():
            if isinstance(outcome, RestoreFailed):
                raise restore_error(outcome, opening.step)
        if isinstance(outcome, RestoredMessage):
            restored = Restored(
                step=outcome.step,
                path=f"{self._root}/{step_name(outcome.step)}",
                report=dict(told.report),
                incarnation=outcome.incarnation,
                skipped=outcome.skipped,
                unverified=outcome.unverified,
            )
        if not opening.check_only:
            self._progress.went_on_from(restored)
        return restored

    def _check_members(self) -> None:
        if not self._bells.members():
            raise InvalidInput("no participant was admitted: call admit() first")


def _retrieve(task: asyncio.Task[T]) -> None:
    """Let asyncio know that a failure was seen to."""
    if not task.cancelled() and task.exception() is not None:
        _log.debug("stepseal: a call that nobody awaits failed: %r", task.exception())
