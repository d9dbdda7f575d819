"""One incarnation's coordinator in the simulation: the real protocol, the real storage work."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Literal

from tests.campaigns.simulator._asking import Asking
from tests.campaigns.simulator._disk import Disk
from tests.campaigns.simulator._parts import Indexer
from tests.steps._kit import DEADLINES

from stepseal.errors import CheckpointError
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._draft import JobInfo
from stepseal.protocol._incarnation import Incarnation, discard_aborted
from stepseal.retention import Housekeeper
from stepseal.steps import OwnedSteps, Removal
from stepseal.steps._attempts import discard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.campaigns.simulator._lines import Line
    from tests.campaigns.simulator._oracle import Oracle
    from tests.campaigns.simulator._world import Node, World

    from stepseal.layout import Manifest
    from stepseal.protocol._triggers import Timing
    from stepseal.retention import Retention
    from stepseal.steps import StepEntry

    StorageWork = actions.BeginStaging | actions.Publish | actions.Select | actions.Claim

__all__ = ["Head"]


class _Discards:
    """Removes aborted attempts on the disk of the thread that deletes."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def discard(self, attempt_key: str) -> None:
        discard(self._disk, attempt_key)


LEASE_S = DEADLINES.check_s + DEADLINES.apply_s + DEADLINES.commit_s


class Head:
    """The coordinator's process.

    Args:
        world: time and disk.
        oracle: judges what is told.
        node: the process.
        participants: everyone, in ordinal order.
        new_attempt: returns a fresh id.
        retention: which steps it keeps; None for all.
        timing: triggers that depend on time alone.
    """

    def __init__(
        self,
        world: World,
        oracle: Oracle,
        node: Node,
        participants: tuple[str, ...],
        new_attempt: Callable[[], str],
        retention: Retention | None,
        timing: Timing | None = None,
    ) -> None:
        self.world = world
        self.oracle = oracle
        self.node = node
        self.participants = participants
        self.disk = Disk(world, node, oracle)
        self.keeper_disk = Disk(world, node, oracle)
        self.retention = retention
        if retention is not None:
            oracle.keeping.graces[node] = retention.superseded_grace_s
        self.protocol = Coordinator(participants, DEADLINES, new_attempt, timing=timing)
        self.asking = Asking(self)
        self.incarnation: Incarnation | None = None
        self.lines: Mapping[str, Line] = {}
        self.attempts: dict[int, str] = {}
        """Call to its attempt."""
        self.touched: set[int] = set()
        """Calls of restore in which live state was changed somewhere."""
        self.not_fresh: set[int] = set()
        """Calls of restore in which a step was acknowledged when the root was looked at."""
        self.told: dict[int, set[str]] = {}
        self._todo: list[StorageWork] = []
        self._working = False
        self._chores: list[actions.Discard | Literal["sweep and prune"]] = []
        self._keeping = False
        self._closing = False
        self._timer = float("inf")
        self.publish_keep = 2

    def start(self, then: Callable[[], None]) -> None:
        """Open the root, then let the participants begin."""

        def build() -> None:
            try:
                keeper = Housekeeper(
                    Removal(self.keeper_disk, self.world.clock),
                    self.retention,
                    self._inspect,
                    publish_keep=self.publish_keep,
                )
                self.incarnation = Incarnation(
                    OwnedSteps(self.disk, Indexer(), lease_s=LEASE_S, clock=self.world.clock),
                    job=JobInfo(),
                    housekeep=keeper,
                    clock=self.world.clock,
                )
            except CheckpointError:
                self.world.kill(self.node)  # the job does not start
            else:
                self.world.at(0.0, then)
                self.world.at(0.0, self._tick, self.node)

        self.world.spawn(self.node, build)

    def _inspect(self, entry: StepEntry, manifest: Manifest) -> Sequence[str]:
        return Indexer().inspect(self.keeper_disk, entry.name, manifest, exact=False)

    def take(self, participant: str, message: messages.FromParticipant, life: str = "") -> None:
        """Take a message from a line."""
        self.asking.hear(participant, message)
        self._perform(self.protocol.on_message(participant, message, self.world.now, life))

    def lose(self, participant: str, cause: messages.Failure, life: str = "") -> None:
        """Take the loss of a participant."""
        self.asking.lose(participant)
        self._perform(self.protocol.on_lost(participant, cause, life))

    def _deliver(self, to: str, message: messages.FromCoordinator) -> None:
        self.lines[to].down(message)

    def _take_outcome(self, told: actions.Told) -> None:
        raise AssertionError(f"the participants make all calls: {told}")

    def _is_needed(self) -> bool:
        """Tell whether anybody may still need this coordinator, besides the call in flight."""
        return not self.protocol.everybody_left

    def _perform(self, todo: list[actions.Action]) -> None:
        for action in todo:
            if isinstance(action, actions.Send):
                self.world.note(self.node.name, "tells", action.to, action.message)
                self._judge(action.message)
                self.asking.say(action.to, action.message)
                self._deliver(action.to, action.message)
                continue
            if isinstance(action, actions.Told):
                self._take_outcome(action)
                continue
            if isinstance(action, (actions.Connected, actions.Warn, actions.Inform)):
                continue
            if isinstance(action, actions.BeginStaging):
                self.attempts[action.call] = action.attempt
            if isinstance(action, actions.Discard):
                self._add_chore(action)
            else:
                self._todo.append(action)
        self.asking.judge()
        if self._todo and not self._working:
            self._working = True
            self.world.spawn(self.node, self._work)
        self._set_timer()
        idle = not (self._working or self._keeping or self._chores or self.protocol.busy)
        if idle and not self._closing and not self._is_needed():
            self._closing = True
            self.world.spawn(self.node, self._close)

    def _set_timer(self) -> None:
        deadline = self.protocol.next_deadline()
        if deadline < self._timer:
            self._timer = deadline
            self.world.at(deadline - self.world.now, self._tick, self.node)

    def _tick(self) -> None:
        self._timer = float("inf")
        self._perform(self.protocol.on_time(self.world.now))

    # -- storage work ----------------------------------------------------------------------------

    def _work(self) -> None:
        while self._todo:
            self._do(self._todo.pop(0))
        self._working = False
        self.world.at(0.0, lambda: self._perform([]), self.node)

    def _do(self, action: StorageWork) -> None:
        assert self.incarnation is not None
        if isinstance(action, actions.Publish):
            self.oracle.publishing[action.attempt] = action.deadline
        judge = self._watch_select(action) if isinstance(action, actions.Select) else None
        if isinstance(action, actions.Claim):
            self.oracle.keeping.before_claim(self.node, action.parent)
        elif isinstance(action, actions.BeginStaging) and not self.node.incarnation:
            self.oracle.keeping.before_claim(self.node, None)
        kept_out = self._watch_room()
        event = self.incarnation.perform(action)
        kept_out(event)
        if isinstance(event, actions.Selected):
            self.oracle.keeping.hold(self.node, event.attempt, LEASE_S)
        elif isinstance(event, actions.Claimed):
            self.oracle.keeping.release(self.node)
        self.world.note(self.node.name, "answers", event)
        self.node.incarnation = self.incarnation.number or 0
        if self.node.incarnation:
            self.oracle.heard.add(self.node.incarnation)
        if judge is not None:
            judge(event)
        self.world.at(0.0, lambda: self._answer(event), self.node)
        if isinstance(event, actions.Published):
            self.incarnation.after_commit()
        if isinstance(event, (actions.Published, actions.Claimed)):
            self._add_chore("sweep and prune")

    def _add_chore(self, chore: actions.Discard | Literal["sweep and prune"]) -> None:
        self._chores.append(chore)
        self.world.at(0.0, self._keep_house, self.node)

    def _keep_house(self) -> None:
        """Let the thread that deletes begin, unless it is at work."""
        if self._chores and not self._keeping:
            self._keeping = True
            self.world.spawn(self.node, self._do_chores)

    def _do_chores(self) -> None:
        assert self.incarnation is not None
        while self._chores:
            chores, self._chores = self._chores, []
            for chore in chores:
                if isinstance(chore, actions.Discard):
                    discard_aborted(_Discards(self.keeper_disk), chore)
            if "sweep and prune" in chores:
                self.incarnation.housekeep()
        self._keeping = False
        self.world.at(0.0, lambda: self._perform([]), self.node)

    def _close(self) -> None:
        if self.incarnation is not None:
            self.incarnation.close()
        self.node.alive = False  # nobody has to notice

    def _answer(self, event: actions.DriverEvent) -> None:
        self._perform(self.protocol.on_driver(event, self.world.now))

    def _watch_room(self) -> Callable[[actions.DriverEvent], None]:
        """Return what judges, from now on, that a full disk is made room on."""
        oracle, disk = self.oracle, self.disk
        before = (disk.num_refused, disk.num_refused_reads, oracle.num_begun)
        disk.had_no_room = False

        def judge(event: actions.DriverEvent) -> None:
            undisturbed = before == (disk.num_refused, disk.num_refused_reads, oracle.num_begun)
            if disk.is_full and disk.had_no_room and undisturbed:
                out = isinstance(event, actions.IoFailed) and event.cause.errno == errno.ENOSPC
                oracle.require("what is staged keeps no start out", not out, self.node.name)
            disk.is_full = disk.is_full and not isinstance(event, (actions.Claimed, actions.Staged))

        return judge

    def _watch_select(self, action: actions.Select) -> Callable[[actions.DriverEvent], None]:
        """Return what judges the choice of a step, made from now on."""
        oracle, disk = self.oracle, self.disk
        oracle.keeping.release(self.node)  # the candidate before was given up
        before, refused, claims = oracle.owed(), disk.num_refused_reads, dict(oracle.claims)
        if oracle.acknowledged:
            self.not_fresh.add(action.call)
        if action.step is None and not action.exclude:
            oracle.require_owed("at restore")

        def judge(event: actions.DriverEvent) -> None:
            if not isinstance(event, actions.Selected) or action.step is not None:
                return
            if disk.num_refused_reads != refused or claims != oracle.claims:
                return  # what could not be read is passed over; another start moved the lineage
            after = oracle.owed()
            owed = [step for step in before if step in after and step not in action.exclude]
            chosen = -1 if event.ref is None else event.ref.step
            newest = max(owed, default=-1)
            oracle.require("restore finds the newest", chosen >= newest, chosen, newest)
            if event.ref is not None:
                own = oracle.in_lineage(event.ref.incarnation, chosen)
                oracle.require("restore stays in the lineage", own, event.ref, claims)

        return judge

    def _nodes_of(self, _call: int) -> list[str]:
        """Return the names of the processes that take part in a call."""
        return [f"{self.node.job}/{participant}" for participant in self.participants]

    # -- what is told ----------------------------------------------------------------------------

    def _judge(self, message: messages.FromCoordinator) -> None:
        oracle, name = self.oracle, self.node.name
        if isinstance(message, messages.Decided):
            kinds = self.told.setdefault(message.call, set())
            kinds.add(type(message).__name__)
            oracle.require("one word per call", len(kinds) == 1, name, message.call, sorted(kinds))
        if isinstance(message, messages.Write):
            oracle.ordered.add(message.attempt)
        elif isinstance(message, messages.Committed):
            oracle.acknowledge(message.attempt, message.step, name)
        elif isinstance(message, messages.Aborted) and message.call in self.attempts:
            oracle.abort(self.attempts[message.call], name)
        elif isinstance(message, messages.Apply):
            call, turn = message.call, message.round
            ready = all((one, call, turn) in oracle.checked for one in self._nodes_of(call))
            oracle.require("nobody applies before all checked", ready, name, call, turn)
        elif isinstance(message, messages.Fresh):
            fresh = message.call not in self.not_fresh
            oracle.require("no silent fresh start", fresh, name, message.call)
        elif isinstance(message, messages.RestoreFailed):
            oracle.keeping.release(self.node)
            told = message.tainted or message.call not in self.touched
            oracle.require("a half restore taints", told, name)
