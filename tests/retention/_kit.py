"""A root to prune, and storage on which something happens right after a chosen change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.commit._kit import FakeFinisher, Root

from stepseal.retention import Retention, latest, plan_prune, prune
from stepseal.testing import FaultyStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.commit import StepEntry
    from stepseal.layout import Manifest
    from stepseal.retention import Plan, PruneReport
    from stepseal.storage import Storage

NOW_S = 2_000_000_000.0
"""Years after everything in these roots was saved."""


def inspect_with(storage: Storage) -> Callable[[StepEntry, Manifest], Sequence[str]]:
    finisher = FakeFinisher()
    return lambda entry, manifest: finisher.inspect(storage, entry.name, manifest, exact=False)


def plan_for(
    storage: Storage, root: Root, keep: int = 1, now_s: float = NOW_S, *, trash_grace_s: float = 0
) -> Plan:
    retention = Retention(latest(keep), trash_grace_s=trash_grace_s)
    return plan_prune(storage, root.run_id, retention, inspect=inspect_with(storage), now_s=now_s)


def prune_now(
    storage: Storage, root: Root, keep: int = 1, *, now_s: float = NOW_S, trash_grace_s: float = 0
) -> PruneReport:
    plan = plan_for(storage, root, keep, now_s, trash_grace_s=trash_grace_s)
    retention = Retention(latest(keep), trash_grace_s=trash_grace_s)
    return prune(storage, plan, retention, clock=lambda: now_s)


def steps_of(storage: Storage) -> list[str]:
    return [e.name for e in storage.list_dir("") if e.name.startswith("step-")]


class Meanwhile(FaultyStorage):
    """Something happens once, right after a rename that matches."""

    def __init__(
        self, inner: Storage, happens: Callable[[], object], *, after: str = ".pruned"
    ) -> None:
        super().__init__(inner)
        self._happens: Callable[[], object] | None = happens
        self._after = after

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        super().rename(source, target, replace=replace)
        if self._happens is not None and target.endswith(self._after):
            happens, self._happens = self._happens, None
            happens()


def four(storage: Storage) -> Root:
    root = Root(storage)
    for step in (10, 20, 30, 40):
        root.commit(step)
    return root


class Stop(BaseException):
    """Everything ends here, as by a crash."""


def die() -> None:
    raise Stop
