"""Who decides a fault that Monarch reports: the coordinator's members, or the earlier hook."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stepseal.integrations._monarch import Faults

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Fault:
    """What Monarch hands to the hook."""

    mesh_name: str
    text: str = ""

    def report(self) -> str:
        return self.text or f"The actor <root>.<Trainer {self.mesh_name}> has failed"


OWN = Fault("trainer-1")
FOREIGN = Fault("reward-2")
LOGGER = Fault("logger-3", "The actor logger-3{'procs': 1/2} and all its descendants have failed")
NAMED_LOGGER = Fault("logger-4", "The actor <root>.<Logger logger{'procs': 1/2}> has failed")
OUR_CALL = Fault("<none>", "undeliverable message for trainer.stepseal_begin() (call_one)")
OTHER_CALL = Fault("<none>", "undeliverable message for trainer.work() (call_one)")
ALL = (OWN, FOREIGN, LOGGER, NAMED_LOGGER, OUR_CALL, OTHER_CALL)


class Monarch(SimpleNamespace):
    """A module with a hook, which a user has set."""

    def __init__(self) -> None:
        self.seen: list[Fault] = []
        self.users_hook: Callable[[Fault], None] = self.seen.append
        super().__init__(unhandled_fault_hook=self.users_hook)

    def fail(self, *faults: Fault) -> list[Fault]:
        """Report faults; return what came to the user's hook."""
        self.seen.clear()
        for fault in faults:
            self.unhandled_fault_hook(fault)
        return list(self.seen)


def foreign_faults_go_to_the_earlier_hook(kind: type[Faults]) -> None:
    monarch = Monarch()
    kind(monarch).take("trainer-1")
    assert monarch.fail(*ALL) == [FOREIGN, NAMED_LOGGER, OTHER_CALL]


def the_hook_is_back_after_the_last_member(kind: type[Faults]) -> None:
    monarch = Monarch()
    faults = kind(monarch)
    faults.take("trainer-1")
    faults.take("trainer-1")
    faults.give_back("trainer-1", is_lost=False)
    assert monarch.fail(OWN, FOREIGN) == [FOREIGN]
    faults.give_back("trainer-1", is_lost=False)
    assert monarch.unhandled_fault_hook is monarch.users_hook
    assert monarch.fail(*ALL) == [*ALL]


def a_late_fault_of_a_loss_ends_nobody(kind: type[Faults]) -> None:
    monarch = Monarch()
    faults = kind(monarch)
    faults.take("trainer-1")
    faults.give_back("trainer-1", is_lost=True)
    assert monarch.fail(LOGGER, OWN, FOREIGN) == [FOREIGN]


def a_hook_on_top_stays(kind: type[Faults]) -> None:
    monarch = Monarch()
    faults = kind(monarch)
    faults.take("trainer-1")
    monarch.unhandled_fault_hook = on_top = lambda _fault: None
    faults.give_back("trainer-1", is_lost=False)
    assert monarch.unhandled_fault_hook is on_top


def a_hook_on_top_is_asked_about_what_is_not_ours(kind: type[Faults]) -> None:
    monarch = Monarch()
    faults = kind(monarch)
    faults.take("trainer-1")
    below, top = monarch.unhandled_fault_hook, []

    def on_top(fault: Fault) -> None:
        top.append(fault)
        below(fault)

    monarch.unhandled_fault_hook = on_top
    faults.take("buffer-5")
    buffer = Fault("buffer-5")
    assert monarch.fail(OWN, buffer, FOREIGN) == [FOREIGN]
    assert top == [FOREIGN]
    faults.give_back("buffer-5", is_lost=False)
    faults.give_back("trainer-1", is_lost=False)
    assert monarch.unhandled_fault_hook is on_top
    assert monarch.fail(OWN, FOREIGN) == [OWN, FOREIGN]


PROMISES = (
    foreign_faults_go_to_the_earlier_hook,
    the_hook_is_back_after_the_last_member,
    a_late_fault_of_a_loss_ends_nobody,
    a_hook_on_top_stays,
    a_hook_on_top_is_asked_about_what_is_not_ours,
)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda one: one.__name__)
def test_faults(promise: Callable[[type[Faults]], None]) -> None:
    promise(Faults)


class Overwrites(Faults):
    """Replaces the hook."""

    def take(self, mesh: str) -> None:
        super().take(mesh)
        self._module.unhandled_fault_hook = lambda _failure: None


class DropsAll(Faults):
    """Chains the hook, and never asks it."""

    def _decide(self, earlier: Any, failure: Any) -> None:  # noqa: ANN401
        super()._decide(lambda _failure: None, failure)


class NeverGivesBack(Faults):
    """Keeps the hook."""

    def give_back(self, mesh: str, *, is_lost: bool) -> None: ...


class ForgetsLosses(Faults):
    """Gives the hook back although a death has not been reported yet."""

    def give_back(self, mesh: str, *, is_lost: bool) -> None:
        super().give_back(mesh, is_lost=False)


class GivesBackOverOthers(Faults):
    """Puts its earlier hook back, whoever is on top."""

    def give_back(self, mesh: str, *, is_lost: bool) -> None:
        self._module.unhandled_fault_hook = self._chained
        super().give_back(mesh, is_lost=is_lost)


class ChainsToItself(Faults):
    """Has one hook only, which asks whoever was there last."""

    def _decide(self, earlier: Any, failure: Any) -> None:  # noqa: ANN401
        assert self._chained is not None
        (last,) = self._chained.args
        super()._decide(last, failure)


NAIVE = (Overwrites, DropsAll, NeverGivesBack, ForgetsLosses, GivesBackOverOthers, ChainsToItself)


@pytest.mark.parametrize("naive", NAIVE, ids=lambda one: one.__name__)
def test_naive_faults_break_a_promise(naive: type[Faults]) -> None:
    broken = 0
    for promise in PROMISES:
        try:
            promise(naive)
        except (AssertionError, RecursionError):
            broken += 1
    assert broken
