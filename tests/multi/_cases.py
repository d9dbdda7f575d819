"""What is hit, where and how; what must hold then; and one run of such a case.

`kill` is SIGKILL. `stop` is SIGSTOP, and SIGCONT once the survivors have ended. `zombie` is
SIGSTOP, and SIGCONT only after the next start of the job has restored and saved. `raise` is an
exception at the gate: the rank lives on, and so does its job.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tests.multi._job import DEADLINES, LIMIT_S, Life
from tests.multi._ranks import Call, Ranks

import stepseal as ss
from stepseal.layout import CONTROL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from stepseal.steps import StepEntry

__all__ = ["Case", "Report", "judge_alike", "make_root", "matrix", "run_case"]

How = Literal["kill", "stop", "zombie", "raise"]
HOWS: tuple[How, ...] = ("kill", "stop", "zombie")
OF_ANY = (
    "construct/before",
    "restore/join", "restore/check", "restore/apply", "restore/applied",
    "save/before", "save/capture", "save/captured", "save/write",
    "close/before", "close/in-flight",
)  # fmt: skip
"""Gates of every rank."""
OF_CONNECTING = ("connect/address", "connect/reached")
"""Gates of every rank that looks for the coordinator: all but the first."""
OF_OTHERS = ("save/prepared",)
"""Gates of every rank but the coordinator's, which publishes at its own gates."""
OF_COORDINATOR = (
    "coordinator/listening", "coordinator/select", "coordinator/claim", "coordinator/claimed",
    "coordinator/begin", "coordinator/publish", "coordinator/rename", "coordinator/renamed",
    "coordinator/committed", "coordinator/told", "coordinator/latest",
)  # fmt: skip
OF_CONSTRUCTION = ("construct/before", "coordinator/listening", *OF_CONNECTING)
CONNECT_S = 3.0
"""Deadline of the construction where that is what fails."""
TOLERANCE_S = 10.0
FIRST = 2
"""Newest step of the root that a case begins with."""
_BOUNDS_S = {
    "restore/join": DEADLINES.connect_s,
    "restore/check": DEADLINES.check_s,
    "restore/apply": DEADLINES.apply_s,
    "restore/applied": DEADLINES.commit_s,
    "coordinator/select": DEADLINES.check_s,
    "coordinator/claim": DEADLINES.commit_s,
    "coordinator/claimed": DEADLINES.commit_s,
    "save/before": DEADLINES.capture_s,
    "save/capture": DEADLINES.capture_s,
    "coordinator/begin": DEADLINES.commit_s,
    "save/captured": DEADLINES.write_s,
    "save/write": DEADLINES.write_s,
    "save/prepared": DEADLINES.commit_s,
}
"""Gate to the deadline of the phase in which the others wait."""


@dataclass(frozen=True, slots=True)
class Case:
    """One rank, hit once."""

    world: int
    gate: str
    victim: int
    how: How
    sharing: str = ""
    """Of the component whose state is taken at the gate, among one of each sharing."""

    def __str__(self) -> str:
        """Return the name of the case."""
        of = f"-{self.sharing}" if self.sharing else ""
        return f"{self.how}-{self.gate.replace('/', '-')}-rank{self.victim}of{self.world}{of}"

    def life(self, root: Path, name: str) -> Life:
        """Return a start of the job; only the first one is hit."""
        sharded = self.world >= 4
        folder = str(root.parent)
        if name != "hit":
            return Life(str(root), folder, name, self.world, sharded=sharded, sharing=self.sharing)
        in_flight = self.gate == "close/in-flight"
        gate = "save/write" if in_flight else self.gate
        return Life(
            str(root), folder, name, self.world, gate, self.victim, in_flight, sharded,
            self.connect_s, self.sharing,
        )  # fmt: skip

    @property
    def connect_s(self) -> float:
        """Deadline of the construction."""
        return CONNECT_S if self.gate in OF_CONSTRUCTION else DEADLINES.connect_s

    def bound_s(self, call: str) -> float:
        """Return the deadline of a survivor's call."""
        in_flight = self.gate == "close/in-flight"
        match call:
            case "construct":
                return self.connect_s
            case "restore" if self.gate.startswith(("restore", "coordinator")):
                return _BOUNDS_S.get(self.gate, DEADLINES.check_s + DEADLINES.apply_s)
            case "restore":
                return DEADLINES.check_s + DEADLINES.apply_s
            case "save" | "wait":
                return _BOUNDS_S.get(self.gate, DEADLINES.commit_s)
            case "close":
                return DEADLINES.close_s + (DEADLINES.write_s if in_flight else 0.0)
            case _:
                return DEADLINES.commit_s


@dataclass(slots=True)
class Report:
    """What came of a case."""

    case: str
    violations: list[str] = field(default_factory=list)
    overrun_s: float = float("-inf")
    """Longest time by which a survivor's call outlasted its deadline; negative when none did."""
    noticed_s: float = 0.0
    """Longest time from the hit until a call that it failed came back."""
    took_s: float = 0.0
    kinds: list[str] = field(default_factory=list)
    """What the survivors' calls came to, once each."""


def matrix(world: int) -> Iterator[Case]:
    """Return every gate of every rank, hit in every way."""
    for how in HOWS:
        for gate, victim in itertools.product(OF_ANY, range(world)):
            yield Case(world, gate, victim, how)
        for gate, victim in itertools.product((*OF_CONNECTING, *OF_OTHERS), range(1, world)):
            yield Case(world, gate, victim, how)
        for gate in OF_COORDINATOR:
            yield Case(world, gate, 0, how)


def make_root(world: int, folder: Path, sharing: str = "") -> Path:
    """Return a root with two steps that a world of this size saved."""
    root = folder / "root"
    with Ranks(Case(world, "", 0, "kill", sharing).life(root, "first")) as ranks:
        hanging = ranks.wait_ended(range(world), LIMIT_S)
        assert not hanging, [ranks.stack(rank) for rank in hanging]
        failed = [str(c) for r in range(world) for c in ranks.calls(r) if c.kind != "ok"]
        assert not failed, failed
    assert ss.open(root).steps() == (1, FIRST)
    return root


def run_case(case: Case, template: Path, folder: Path) -> Report:
    """Hit the job once, start it again, and judge everything that was seen."""
    begun = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    root = folder / "root"
    shutil.copytree(template, root, symlinks=True)
    report = Report(str(case))
    with Ranks(case.life(root, "hit")) as ranks:
        hit_at = _hit(case, ranks, report)
        lives = case.how == "raise"
        survivors = [rank for rank in range(case.world) if lives or rank != case.victim]
        _expect_ended(ranks, survivors, report)
        if case.how == "stop":
            _awake(case, ranks, report)
        if case.how == "zombie":
            _start_again(case, root, "next", report)
            before = _commits(root)
            _awake(case, ranks, report)
            _expect_unchanged(before, _commits(root), report)
        calls = [call for rank in survivors for call in ranks.calls(rank)]
        _judge_survivors(case, calls, hit_at, report)
        told = [*calls, *ranks.calls(case.victim)]
        _judge_words(told, _commits(root), report)
        if case.sharing:
            judge_alike(case, calls, _commits(root), report)
    _start_again(case, root, "last", report)
    _judge_words(told, _commits(root), report)
    _judge_root(root, report)
    report.took_s = time.monotonic() - begun
    return report


def _hit(case: Case, ranks: Ranks, report: Report) -> float:
    if not ranks.wait_reached(case.victim, LIMIT_S / 2):
        report.violations.append(f"rank {case.victim} never reached its gate")
    if case.how == "raise":
        ranks.release(case.victim, "raise")
        return time.monotonic()
    hit_at = ranks.hit(case.victim, signal.SIGKILL if case.how == "kill" else signal.SIGSTOP)
    if case.gate in OF_OTHERS:
        ranks.release(0)  # the coordinator may publish now
    return hit_at


def _awake(case: Case, ranks: Ranks, report: Report) -> None:
    ranks.release(case.victim)
    ranks.hit(case.victim, signal.SIGCONT)
    _expect_ended(ranks, [case.victim], report)
    for call in ranks.calls(case.victim):
        if call.outcome == "pending" or (call.outcome == "raised" and not call.facts["typed"]):
            report.violations.append(f"awakened {call}")


def _expect_ended(ranks: Ranks, who: Iterable[int], report: Report) -> None:
    for rank in ranks.wait_ended(who, LIMIT_S):
        stack = ranks.stack(rank)
        report.violations.append(f"{ranks.life.name}: rank {rank} hangs:\n{stack}")


def _start_again(case: Case, root: Path, name: str, report: Report) -> None:
    """Start the job anew: it restores the newest step of its lineage, and saves twice."""
    newest = ss.open(root).latest()
    assert newest is not None
    with Ranks(case.life(root, name)) as ranks:
        _expect_ended(ranks, range(case.world), report)
        for rank in range(case.world):
            calls = {call.name: call for call in ranks.calls(rank)}
            bad = [f"start {name}: {call}" for call in calls.values() if call.kind != "ok"]
            restored = calls["restore"].facts.get("step") if "restore" in calls else None
            if restored != newest.step:
                bad.append(f"start {name}: rank {rank} restored {restored}, not {newest.step}")
            if ranks.values(rank) != "right":
                bad.append(f"start {name}: rank {rank}: values are {ranks.values(rank)}")
            report.violations += bad


def _judge_survivors(case: Case, calls: list[Call], hit_at: float, report: Report) -> None:
    """Every call came back in time, raised what it may raise, and named who failed."""
    for call in calls:
        if call.outcome == "pending" or call.ended is None:
            report.violations.append(f"never came back: {call}")
            continue
        if call.name == "job":
            if call.outcome == "raised":
                report.violations.append(f"the job itself failed: {call}")
            continue
        over = call.ended - call.started - case.bound_s(call.name)
        report.overrun_s = max(report.overrun_s, over)
        if over > TOLERANCE_S:
            report.violations.append(f"{over:.1f} s past its deadline: {call}")
        if call.outcome == "raised":
            report.noticed_s = max(report.noticed_s, call.ended - max(hit_at, call.started))
            if not call.facts["typed"] or call.kind == "internal_error":
                report.violations.append(f"not a typed error: {call}")
            elif not _names(case, call):
                report.violations.append(f"does not name rank {case.victim}: {call}")
        seen = f"{call.name}: {call.kind}"
        if seen not in report.kinds:
            report.kinds.append(seen)
    kinds = {(call.name, call.kind) for call in calls}
    if case.gate in OF_OTHERS and ("wait", "ok") not in kinds:
        report.violations.append("who prepared may vanish without harm, but the save failed")
    if case.how == "raise":
        if kinds & {("next", "ok"), ("wait next", "ok")} != {("next", "ok"), ("wait next", "ok")}:
            report.violations.append("the job did not save again after the exception")
    elif ("wait next", "ok") in kinds and not case.gate.startswith("close"):
        report.violations.append("a step was committed without the one who was hit")


def judge_alike(
    case: Case, calls: list[Call], commits: dict[int, StepEntry], report: Report
) -> None:
    """The save failed on each of these ranks, with one error, and nothing of it is committed."""
    failed = [c for c in calls if c.name in ("save", "wait") and c.outcome == "raised"]
    ranks = {call.rank for call in failed}
    report.violations += [
        f"rank {rank} was not told that the save failed"
        for rank in sorted({call.rank for call in calls} - ranks)
    ]
    told = {call.facts["message"] for call in failed if call.rank != case.victim}
    kinds = {call.kind for call in failed}
    # Who loses the coordinator says of itself what it knows, and who raised knows of no phase.
    if case.victim and (len(kinds) > 1 or len(told) > 1):
        report.violations.append(f"not one error for all: {sorted(kinds)}, {sorted(told)}")
    if FIRST + 1 in commits:
        report.violations.append(f"step {FIRST + 1} was committed")


def _names(case: Case, call: Call) -> bool:
    """Whether the error says who: the participant, or the coordinator which lives in rank 0."""
    message = str(call.facts["message"])
    who = f"trainer/{case.victim}"
    by_name = who in message or who in call.facts["failures"]
    if call.name == "construct" and f"rank {case.victim}" in message:
        return True
    return by_name or (case.victim == 0 and "coordinator" in message) or call.kind == "tainted"


def _judge_words(calls: list[Call], commits: dict[int, StepEntry], report: Report) -> None:
    """What was called committed is there as it was; what was called failed is not, and never was.

    OUTCOME UNKNOWN says neither.
    """
    incarnations = {c.facts["incarnation"] for c in calls if "incarnation" in c.facts}
    for call in calls:
        step = FIRST + 1 if call.name in ("save", "wait", "close") else FIRST + 2
        entry = commits.get(step)
        found = None if entry is None or entry.manifest is None else entry.manifest.incarnation
        sha256 = call.facts.get("sha256")
        if sha256 is not None and (entry is None or entry.manifest_sha256 != sha256):
            report.violations.append(f"said committed, but step {step} is not that: {call}")
        says_no = call.outcome == "raised" and call.kind != "outcome_unknown"
        about_save = call.name in ("save", "wait", "next", "wait next")
        if about_save and says_no and found in incarnations:
            report.violations.append(f"said failed, but step {step} is committed: {call}")


def _expect_unchanged(
    before: dict[int, StepEntry], after: dict[int, StepEntry], report: Report
) -> None:
    for step, entry in before.items():
        now = after.get(step)
        if now is None or now.manifest_sha256 != entry.manifest_sha256:
            report.violations.append(f"the zombie changed step {step}")


def _commits(root: Path) -> dict[int, StepEntry]:
    return {entry.step: entry for entry in ss.open(root).entries()}


def _judge_root(root: Path, report: Report) -> None:
    """Every step is whole, and nothing is left of what was given up."""
    run = ss.open(root)
    for entry in run.entries():
        if entry.state != "committed":
            report.violations.append(f"step {entry.step} is {entry.state}: {entry.problem}")
        else:
            report.violations += [f"step {entry.step}: {f}" for f in run.step(entry.step).verify()]
    left = sorted(path.name for path in (root / CONTROL / "staging").iterdir())
    if left:
        report.violations.append(f"left in staging: {left}")
