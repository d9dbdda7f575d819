"""`stepseal prune`, `pin` and `unpin`: which steps stay, by hand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from stepseal.cli._output import print_line, print_table, warn
from stepseal.cli._roots import open_root
from stepseal.commit import pin, unpin
from stepseal.errors import InvalidInput, NotCurrent
from stepseal.layout import parse_step_name
from stepseal.retention import Retention, latest, plan_prune, prune
from stepseal.transfer import check_files, verify_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.cli._roots import OpenRoot
    from stepseal.commit import StepEntry
    from stepseal.layout import Manifest
    from stepseal.retention import Plan, PruneReport
    from stepseal.storage import Storage

__all__ = ["pin_step", "print_pruned", "prune_root", "unpin_step"]


def prune_root(
    path: str,
    *,
    keep_latest: int,
    superseded_grace_s: float,
    dry_run: bool,
    verify: bool,
    allow_shared: bool,
) -> dict[str, Any]:
    """Prune a root, or say what would be pruned; return JSON-able verdicts.

    Args:
        path: of the root.
        keep_latest: how many of the newest good steps stay.
        superseded_grace_s: how long superseded steps stay.
        dry_run: only say it.
        verify: read every byte of the newest steps until one is whole, before anything goes.
        allow_shared: also where other users can write.
    """
    root = open_root(path, allow_shared=allow_shared)
    retention = Retention(latest(keep_latest), superseded_grace_s=superseded_grace_s)
    inspect = _Inspection(root.storage, deeply=verify and not dry_run)
    plan = plan_prune(root.storage, root.run_id, retention, inspect=inspect, now_s=time.time())
    report = None if dry_run else _carry_out(root, plan, retention)
    return _described(root.path, plan, report, dry_run=dry_run)


def _carry_out(root: OpenRoot, plan: Plan, retention: Retention) -> PruneReport:
    try:
        return prune(root.storage, plan, retention, clock=time.time)
    except NotCurrent as error:
        raise NotCurrent(
            f"prune of {root.path}: a start of the job claimed the root meanwhile (incarnation "
            f"{error.found} after {plan.incarnation}), so that another choice may be right now. "
            "What was not removed yet stays. Run it again.",
            path=root.path,
            expected=plan.incarnation,
            found=error.found,
        ) from error


class _Inspection:
    """Looks at files and sizes; of the newest steps at every byte, until one is whole."""

    def __init__(self, storage: Storage, *, deeply: bool) -> None:
        self._storage = storage
        self._deeply = deeply

    def __call__(self, entry: StepEntry, manifest: Manifest) -> Sequence[str]:
        look = verify_step if self._deeply else check_files
        findings = look(self._storage, entry.name, manifest)
        damage = [f"{f.path}: {f.message}" for f in findings if f.severity == "damage"]
        self._deeply = self._deeply and bool(damage)
        return damage


def _described(
    path: str, plan: Plan, report: PruneReport | None, *, dry_run: bool
) -> dict[str, Any]:
    put_back = {} if report is None else report.put_back
    removed = () if report is None else report.removed
    steps = []
    for verdict in plan.steps:
        back = put_back.get(verdict.step)
        action = "keep" if verdict.keep or back else "would remove" if dry_run else "removed"
        if action == "removed" and verdict.step not in removed:
            action = "not removed"
        reasons = [back] if back else list(verdict.reasons)
        steps.append({"step": verdict.step, "action": action, "reasons": reasons})
    superseded = []
    gone = () if report is None else report.removed_superseded
    for aside in plan.superseded:
        action = "keep" if aside.keep else "would remove" if dry_run else "removed"
        if action == "removed" and aside.name not in gone:
            action = "not removed"
        superseded.append({"name": aside.name, "action": action, "reasons": [aside.reason]})
    failures = [] if report is None else report.failures
    return {"root": path, "steps": steps, "superseded": superseded, "failures": failures}


def print_pruned(found: dict[str, Any]) -> None:
    """Print one line per step, with the reasons."""
    rows = [(f"step {s['step']}", s["action"], "; ".join(s["reasons"])) for s in found["steps"]]
    rows += [(s["name"], s["action"], "; ".join(s["reasons"])) for s in found["superseded"]]
    if rows:
        print_table(("WHAT", "ACTION", "WHY"), rows)
    for failure in found["failures"]:
        warn(f"not done: {failure}")


def pin_step(path: str, step: str, reason: str, *, allow_shared: bool) -> None:
    """Pin one step and say so."""
    root = open_root(path, allow_shared=allow_shared)
    number = _number(step)
    is_new = pin(root.storage, number, root.run_id, reason=reason)
    print_line(f"step {number}: {'pinned' if is_new else 'was pinned already'}")


def unpin_step(path: str, step: str) -> bool:
    """Unpin one step and say so; return False if it was not pinned."""
    root = open_root(path)
    number = _number(step)
    was_pinned = unpin(root.storage, number)
    print_line(f"step {number}: {'unpinned' if was_pinned else 'was not pinned'}")
    return was_pinned


def _number(step: str) -> int:
    number = parse_step_name(step if step.startswith("step-") else f"step-{step}")
    if number is None:
        raise InvalidInput(f"step {step!r}: expected a number such as 200, or step-200")
    return number
