"""The coordinator of participants that make no calls of their own: actors, processes, objects.

Invariants: one call at a time; the outcome of a call is never lost, also if the one who awaits it
is cancelled; nobody is waited for beyond `Deadlines`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING

from stepseal._version import __version__
from stepseal.actors._bells import BellHub
from stepseal.actors._calls import Calls
from stepseal.actors._members import Members
from stepseal.components import Topology
from stepseal.errors import CheckpointError, InvalidInput, ParticipantFailed
from stepseal.layout import Area, check_step, step_name
from stepseal.process import Pool
from stepseal.protocol import (
    Deadlines,
    Fresh,
    Opening,
    Relation,
    RestoreFailed,
    SaveState,
    SocketHub,
    as_gates,
    check_frozen,
    resolve_save,
)
from stepseal.protocol import Restored as RestoredMessage
from stepseal.retention import as_retention, check_publish_keep
from stepseal.session import (
    JobOptions,
    Progress,
    Restored,
    Room,
    Saved,
    as_functions,
    check_annotations,
    check_choice,
    check_published,
    coordinate,
    restore_error,
)
from stepseal.steps import locate_root, open_store
from stepseal.storage import Access

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from typing_extensions import Self

    from stepseal.actors._doorbell import Member
    from stepseal.actors._fetched import Fetched
    from stepseal.retention import KeepRule, Retention
    from stepseal.session import OnCommit, Policy

__all__ = ["Coordinator"]

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
        freeze: roles that stay frozen from their capture until all roles have captured, so that
            nobody moves meanwhile; each is named in `order`. A save fails at `capture_s` if a
            role that captures later waits for a frozen one.
        gates: what a step waits for that participants save by themselves (`save_async`,
            `save_sync`): `"ROLE/NAME"`, or `"ROLE"` where the component has the role's name.
        relations: what must hold between fields of the cut: `"watermark <= position"`, `"a == b"`.
        keep: which steps stay; None keeps all.
        on_commit: see `Checkpointer`; not called on the loop's thread.
        publish_keep: how many publications stay, besides those that are being read.
        deadlines: how long anybody waits for anybody.
        access: see `Checkpointer`.
        control_host: own address that participants can reach; loopback reaches this host alone.
        progress: see `Checkpointer`.

    Raises:
        InvalidInput: an argument is wrong, or the root is a DCP folder itself.
        StorageUnavailable: the root cannot be made or written.
        ParticipantFailed: a thread cannot be had.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        order: Sequence[str] = (),
        freeze: Sequence[str] = (),
        relations: Sequence[str] = (),
        gates: Sequence[str] = (),
        keep: KeepRule | Retention | None = None,
        on_commit: OnCommit | Iterable[OnCommit] | None = None,
        publish_keep: int = 2,
        deadlines: Deadlines | None = None,
        access: Access | None = None,
        control_host: str = "127.0.0.1",
        progress: bool = True,
    ) -> None:
        if any(isinstance(one, str) for one in (order, freeze, relations)):
            raise InvalidInput("order, freeze, relations: expected lists of str, found one str")
        self._order, self._freeze = tuple(order), check_frozen(freeze, order)
        self._relations = tuple(Relation.parse(text) for text in relations)
        self._gates = as_gates(gates)
        if gates and (order or freeze):
            raise InvalidInput("order, freeze: expected none with gates=, as nobody is captured")
        self._root = locate_root(root)
        deadlines = deadlines or Deadlines()
        access = access or Access()
        self._executor = Pool(_MAX_THREADS, "stepseal-actors")
        self._steps = open_store(self._root, access=access, create=True)
        token = secrets.token_hex(16)
        sockets = SocketHub(control_host, (), token, deadlines, __version__)
        bells = BellHub(sockets)
        self._retention = as_retention(keep)
        told, rules = as_functions(on_commit), (self._retention, access)
        kept = check_publish_keep(publish_keep)
        options = JobOptions(
            deadlines,
            *rules,
            on_commit=told,
            gates=self._gates,
            publish_keep=kept,
            progress=progress,
        )
        self._driver = coordinate(self._steps, Topology(0, ()), options, bells)
        bells.driver = self._driver
        self._members = Members(
            self._root, sockets, bells, self._driver, token, deadlines, self._executor
        )
        self._calls = Calls(self._members.admit_waiting)
        self._progress = Progress()
        self._wanted: set[int] = set()
        """Gated steps that `save` waits for."""

    def __repr__(self) -> str:
        return f"<Coordinator at {self._root}: newest step {self._progress.newest}>"

    def add(self, name: str, state: Fetched) -> None:
        """Let the controller save a component by itself; see `ss.fetched`.

        The component is a role of its own, with the same name; `order` may name it.
        """
        self._calls.check_open()
        self._members.host(name, state)

    async def admit(self, *members: Member) -> None:
        """Let participants take part from the next call on, each in a new life.

        Also for one that was admitted before, and whose process was started again: its old life
        ends here. It then needs a restore.

        Raises:
            ParticipantFailed: some could not be admitted; `.failures` says why for each. The others
                were.
        """
        await self._calls.run(self._members.admit(members))

    async def release(self, *ids: str) -> None:
        """Let participants take no part in later calls."""

        async def release() -> None:
            for one in ids:
                self._members.release(one)

        await self._calls.run(release())

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

        With `gates=`, it returns once all declared writers have saved the step. Several steps may
        be awaited at once. A step for which this is not called is never committed.

        Args:
            step: above every step that was restored or committed here.
            cut: fields of the cut that the controller knows.
            metrics: facts for the manifest.
            tags: words for the manifest.

        Raises:
            ParticipantFailed: a participant failed; nothing was committed. `.failures` names them.
            StepExists, NotRestored, CommitTimeout, OutcomeUnknown: see `Checkpointer.save`.
            InvalidInput: with `gates=`, a role without one was admitted, or `step` is awaited by an
                earlier call.
        """
        step = check_step(step)
        notes = check_annotations(metrics, tags, cut)
        metrics = {name: float(value) for name, value in notes.metrics.items()}
        opening = Opening(
            "save",
            step,
            self._order,
            self._relations,
            notes.cut,
            metrics,
            tuple(notes.tags),
            freeze=self._freeze,
        )
        if not self._gates:
            return await self._calls.run(self._save(opening, step))
        return await self._calls.run(self._save_gated(opening, step), alone=False)

    async def publish(
        self,
        version: int,
        *,
        components: Collection[str],
        cut: Mapping[str, str | int | float | bool | None] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] = (),
    ) -> Saved:
        """Publish some components for readers as `version`; return when that is durable.

        As `save`, but into `published/v-<version>`, and the roles alone take part that hold these
        components. No restore ever takes it. `ss.open(root).wait_published(version)` reads it.

        Args:
            version: above every version that was published in this root.
            components: their names, for example `["model"]`.
            cut: fields of the cut that the controller knows; relations are not checked.
            metrics: facts for the manifest.
            tags: words for the manifest.

        Raises:
            InvalidInput: nobody who was admitted holds one of the components, or there are gates.
            StepExists: the version does not grow.
            CheckpointError: see `save`.
        """
        version = check_step(version, "version")
        if self._gates:
            raise InvalidInput(
                "publish: this Coordinator has gates, and saves what writers save by themselves. "
                "Publish with a Coordinator and a root of its own."
            )
        notes = check_annotations(metrics, tags, cut)
        opening = Opening(
            "save",
            version,
            self._order,
            cut=notes.cut,
            metrics={name: float(value) for name, value in notes.metrics.items()},
            tags=tuple(notes.tags),
            publish=check_published(components, None),
        )
        return await self._calls.run(self._save(opening, version))

    async def restore(
        self,
        step: int | None = None,
        *,
        fresh: bool = False,
        policies: Mapping[str, Policy] | None = None,
        only: Collection[str] | None = None,
        check_only: bool = False,
    ) -> Restored | None:
        """Bring all participants back to one committed step; see `Checkpointer.restore`.

        Args:
            step: restore exactly this step and never another.
            fresh: start anew beside the steps that are there.
            policies: component to policy, before those of `Participant.add`; `skip` also leaves out
                what is in the step and nobody has.
            only: restore these and skip all others, whoever has them.
            check_only: return what a restore would do; touch and claim nothing.

        Returns:
            What was restored, or None where there is nothing to restore, or `fresh`.

        Raises:
            StateMismatch: saved and live state differ, or nobody holds what a role saved.
            InvalidInput: `policies` or `only` name what no participant has.
            ParticipantFailed, NoResumableStep, Corrupt: see `Checkpointer.restore`.
        """
        step = check_choice(step, fresh=fresh, unverified=False)
        if isinstance(only, str):
            raise InvalidInput(f"only: expected a list of names, found one string: only=[{only!r}]")
        opening = Opening(
            "restore",
            step,
            fresh=fresh,
            policies=dict(policies or {}),
            only=None if only is None else tuple(only),
            check_only=check_only,
        )
        return await self._calls.run(self._restore(opening))

    async def close(self) -> None:
        """Wait for the call in flight, dismiss all participants, and free everything. Idempotent.

        Raises:
            CheckpointError: a call failed, and nobody saw it.
        """
        if self._calls.closed or not self._calls.home.is_here:
            return
        loop = asyncio.get_running_loop()
        await self._calls.finish(lambda: self._ended(loop))
        self._executor.shutdown(wait=False)
        self._calls.raise_unseen()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            await self.close()
        except CheckpointError as error:
            if exc_type is None:
                raise
            _log.error("stepseal: while leaving after %s: %s", exc_type, error)

    async def _ended(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await loop.run_in_executor(self._executor, self._end)
        except ParticipantFailed:  # no thread can be had
            self._end()

    def _end(self) -> None:
        self._members.dismiss()
        self._driver.close()

    async def _save_gated(self, opening: Opening, step: int) -> Saved:
        self._members.check_roles({gate.role for gate in self._gates})
        if step in self._wanted:
            raise InvalidInput(f"save({step}): called before, and not decided yet", step=step)
        self._wanted.add(step)
        try:
            return await self._save(opening, step)
        finally:
            self._wanted.discard(step)

    async def _save(self, opening: Opening, step: int) -> Saved:
        area = Area.PUBLISHED if opening.publish else Area.STEPS
        self._members.check_some()
        self._progress.check_not_tainted()
        if area is Area.STEPS:
            self._progress.check_grows(step)
        told = await asyncio.wrap_future(self._driver.open(opening))
        outcome = told.outcome
        assert not isinstance(outcome, (RestoredMessage, Fresh, RestoreFailed)), "of a save"
        state = SaveState(outcome.call, outcome=outcome)
        committed = resolve_save(state, step, self._steps, area)
        if area is Area.STEPS:
            is_first = self._progress.newest is None
            self._progress.newest = max(step, self._progress.newest or 0)
            if is_first:
                await self._tell_room(step)
        cost = (committed.size_bytes, committed.blocked_s, committed.committed_s)
        return Saved(step, f"{self._root}/{area.key(step)}", committed.manifest_sha256, *cost)

    async def _restore(self, opening: Opening) -> Restored | None:
        self._members.check_some()
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
            if restored is not None and not restored.unverified:
                await self._tell_room(restored.step)
        return restored

    async def _tell_room(self, step: int) -> None:
        """Tell once how it is with the disk: after a restore, or else after the first commit."""
        loop, told = asyncio.get_running_loop(), (self._steps, self._retention, step)
        await loop.run_in_executor(self._executor, Room().of_step, *told)
