"""A root to prune, and storage on which something happens right after a chosen change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.steps._kit import FakeIndexer, Root

from stepseal.retention import Retention, latest, plan_prune, prune
from stepseal.steps import Removal
from stepseal.testing import FaultyStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.layout import Manifest
    from stepseal.retention import Plan
    from stepseal.steps import PruneReport, StepEntry
    from stepseal.storage import Storage

NOW_S = 2_000_000_000.0
"""Years after everything in these roots was saved."""


def inspect_with(
    storage: Storage, indexer: FakeIndexer | None = None
) -> Callable[[StepEntry, Manifest], Sequence[str]]:
    asked = indexer or FakeIndexer()
    return lambda entry, manifest: asked.inspect(storage, entry.name, manifest, exact=False)


def plan_for(
    storage: Storage, root: Root, keep: int = 1, now_s: float = NOW_S, *, trash_grace_s: float = 0
) -> Plan:
    retention = Retention(latest(keep), trash_grace_s=trash_grace_s)
    removal = Removal(storage, lambda: now_s)
    return plan_prune(removal, root.run_id, retention, inspect=inspect_with(storage))


def carry_out(storage: Storage, plan: Plan, retention: Retention) -> PruneReport:
    return prune(Removal(storage, lambda: NOW_S), plan, retention)


def prune_now(
    storage: Storage, root: Root, keep: int = 1, *, now_s: float = NOW_S, trash_grace_s: float = 0
) -> PruneReport:
    plan = plan_for(storage, root, keep, now_s, trash_grace_s=trash_grace_s)
    retention = Retention(latest(keep), trash_grace_s=trash_grace_s)
    return prune(Removal(storage, lambda: now_s), plan, retention)


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
