"""A random walk of an opened coordinator: members join, die, come back and answer late.

Processes of earlier lives go on as long as nobody has noticed that they are gone. Their messages
may arrive at any time, also twice. `problems` lists what a sound coordinator never does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.protocol._opened import NAMES, ORDER
from tests.steps._kit import DEADLINES, attempt_id, component, part_report

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._opening import Opening, Scalar

__all__ = ["Walk"]

_PEOPLE = ("trainer/0", "trainer/1", "buffer/0")
_NUM_MOVES = 120


@dataclass(eq=False)
class _Life:
    """One process under an id, as it sees itself."""

    participant: str
    name: str
    said: list[messages.FromParticipant] = field(default_factory=list)
    """What is on its way to the coordinator, in order."""
    connected: bool = False
    is_lost: bool = False
    has_left: bool = False


class Walk:
    """One seed; `problems` stays empty if the coordinator is sound."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.problems: list[str] = []
        self.num_commits = 0
        self.coordinator = Coordinator((), DEADLINES, self._new_attempt)
        self.lives: list[_Life] = []
        self.current: dict[str, _Life] = {}
        self.rosters: dict[int, dict[str, str]] = {}
        self.captured: dict[int, set[str]] = {}
        self.prepared: dict[str, set[tuple[str, str]]] = {}
        self.told: dict[int, object] = {}
        self.jobs: list[actions.BeginStaging | actions.Publish] = []

    def _new_attempt(self) -> str:
        return attempt_id(self.random.getrandbits(64))

    def run(self) -> list[str]:
        """Walk, then let time pass until every call has ended."""
        for one in _PEOPLE:
            self.admit(one)
        moves = [self.deliver] * 12 + [self.work] * 4 + [self.open] * 3
        moves += [self.admit, self.lose, self.leave, self.release]
        for _ in range(_NUM_MOVES):
            self.now += 0.01
            self.random.choice(moves)()
        while self.jobs or any(life.said for life in self.lives):
            self.work()
            self.deliver()
        self.pass_time()
        for call in self.rosters.keys() - self.told.keys():
            self.problems.append(f"call {call} never ended")
        return self.problems

    # -- what happens ----------------------------------------------------------------------------

    def admit(self, participant: str | None = None) -> None:
        one = participant or self.random.choice(_PEOPLE)
        life = _Life(one, f"{one}#{len(self.lives)}")
        self.lives.append(life)
        self.current[one] = life
        life.said.append(messages.Hello(one, "", "", life.name))
        self.take(self.coordinator.admit(one, life.name))

    def release(self) -> None:
        if self.random.random() < 0.3 and self.current:
            one = self.random.choice(sorted(self.current))
            del self.current[one]
            self.take(self.coordinator.release(one))

    def lose(self) -> None:
        """Let the hub notice that a process, of any life, is gone."""
        life = self.random.choice(self.lives)
        if not life.is_lost:
            life.is_lost, life.said = True, []
            cause = messages.Failure("participant_failed", f"lost {life.name}")
            self.take(self.coordinator.on_lost(life.participant, cause, life.name))

    def leave(self) -> None:
        """Let a process, of any life, say goodbye."""
        life = self.random.choice(self.lives)
        if life.connected and not life.is_lost and not life.has_left:
            life.has_left = True
            life.said.append(messages.Goodbye())

    def open(self) -> None:
        if self.coordinator.busy or not self.current:
            return
        roster = {one: life.name for one, life in self.current.items()}
        number = max(self.rosters, default=0) + 1
        self.rosters[number], self.captured[number] = roster, set()
        call, todo = self.coordinator.open(Opening("save", 10 * number, ORDER), self.now)
        assert call == number
        self.take(todo)

    def deliver(self) -> None:
        """Let the coordinator hear the next message of some life; sometimes twice."""
        speaking = [life for life in self.lives if life.said]
        if not speaking:
            return
        life = self.random.choice(speaking)
        message = life.said.pop(0)
        if isinstance(message, messages.Hello):
            life.connected = self.current.get(life.participant) is life
        for _ in range(2 if self.random.random() < 0.1 else 1):
            if isinstance(message, messages.Captured):
                self.captured[message.call].add(life.name)
            elif isinstance(message, messages.Prepared):
                told = self.prepared.setdefault(message.attempt, set())
                told.add((life.participant, life.name))
            found = self.coordinator.on_message(life.participant, message, self.now, life.name)
            self.take(found)
            if isinstance(message, messages.Hello):
                break

    def work(self) -> None:
        """Let the driver answer, sometimes with a failure."""
        if not self.jobs:
            return
        job = self.jobs.pop(0)
        event: actions.DriverEvent
        if self.random.random() < 0.05:
            event = actions.IoFailed(job.call, messages.Failure("storage_unavailable", "full"))
        elif isinstance(job, actions.BeginStaging):
            event = actions.Staged(job.call, f"staging {job.attempt}", "nonce")
        else:
            event = actions.Published(job.call, "a" * 64)
        self.take(self.coordinator.on_driver(event, self.now))

    def pass_time(self) -> None:
        while self.coordinator.busy and (end := self.coordinator.next_deadline()) < float("inf"):
            self.now = end
            self.take(self.coordinator.on_time(self.now))

    # -- what the coordinator does ---------------------------------------------------------------

    def take(self, todo: list[actions.Action]) -> None:
        for action in todo:
            if isinstance(action, actions.Send):
                self.hear(action.to, action.message)
            elif isinstance(action, actions.Told):
                self.judge_outcome(action.outcome)
            elif isinstance(action, actions.Publish):
                self.judge_publish(action)
                self.jobs.append(action)
            elif isinstance(action, actions.BeginStaging):
                self.jobs.append(action)

    def hear(self, participant: str, message: messages.FromCoordinator) -> None:
        """Let the life at the other end of the line act on a message."""
        life = self.current.get(participant)
        if life is None or not life.connected or life.is_lost or life.has_left:
            return
        call = getattr(message, "call", None)
        if call is not None and self.rosters[call].get(participant) != life.name:
            self.problems.append(f"{life.name} hears of call {call}, which it is not in")
        if isinstance(message, messages.BeginSave):
            if message.life != life.name:
                return
            self.judge_order(message.call, participant)
            report = component(NAMES[participant.partition("/")[0]])
            cut: dict[str, Scalar] = {f"life of {participant}": life.name}
            if self.random.random() < 0.03:
                why = messages.Failure("runtime", "raised")
                life.said.append(messages.Failed(message.call, message.step, "capture", why))
            else:
                fields = cut if participant == "buffer/0" else {}
                done = messages.Captured(message.call, message.step, [report], fields, {}, [])
                life.said.append(done)
        elif isinstance(message, messages.Write):
            part = part_report(participant)
            life.said.append(messages.Prepared(message.call, message.attempt, part))

    def judge_order(self, call: int, participant: str) -> None:
        if participant == "buffer/0":
            roster = self.rosters[call]
            consumers = {roster[one] for one in roster if one.startswith("trainer")}
            if not consumers <= self.captured[call]:
                self.problems.append(f"call {call}: the producer begins before its consumers")

    def judge_publish(self, publish: actions.Publish) -> None:
        roster = self.rosters[publish.call]
        if set(publish.captured) != set(roster):
            self.problems.append(f"call {publish.call}: published with another roster")
        missing = set(roster.items()) - self.prepared.get(publish.attempt, set())
        if missing:
            self.problems.append(f"call {publish.call}: published without {missing}")
        for one, message in publish.captured.items():
            if any(life != roster[one] for life in message.cut.values()):
                self.problems.append(f"call {publish.call}: captured by another life of {one}")
        if publish.call in self.told:
            self.problems.append(f"call {publish.call}: published after its outcome")

    def judge_outcome(self, outcome: object) -> None:
        call = getattr(outcome, "call")  # noqa: B009 - of any outcome
        if call in self.told:
            self.problems.append(f"call {call}: two outcomes")
        self.told[call] = outcome
        self.num_commits += isinstance(outcome, messages.Committed)
        if isinstance(outcome, messages.Aborted):
            for one, cause in outcome.failures.items():
                name = cause.message.removeprefix("lost ")
                own = self.rosters[call].get(one)
                if name != cause.message and name != own:
                    self.problems.append(f"call {call}: failed for the loss of {name}")
                left = {life.name for life in self.lives if life.has_left}
                if cause.message.startswith("closed") and own not in left:
                    self.problems.append(f"call {call}: failed for the goodbye of another life")
