"""A random walk of ranks that make their own calls, and hear at one safe point what is due.

All ranks run one program: steps, saves that a rule asks for, and explicit ones. Each has three
threads: one trains, one hears messages, one writes behind. Triggers fire anywhere, as signals do: a
fourth thread tells the coordinator, at the latest when its rank comes to a safe point.
`problems` lists what a sound protocol never does. `_triggers_judge.py` holds the judge.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.protocol._triggers_judge import Judge
from tests.steps._kit import DEADLINES, attempt_id, captured, part_report

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._participant import Participant
from stepseal.protocol._triggers import Timing

__all__ = ["Rank", "TriggersWalk"]

_NUM_MOVES = 500
_TICK_S = 0.001
_FAR = 10_000
GONE = messages.Failure("participant_failed", "process ended")


@dataclass(eq=False)
class Rank:
    """One process: its threads, and what is on its line."""

    name: str
    protocol: Participant = field(default_factory=lambda: Participant(DEADLINES))
    said: list[messages.FromParticipant] = field(default_factory=list)
    heard: list[messages.FromCoordinator | messages.Failure] = field(default_factory=list)
    orders: list[messages.Write] = field(default_factory=list)
    """What its writer has not begun."""
    count: int = 0
    """Safe points that it has come to, as the test counts them."""
    begun: int = 0
    """Of its program, the calls that it has begun."""
    where: str = "trains"
    """trains, waits, raises, settles, captures, closes, closed or dead"""
    call: int = 0
    pending: int = 0
    """The save in flight."""
    saved: int = 0
    """The newest step that was captured."""
    stops: bool = False
    signals: list[messages.Fired] = field(default_factory=list)
    """Those that its thread for signals has not noticed."""

    @property
    def lives(self) -> bool:
        return self.where not in ("dead", "closed")

    def notice(self) -> None:
        """Tell the coordinator of the next signal, and wait until it answers."""
        self.protocol.points.held = True
        self.said.append(self.signals.pop(0))


class TriggersWalk:
    """One seed.

    Args:
        seed: decides everything.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        draw = self.random
        self.now = 0.0
        self.lead = draw.choice((1, 2, 4, _FAR))
        self.survives = draw.random() < 0.7
        """Whether loops go on after a save has failed."""
        self.trouble = draw.choice((0.0, 0.0, 0.002))
        """How likely somebody dies, or closes early, per move."""
        self.failing = draw.choice((0.0, 0.1, 0.4))
        """How likely a writer fails behind."""
        self.firing = draw.choice((0.0, 0.02, 0.05))
        timing = Timing(
            every_s=draw.choice((None, None, 0.08)),
            stop_at=draw.choice((None, None, None, 0.3)),
            margin_s=0.05,
        )
        self.program = self.write_program(draw.choice((10, 40)))
        names = tuple(f"trainer/{rank}" for rank in range(draw.choice((2, 3, 3))))
        self.ranks = {name: Rank(name) for name in names}
        new_attempt = lambda: attempt_id(draw.getrandbits(64))  # noqa: E731
        self.coordinator = Coordinator(names, DEADLINES, new_attempt, timing=timing)
        self.is_up = True
        """Whether the coordinator lives."""
        self.lost: list[str] = []
        """Dead ranks that it has not noticed."""
        self.jobs: list[actions.BeginStaging | actions.Publish] = []
        self.broken = False
        """Somebody died or closed early: the collectives of the others end with an error."""
        self.judge = Judge(self)

    def write_program(self, num_steps: int) -> list[tuple[str, int, bool]]:
        """Return the calls that all ranks make: what, of which step, and whether it saves."""
        every, program = self.random.choice((3, 5, _FAR)), []
        for step in range(1, num_steps + 1):
            explicit = step % every == 0 and self.random.random() < 0.5
            program.append(("step", step, step % every == 0 and not explicit))
            if explicit:
                program.append(("save", step, True))
        return program

    def run(self) -> list[str]:
        for rank in self.ranks.values():  # nobody begins before all have connected
            self.take(
                self.coordinator.on_message(rank.name, messages.Hello(rank.name, "", ""), 0.0)
            )
        self.take(self.coordinator.on_time(self.now))
        moves = [self.train] * 8 + [self.hear] * 8 + [self.deliver] * 8 + [self.work] * 3
        moves += [self.write, self.notice, self.notice, self.notice_loss]
        last_fire = self.random.randrange(_NUM_MOVES)
        for number in range(_NUM_MOVES):
            self.now += _TICK_S
            self.random.choice(moves)()
            if number <= last_fire and self.random.random() < self.firing:
                self.fire()
            self.judge.after_a_move()
            if self.random.random() < self.trouble:
                self.random.choice([self.die, self.close_early, self.die, self.lose_coordinator])()
        self.finish()
        self.judge.at_the_end()
        return self.judge.problems

    def finish(self) -> None:
        """Let everybody come to an end; no deadline may be needed for it."""
        num_quiet = 0
        moves = (self.notice, self.notice_loss, self.hear, self.deliver, self.work)
        for _ in range(50 * len(self.program)):
            if num_quiet == 3 or not any(rank.lives for rank in self.ranks.values()):
                break
            before = self.progress()
            self.now += _TICK_S
            for rank in self.ranks.values():
                self.train(rank)
            for move in (*moves, self.write):
                for _ in range(6):
                    move()
            num_quiet = 0 if self.progress() != before else num_quiet + 1

    def progress(self) -> list[object]:
        ranks = self.ranks.values()
        lines = [(len(rank.said), len(rank.heard), len(rank.orders)) for rank in ranks]
        where = [(rank.count, rank.begun, rank.where, len(rank.signals)) for rank in ranks]
        return [lines, where, len(self.jobs), len(self.lost)]

    # -- the thread that trains ------------------------------------------------------------------

    def train(self, rank: Rank | None = None) -> None:
        """Let a rank go on as far as its next wait."""
        rank = rank or self.random.choice([*self.ranks.values()])
        if rank.lives:
            getattr(self, f"_{rank.where}")(rank)

    def _trains(self, rank: Rank) -> None:
        done = rank.begun == len(self.program)
        hangs = self.broken and self.lead < _FAR
        if done or hangs or (rank.stops and self.program[rank.begun][0] == "step"):
            rank.where = "closes"
        elif rank.begun < min(one.begun for one in self.ranks.values()) + self.lead or self.broken:
            rank.begun += 1
            rank.where = "waits"
            while rank.signals:
                rank.notice()

    def _waits(self, rank: Rank) -> None:
        points, due = rank.protocol.points, None
        if rank.protocol.lost is not None:
            points.leave()
        else:
            told = points._target is not None
            if not points.try_pass():
                return
            self.judge.passes(rank, told=told)
            if (arrived := points.arrived()) is not None:
                due = points.take_due()
                rank.said.append(arrived)
        rank.count += 1
        self.judge.at_point(rank, due)
        self._go_on(rank, due)

    def _go_on(self, rank: Rank, due: messages.Due | None) -> None:
        rank.stops = rank.stops or (due is not None and bool(due.stop))
        if due is not None and rank.pending and rank.pending in due.failed:
            rank.where = "raises"
        elif (due is not None and due.save) or self.program[rank.begun - 1][2]:
            rank.where = "settles"
        else:
            rank.where = "trains"

    def _raises(self, rank: Rank) -> None:
        if rank.protocol.save(rank.pending).settled:
            self.settle(rank)
            rank.where = "trains" if self.survives else "closes"

    def _settles(self, rank: Rank) -> None:
        if rank.pending and not rank.protocol.save(rank.pending).settled:
            return
        step = self.program[rank.begun - 1][1]
        if not self.settle(rank):
            rank.where = "trains" if self.survives else "closes"
        elif rank.saved == step:
            rank.where = "trains"
        else:
            rank.call, rank.saved = rank.protocol.new_call(), step
            rank.protocol.captured(rank.call, self.now)
            rank.said.append(captured(rank.call, step))
            rank.where = "captures"

    def settle(self, rank: Rank) -> bool:
        """Take the outcome of the save in flight; False if it failed."""
        if not rank.pending:
            return True
        good = isinstance(rank.protocol.save(rank.pending).outcome, messages.Committed)
        if not good:
            self.judge.raised(rank, rank.pending)
        rank.pending = 0
        return good

    def _captures(self, rank: Rank) -> None:
        state = rank.protocol.save(rank.call)
        if state.write is not None:
            rank.pending = rank.call
            rank.where = "trains"
        elif state.settled:
            self.judge.raised(rank, rank.call)
            rank.where = "trains" if self.survives else "closes"

    def _closes(self, rank: Rank) -> None:
        if not rank.pending or rank.protocol.save(rank.pending).settled:
            rank.where = "closed"
            rank.said.append(messages.Goodbye())

    # -- the other threads of a rank -------------------------------------------------------------

    def hear(self) -> None:
        """Let the link's thread of a rank hear its next message, whatever the rank does."""
        waiting = [rank for rank in self.ranks.values() if rank.lives and rank.heard]
        if not waiting:
            return
        rank = self.random.choice(waiting)
        message = rank.heard.pop(0)
        if isinstance(message, messages.Failure):
            rank.protocol.on_lost(message)
            return
        answer = rank.protocol.on_message(message)
        rank.said += [] if answer is None else [answer]
        if isinstance(message, messages.Write):
            rank.orders.append(message)

    def write(self) -> None:
        """Let the thread that writes behind report, or fail."""
        waiting = [rank for rank in self.ranks.values() if rank.where != "dead" and rank.orders]
        if not waiting:
            return
        rank = self.random.choice(waiting)
        order = rank.orders.pop(0)
        if not rank.protocol.prepare(order.call, self.now):
            return
        if self.random.random() < self.failing:
            failed = messages.Failed(order.call, rank.saved, "write", GONE)
            rank.said.append(failed)
        else:
            rank.said.append(messages.Prepared(order.call, order.attempt, part_report(rank.name)))

    def fire(self) -> None:
        """Let a signal arrive at a rank, or at all."""
        draw = self.random
        living = [rank for rank in self.ranks.values() if rank.lives]
        stop = draw.random() < 0.2
        fired = messages.Fired("SIGTERM", stop=stop, grace_s=draw.choice((None, None, 0.1)))
        if living and draw.random() < 0.7:
            living = [draw.choice(living)]
        for rank in living:
            rank.signals.append(fired)

    def notice(self) -> None:
        """Let the thread that watches signals notice one."""
        waiting = [rank for rank in self.ranks.values() if rank.lives and rank.signals]
        if waiting:
            self.random.choice(waiting).notice()

    # -- trouble ---------------------------------------------------------------------------------

    def die(self) -> None:
        rank = self.random.choice([*self.ranks.values()])
        if rank.lives:
            rank.where, self.broken = "dead", True
            rank.said.clear()
            self.lost.append(rank.name)

    def close_early(self) -> None:
        """Let an exception end the loop of one rank."""
        rank = self.random.choice([*self.ranks.values()])
        if rank.where == "trains":
            rank.where, self.broken = "closes", True
            self.judge.early.add(rank.name)

    def lose_coordinator(self) -> None:
        """Let the process of the coordinator die, which is one of the job's."""
        self.is_up, self.broken = False, True
        for rank in self.ranks.values():
            rank.heard.append(messages.Failure("coordinator_lost", "gone"))

    # -- the coordinator -------------------------------------------------------------------------

    def deliver(self) -> None:
        """Let the coordinator hear the next message of a rank."""
        waiting = [rank for rank in self.ranks.values() if rank.said]
        if waiting:
            rank = self.random.choice(waiting)
            message = rank.said.pop(0)
            if self.is_up:
                self.judge.hears(rank.name, message)
                self.take(self.coordinator.on_message(rank.name, message, self.now))
                self.take(self.coordinator.on_time(self.now))

    def notice_loss(self) -> None:
        if self.lost:
            name = self.lost.pop(0)
            if self.is_up:
                self.judge.hears_of_loss(name)
                self.take(self.coordinator.on_lost(name, GONE))

    def work(self) -> None:
        if self.jobs and self.is_up:
            job = self.jobs.pop(0)
            event: actions.DriverEvent = actions.Published(job.call, "a" * 64)
            if isinstance(job, actions.BeginStaging):
                event = actions.Staged(job.call, "staging", "nonce")
            self.take(self.coordinator.on_driver(event, self.now))

    def take(self, todo: list[actions.Action]) -> None:
        self.judge.says([action for action in todo if isinstance(action, actions.Send)])
        for action in todo:
            if isinstance(action, actions.Send):
                self.ranks[action.to].heard.append(action.message)
            elif isinstance(action, (actions.BeginStaging, actions.Publish)):
                self.jobs.append(action)
