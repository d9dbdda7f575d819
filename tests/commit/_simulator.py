"""A whole job in virtual time: the real protocol machines, a network and processes that misbehave.

One `Coordinator`, N `Participant` machines and a real `Performer` on `MemoryStorage`, driven by
one seeded random sequence: it picks what happens next, delays, repeats and loses messages, and
fails, silences or kills participants and the coordinator at any point. `Outcome.problems` lists
every broken promise. Knobs break the protocol on purpose, to prove that this is noticed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.commit._kit import (
    DEADLINES,
    THREE,
    FakeFinisher,
    attempt_id,
    captured,
    part_facts,
    write_part,
)

from stepseal import errors
from stepseal.commit import _actions as actions
from stepseal.commit import _causes as causes
from stepseal.commit import _messages as messages
from stepseal.commit._catalog import read_step
from stepseal.commit._coordinator import Coordinator
from stepseal.commit._draft import JobFacts
from stepseal.commit._outcome import resolve_save
from stepseal.commit._participant import Participant
from stepseal.commit._performer import Performer
from stepseal.commit._save_round import SaveRound
from stepseal.storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EarlyCommit", "Faults", "Outcome", "simulate"]

_CALLS = 3
_STEP = 10
_GRACE_S = 1.0


@dataclass(frozen=True)
class Faults:
    """How likely each kind of trouble is, per opportunity; and protocol variants that are wrong."""

    loss: float = 0.01
    """A message never arrives, and its line is dead from then on, as with TCP."""
    repeat: float = 0.05
    delay: float = 0.1
    """A message comes up to 30 s late, but in the order of its line."""
    fail: float = 0.02
    """A participant reports a failure instead of going on."""
    silence: float = 0.02
    """A participant stops for ever, and its line stays up until it counts as lost."""
    death: float = 0.02
    coordinator_death: float = 0.01
    slow_storage: float = 0.1
    broken: str = ""
    """`commit-early`, `prepare-early` or `tell-early`; empty for the real protocol."""


class EarlyCommit(SaveRound):
    """A round that publishes as soon as one participant prepared: wrong on purpose."""

    def on_prepared(
        self, participant: str, message: messages.Prepared, now: float
    ) -> list[actions.Action]:
        if self.phase == "write" and message.attempt == self.attempt:
            self._prepared.update(dict.fromkeys(self.participants, message.part))
            self._prepared.pop(participant)
        return super().on_prepared(participant, message, now)


@dataclass
class Outcome:
    """What one simulated job did."""

    problems: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    """How each call ended for each participant."""


@dataclass
class _Process:
    """One participant: its machine, and how far its part of the current call is."""

    name: str
    machine: Participant
    alive: bool = True
    silent: bool = False
    call: int = 0
    wrote: set[str] = field(default_factory=set)
    """Attempts whose part is written and closed."""
    reported: set[str] = field(default_factory=set)
    """Attempts that were reported as prepared."""
    ended: dict[int, str] = field(default_factory=dict)


class _Simulation:
    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self.order = itertools.count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.storage = MemoryStorage()
        self.outcome = Outcome()
        attempts = itertools.count(seed * 1000 + 1)
        self.coordinator = Coordinator(THREE, DEADLINES, lambda: attempt_id(next(attempts)))
        self.performer = Performer(self.storage, THREE, finisher=FakeFinisher(), facts=JobFacts())
        self.coordinator_alive = True
        self.worker_free_at = 0.0
        self.processes = {name: _Process(name, Participant(DEADLINES)) for name in THREE}
        self.line_free_at: dict[tuple[str, str], float] = {}
        self.dead_lines: set[str] = set()
        self.prepared: dict[str, set[str]] = {}
        """Attempt to who reported it prepared, after the part was closed."""
        self.told: dict[int, set[str]] = {}
        """Call to the kinds of decision that were sent for it."""
        self.published: set[str] = set()

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def at(self, delay: float, run: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.order), run))

    def problem(self, text: str) -> None:
        self.outcome.problems.append(f"t={self.now:.3f}: {text}")

    # -- the network -----------------------------------------------------------------------------

    def deliver(self, source: str, target: str, run: Callable[[], None]) -> None:
        """Carry one message over a line: in order, perhaps late, perhaps twice, perhaps never."""
        line = source if target == "" else target
        if line in self.dead_lines:
            return
        if self.chance(self.faults.loss):
            self.cut(line)
            return
        late = self.random.random() * (30.0 if self.chance(self.faults.delay) else 0.01)
        arrival = max(self.now + late, self.line_free_at.get((source, target), 0.0))
        self.line_free_at[source, target] = arrival
        for _ in range(2 if self.chance(self.faults.repeat) else 1):
            self.at(arrival - self.now, run)

    def cut(self, name: str) -> None:
        """End a participant's line: both ends notice, each in its own time."""
        self.dead_lines.add(name)
        cause = messages.Cause(errors.ParticipantFailed.kind, "line cut")
        self.at(self.random.random() * DEADLINES.lost_s, lambda: self.lose(name, cause))
        gone = messages.Cause(errors.CoordinatorLost.kind, "line cut")
        machine = self.processes[name].machine
        self.at(self.random.random() * DEADLINES.lost_s, lambda: machine.on_lost(gone))

    def lose(self, name: str, cause: messages.Cause) -> None:
        if self.coordinator_alive:
            self.perform(self.coordinator.on_lost(name, cause))

    def to_coordinator(self, name: str, message: messages.FromParticipant) -> None:
        wire = messages.encode_message(message)

        def arrive() -> None:
            if self.coordinator_alive:
                taken = messages.decode_from_participant(wire)
                self.perform(self.coordinator.on_message(name, taken, self.now))

        self.deliver(name, "", arrive)

    def to_participant(self, name: str, message: messages.FromCoordinator) -> None:
        wire = messages.encode_message(message)
        process = self.processes[name]

        def arrive() -> None:
            if process.alive:
                process.machine.on_message(messages.decode_from_coordinator(wire))

        self.deliver("", name, arrive)

    # -- the coordinator -------------------------------------------------------------------------

    def perform(self, todo: list[actions.Action]) -> None:
        for action in todo:
            if self.coordinator_alive and self.chance(self.faults.coordinator_death / 3):
                self.kill_coordinator()
            if not self.coordinator_alive:
                return
            if isinstance(action, actions.Send):
                self.check_told(action.message)
                self.to_participant(action.to, action.message)
            else:
                self.queue(action)
        rounds = self.coordinator._rounds
        if self.faults.broken == "commit-early":
            for found in rounds.values():
                if type(found) is SaveRound:
                    found.__class__ = EarlyCommit

    def queue(self, action: actions.Action) -> None:
        """Let the storage worker do it, one thing after another."""
        takes = self.random.random() * (60.0 if self.chance(self.faults.slow_storage) else 0.1)
        self.worker_free_at = max(self.worker_free_at, self.now) + takes
        self.at(self.worker_free_at - self.now, lambda: self.work(action))
        if self.faults.broken == "tell-early" and isinstance(action, actions.Publish):
            event = actions.Published(action.call, "0" * 64)
            self.at(0.0, lambda: self.answer(event))

    def work(self, action: actions.Action) -> None:
        if not self.coordinator_alive:
            return
        if isinstance(action, actions.Discard):
            self.performer.discard(action)
            return
        assert not isinstance(action, actions.Send)
        if isinstance(action, actions.Publish):
            self.check_publish(action)
        event = self.performer.perform(self.in_virtual_time(action))
        if isinstance(event, actions.Published) and isinstance(action, actions.Publish):
            self.published.add(action.attempt)
        if self.chance(self.faults.coordinator_death):
            self.kill_coordinator()  # after the work was done, before anybody hears of it
        self.at(0.0, lambda: self.answer(event))
        if isinstance(event, actions.Published):
            self.performer.after_commit()

    def in_virtual_time(
        self, action: actions.BeginStaging | actions.Publish | actions.Select | actions.Claim
    ) -> actions.BeginStaging | actions.Publish | actions.Select | actions.Claim:
        if not isinstance(action, actions.Publish):
            return action
        deadline = float("inf") if self.now <= action.deadline else float("-inf")
        return actions.Publish(
            action.call,
            action.step,
            action.attempt,
            action.staging,
            action.captured,
            action.parts,
            deadline,
        )

    def answer(self, event: actions.DriverEvent) -> None:
        if self.coordinator_alive:
            self.perform(self.coordinator.on_driver(event, self.now))

    def kill_coordinator(self) -> None:
        self.coordinator_alive = False
        for name in THREE:
            if name not in self.dead_lines:
                self.cut(name)

    def tick(self) -> None:
        if self.coordinator_alive:
            self.perform(self.coordinator.on_time(self.now))

    # -- participants ----------------------------------------------------------------------------

    def trouble(self, process: _Process) -> bool:
        """Perhaps end a participant here; True if it does not go on."""
        if not process.alive or process.silent:
            return True
        if self.chance(self.faults.death):
            process.alive = False
            if process.name not in self.dead_lines:
                self.cut(process.name)
            return True
        if self.chance(self.faults.silence):
            process.silent = True
            cause = messages.Cause(errors.ParticipantFailed.kind, "silent")
            self.at(DEADLINES.lost_s, lambda: self.lose(process.name, cause))
            return True
        return False

    def start_call(self, process: _Process) -> None:
        if self.trouble(process):
            return
        process.call = process.machine.new_call()
        call, step = process.call, _STEP + process.call
        process.machine.captured(call, self.now)
        if self.chance(self.faults.fail):
            failed = messages.Failed(call, step, "capture", messages.Cause("Fault", "capture"))
            self.to_coordinator(process.name, failed)
        else:
            self.to_coordinator(process.name, captured(call, step))
        self.at(0.01, lambda: self.follow(process, call))

    def follow(self, process: _Process, call: int) -> None:
        """Poll the machine, as a driver's thread does, until the call is settled."""
        if not process.alive or process.silent:
            return
        process.machine.on_time(self.now)
        state = process.machine.save(call)
        if state.settled:
            self.end_call(process, call)
            return
        if state.write is not None and state.write.attempt not in process.wrote:
            self.write(process, call, state.write)
        self.at(0.5 + self.random.random(), lambda: self.follow(process, call))

    def write(self, process: _Process, call: int, order: messages.Write) -> None:
        process.wrote.add(order.attempt)
        if self.trouble(process):
            return
        step = _STEP + call
        if self.chance(self.faults.fail):
            failed = messages.Failed(call, step, "write", messages.Cause("Fault", "write"))
            self.to_coordinator(process.name, failed)
            return
        takes = self.random.random() * (200.0 if self.chance(self.faults.delay) else 5.0)
        if self.faults.broken == "prepare-early":
            self.report(process, call, order)
        self.at(takes, lambda: self.finish_part(process, call, order))

    def finish_part(self, process: _Process, call: int, order: messages.Write) -> None:
        if self.trouble(process):
            return
        try:
            write_part(self.storage, order.staging, process.name)
        except errors.StorageUnavailable as error:
            step, why = _STEP + call, causes.cause_of(error)
            self.to_coordinator(process.name, messages.Failed(call, step, "write", why))
            return
        self.prepared.setdefault(order.attempt, set()).add(process.name)
        if not self.trouble(process):
            self.report(process, call, order)

    def report(self, process: _Process, call: int, order: messages.Write) -> None:
        if process.machine.prepare(call, self.now):
            process.reported.add(order.attempt)
            facts = part_facts(process.name)
            self.to_coordinator(process.name, messages.Prepared(call, order.attempt, facts))

    def end_call(self, process: _Process, call: int) -> None:
        state = process.machine.save(call)
        step = _STEP + call
        try:
            resolve_save(state, step, self.storage)
            end = "committed"
        except errors.OutcomeUnknown:
            end = "unknown"
        except errors.CheckpointError as error:
            end = f"failed: {error.kind}"
        process.ended[call] = end
        self.outcome.ends.append(end)
        self.check_end(process, call, end)
        process.machine.forget(call)
        if call < _CALLS:
            self.at(self.random.random(), lambda: self.start_call(process))
        else:
            self.to_coordinator(process.name, messages.Goodbye())

    # -- promises --------------------------------------------------------------------------------

    def check_publish(self, action: actions.Publish) -> None:
        prepared = self.prepared.get(action.attempt, set())
        if prepared != set(THREE):
            self.problem(f"publish of call {action.call} with {sorted(prepared)} prepared alone")
        if "Aborted" in self.told.get(action.call, set()):
            self.problem(f"publish of call {action.call} after its abort was sent")

    def check_told(self, message: messages.FromCoordinator) -> None:
        if not isinstance(message, messages.Decided):
            return
        kinds = self.told.setdefault(message.call, set())
        kinds.add(type(message).__name__)
        if len(kinds) > 1:
            self.problem(f"call {message.call} was told {sorted(kinds)}")
        if isinstance(message, messages.Committed) and message.attempt not in self.published:
            self.problem(f"call {message.call} was told committed before it was published")

    def check_end(self, process: _Process, call: int, end: str) -> None:
        stands = self.stands(_STEP + call)
        if end == "committed" and not stands:
            self.problem(f"{process.name}: call {call} ended committed, but the step is not there")
        if end.startswith("failed") and stands:
            self.problem(f"{process.name}: call {call} ended {end}, but the step is there")

    def stands(self, step: int) -> bool:
        try:
            return read_step(self.storage, step, None).state == "committed"
        except errors.StepNotFound:
            return False

    def check_all(self) -> None:
        for process in self.processes.values():
            if process.alive and not process.silent and process.call not in process.ended:
                self.problem(f"{process.name}: call {process.call} never ended")
        for call in range(1, _CALLS + 1):
            ends = {p.ended[call] for p in self.processes.values() if call in p.ended}
            failed = any(end.startswith("failed") for end in ends)
            if "committed" in ends and failed:
                self.problem(f"call {call} ended differently: {sorted(ends)}")
            if failed and self.stands(_STEP + call):
                self.problem(f"call {call} ended {sorted(ends)}, but the step is there")

    def run(self) -> Outcome:
        for process in self.processes.values():
            self.at(self.random.random(), lambda p=process: self.start_call(p))  # type: ignore[misc]
        end = _CALLS * (DEADLINES.save_s + _GRACE_S) + 60.0
        while self.events and self.now < end:
            deadline = self.coordinator.next_deadline()
            if self.coordinator_alive and deadline < self.events[0][0]:
                self.now = max(self.now, deadline)
                self.tick()
                continue
            self.now, _, run = heapq.heappop(self.events)
            run()
        self.check_all()
        return self.outcome


def simulate(seed: int, faults: Faults) -> Outcome:
    """Run one job of three participants and three saves; the same seed does the same."""
    return _Simulation(seed, faults).run()
