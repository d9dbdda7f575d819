"""A random walk of ranks that nobody can call, beside a coordinator that opens saves.

Each rank trains, passes safe points, and hears messages on another thread, at any time. A rank
cannot finish a training step that the others have not begun (`lead` says how far it may be ahead).
`problems` lists what a sound protocol never does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.steps._kit import DEADLINES, attempt_id, component, part_report

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._opening import Opening
from stepseal.protocol._participant import Participant

__all__ = ["PointsWalk"]

BUFFER = "buffer/0"
_NUM_MOVES = 400


@dataclass(eq=False)
class _Rank:
    """One process: the thread that trains, the thread of its link, and what is on the line."""

    name: str
    protocol: Participant = field(default_factory=lambda: Participant(DEADLINES))
    said: list[messages.FromParticipant] = field(default_factory=list)
    heard: list[messages.FromCoordinator] = field(default_factory=list)
    calls: int = 0
    """Calls of `step` that it has made, as the test counts them."""
    saving: int = 0
    """The last save that it has captured for; it ends only once that one is settled."""
    where: str = "trains"
    """trains, waits (in `step`), here (at the target), ended or dead"""


class PointsWalk:
    """One seed.

    Args:
        seed: decides everything.
        impatient: the controller opens a save while another one still waits for its ranks.
    """

    def __init__(self, seed: int, *, impatient: bool = False) -> None:
        self.random = random.Random(seed)
        self.impatient = impatient
        self.now = 0.0
        self.problems: list[str] = []
        self.num_commits = self.num_lapses = self.num_opened = 0
        self.coordinator = Coordinator((), DEADLINES, self._new_attempt)
        size = self.random.choice((2, 3))
        self.lead = self.random.choice((1, 1, 2, 4))
        self.num_steps = self.random.choice((15, 60))
        self.order = self.random.choice((("trainer", "buffer"), ("buffer", "trainer"), ()))
        self.ranks = {f"trainer/{number}": _Rank(f"trainer/{number}") for number in range(size)}
        self.captured: dict[int, dict[str, int]] = {}
        self.told: set[int] = set()
        self.answers: dict[int, dict[str, int]] = {}
        """Call to what ranks had passed, by the test's count, when they answered."""
        self.jobs: list[actions.BeginStaging | actions.Publish] = []
        self.all_could_come = True
        """Nobody has died: every save must end without the help of a deadline."""

    def _new_attempt(self) -> str:
        return attempt_id(self.random.getrandbits(64))

    def run(self) -> list[str]:
        for one in self.ranks:
            self.take(self.coordinator.admit(one, one, steps=True))
            self.ranks[one].said.append(messages.Hello(one, "", "", one))
        self.take(self.coordinator.admit(BUFFER, BUFFER))
        self.say(BUFFER, messages.Hello(BUFFER, "", "", BUFFER))
        moves = [self.train] * 8 + [self.hear] * 8 + [self.deliver] * 8 + [self.work] * 3
        moves += [self.open] * 2
        for _ in range(_NUM_MOVES):
            self.now += 0.001
            self.random.choice(moves)()
            if self.random.random() < 0.0005:
                self.die()
        self.finish()
        for number in set(range(1, self.num_opened + 1)) - self.told:
            self.problems.append(f"call {number} never ended")
        for rank in self.ranks.values():
            if rank.where not in ("ended", "dead"):
                self.problems.append(f"{rank.name} is held for ever, {rank.where}")
        return self.problems

    def finish(self) -> None:
        """Let everybody come to an end; only a death may need a deadline."""
        num_quiet = 0
        for _ in range(50 * self.num_steps):
            before = self.progress()
            for rank in self.living():
                self.train(rank)
            for move in (self.hear, self.deliver, self.work):
                for _ in range(6):
                    move()
            num_quiet = 0 if self.busy() or self.progress() != before else num_quiet + 1
            if num_quiet < 2:  # what was heard last may let a rank go on
                continue
            if not self.coordinator.busy:
                return
            if self.all_could_come:
                self.problems.append("only a deadline could end a save")
            self.now = self.coordinator.next_deadline()
            self.take(self.coordinator.on_time(self.now))

    def progress(self) -> list[object]:
        return [(rank.calls, rank.where) for rank in self.ranks.values()]

    def busy(self) -> list[object]:
        lines = [rank.said for rank in self.living()] + [rank.heard for rank in self.living()]
        may = [one for one in self.living() if self.may_train(one) or self.may_end(one)]
        return [*self.jobs, *(message for line in lines for message in line), *may]

    def living(self) -> list[_Rank]:
        return [rank for rank in self.ranks.values() if rank.where != "dead"]

    # -- what happens ----------------------------------------------------------------------------

    def may_train(self, rank: _Rank) -> bool:
        """Tell whether the others let this rank finish its training step, or end."""
        slowest = min(other.calls for other in self.living())
        alive = len(self.living()) == len(self.ranks)
        behind = rank.calls < min(slowest + self.lead, self.num_steps)
        return rank.where == "trains" and alive and behind

    def may_end(self, rank: _Rank) -> bool:
        """Tell whether a rank is done, or cannot go on, as another one has died."""
        done = rank.calls == self.num_steps or len(self.living()) < len(self.ranks)
        settled = not rank.saving or rank.protocol.save(rank.saving).settled
        return rank.where == "trains" and done and settled

    def train(self, rank: _Rank | None = None) -> None:
        """Let a rank come to its next safe point, or go on from there, or end."""
        rank = rank or self.random.choice([*self.ranks.values()])
        if self.may_end(rank):
            rank.where = "ended"
            rank.said.append(messages.Goodbye())
        elif rank.where == "trains" and self.may_train(rank):
            rank.calls += 1
            rank.where = "waits"
        points = rank.protocol.points
        if rank.where == "waits" and points.try_pass():
            arrived = points.arrived()
            rank.where = "trains" if arrived is None else "here"
            rank.said += [] if arrived is None else [arrived]
        if rank.where == "here":
            begin = rank.protocol.next_begin()
            if begin is not None or points.arrived() is None:
                points.forget()
                rank.where = "trains"
            if isinstance(begin, messages.BeginSave):
                self.capture(rank.name, begin)

    def capture(self, name: str, begin: messages.BeginSave) -> None:
        role, _, _ = name.partition("/")
        report = component("model" if role == "trainer" else "samples")
        if role == "trainer":
            self.captured.setdefault(begin.call, {})[name] = self.ranks[name].calls
            self.ranks[name].saving = begin.call
            points = set(self.captured[begin.call].values())
            if len(points) > 1:
                self.problems.append(f"call {begin.call}: captured at {points}")
        self.say(name, messages.Captured(begin.call, begin.step, [report], {}, {}, []))

    def say(self, name: str, message: messages.FromParticipant) -> None:
        if name in self.ranks:
            self.ranks[name].said.append(message)
        else:
            self.take(self.coordinator.on_message(name, message, self.now, name))

    def hear(self) -> None:
        """Let the link's thread of a rank hear its next message, whatever the rank does."""
        waiting = [rank for rank in self.living() if rank.heard]
        if waiting:
            rank = self.random.choice(waiting)
            message = rank.heard.pop(0)
            if isinstance(message, messages.AskSafePoint):
                passed = rank.calls - (rank.where == "waits")
                self.answers.setdefault(self.num_opened, {})[rank.name] = passed
            answer = rank.protocol.on_message(message)
            rank.said += [] if answer is None else [answer]
            if isinstance(message, messages.Write):
                part = part_report(rank.name)
                rank.said.append(messages.Prepared(message.call, message.attempt, part))

    def deliver(self) -> None:
        """Let the coordinator hear the next message of a rank."""
        waiting = [rank for rank in self.living() if rank.said]
        if waiting:
            rank = self.random.choice(waiting)
            message = rank.said.pop(0)
            self.take(self.coordinator.on_message(rank.name, message, self.now, rank.name))

    def open(self) -> None:
        gone = any(rank.where in ("ended", "dead") for rank in self.ranks.values())
        if gone or (self.coordinator.busy and not self.impatient):
            return
        self.num_opened += 1
        opening = Opening("save", self.num_opened, self.order)
        self.take(self.coordinator.open(opening, self.now)[1])

    def work(self) -> None:
        if self.jobs:
            job = self.jobs.pop(0)
            event: actions.DriverEvent = actions.Published(job.call, "a" * 64)
            if isinstance(job, actions.BeginStaging):
                event = actions.Staged(job.call, "staging", "nonce")
            self.take(self.coordinator.on_driver(event, self.now))

    def die(self) -> None:
        rank = self.random.choice([*self.ranks.values()])
        if rank.where not in ("ended", "dead"):
            rank.where, self.all_could_come = "dead", False
            cause = messages.Failure("participant_failed", "process ended")
            self.take(self.coordinator.on_lost(rank.name, cause, rank.name))

    # -- what the coordinator does ---------------------------------------------------------------

    def take(self, todo: list[actions.Action]) -> None:
        for action in todo:
            if isinstance(action, actions.Send):
                self.send(action.to, action.message)
            elif isinstance(action, actions.Told):
                self.judge(action.outcome)
            elif isinstance(action, (actions.BeginStaging, actions.Publish)):
                self.jobs.append(action)

    def send(self, to: str, message: messages.FromCoordinator) -> None:
        if to in self.ranks:
            self.ranks[to].heard.append(message)
        elif isinstance(message, messages.BeginSave):
            self.capture(to, message)
        elif isinstance(message, messages.Write):
            self.say(to, messages.Prepared(message.call, message.attempt, part_report(to)))

    def judge(self, outcome: object) -> None:
        call = getattr(outcome, "call")  # noqa: B009 - of any outcome
        self.told.add(call)
        if isinstance(outcome, messages.Committed):
            self.num_commits += 1
            if set(self.captured[call]) != set(self.ranks):
                self.problems.append(f"call {call}: committed with {self.captured[call]}")
            return
        self.num_lapses += 1
        passed = self.answers.get(call, {})
        ahead = len(passed) == len(self.ranks) and max(passed.values()) < self.num_steps
        if ahead and self.all_could_come:
            self.problems.append(f"call {call}: failed, and all had passed at most {passed}")
