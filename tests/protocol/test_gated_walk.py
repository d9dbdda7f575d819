"""Writers that come, fail, die and come back at random, over several steps at once.

What is published was wanted, is durable at every writer, and is newer than all before it. Nothing
is published after it was aborted. Nobody is waited for when all limits have passed.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.protocol import _gated_naive as naive
from tests.protocol._writers import ALL, Writers

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STEPS = (10, 20, 30)
NUM_SEEDS = 300


class Walk(Writers):
    """Makes random moves, and checks each publication when it is ordered."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.wanted: set[int] = set()
        self.prepared: dict[int, set[str]] = {}
        self.staging: list[int] = []
        self.staged: dict[int, str] = {}
        """Call to its attempt."""
        self.publishing: list[actions.Publish] = []
        self.newest = 0
        self.ended: set[int] = set()
        super().__init__()

    def take(self, todo: Sequence[actions.Action]) -> None:
        num = len(self.others)
        super().take(todo)
        for one in self.others[num:]:
            if isinstance(one, actions.BeginStaging):
                self.staging.append(one.call)
                self.staged[one.call] = one.attempt
            elif isinstance(one, actions.Publish):
                self.check(one)
                self.publishing.append(one)
            elif isinstance(one, actions.Told):
                self.wanted.discard(getattr(one.outcome, "step", -1))
        for _, message in self.told:
            if isinstance(message, (messages.Aborted, messages.Committed)):
                self.ended.add(message.call)

    def check(self, found: actions.Publish) -> None:
        assert found.step in self.wanted, "the controller does not want it"
        assert self.prepared.get(found.call, set()) >= {*ALL}, "a writer's bytes are not durable"
        assert found.step > self.newest, "an older step comes after a newer one"
        assert found.call not in self.ended, "it was aborted"
        self.newest = found.step

    def move(self) -> None:
        moves: dict[Callable[[], None], float] = {
            self.some_ask: 4,
            self.some_work: 12,
            self.next_staged: 4,
            self.some_want: 2,
            self.next_commit: 3,
            self.some_death: 0.4,
            self.some_limit: 0.1,
        }
        (move,) = self.random.choices(list(moves), list(moves.values()))
        move()

    def some_ask(self) -> None:
        who, step = self.random.choice(ALL), self.random.choice(STEPS)
        self.hear(who, messages.SaveAsked(step, who.partition("/")[0]))

    def some_work(self) -> None:
        """Let a writer do the next thing that it was told to."""
        call = self.random.choice([*self.staged, 0])
        who = self.random.choice(ALL)
        told = [m for to, m in self.told if to == who and getattr(m, "call", 0) == call]
        kinds = {type(m) for m in told}
        if messages.Write not in kinds or not kinds & {messages.SaveGranted}:
            return
        attempt = self.staged[call]
        if self.random.random() < 0.03:
            cause = messages.Failure("corrupt", "x")
            self.hear(who, messages.Failed(call, 10, "engines", cause))
        elif messages.TakeInventory in kinds:
            if call not in self.ended:
                self.prepared.setdefault(call, set()).add(who)
            self.prepare(who, call)
        else:
            self.hear(who, messages.EnginesReturned(call, attempt))

    def next_staged(self) -> None:
        if self.staging:
            self.stage(self.staging.pop(0))

    def some_want(self) -> None:
        step = self.random.choice(STEPS)
        if step in self.wanted or step <= self.newest:
            return
        self.wanted.add(step)
        self.want(step)

    def next_commit(self) -> None:
        if self.publishing:
            found = self.publishing.pop(0)
            self.take(self.coordinator.on_driver(actions.Published(found.call, "a" * 64), 1.0))

    def some_death(self) -> None:
        who = self.random.choice(ALL)
        self.lose(who)
        self.admit(who)

    def some_limit(self) -> None:
        self.take(self.coordinator.on_time(self.coordinator.next_deadline()))


def walk(seed: int) -> set[int]:
    """Run one; return the steps that were published."""
    found = Walk(seed)
    for _ in range(400):
        found.move()
    while found.staging or found.publishing:
        found.next_staged()
        found.next_commit()
    for _ in range(20):
        if found.coordinator.busy:
            found.some_limit()
        while found.publishing:
            found.next_commit()
    assert not found.coordinator.busy, "a call never ends"
    return {one.step for one in found.others if isinstance(one, actions.Publish)}


def test_no_walk_breaks_a_promise() -> None:
    published = list(map(walk, range(NUM_SEEDS)))
    assert set().union(*published) == {*STEPS}
    assert any(len(one) > 1 for one in published), "several steps in one life"


@pytest.mark.parametrize(
    "variant",
    [
        naive.anonymous,
        naive.first_commits,
        naive.pointer_before_data,
        naive.unwanted,
        naive.as_they_come,
    ],
)
def test_the_walk_sees_a_naive_coordinator(
    variant: Callable[[], tuple[object, str, object]],
) -> None:
    owner, name, wrong = variant()
    with mock.patch.object(owner, name, wrong), pytest.raises(AssertionError):
        list(map(walk, range(NUM_SEEDS)))
