"""`stepseal prune`, `pin` and `unpin`: remove and protect steps by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepseal.cli._output import print_table, warn
from stepseal.cli._roots import measure_step, open_root, parse_step
from stepseal.cli._verifying import progress_bar
from stepseal.errors import NotCurrent, StorageUnavailable
from stepseal.retention import Retention, latest, plan_prune, prune
from stepseal.transfer import check_files, verify_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.cli._roots import OpenRoot
    from stepseal.layout import Manifest
    from stepseal.retention import Plan, StepJudgement, TrashJudgement
    from stepseal.steps import PruneReport, StepEntry
    from stepseal.transfer import Finding

__all__ = ["pin_step", "print_pruned", "prune_root", "unpin_step"]

_DAY_S = 86_400.0


def prune_root(
    path: str,
    *,
    keep_latest: int,
    superseded_grace_s: float,
    trash_grace_s: float | None = None,
    dry_run: bool,
    verify: bool,
    allow_shared: bool,
) -> dict[str, Any]:
    """Prune a root, or report what would be pruned; return JSON-able judgements.

    Args:
        path: of the root.
        keep_latest: number of the newest good steps to keep.
        superseded_grace_s: seconds to keep superseded steps.
        trash_grace_s: seconds to keep a whole step in the trash. None deletes at once the steps
            that this call moves there. Steps that an earlier prune moved there then stay for a
            day, because a job may keep them there on purpose.
        dry_run: only report, with the same judgements.
        verify: first read every byte of the newest steps until one of them is whole.
        allow_shared: accept a root that other users can write to.
    """
    root = open_root(path, allow_shared=allow_shared)
    retention = Retention(latest(keep_latest), superseded_grace_s, trash_grace_s or 0.0)
    inspect = _Inspection(root, deeply=verify)
    plan = plan_prune(
        root.steps.removal(),
        root.run_id,
        retention,
        inspect=inspect,
        trash_grace_s=_DAY_S if trash_grace_s is None else trash_grace_s,
    )
    if dry_run:
        return _planned(root.path, plan, retention)
    return _done(root.path, plan, _carry_out(root, plan, retention))


def _carry_out(root: OpenRoot, plan: Plan, retention: Retention) -> PruneReport:
    removal = root.steps.removal()
    try:
        report = prune(removal, plan, retention)
    except NotCurrent as error:
        raise NotCurrent(
            f"prune of {root.path}: a start of the job claimed the root during the prune "
            f"(incarnation {error.found} after {plan.incarnation}), so the judgements may be "
            "outdated. Steps that were not removed yet stay. Run the command again.",
            path=root.path,
            expected=plan.incarnation,
            found=error.found,
        ) from error
    if not report.sync_failed:
        try:
            removal.repair_latest(root.run_id)
        except StorageUnavailable as error:
            report.failures.append(f"latest was not moved to the newest step: {error}")
    return report


class _Inspection:
    """Checks files and sizes; checks every byte of the newest steps until one is whole."""

    def __init__(self, root: OpenRoot, *, deeply: bool) -> None:
        self._root = root
        self._deeply = deeply

    def __call__(self, entry: StepEntry, manifest: Manifest) -> Sequence[str]:
        findings = self._look(entry, manifest)
        damage = [f"{f.path}: {f.message}" for f in findings if f.severity == "damage"]
        self._deeply = self._deeply and bool(damage)
        return damage

    def _look(self, entry: StepEntry, manifest: Manifest) -> Sequence[Finding]:
        if not self._deeply:
            return check_files(self._root.steps.storage, entry.name, manifest)
        size = measure_step(self._root, entry, manifest)
        with progress_bar(f"step {entry.step}", size.size_bytes) as advance:
            return verify_step(self._root.steps.storage, entry.name, manifest, progress=advance)


def _planned(path: str, plan: Plan, retention: Retention) -> dict[str, Any]:
    """Return what a prune would do."""
    gone = "would move to trash" if retention.trash_grace_s else "would remove"
    trash = {"keep": "keep", "put back": "would put back", "delete": "would remove"}
    return {
        "root": path,
        "steps": [
            {"step": v.step, "action": "keep" if v.keep else gone, "reasons": list(v.reasons)}
            for v in plan.steps
        ],
        "superseded": [
            _row(v.name, "keep" if v.keep else "would remove", v.reason) for v in plan.superseded
        ],
        "trash": [_row(v.name, trash[v.action], v.reason) for v in plan.trash],
        "failures": [],
    }


def _done(path: str, plan: Plan, report: PruneReport) -> dict[str, Any]:
    """Return what a prune did, and what it planned but did not do."""
    return {
        "root": path,
        "steps": [_step_done(judgement, report) for judgement in plan.steps],
        "superseded": [
            _row(v.name, _outcome(v.keep, v.name in report.removed_superseded), v.reason)
            for v in plan.superseded
        ],
        "trash": [_trashed_done(judgement, report) for judgement in plan.trash],
        "failures": report.failures,
    }


def _step_done(judgement: StepJudgement, report: PruneReport) -> dict[str, Any]:
    step, reasons = judgement.step, list(judgement.reasons)
    action = _outcome(judgement.keep, step in report.removed)
    if step in report.put_back:
        action, reasons = "keep", [report.put_back[step]]
    elif step in report.in_trash:
        action, reasons = "moved to trash", [*reasons, report.in_trash[step]]
    return {"step": step, "action": action, "reasons": reasons}


def _trashed_done(judgement: TrashJudgement, report: PruneReport) -> dict[str, Any]:
    name = judgement.name
    if name in report.put_back_trash:
        return _row(name, "put back", report.put_back_trash[name])
    if judgement.action == "put back":
        return _row(name, "not put back", judgement.reason)
    action = _outcome(judgement.action == "keep", name in report.removed_trash)
    return _row(name, action, judgement.reason)


def _outcome(keep: bool, removed: bool) -> str:
    return "keep" if keep else "removed" if removed else "not removed"


def _row(name: str, action: str, reason: str) -> dict[str, Any]:
    return {"name": name, "action": action, "reasons": [reason]}


def print_pruned(found: dict[str, Any]) -> None:
    """Print one line per step, superseded folder and folder in the trash, with the reasons."""
    rows = [(f"step {s['step']}", s["action"], "; ".join(s["reasons"])) for s in found["steps"]]
    for area in ("superseded", "trash"):
        rows += [(f"{area}/{s['name']}", s["action"], "; ".join(s["reasons"])) for s in found[area]]
    if rows:
        print_table(("WHAT", "ACTION", "WHY"), rows)
    for failure in found["failures"]:
        warn(f"not done: {failure}")


def pin_step(path: str, step: str, reason: str, *, allow_shared: bool) -> str:
    """Pin one step; return a line to print."""
    root = open_root(path, allow_shared=allow_shared)
    number = parse_step(step)
    is_new = root.steps.pins.add(number, root.run_id, reason=reason)
    if is_new:
        return f"step {number}: pinned"
    before = root.steps.pins.reason(number)
    stays = f"; its first reason stays: {before}" if before and before != reason else ""
    return f"step {number}: was pinned already{stays}"


def unpin_step(path: str, step: str) -> tuple[bool, str]:
    """Unpin one step; return whether it was pinned, and a line to print."""
    root = open_root(path)
    number = parse_step(step)
    was_pinned = root.steps.pins.remove(number)
    return was_pinned, f"step {number}: {'unpinned' if was_pinned else 'was not pinned'}"
