"""One round of the soak: several lives of a job on one root, each disturbed at random.

Everything that is chosen follows from the seed; what the processes make of it also depends on the
scheduler, so a seed repeats the disturbances, not the exact instant at which they strike.
"""

from __future__ import annotations

import functools
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tests.campaigns.harness._processes import Child, fast_directory
from tests.campaigns.soak._job import DEADLINES, Folder, Plan, train
from tests.campaigns.soak._oracle import survey
from tests.campaigns.soak._others import pin_on, prune_on, read_on
from tests.multi._ranks import read_calls

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["TROUBLES", "RoundReport", "Trouble", "run_round"]

Trouble = Literal[
    "none", "kill", "kill-all", "pause", "freeze", "terminate", "disk-full", "zombies", "twins"
]  # fmt: skip
TROUBLES: tuple[Trouble, ...] = get_args(Trouble)
"""`pause`: SIGSTOP and SIGCONT within what counts as alive; `freeze`: for longer; `zombies`: all
are stopped, and wake in the next life; `twins`: the next life begins while this one goes on."""
_LIMIT_S = 70.0
"""No life takes longer, whatever happens."""
_TOLERANCE_S = 5.0
_LIMITS_S = {
    "construct": DEADLINES.connect_s,
    "restore": DEADLINES.restore_s,
    "save": 2 * DEADLINES.save_s,
    "wait": DEADLINES.save_s,
    "close": DEADLINES.save_s + 2 * DEADLINES.close_s,
}
"""A save waits for the one before."""
_LOOK_S = 0.02
_STRUCK_WHILE_SAVING = 0.5
"""How often a life is struck once it saves, however slow its start was."""
_PRUNED_BESIDE = 0.7
"""How often `stepseal prune` runs beside a job that prunes too."""


@dataclass(slots=True)
class RoundReport:
    """What came of a round."""

    seed: int
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Member:
    """One participant, and when it was stopped."""

    child: Child
    rank: int
    stopped: list[tuple[float, float]] = field(default_factory=list)
    struck_by: list[int] = field(default_factory=list)
    """Signals that may have ended it."""

    def strike(self, number: int) -> None:
        """Send a signal that ends it."""
        self.struck_by.append(number)
        self.child.signal(number)

    def stop(self) -> None:
        """Stop it until `go`."""
        self.stopped.append((self.child.signal(signal.SIGSTOP), float("inf")))

    def go(self) -> None:
        """Let it go on."""
        if self.stopped and self.stopped[-1][1] == float("inf"):
            self.child.signal(signal.SIGCONT)
            self.stopped[-1] = (self.stopped[-1][0], time.monotonic())

    def stopped_s(self, begin: float, end: float) -> float:
        """Return for how long it stood still in a span of time."""
        return sum(max(0.0, min(end, b) - max(begin, a)) for a, b in self.stopped)


class _Life:
    """The participants of one life."""

    def __init__(self, folder: Folder, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.members = [
            _Member(
                Child(
                    functools.partial(train, folder, plan, rank),
                    folder.path / f"stack.{plan.life}.{rank}",
                    0.9 * _LIMIT_S,
                ),
                rank,
            )
            for rank in range(plan.world)
        ]

    def go(self) -> None:
        """Let all go on."""
        for member in self.members:
            member.go()

    def wait_saving(self) -> None:
        """Wait until a participant began to save, or all have ended."""
        end = time.monotonic() + _LIMIT_S
        while any(member.child.running for member in self.members) and time.monotonic() < end:
            words = self.folder.words.all()
            if any((word.kind, word.life) == ("begin", self.plan.life) for word in words):
                return
            time.sleep(_LOOK_S)

    def wait_ended(self, report: RoundReport) -> None:
        """Wait until all have ended; who does not, hangs."""
        end = time.monotonic() + _LIMIT_S
        waiting: dict[Any, _Member] = {m.child.sentinel: m for m in self.members}
        while waiting and (left := end - time.monotonic()) > 0:
            for sentinel in connection.wait(list(waiting), left):
                del waiting[sentinel]
        for member in self.members:
            code = None if member in waiting.values() else member.child.exit_code()
            if code not in (None, 0, *(-number for number in member.struck_by)):
                text = f"life {self.plan.life}, rank {member.rank} ended with exit code {code}"
                report.problems.append(text)
        for member in waiting.values():
            stack = (self.folder.path / f"stack.{self.plan.life}.{member.rank}").read_text()
            report.problems.append(f"life {self.plan.life}, rank {member.rank} hangs:\n{stack}")
        for member in self.members:
            member.child.end()
        self._judge(report)

    def end(self) -> None:
        """Kill what still runs."""
        for member in self.members:
            member.child.end()

    def _judge(self, report: RoundReport) -> None:
        """Every call came back in time, with a typed error if any."""
        for member in self.members:
            for call in read_calls(member.rank, self.folder.calls(self.plan.life, member.rank)):
                report.counts[f"{call.name}: {call.kind}"] += 1
                if call.outcome == "raised" and not call.facts["typed"]:
                    report.problems.append(f"life {self.plan.life}: not a typed error: {call}")
                if call.ended is None:
                    continue  # killed in it
                took = call.ended - call.started - member.stopped_s(call.started, call.ended)
                if took > _LIMITS_S[call.name] + _TOLERANCE_S:
                    report.problems.append(f"life {self.plan.life}: {took:.1f} s: {call}")


def run_round(
    seed: int,
    troubles: Sequence[Trouble] = TROUBLES,
    patch: Callable[[], None] | None = None,
) -> RoundReport:
    """Run one round on a fresh root.

    Args:
        seed: of everything that is chosen.
        troubles: to choose from.
        patch: breaks the protocol, in all processes of the round.
    """
    if patch is not None:
        patch()
    path = Path(tempfile.mkdtemp(prefix="stepseal-soak-", dir=fast_directory()))
    try:
        return _Round(Folder(path), seed, troubles).run()
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _Round:
    def __init__(self, folder: Folder, seed: int, troubles: Sequence[Trouble]) -> None:
        self._chance = random.Random(f"soak {seed}")
        self._folder = folder
        self._troubles = troubles
        self._report = RoundReport(seed)
        self._world = self._chance.choice((2, 2, 3, 4))
        self._keep = self._chance.choice((None, 2, 2))
        self._prunes = self._keep is not None and self._chance.random() < _PRUNED_BESIDE
        self._others: list[_Life] = []
        """Lives that still go on, or stand still, beside the newest."""
        self._checked: set[str] = set()
        self._life = 10  # replicas that were never restored use small numbers

    def run(self) -> RoundReport:
        beside = [Child(work) for work in self._beside()]
        try:
            for number in range(self._chance.randint(3, 5)):
                chosen = self._chance.choice(list(self._troubles))
                first = self._troubles[self._report.seed % len(self._troubles)]
                self._live(chosen if number else first)  # so that each comes up, whatever chance is
            self._settle_others()
            self._live("none")
            self._check_last()
            self._survey(anew=True)
        finally:
            for life in self._others:
                life.end()
            for child in beside:
                child.end()
        for word in self._folder.words.all():
            self._report.counts[word.kind] += 1
        return self._report

    def _beside(self) -> list[Callable[[Any], None]]:
        """Return what goes on beside the job."""
        folder, seed = self._folder, self._report.seed
        work: list[Callable[[Any], None]] = [
            functools.partial(read_on, folder, self._world, verify) for verify in (False, True)
        ]
        if self._keep is not None:
            work.append(functools.partial(pin_on, folder, seed))
        if self._keep is not None and self._prunes:
            work.append(functools.partial(prune_on, folder, self._keep, seed))
        return work

    def _live(self, trouble: Trouble) -> None:
        """Live one life, with one trouble."""
        self._life += 1
        self._report.counts[f"life with {trouble}"] += 1
        chance, world = self._chance, self._world
        victim, strike_s = chance.randrange(world), chance.uniform(0.05, 1.2)
        while_saving = chance.random() < _STRUCK_WHILE_SAVING
        full = (victim, strike_s, strike_s + chance.uniform(0.1, 0.8))
        plan = Plan(
            self._life,
            world,
            chance.randint(4, 16),
            chance.choice(("sync", "async", "async")),
            chance.choice((0.0, 0.02, 0.1)),
            full if trouble == "disk-full" else None,
            () if self._keep is None else (("keep", ss.latest(self._keep)),),
        )
        wake_s = chance.uniform(0.2, 2.5)
        held_s = chance.uniform(0.1, 0.8)
        frozen_s = DEADLINES.lost_s + chance.uniform(0.5, 2.0)
        life = _Life(self._folder, plan)
        if while_saving:
            life.wait_saving()
        time.sleep(strike_s)
        self._strike(trouble, life, life.members[victim], held_s, frozen_s)
        if trouble in ("zombies", "twins"):
            self._settle_others()  # at most two lives at once
            self._others.append(life)
            return
        if self._others:
            time.sleep(max(0.0, wake_s - strike_s))
            self._settle_others()
        life.wait_ended(self._report)
        self._survey()

    def _strike(
        self, trouble: Trouble, life: _Life, victim: _Member, held_s: float, frozen_s: float
    ) -> None:
        match trouble:
            case "kill":
                victim.strike(signal.SIGKILL)
            case "kill-all":
                for member in life.members:
                    member.strike(signal.SIGKILL)
            case "terminate":
                victim.strike(signal.SIGTERM)
            case "pause" | "freeze":
                victim.stop()
                time.sleep(held_s if trouble == "pause" else frozen_s)
                victim.go()
            case "zombies":
                for member in life.members:
                    member.stop()
            case _:
                pass

    def _settle_others(self) -> None:
        """Wake the lives of before, and let them end."""
        others, self._others = self._others, []
        for life in others:
            life.go()
        for life in others:
            life.wait_ended(self._report)

    def _check_last(self) -> None:
        """The last life, which nobody disturbed, resumed and saved."""
        kinds = {word.kind for word in self._folder.words.all() if word.life == self._life}
        if not {"restored", "acknowledged"} <= kinds:
            calls = read_calls(0, self._folder.calls(self._life, 0))
            text = "; ".join(str(call) for call in calls if call.outcome != "returned")
            self._report.problems.append(f"the last life did not resume and save: {text}")

    def _survey(self, *, anew: bool = False) -> None:
        checked = set() if anew else self._checked
        if not self._others:
            found = survey(self._folder, self._world, self._keep, checked)
            self._report.problems += [each for each in found if each not in self._report.problems]
