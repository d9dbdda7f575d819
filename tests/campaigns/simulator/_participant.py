"""One participant's process in the simulation: restores, then saves, as a training job does."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.campaigns.simulator._disk import Disk
from tests.campaigns.simulator._parts import (
    Replica,
    captured,
    facts_of,
    inventory_of,
    is_payload_of,
    payload_of,
    read_part,
    write_engine_file,
    write_files,
)
from tests.steps._kit import DEADLINES

from stepseal import errors
from stepseal.layout import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    decode_manifest,
    manifest_digest,
    step_name,
)
from stepseal.protocol import _messages as messages
from stepseal.protocol._failures import failure_of
from stepseal.protocol._outcome import resolve_save
from stepseal.protocol._participant import Participant
from stepseal.steps import PosixSteps
from stepseal.storage import read_bytes

if TYPE_CHECKING:
    from tests.campaigns.simulator._job import Start
    from tests.campaigns.simulator._lines import Line
    from tests.campaigns.simulator._world import Node

    from stepseal.layout import Manifest
    from stepseal.protocol._participant import SaveState

__all__ = ["Plan", "Process"]

_GRACE_S = 0.001


@dataclass(frozen=True)
class Plan:
    """What every participant of a life does."""

    num_saves: int
    restore_step: int | None = None
    fresh: bool = False
    num_restores: int = 2
    """Tries until the job gives up."""
    pace_s: float = 1.0
    """Longest time between two saves."""
    engines: bool = False
    """Whether an engine writes into every attempt."""
    triggers: bool = False
    """Whether it steps between saves, where all hear what triggers ask for."""


class Process:
    """A participant; its line, its machine, and how far it is.

    Args:
        job: the life it belongs to.
        node: its process.
        name: its id.
        line: what connects it with the coordinator.
        plan: what it does.
    """

    def __init__(self, job: Start, node: Node, name: str, line: Line, plan: Plan) -> None:
        self.job = job
        self.world = job.world
        self.oracle = job.oracle
        self.node = node
        self.name = name
        self.plan = plan
        self.machine = Participant(DEADLINES)
        self.disk = Disk(self.world, node, self.oracle)
        self.line = line
        self.call = 0
        self.doing = "nothing"
        self.step = 0
        self.saves_left = plan.num_saves
        self.restores_left = plan.num_restores
        self.manifest: Manifest | None = None
        self.live: str = ""
        """Attempt of which live state holds the values; empty when it was never restored."""
        self.busy = False
        self.wrote = self.ran_engine = False
        self.replica = Replica("", "", tells=True)
        self.waiting_since = 0.0
        self.over = False

    @property
    def alias(self) -> str:
        """What no other participant of any time is called."""
        return self.node.name

    @property
    def index(self) -> int:
        """Its place among the participants."""
        return self.job.participants.index(self.name)

    @property
    def waits(self) -> bool:
        """Whether it waits for somebody else."""
        return self.doing != "nothing"

    def start(self) -> None:
        self.line.up(messages.Hello(self.name, "", ""))
        self.restore()

    def hear(self, message: messages.FromCoordinator) -> None:
        self.machine.on_message(message)
        self.go_on()

    def lose(self, cause: messages.Failure) -> None:
        self.machine.on_lost(cause)
        self.go_on()

    def go_on(self) -> None:
        """Do what can be done now; called whenever something changed."""
        if self.doing == "restore":
            self.go_on_restoring()
        elif self.doing == "save":
            self.go_on_saving()

    def leave(self, *, goodbye: bool) -> None:
        """End this process in good order."""
        self.doing, self.over = "nothing", True
        if goodbye:
            self.line.up(messages.Goodbye())
        else:
            self.world.kill(self.node)

    # -- restore ---------------------------------------------------------------------------------

    def restore(self) -> None:
        self.restores_left -= 1
        self.call, self.doing, self.busy = self.machine.new_call(), "restore", False
        call, plan = self.call, self.plan
        self.machine.restore(call)
        wanted = messages.RestoreCalled(call, plan.restore_step, plan.fresh, {"model": "require"})
        self.line.up(wanted)
        self.wait_order(call)

    def wait_order(self, call: int) -> None:
        """Give up if nothing comes, as the driver does."""
        seen = self.world.now

        def judge() -> None:
            waits = self.doing == "restore" and self.call == call and not self.busy
            if waits and self.waiting_since <= seen:
                self.leave(goodbye=False)

        self.waiting_since = seen
        self.world.at(DEADLINES.restore_s, judge, self.node)

    def go_on_restoring(self) -> None:
        state = self.machine.restore(self.call)
        if self.busy or not state.has_news:
            return
        if state.answer is not None:
            self.end_restore(state.answer)
        elif state.inbox:
            order = state.inbox.pop(0)
            self.busy = True
            self.world.spawn(self.node, lambda: self.follow(order))
        else:
            self.leave(goodbye=False)

    def follow(self, order: messages.Candidate | messages.Apply) -> None:
        """Carry out an order of a restore, and vote."""
        touched = isinstance(order, messages.Apply)
        vote: messages.Checked | messages.Applied | messages.Rejected
        try:
            if self.world.chance(self.world.faults.fail):
                raise errors.Corrupt("broken on purpose")
            if isinstance(order, messages.Apply):
                if self.manifest is None:
                    raise errors.InternalError("ordered to apply what was not checked")
                self.apply(order, self.manifest)
                vote = messages.Applied(order.call, order.round)
            else:
                self.check(order)
                self.oracle.checked.add((self.alias, order.call, order.round))
                vote = messages.Checked(order.call, order.round)
        except errors.CheckpointError as error:
            why = failure_of(error)
            vote = messages.Rejected(order.call, order.round, touched, why)
        self.busy = False
        self.line.up(vote)
        self.wait_order(order.call)
        self.world.at(0.0, self.go_on, self.node)

    def check(self, order: messages.Candidate) -> None:
        self.manifest = None
        key = f"{step_name(order.step)}/{MANIFEST}"
        data = read_bytes(self.disk, key, MAX_MANIFEST_BYTES)
        if manifest_digest(data) != order.manifest_sha256:
            raise errors.Corrupt(f"{key}: not the one of the coordinator")
        self.manifest = decode_manifest(data)

    def apply(self, order: messages.Apply, found: Manifest) -> None:
        self.job.head.touched.add(order.call)
        self.live = "half"
        for index in range(self.index, len(found.parts), len(self.job.participants)):
            data = read_part(self.disk, found.step, found, index)
            right = is_payload_of(data, found.attempt, found.parts[index].participant)
            self.oracle.require("no wrong byte is loaded", right, self.name, data)
        self.live = found.attempt

    def end_restore(
        self, answer: messages.Restored | messages.Fresh | messages.RestoreFailed
    ) -> None:
        self.machine.forget(self.call)
        self.doing = "nothing"
        if isinstance(answer, messages.RestoreFailed):
            if self.restores_left:
                self.restore()
            else:
                self.leave(goodbye=True)
            return
        if isinstance(answer, messages.Restored):
            self.step = answer.step
            sound = self.manifest is not None and self.manifest.step == answer.step
            whole = self.manifest is not None and self.live == self.manifest.attempt
            self.oracle.require("restored means applied", sound and whole, self.name, answer.step)
        self.job.restored.add((self.step, self.live if self.step else "", answer.incarnation or 0))
        self.oracle.require("all restore alike", len(self.job.restored) == 1, self.job.restored)
        self.world.at(self.world.roll(), self.save, self.node)

    # -- save ------------------------------------------------------------------------------------

    def save(self) -> None:
        if not self.saves_left or self.over:
            self.leave(goodbye=True)
            return
        self.saves_left -= 1
        self.step += 10
        self.save_now()

    def save_now(self) -> None:
        """Capture, and take part in what follows."""
        self.call, self.doing, self.busy, self.wrote = self.machine.new_call(), "save", False, False
        self.ran_engine = False
        self.machine.captured(self.call, self.world.now)
        if self.world.chance(self.world.faults.fail):
            why = messages.Failure("Fault", "capture")
            self.line.up(messages.Failed(self.call, self.step, "capture", why))
        else:
            self.replica = self.draw_replica()
            num, engines = len(self.job.participants), self.plan.engines
            self.line.up(captured(self.call, self.step, num, self.replica, engines=engines))
        self.watch_time()
        self.go_on()

    def watch_time(self) -> None:
        """Judge at the deadline of the save, which begins now, that it is settled."""
        call, machine = self.call, self.machine
        judge_s = DEADLINES.save_s + _GRACE_S
        self.world.at(judge_s, lambda: self.judge_time(machine, call), self.node)

    def draw_replica(self) -> Replica:
        """Return what this participant holds; drawn apart, so that seeds keep their meaning."""
        draw = random.Random(f"{self.world.seed} {self.node.name} {self.call}")
        usual, differ = f"step {self.step}", self.world.faults.differ
        model = f"{usual} of {self.index}" if draw.random() < differ else usual
        extra = draw.choice((f"{usual} of {self.index}", "")) if draw.random() < differ else usual
        return Replica(model, extra, tells=model == usual or draw.random() < 0.5)

    def judge_time(self, machine: Participant, call: int) -> None:
        """Judge that the call is settled at its deadline, whoever died or stands still."""
        if self.machine is machine and self.doing == "save" and self.call == call:
            self.machine.on_time(self.world.now)
            settled = self.machine.save(call).settled
            self.oracle.require("every call ends by its deadline", settled, self.name, call)
            self.go_on()

    def go_on_saving(self) -> None:
        state = self.machine.save(self.call)
        while state.asked:
            self.line.up(self.replica.answer(state.asked.pop(0)))
        if self.busy:
            return  # the thread that writes looks for itself when it is done
        if state.settled:
            self.busy = True
            self.world.spawn(self.node, lambda: self.end_save(state))
        elif state.write is not None and self.plan.engines and not self.ran_engine:
            self.ran_engine = self.busy = True
            order = state.write
            self.world.spawn(self.node, lambda: self.run_engine(order))
        elif state.write is not None and not self.wrote:
            if self.plan.engines and not state.inventory:
                return
            self.wrote = self.busy = True
            order = state.write
            self.world.spawn(self.node, lambda: self.write(order))

    def run_engine(self, order: messages.Write) -> None:
        """Let the engine write its file, and say that it has returned."""
        try:
            if self.world.chance(self.world.faults.fail):
                raise errors.StorageUnavailable("broken on purpose")
            write_engine_file(self.disk, order.staging, order.attempt, self.name)
            self.line.up(messages.EnginesReturned(order.call, order.attempt))
        except errors.CheckpointError as error:
            self.line.up(messages.Failed(order.call, self.step, "engines", failure_of(error)))
        self.busy = False
        self.world.at(0.0, self.go_on, self.node)

    def write(self, order: messages.Write) -> None:
        self.oracle.hold(order, self.name, self.replica)
        try:
            if self.world.chance(self.world.faults.fail):
                raise errors.StorageUnavailable("broken on purpose")
            data, inventory = self.payload(order), b""
            if self.plan.engines:
                share = (self.index, len(self.job.participants))
                inventory = inventory_of(self.disk, order.staging, share)
            for _ in write_files(self.disk, order.staging, self.name, data, inventory):
                if self.machine.save(order.call).settled:
                    break
            else:
                self.oracle.prepared.setdefault(order.attempt, set()).add(self.name)
                self.report(order, facts_of(self.name, data, inventory))
        except errors.CheckpointError as error:
            failed = messages.Failed(order.call, self.step, "write", failure_of(error))
            self.line.up(failed)
        self.busy = False
        self.world.at(0.0, self.go_on, self.node)

    def payload(self, order: messages.Write) -> bytes:
        """Return the state that it holds for an attempt."""
        return payload_of(order.attempt, self.name)

    def report(self, order: messages.Write, facts: messages.PartReport) -> None:
        if self.machine.prepare(order.call, self.world.now):
            digests = self.replica.digests()
            self.line.up(messages.Prepared(order.call, order.attempt, facts, digests))

    def end_save(self, state: SaveState) -> None:
        attempt = "" if state.write is None else state.write.attempt
        step = self.step
        try:
            found = resolve_save(state, step, PosixSteps(self.disk))
            self.oracle.acknowledge(found.attempt, step, self.name)
            end = "committed"
        except errors.OutcomeUnknown:
            end = "unknown"
        except errors.CheckpointError as error:
            end = f"failed: {error.kind}"
            if attempt:
                self.oracle.abort(attempt, self.name)
        self.job.end(self, self.call, attempt, end)
        self.machine.forget(self.call)
        self.doing, self.busy = "nothing", False
        self.after_save(state)

    def after_save(self, state: SaveState) -> None:
        if state.lost is not None and state.outcome is None:
            self.leave(goodbye=False)
        else:
            self.world.at(self.world.roll() * self.plan.pace_s, self.save, self.node)
