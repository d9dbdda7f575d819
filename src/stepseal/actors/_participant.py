"""The participant of an actor or a process: its coordinator opens the calls, its owner runs them.

Invariants: captures and restores run on the thread that calls `capture`, `restore` or `poll`, which
must be one that nothing mutates state beside; writing goes on behind. Each call is begun once, and
only by the life that it is meant for.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Literal

from stepseal._version import __version__
from stepseal.actors._roster import check_roster
from stepseal.actors._slots import Slots
from stepseal.components import Topology
from stepseal.errors import CheckpointError, InvalidInput
from stepseal.layout import check_participant, role_of
from stepseal.protocol import (
    Address,
    BeginRestore,
    BeginSave,
    OwnPoints,
    ParticipantDriver,
    SocketLink,
)
from stepseal.session import InFlight, Share, Wiring, check_annotations, open_late_root
from stepseal.storage import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from stepseal.actors._admission import Admission
    from stepseal.components import DeclaredSharing, Validation
    from stepseal.protocol import Begin, Link
    from stepseal.session import Policy, Restored, ShareOfRestore

__all__ = ["Participant"]

_log = logging.getLogger("stepseal")
_Scalar = str | int | float | bool | None


class Participant:
    """Takes part in the steps of a `Coordinator`, for an actor or a process that owns components.

    Args:
        role: what this actor, or the group of actors that it belongs to, is: `trainer`.
        rank: its number in the group.
        size: number of actors in the group.
        cut: returns the fields of the cut that this participant knows, at each save; called before
            anything is captured, on the same thread.
        max_staging_bytes: bound of the private memory; None for no bound.
        access: see `Checkpointer`.

    Raises:
        InvalidInput: role, rank or size are not usable.
    """

    def __init__(
        self,
        role: str,
        *,
        rank: int = 0,
        size: int = 1,
        cut: Callable[[], Mapping[str, _Scalar]] | None = None,
        max_staging_bytes: int | None = None,
        access: Access | None = None,
    ) -> None:
        if not 0 <= rank < size:
            raise InvalidInput(
                f"Participant({role!r}): expected 0 <= rank < size, found rank {rank} of {size}"
            )
        names = tuple(check_participant(f"{role}/{number}") for number in range(size))
        topology, flight = Topology(rank, names), InFlight(max_staging_bytes)
        self._share = Share(topology, flight, has_other_roles=True)
        self._slots = Slots(topology)
        self._cut = cut
        self._access = access or Access()
        self._admission: Admission | None = None
        self._wiring: Wiring | None = None
        self._points = OwnPoints()
        self._busy = threading.RLock()
        """Held by whoever captures, restores, begins a life or ends one."""
        self._turn = asyncio.Lock()
        """Held on an event loop by the call that runs: a restore gives way between its orders."""

    def __repr__(self) -> str:
        return f"<Participant {self.id}: {'not admitted' if self.is_lost else 'admitted'}>"

    @property
    def id(self) -> str:
        """Id of this participant, such as `trainer/3`."""
        return self._share.topology.me

    @property
    def has_engines(self) -> bool:
        """Whether a component is external: its engine runs while the owner is held."""
        return any(one.kind == "external" for one in self._share.registry.components())

    def add(
        self,
        name: str,
        state: object,
        *,
        sharing: DeclaredSharing | None = None,
        kind: Literal["tensors", "tree"] | None = None,
        on_restore: Policy = "require",
        on_world_change: Literal["fresh"] | None = None,
        validate: Validation | None = None,
        exclude: Sequence[str] = (),
        required: bool = True,
    ) -> None:
        """Make `state` part of every step; see `Checkpointer.add`.

        Every participant of a role adds the same names, and no other role has them. A sharing is
        within the role, and so is what is compared.

        Raises:
            InvalidInput: see `Checkpointer.add`; or `validate="full"`, which compares live state
                with what was written, while an owner goes on as soon as it has captured.
        """
        wiring = self._here()
        if validate == "full":
            raise InvalidInput(
                f"add({name!r}, validate='full'): a participant does not wait until its files are "
                "written, so it has no live state to compare with them. Use validate='tensor'.",
                component=name,
            )
        self._share.add(
            name,
            state,
            sharing=sharing,
            kind=kind,
            on_restore=on_restore,
            on_world_change=on_world_change,
            validate=validate,
            exclude=exclude,
            required=required,
        )
        if wiring is not None:
            wiring.driver.tell_components(self._share.registry.names())

    def admit(self, admission: Admission, link: Link | None = None) -> None:
        """Begin a life: connect to the coordinator. An earlier life ends.

        Args:
            admission: what the coordinator says.
            link: a connection inside the coordinator's process; None opens one.

        Raises:
            InvalidInput: the admission is for another participant, or the coordinator runs another
                release.
            CoordinatorLost: the coordinator cannot be reached, or refuses.
            CheckpointError: the root cannot be opened.
        """
        admission.check(self.id)
        self._here()
        with self._busy:
            self.close()
            limits = admission.deadlines
            address = Address(admission.host, admission.port, admission.token)
            line = link or SocketLink(address, self.id, limits, __version__, life=admission.life)
            driver = ParticipantDriver(self.id, line, limits, self._points)
            try:
                limit_s = 0.8 * limits.connect_s  # the controller still hears of a failure
                steps = open_late_root(admission.root, self._access, limit_s, "the controller")
                wiring = Wiring(steps, driver, None)
            except BaseException:
                driver.close()
                raise
            driver.tell_components(self._share.registry.names())
            self._admission, self._wiring = admission, wiring
            self._turn = asyncio.Lock()  # of the loop that this life is on

    def capture(self, begin: BeginSave) -> None:
        """Capture what is saved or published, now; return once it may change again.

        Writing goes on behind. Where engines write files of their own, it returns once they have;
        where the coordinator freezes this role, once all roles have captured. What fails is told to
        the coordinator, and raised here as well.

        Raises:
            InvalidInput: the call is not for this life.
        """
        self._here()
        with self._busy:
            self._capture(begin)

    def _capture(self, begin: BeginSave) -> None:
        admission, wiring = self._check(begin)
        if not wiring.driver.take_up(begin):
            return
        self._settle()
        try:
            self._check_participants(begin)
            fields = {} if self._cut is None else self._cut()
            notes = check_annotations(None, (), fields)
            self._share.progress.check_not_tainted()
            self._share.policies.check_any()
        except Exception as error:
            wiring.driver.send_failed(begin.call, begin.step, "capture", error)
            raise
        root, publish = admission.root, tuple(begin.publish)
        self._share.save(wiring, begin.call, begin.step, root, "behind", notes, publish)
        if begin.freeze:
            wiring.driver.wait_thaw(begin.call, begin.step)
            self._share.flight.freed()

    def restore(self, begin: BeginRestore) -> Restored | None:
        """Take part in a restore, now; return what it brought back. Blocks."""
        self._here()
        with self._busy:
            share = self.join(begin)
            return None if share is None else share.run()

    def join(self, begin: BeginRestore) -> ShareOfRestore | None:
        """Join a restore; None if this call was begun before."""
        admission, wiring = self._check(begin)
        if not wiring.driver.take_up(begin):
            return None
        self._settle()
        self._check_participants(begin)
        share = self._share
        own = {*share.registry.names()}
        policies = {n: p for n, p in begin.policies.items() if n in own or p == "skip"}
        sets = share.registry.declared_sets(share.topology)
        only = None if begin.only is None else [name for name in begin.only if name in own]
        choice = share.policies.choose(policies, only, None, sets)  # type: ignore[arg-type]
        call = choice.call(
            begin.call, begin.step, fresh=begin.fresh, unverified=False, check_only=begin.check_only
        )
        return share.restore(wiring, admission.root, call, share.targets(choice))

    def save_async(self, name: str, save_fn: Callable[[str], object], step: int) -> None:
        """Write a component of a gated step on a thread of its own, and go on at once.

        The coordinator declares it with `gates=`. The step is committed once all its gates are
        durable and the controller has called `save(step)`. Waits for the earlier save of the same
        name; state that goes on changing must have been copied before.

        Args:
            name: of the component, and of the slot whose saves never overlap.
            save_fn: takes the path of a folder, writes all its files below it, and returns when
                they are complete. Every participant of the role writes into the same folder.
            step: step number.

        Raises:
            ParticipantFailed: an earlier save failed here; this one did not begin. `.failures` has
                the writer's name, and the cause is what `save_fn` raised.
            InvalidInput: not admitted; or, of an earlier save, the coordinator does not expect it.
            CoordinatorLost, CommitTimeout: of an earlier save.
        """
        self._slots.save_async(self._wiring_for(name, step), name, save_fn, step)

    def save_sync(
        self, save_fn: Callable[[str], object], step: int, *, name: str | None = None
    ) -> None:
        """Write a component of a gated step on this thread; return when its files are complete.

        For what must run on the main thread, such as collectives. They are synced and digested
        behind; see `wait_all`.

        Args:
            save_fn: see `save_async`.
            step: step number.
            name: of the component; None takes the role's.

        Raises:
            ParticipantFailed: `save_fn` raised, or an earlier save failed here.
            InvalidInput, CoordinatorLost, CommitTimeout: see `save_async`.
        """
        name = role_of(self.id) if name is None else name
        self._slots.save_sync(self._wiring_for(name, step), name, save_fn, step)

    def wait_all(self) -> None:
        """Wait until what `save_async` and `save_sync` began is durable here, or has failed.

        Does not wait for writers of other roles: whether the step is committed is what
        `Coordinator.save` returns.

        Raises:
            ParticipantFailed, InvalidInput, CoordinatorLost, CommitTimeout: see `save_async`.
        """
        self._here()
        self._slots.wait_all()

    def poll(self, timeout_s: float | None = 0.0) -> int:
        """Carry out the calls that have arrived over the line; return their number.

        For a process that has a loop of its own: called between two pieces of its work, it is the
        point at which nothing changes state. A failure is told to the coordinator and logged.

        Args:
            timeout_s: seconds to wait for the first call; None waits until the coordinator is gone.
        """
        wiring = self._here()
        if wiring is None:
            return 0
        driver, num = wiring.driver, 0
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = 0.0 if num else None if end is None else max(0.0, end - time.monotonic())
            begin = driver.wait_begin(left)
            if begin is None:
                return num
            num += 1
            self._carry_out(begin)

    def begin(self, begin: Begin) -> None:
        """Carry out a call of either kind."""
        if isinstance(begin, BeginSave):
            self.capture(begin)
        else:
            self.restore(begin)

    def _carry_out(self, begin: Begin) -> None:
        try:
            self.begin(begin)
        except CheckpointError as error:
            _log.error("stepseal: %s: %s", self.id, error)

    @property
    def is_lost(self) -> bool:
        """True if there is no coordinator: none yet, none any more, or it released this one."""
        return self._wiring is None or self._wiring.driver.is_lost

    def close(self) -> None:
        """Leave: wait for the save in flight, and say goodbye. Idempotent."""
        if self._wiring is not None and not self._wiring.home.is_here:
            return  # its life goes on in the parent
        with self._busy:
            wiring, self._wiring, self._admission = self._wiring, None, None
            if wiring is not None:
                self._slots.end(wiring.driver.deadlines.close_s)
                self._settle()
                wiring.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wiring_for(self, name: str, step: int) -> Wiring:
        wiring = self._here()
        if wiring is None:
            raise InvalidInput(
                f"save of step {step}: {self.id}: component {name}: not admitted in this life of "
                "its process. Call Coordinator.admit.",
                step=step,
                participant=self.id,
            )
        return wiring

    def _here(self) -> Wiring | None:
        """Return the connections of this life; refuse a forked child."""
        return None if self._wiring is None else self._wiring.own(self.id)

    def _settle(self) -> None:
        """Wait for the save in flight; its failure was told to the coordinator's user."""
        try:
            self._share.settle()
        except CheckpointError as error:
            _log.debug("stepseal: %s: %s", self.id, error)

    def _check(self, begin: Begin) -> tuple[Admission, Wiring]:
        """Refuse a call that is not for this life.

        Raises:
            InvalidInput: this participant was never admitted, or as another life.
        """
        if self._admission is None or self._wiring is None:
            raise InvalidInput(
                f"{self.id} was called for a save or restore, but was not admitted in this life of "
                "its process: it may have been restarted. Call Coordinator.admit again.",
                participant=self.id,
            )
        if begin.life != self._admission.life:
            raise InvalidInput(
                f"{self.id}: this call is for life {begin.life}, found life "
                f"{self._admission.life}: it was admitted again meanwhile.",
                participant=self.id,
            )
        return self._admission, self._wiring

    def _check_participants(self, begin: Begin) -> None:
        check_roster(self._share.topology, begin.participants)
