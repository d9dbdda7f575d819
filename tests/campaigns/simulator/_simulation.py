"""One seed: several lives of a job on one disk, and everything that happens to them."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest import mock

from tests.campaigns.simulator._job import Job, Start
from tests.campaigns.simulator._oracle import Oracle
from tests.campaigns.simulator._participant import Plan
from tests.campaigns.simulator._parts import Indexer, payload_name
from tests.campaigns.simulator._readers import Pinner, Reader
from tests.campaigns.simulator._state import exists, manifest_at, wrong_with
from tests.campaigns.simulator._stepping import draw_timing
from tests.campaigns.simulator._world import Faults, World

from stepseal.errors import CheckpointError
from stepseal.layout import MANIFEST, parse_step_name, part_document_path
from stepseal.protocol import _incarnation
from stepseal.retention import Retention, latest
from stepseal.steps import _publishers
from stepseal.steps._catalog import read_marker
from stepseal.steps._hidden import put_back_pruned
from stepseal.steps._select import select
from stepseal.storage import create_durable, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.campaigns.simulator._world import Node

__all__ = ["Outcome", "Simulation"]

_END_S = 3000.0
_LIFE_VERBS = 500
_MAX_BYTES = 65536
_NO_THREADS = SimpleNamespace(
    Event=threading.Event, Thread=lambda **_: SimpleNamespace(start=int, join=int)
)
"""A publisher shows that it begins and ends, but no thread renames its file in between."""


@dataclass
class Outcome:
    """What became of one seed."""

    problems: list[str]
    checks: dict[str, int]
    ends: list[str] = field(default_factory=list)
    num_claims: int = 0
    num_commits: int = 0
    num_verbs: int = 0


@contextlib.contextmanager
def _seeded(world: World) -> Iterator[None]:
    """Let random names come from the seed, and the times in names and deadlines from virtual time.

    Everything else is handed its clock.
    """
    times = SimpleNamespace(monotonic=lambda: world.now)
    real, real_time = secrets.token_hex, time.time

    def token_hex(nbytes: int | None = None) -> str:
        return f"{world.random.getrandbits(8 * (nbytes or 32)):0{2 * (nbytes or 32)}x}"

    secrets.token_hex, time.time = token_hex, world.clock
    try:
        with (
            mock.patch.object(_publishers, "threading", _NO_THREADS),
            mock.patch.object(_incarnation, "time", times),
            mock.patch.object(_incarnation, "own_time_s", times.monotonic),
        ):
            yield
    finally:
        secrets.token_hex, time.time = real, real_time


class Simulation:
    def __init__(self, seed: int, faults: Faults) -> None:
        self.world = World(seed, faults)
        self.oracle = self.new_oracle()
        self.jobs: list[Start] = []
        draw = self.world.random
        self.num_lives = draw.choice((2, 2, 3, 3, 4))
        self.num_participants = draw.choice((2, 2, 2, 3, 3, 4, 5))
        self.readers: list[Reader] = []
        self.rots = self.world.chance(0.4)
        """Whether bytes flip, or steps are pruned: a prune trusts sizes, by design."""
        self.goes_back = not self.rots and self.world.chance(faults.back)
        """Whether steps heap up, so that a later life restores an older one."""
        self.engines = faults.engines > 0 and self.world.chance(faults.engines)
        self.triggers = faults.triggers > 0 and self.world.chance(faults.triggers)

    def new_oracle(self) -> Oracle:
        return Oracle(self.world)

    def run(self) -> Outcome:
        world, oracle = self.world, self.oracle
        with _seeded(world):
            try:
                world.at(0.0, self.start)
                world.run(_END_S)
                for job in self.jobs:
                    job.check_over()
            finally:
                world.close()
            if world.chance(world.faults.power):
                world.lose_power()
                oracle.after_power_loss()
            self.check_end()
        ends = [end for job in self.jobs for ends in job.ends.values() for end in ends.values()]
        checks = dict(oracle.checks)
        return Outcome(
            oracle.problems, checks, ends, len(oracle.claims), len(oracle.commits), world.num_verbs
        )

    # -- lives -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the job once more, as a scheduler or a person does."""
        world, faults, draw = self.world, self.world.faults, self.world.random
        number = len(self.jobs) + 1
        size = self.num_participants if not world.chance(0.1) else draw.choice((2, 3))
        standing = [step for step in self.standing() if number > 1]
        back = self.goes_back and world.chance(0.7)
        standing = standing[:-1] if back else standing
        asked = draw.choice(standing) if standing and (back or world.chance(0.05)) else None
        fresh = number > 1 and world.chance(0.03)
        pace_s = draw.choice((1.0, 1.0, 15.0))
        saves = draw.choice((1, 2, 2, 3)) if not self.goes_back else draw.choice((2, 4, 6))
        step = None if fresh else asked
        plan = Plan(saves, step, fresh, 2, pace_s, self.engines, self.triggers)
        keep = None if self.rots else draw.choice((None, 1, 1, 2))
        if self.goes_back:
            keep = None if number == 1 else draw.choice((1, 1, 2))
        retention = None if keep is None else self.retention(keep)
        job = self.new_start(number, size, plan, retention)
        self.jobs.append(job)
        job.head.disk.is_full = number > 1 and world.chance(faults.full)
        self.plan_trouble(job)
        if world.chance(faults.readers):
            self.readers.append(self.new_reader(number))
        if world.chance(faults.readers / 2):
            Pinner(world, self.oracle, number)
        if number < self.num_lives:
            if world.chance(faults.second):
                world.at(world.roll() * 20.0, self.start)
            else:
                world.at(5.0, lambda: self.start_after(job))

    def new_start(self, number: int, size: int, plan: Plan, retention: Retention | None) -> Start:
        """Return one more start of the job."""
        world, timing = self.world, draw_timing(self.world) if plan.triggers else None
        return Job(world, self.oracle, number, size, plan, self.new_attempt, retention, timing)

    def new_reader(self, number: int) -> Reader:
        """Return somebody who reads."""
        return Reader(self.world, self.oracle, number)

    def retention(self, keep: int) -> Retention:
        """Return a keep rule, often one that leaves nothing alone for long."""
        draw, graces = self.world.random, (0.0, 0.0, 20.0)
        aside = (0.0, 5.0, 20.0, 100.0) if self.goes_back else graces
        return Retention(latest(keep), draw.choice(aside), draw.choice(graces))

    def new_attempt(self) -> str:
        return f"{self.world.random.getrandbits(128):032x}"

    def start_after(self, job: Start) -> None:
        """Start the next life when this one is over."""
        if job.over:
            self.start()
        else:
            self.world.at(5.0, lambda: self.start_after(job))

    def standing(self) -> list[int]:
        """Return the steps that can be seen now."""
        found = (parse_step_name(entry.name) for entry in self.world.disk.list_dir(""))
        return sorted(step for step in found if step is not None)

    # -- trouble ---------------------------------------------------------------------------------

    def plan_trouble(self, job: Start) -> None:
        """Draw what happens in a life, before which of the next verbs of anybody."""
        world, faults = self.world, self.world.faults
        happens = (
            (faults.crash, self.crash),
            (faults.pause, self.pause),
            (faults.power, self.cut_power),
            (faults.rot if self.rots else 0.0, self.rot),
        )
        for probability, what in happens:
            if world.chance(probability):
                number = world.num_verbs + world.random.randint(1, _LIFE_VERBS)
                world.at_verb[number] = what

        if world.chance(faults.crash / 2):
            node = world.random.choice(job.nodes)
            world.at(world.roll() ** 2 * 200.0, lambda: world.kill(node))

    def crash(self, node: Node) -> None:
        """Kill the process that is about to do a verb, or all of its job."""
        self.world.kill(node)
        if node.job and self.world.chance(0.5):
            self.jobs[node.job - 1].kill()

    def pause(self, node: Node) -> None:
        """Let the process that is about to do a verb stand still, or all of its job."""
        seconds = self.world.roll() * (10.0 if self.world.chance(0.3) else 300.0)
        if node.job and self.world.chance(0.7):
            self.jobs[node.job - 1].freeze(seconds)
        else:
            self.world.freeze(node, seconds)

    def cut_power(self, _node: Node) -> None:
        """Lose power before this verb."""

        def cut() -> None:
            self.world.lose_power()
            self.oracle.after_power_loss()

        self.world.at(0.0, cut)

    def rot(self, _node: Node) -> None:
        """Flip a byte of a step, but never of the last sound one."""
        world, oracle = self.world, self.oracle
        sound = [step for step in self.standing() if self.is_sound(step)]
        if len(sound) < 2:
            return
        name = f"step-{world.random.choice(sound[-2:])}"
        found = manifest_at(world.disk, name)
        assert found is not None
        participant = world.random.choice(found.participants)
        inside = (MANIFEST, part_document_path(participant), payload_name(participant))
        key = f"{name}/{world.random.choice(inside)}"
        data = bytearray(read_bytes(world.disk, key, _MAX_BYTES))
        data[world.random.randrange(len(data))] ^= 1 << world.random.randrange(8)
        world.disk.remove_file(key)
        create_durable(world.disk, key, data)
        world.disk.sync_dir(name)
        world.disk.sync_dir(key.rpartition("/")[0])
        oracle.rotted.add(found.attempt)
        world.note("a byte flips in", key)

    def is_sound(self, step: int) -> bool:
        found = manifest_at(self.world.disk, f"step-{step}")
        return found is not None and not wrong_with(self.world.disk, found)

    # -- the end ---------------------------------------------------------------------------------

    def check_end(self) -> None:
        """Judge what is left, and what a restore would find in it."""
        disk, oracle = self.world.disk, self.oracle
        oracle.require_owed("at the end")
        oracle.require_known("at the end")
        if not exists(disk, "stepseal.json"):
            oracle.require("the root stays", not oracle.acknowledged, "no marker")
            return
        if set(oracle.acknowledged) - oracle.rotted - oracle.pruned:
            sound = any(self.is_sound(step) for step in self.standing())
            oracle.require("a sound step always remains", sound, self.standing())
        owed = oracle.owed()
        with contextlib.suppress(CheckpointError):
            put_back_pruned(disk, self.world.clock())  # as a restore does first
            found = select(disk, read_marker(disk), step=None, exclude=(), inspect=_inspect)
            chosen = -1 if found.entry is None else found.entry.step
            newest = max(owed, default=-1)
            oracle.require("restore finds the newest", chosen >= newest, chosen, newest)


def _inspect(storage, key, manifest):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return Indexer().inspect(storage, key, manifest, exact=False)
