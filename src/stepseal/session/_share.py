"""One participant's share of every call: its components, its memory, and what it has gone through.

Whoever makes the calls, this is the same: the ranks of an SPMD job with `Checkpointer`, or a
coordinator that opens them. Holds no protocol logic.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

from stepseal.components import Registry, ReplicaRule, as_patterns
from stepseal.errors import InvalidInput
from stepseal.session._pending import PendingSave, Saved
from stepseal.session._policies import Policies, check_policy
from stepseal.session._progress import Progress
from stepseal.session._restoring import RestorePart
from stepseal.session._room import Room
from stepseal.session._save_call import SaveCall, begin_save
from stepseal.session._targets import Targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.components import DeclaredSharing, Reshard, Topology, Validation
    from stepseal.protocol import RestoreCalled
    from stepseal.session._annotations import Annotations
    from stepseal.session._inflight import InFlight
    from stepseal.session._policies import Choice, Policy
    from stepseal.session._reports import Restored
    from stepseal.session._wiring import Wiring

__all__ = ["Share", "ShareOfRestore"]

T = TypeVar("T")


@dataclass(slots=True)
class Share:
    """What a participant holds over all its calls."""

    topology: Topology
    flight: InFlight
    registry: Registry = field(default_factory=Registry)
    policies: Policies = field(default_factory=Policies)
    progress: Progress = field(default_factory=Progress)
    room: Room = field(default_factory=Room)
    called_at_s: float = 0.0
    """Monotonic time at which the call of now began."""
    has_other_roles: bool = False
    """Whether the job has participants of other roles."""

    def add(
        self,
        name: str,
        state: object,
        *,
        sharing: DeclaredSharing | None,
        kind: Literal["tensors", "tree"] | None,
        on_restore: Policy,
        on_world_change: Literal["fresh"] | Reshard | None,
        validate: Validation | None,
        exclude: Sequence[str],
        required: bool,
    ) -> None:
        """Make `state` part of every step; see `Checkpointer.add`."""
        check_policy(name, on_restore, on_world_change)
        if self.progress.started:
            raise InvalidInput(
                f"add({name!r}): components are fixed once save or restore was called. Add all of "
                "them before.",
                component=name,
            )
        rule = ReplicaRule(validate, exclude=as_patterns(exclude), required=required)
        used = self.registry.add(
            name, state, sharing=sharing, kind=kind, topology=self.topology, rule=rule
        )
        policy = on_restore if required or on_restore != "require" else "if-present"
        self.policies.declare(name, policy, on_world_change, used)

    def settle(self) -> None:
        """Begin a call: wait for the save in flight; raise its failure unless it was seen."""
        self.called_at_s = time.monotonic()
        committed = self.flight.settle()
        if committed is not None:
            self.progress.committed(committed)

    def look_ahead(self, wiring: Wiring, mode: Literal["async", "sync"]) -> None:
        """Tell at the first step of a job whether its saves will find room; see `Room`."""
        stages = mode == "async"
        self.room.look_ahead(wiring, self.registry, self.topology, self.flight, stages=stages)

    def save(
        self,
        wiring: Wiring,
        call: int,
        step: int,
        root: str,
        mode: Literal["async", "sync", "behind"],
        notes: Annotations,
        publish: tuple[str, ...] = (),
    ) -> PendingSave:
        """Capture all components, or those to publish, and let the writer go on; see `begin_save`.

        Args:
            wiring: connections.
            call: number of the call.
            step: number of the step, or version of the publication.
            root: absolute path of the root.
            mode: see `SaveCall`.
            notes: facts for the manifest.
            publish: components that are published; none for a step of all.
        """
        self.progress.started = True
        fresh, called_at_s = self.progress.fresh, self.called_at_s
        asked = SaveCall(call, step, mode, root, notes, self.settle, fresh, called_at_s, publish)
        return begin_save(wiring, self.registry, self.topology, self.flight, asked)

    def targets(self, choice: Choice) -> Targets:
        """Return the live state that a restore fills; refuse conversions that cannot be."""
        go_by = functools.partial(self.registry.go_by, topology=self.topology)
        components, others = self.registry.components(), self.has_other_roles
        targets = Targets(components, choice, self.topology, go_by, others)
        targets.check_conversions()
        return targets

    def restore(
        self, wiring: Wiring, root: str, call: RestoreCalled, targets: Targets
    ) -> ShareOfRestore:
        """Join a restore."""
        self.progress.started = self.progress.started or not call.check_only
        return ShareOfRestore(self, wiring, root, call, targets)


class ShareOfRestore:
    """One participant's share of one restore, carried out at once, or order by order."""

    def __init__(
        self, share: Share, wiring: Wiring, root: str, call: RestoreCalled, targets: Targets
    ) -> None:
        self._share = share
        self._wiring, self._driver = wiring, wiring.driver
        self._call, self._root = call, root
        storage, deadlines = wiring.steps.storage, wiring.driver.deadlines
        self.part = RestorePart(wiring.driver, call, storage, root, targets, deadlines)

    def run(self) -> Restored | None:
        """Follow all orders; see `Checkpointer.restore`."""
        while not self.part.ended:
            self.guard(lambda: self.part.follow(self.part.wait()))
        return self.part.restored

    def guard(self, work: Callable[[], T]) -> T:
        """Do a piece of the restore; remember how it ended once it has."""
        ended = True
        try:
            with self._share.progress.tainting():
                done = work()
            ended = self.part.ended
        finally:
            if ended:
                self._driver.forget(self._call.call)
        if ended and not self._call.check_only:
            share, restored = self._share, self.part.restored
            share.progress.went_on_from(restored, self._handle(restored))
            if not share.has_other_roles:
                share.room.restored(self._wiring, share.registry, share.topology, restored)
        return done

    def _handle(self, restored: Restored | None) -> PendingSave | None:
        """Return the handle of what was restored; None where no manifest says what that is."""
        if restored is None or restored.manifest_sha256 is None:
            return None
        told = (restored.step, restored.path, restored.manifest_sha256)
        saved = Saved(*told, size_bytes=None, blocked_s=None, committed_s=None)
        return PendingSave._of_restored(saved, self._root, self._driver, self._wiring.steps)
