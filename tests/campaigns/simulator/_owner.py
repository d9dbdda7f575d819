"""One process of an actor: works, begins the calls that reach it, and may be admitted again.

It is the participant of `_participant`, but for who makes the calls, and for what it holds: a
number that grows with its work. Which life a call is for, the real `stepseal.Participant` checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.campaigns.simulator._cast import COMPONENTS, FIELDS, GUEST
from tests.campaigns.simulator._participant import Plan, Process
from tests.campaigns.simulator._parts import payload_of, read_part
from tests.steps._kit import DEADLINES

from stepseal import errors
from stepseal.actors import Participant as Actor
from stepseal.layout import role_of
from stepseal.protocol import _messages as messages
from stepseal.protocol._failures import failure_of
from stepseal.protocol._opening import BeginSave
from stepseal.protocol._participant import Participant
from stepseal.protocol._participant_driver import ParticipantDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns.simulator._actor_oracle import ActorOracle
    from tests.campaigns.simulator._company import Company, Era
    from tests.campaigns.simulator._world import Node

    from stepseal.layout import Manifest
    from stepseal.protocol._opening import Begin
    from stepseal.protocol._participant import SaveState

__all__ = ["Capture", "Owner"]

_LOOK_S = 0.25
"""Between two looks of somebody who is frozen."""
_THAW_S = 1.0
"""Within which somebody who may go on does."""


@dataclass(frozen=True)
class Capture:
    """What a process captured, when, and for which call of which life of it."""

    process: str
    life: str
    call: int
    value: int
    number: int
    """Captures of the whole world, in order."""

    def text(self) -> str:
        """Return what is written of it."""
        return f"{self.process} {self.life} {self.call} {self.value}"


class Owner(Process):
    """A process that lives under a name; others did before it, and may after it.

    Args:
        company: all actors.
        era: the controller's life in which it was started.
        node: the process.
        name: its id.
    """

    oracle: ActorOracle
    job: Era

    def __init__(self, company: Company, era: Era, node: Node, name: str) -> None:
        super().__init__(era, node, name, era.no_line(node), Plan(0))
        self.company = company
        self.id = name
        self.value = 0
        self.is_blank = True
        """Neither restored nor a fresh start."""
        self.component = COMPONENTS[role_of(name)]
        if name == GUEST and self.world.chance(20 * self.world.faults.fail):
            self.component = COMPONENTS["trainer"]  # which is refused
        self.captured: Capture | None = None
        self.frozen = 0
        """Number of the capture since which it is frozen; 0 for none."""
        self.queue: list[Callable[[], None]] = []
        self._admission: Any = None
        self._wiring: Any = None
        topology = SimpleNamespace(me=name, participants=company.group(name))
        self._share = SimpleNamespace(topology=topology)

    @property
    def alias(self) -> str:
        return self.life

    @property
    def index(self) -> int:
        """Its rank."""
        return int(self.name.partition("/")[2])

    @property
    def life(self) -> str:
        """The life that it was admitted in; empty before that."""
        return "" if self._admission is None else str(self._admission.life)

    # -- its queue -------------------------------------------------------------------------------

    def enqueue(self, work: Callable[[], None]) -> None:
        """Do something after what it was asked before: one call at a time, as actors do."""
        self.queue.append(work)
        self.serve()

    def serve(self) -> None:
        """Begin what is asked next, once the save or restore before it has ended."""
        while self.queue and self.doing == "nothing" and not (self.busy or self.frozen):
            self.queue.pop(0)()

    def hear(self, message: messages.FromCoordinator) -> None:
        super().hear(message)
        self.watch_thaw()
        while (begin := self.machine.next_begin()) is not None:
            self.enqueue(lambda begin=begin: self.try_to_begin(begin))  # type: ignore[misc]

    def lose(self, cause: messages.Failure) -> None:
        super().lose(cause)
        self.watch_thaw()

    def try_to_begin(self, begin: Begin) -> None:
        """Begin a call that came over the line; what it raises, its own log keeps."""
        try:
            self.begin(begin)
        except errors.CheckpointError as error:
            self.world.note(self.node.name, "refuses", error)

    # -- lives -----------------------------------------------------------------------------------

    def admit(self, era: Era, life: str, refused: Callable[[], None]) -> None:
        """Begin a life under a controller, and tell what it holds; or say that it was refused."""
        line = era.hub.connect(self, life)
        if line is None:
            refused()
            return
        self.leave_life()
        self.job, self.line, self.machine = era, line, Participant(DEADLINES)
        self._admission = self._wiring = SimpleNamespace(life=life)
        self.oracle.admitted(life, self)
        self.line.up(messages.Hello(self.name, "", "", life))
        self.line.up(messages.Holds([self.component]))

    def leave_life(self) -> None:
        """Say goodbye to the controller before."""
        if self._admission is not None and not self.machine.dismissed:
            self.oracle.left_lives.add(self.life)
            self.line.up(messages.Goodbye())
        self.line.on_down = lambda _message: None
        self.line.on_lost_down = lambda _cause: None

    def begin(self, begin: Begin) -> None:
        """Carry out a call, as `stepseal.Participant` does.

        Raises:
            InvalidInput: it is not for this life, or not for this group.
        """
        Actor._check(self, begin)  # type: ignore[arg-type]
        if not self.machine.take_up(begin):
            return
        self.world.note(self.node.name, "begins call", begin.call)
        self.call = begin.call
        if isinstance(begin, BeginSave):
            self.step = begin.step
            self.begin_save(begin)
        else:
            Actor._check_participants(self, begin)  # type: ignore[arg-type]
            self.begin_restore(begin)

    # -- saves -----------------------------------------------------------------------------------

    def begin_save(self, begin: BeginSave) -> None:
        self.doing, self.busy, self.wrote = "save", False, False
        self.machine.captured(self.call, self.world.now)
        try:
            Actor._check_participants(self, begin)  # type: ignore[arg-type]
            if self.live == "half":
                raise errors.Tainted("half restored")
            if self.world.chance(self.world.faults.fail):
                raise errors.StorageUnavailable("broken on purpose")
        except errors.CheckpointError as error:
            published = bool(begin.publish)
            why = failure_of(error)
            self.line.up(messages.Failed(self.call, self.step, "capture", why, published))
        else:
            self.capture(begin)
        self.watch_time()
        self.go_on()

    def capture(self, begin: BeginSave) -> None:
        """Take what it holds, and report it."""
        role, number = role_of(self.name), self.company.next_number()
        taken = Capture(self.node.name, self.life, self.call, self.value, number)
        self.captured = taken
        self.oracle.see_capture(self, taken, freeze=begin.freeze)
        report = messages.ComponentReport(self.component, "tree", "replicated", "f" * 32)
        cut: dict[str, Any] = {FIELDS[role]: self.value} if role in FIELDS else {}
        publish = bool(begin.publish)
        self.line.up(messages.Captured(self.call, self.step, [report], cut, {}, [], publish))
        if begin.freeze:
            self.frozen = number
            self.world.spawn(self.node, lambda: self.wait_thaw(begin))

    # -- freezing --------------------------------------------------------------------------------

    def wait_thaw(self, begin: BeginSave) -> None:
        """Do nothing until the real `wait_thaw` returns; what it raises, the own log keeps."""

        def fail(call: int, step: int, phase: str, error: errors.CheckpointError) -> None:
            self.line.up(messages.Failed(call, step, phase, failure_of(error)))

        driver = SimpleNamespace(
            deadlines=DEADLINES,
            participant=self.name,
            send_failed=fail,
            _save=self.machine.save,
            _wait=self.wait_until,
        )
        self.judge_frozen(DEADLINES.capture_s + DEADLINES.lost_s + _THAW_S)
        try:
            ParticipantDriver.wait_thaw(driver, begin.call, begin.step)  # type: ignore[arg-type]
        except errors.CommitTimeout as error:
            self.world.note(self.node.name, "was frozen too long", error)
        self.frozen = 0
        self.world.at(0.0, self.serve, self.node)

    def wait_until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Stand in a thread of its own until something holds; False at the limit."""
        end = self.world.now + limit_s
        while not condition():
            if self.world.now >= end:
                return False
            self.machine.on_time(self.world.now)
            self.world.stand(self.node, min(_LOOK_S, max(end - self.world.now, 0.001)))
        return True

    def watch_thaw(self) -> None:
        """Judge, if this was frozen and was told to go on, that it does."""
        if self.frozen:
            state = self.machine.save(self.call)
            if state.thawed or state.settled:
                self.judge_frozen(_THAW_S)

    def judge_frozen(self, within_s: float) -> None:
        """Judge that it goes on in time, but for when it stands still."""
        since, stood_s = self.frozen, self.node.stood_s

        def look() -> None:
            if self.frozen == since and self.node.stood_s != stood_s:
                self.judge_frozen(within_s)
            else:
                free = self.frozen != since
                self.oracle.require("who is frozen goes on in time", free, self.node.name, since)

        self.world.at(within_s, look, self.node)

    def payload(self, order: messages.Write) -> bytes:
        assert self.captured is not None, "ordered to write what was not captured"
        found = payload_of(order.attempt, self.name)
        text = b"%b %b" % (found.rstrip(), self.captured.text().encode())
        assert len(text) <= len(found)
        return text.ljust(len(found))

    def write(self, order: messages.Write) -> None:
        self.oracle.see_write(order, self.name)
        super().write(order)

    def report(self, order: messages.Write, facts: messages.PartReport) -> None:
        if self.machine.prepare(order.call, self.world.now):
            self.line.up(messages.Prepared(order.call, order.attempt, facts))

    def after_save(self, state: SaveState) -> None:
        del state
        self.serve()

    # -- restores --------------------------------------------------------------------------------

    def begin_restore(self, begin: messages.BeginRestore) -> None:
        self.doing, self.busy = "restore", False
        self.machine.restore(self.call)
        own = self.component
        policies = {n: p for n, p in begin.policies.items() if n == own or p == "skip"}
        called = messages.RestoreCalled(
            self.call, begin.step, begin.fresh, {own: "require", **policies}
        )
        self.line.up(called)
        self.wait_order(self.call)
        self.go_on()

    def apply(self, order: messages.Apply, found: Manifest) -> None:
        self.job.head.touched.add(order.call)
        self.live = "half"
        if any(entry.role == role_of(self.name) for entry in found.components):
            names = [part.participant for part in found.parts]
            of = self.name if self.name in names else f"{role_of(self.name)}/0"
            data = read_part(self.disk, found.step, found, names.index(of))
            self.oracle.see_apply(self.name, found, of, data)
            self.value = int(data.split()[-1])
        self.live, self.is_blank = found.attempt, False

    def end_restore(
        self, answer: messages.Restored | messages.Fresh | messages.RestoreFailed
    ) -> None:
        self.machine.forget(self.call)
        self.doing = "nothing"
        if isinstance(answer, messages.Restored):
            sound = self.manifest is not None and self.manifest.step == answer.step
            whole = self.manifest is not None and self.live == self.manifest.attempt
            self.oracle.require("restored means applied", sound and whole, self.name, answer.step)
        if not isinstance(answer, messages.RestoreFailed):
            fresh = isinstance(answer, messages.Fresh)
            if fresh:
                self.live = ""
            self.is_blank = False
            restored = self.job.restored_in.setdefault(answer.call, set())
            restored.add((self.live, answer.incarnation))
            self.oracle.require("all restore alike", len(restored) == 1, restored)
        self.serve()

    def leave(self, *, goodbye: bool) -> None:
        """Give up a restore whose controller is gone or silent."""
        del goodbye
        self.machine.forget(self.call)
        self.doing = "nothing"
        self.serve()
