"""Broken variants of pruning, for `_variants`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stepseal.layout import step_name
from stepseal.retention import _carry_out, _housekeeper, _judge, _plan
from stepseal.steps import FolderName, Guards, KnownStep, _attempts, _guards, _removal, _retire
from stepseal.steps._guards import read_guards
from stepseal.storage import Storage, remove_tree

__all__ = [
    "early_guards",
    "grace_from_save",
    "no_grace",
    "no_leases",
    "no_pins",
    "no_second_look",
    "prune_in_place",
    "stale_prune",
    "sweep_all",
]


def sweep_all() -> list[tuple[object, str, object]]:
    """After a commit all of staging is removed, whoever writes there."""
    real = _attempts.sweep

    def sweep(storage: Storage, _incarnation: int) -> tuple[str, ...]:
        return real(storage, 10**9)

    return [(_removal, "sweep", sweep)]


def no_second_look() -> list[tuple[object, str, object]]:
    return [(_retire.Retirement, "_reasons_to_stay", lambda *_: "")]


def early_guards() -> list[tuple[object, str, object]]:
    """Leases and pins are looked at before a step is moved, and not again after it."""
    move, settle = _retire.Retirement.remove_step, _retire.Retirement.settle_trashed
    guards: dict[_retire.Retirement, Guards] = {}

    def look(self: _retire.Retirement) -> None:
        guards[self] = read_guards(self._storage, self._clock())

    def remove_step(self: _retire.Retirement, known: KnownStep) -> None:
        look(self)
        move(self, known)

    def settle_trashed(self: _retire.Retirement, trashed: str, delete: bool) -> None:
        look(self)
        settle(self, trashed, delete)

    def reasons(self: _retire.Retirement, name: FolderName) -> str:
        return _retire.reasons_to_go_back(self._storage, name, guards[self])

    return [
        (_retire.Retirement, "remove_step", remove_step),
        (_retire.Retirement, "settle_trashed", settle_trashed),
        (_retire.Retirement, "_reasons_to_stay", reasons),
    ]


def stale_prune() -> list[tuple[object, str, object]]:
    """Who prunes does not ask whether the root is still its own."""

    def go_on(self: _housekeeper.Housekeeper, run_id: str, number: int, keep: Any) -> Any:  # noqa: ANN401
        found = _plan.plan_prune(self._removal, run_id, keep, inspect=self._inspect)
        plan = replace(found, incarnation=number)
        return _carry_out.prune(self._removal, plan, keep)

    return [
        (_housekeeper.Housekeeper, "_prune", go_on),
        (_retire.Retirement, "_check_current", lambda *_: None),
    ]


def no_leases() -> list[tuple[object, str, object]]:
    return [(_guards, "read_leases", lambda *_: {})]


def no_pins() -> list[tuple[object, str, object]]:
    return [(_guards, "read_pins", lambda *_: frozenset())]


def no_grace() -> list[tuple[object, str, object]]:
    """What left the lineage goes at once."""
    real = _judge.judge

    def judge(*args: Any, orphan_grace_s: float) -> Any:  # noqa: ANN401
        return real(*args, orphan_grace_s=min(0.0, orphan_grace_s))

    return [(_plan, "judge", judge)]


def grace_from_save() -> list[tuple[object, str, object]]:
    """The grace of what left the lineage begins with its save."""
    return [(_plan, "left_lineage_at", lambda *_: 0.0)]


def prune_in_place() -> list[tuple[object, str, object]]:
    """Files are deleted where readers find them."""

    def remove(self: _retire.Retirement, known: KnownStep) -> None:
        remove_tree(self._storage, step_name(known.step))

    return [(_retire.Retirement, "remove_step", remove)]
