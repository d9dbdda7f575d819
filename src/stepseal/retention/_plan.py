"""What a prune would do to a root, without doing it: a verdict and a reason for everything."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.commit import (
    SUPERSEDED,
    in_lineage,
    left_lineage_at,
    lineage_limits,
    list_steps,
    parse_folder,
    read_claims,
    read_guards,
)
from stepseal.layout import unix_time
from stepseal.retention._judge import Candidate, StepVerdict, judge
from stepseal.retention._rules import StepFacts
from stepseal.storage import KeyNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stepseal.commit import Guards, StepEntry
    from stepseal.layout import Manifest
    from stepseal.retention._rules import Retention
    from stepseal.storage import Storage

    Inspect = Callable[[StepEntry, Manifest], Sequence[str]]

__all__ = ["AsideVerdict", "Plan", "plan_prune"]


@dataclass(frozen=True, slots=True)
class AsideVerdict:
    """Stay or go, for one folder of the superseded area."""

    name: str
    keep: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What stays and what goes, as of one look."""

    incarnation: int
    """The newest one at that time; zero when nobody ever claimed. Another one voids the plan."""
    steps: tuple[StepVerdict, ...]
    """Every folder with a step's name, ascending."""
    entries: Mapping[int, StepEntry]
    superseded: tuple[AsideVerdict, ...]


def plan_prune(
    storage: Storage, run_id: str, retention: Retention, *, inspect: Inspect, now_s: float
) -> Plan:
    """Judge everything in a root; changes nothing.

    Args:
        storage: the root.
        run_id: of the root.
        retention: what to keep.
        inspect: returns what is wrong with a committed step, one line each; asked from the newest
            step on, once per step.
        now_s: Unix time.

    Raises:
        StorageUnavailable: the root cannot be listed or read; then nothing is known.
    """
    claims = read_claims(storage)
    limits = lineage_limits(claims)
    entries = {entry.step: entry for entry in list_steps(storage, run_id)}
    left_at = functools.partial(left_lineage_at, claims)
    candidates = [
        _candidate(entry, limits, left_at, inspect, now_s)
        for entry in reversed(list(entries.values()))
    ]
    guards = read_guards(storage, now_s)
    verdicts = judge(
        candidates[::-1], retention.keep, guards, orphan_grace_s=retention.superseded_grace_s
    )
    aside = _judge_superseded(storage, guards, retention.superseded_grace_s, now_s)
    incarnation = claims[-1].incarnation if claims else 0
    return Plan(incarnation, verdicts, entries, aside)


def _candidate(
    entry: StepEntry,
    limits: Mapping[int, int | None],
    left_at: Callable[[int, int], float | None],
    inspect: Inspect,
    now_s: float,
) -> Candidate:
    manifest = entry.manifest
    if manifest is None or entry.state != "committed":
        return Candidate(StepFacts(entry.step), "untouchable", f"{entry.state}: {entry.problem}")
    facts = StepFacts(entry.step, manifest.created_at, manifest.metrics, manifest.tags)
    if not in_lineage(limits, manifest.incarnation, entry.step):
        left_s = left_at(manifest.incarnation, entry.step)  # an old step perhaps just now
        since_s = now_s if left_s is None else max(left_s, unix_time(manifest.created_at))
        return Candidate(facts, "outside the lineage", outside_s=now_s - since_s)
    if not manifest.resumable:
        return Candidate(facts, "not resumable")
    problems = inspect(entry, manifest)
    if problems:
        return Candidate(facts, "untouchable", f"damaged: {problems[0]}")
    return Candidate(facts, "good")


def _judge_superseded(
    storage: Storage, guards: Guards, grace_s: float, now_s: float
) -> tuple[AsideVerdict, ...]:
    try:
        entries = storage.list_dir(SUPERSEDED)
    except KeyNotFound:
        return ()
    return tuple(_judge_aside(entry.name, guards, grace_s, now_s) for entry in entries)


def _judge_aside(name: str, guards: Guards, grace_s: float, now_s: float) -> AsideVerdict:
    folder = parse_folder(name)
    if folder is None or folder.moved_at_s is None or folder.fate:
        return AsideVerdict(name, keep=True, reason="not a name that stepseal gives")
    protected = guards.reasons(folder.step)
    if protected:
        return AsideVerdict(name, keep=True, reason="; ".join(protected))
    age_s = now_s - folder.moved_at_s
    text = f"superseded {age_s / 3600:.1f} h ago, kept for {grace_s / 3600:.1f} h"
    return AsideVerdict(name, keep=age_s < grace_s, reason=text)
