"""Pure decisions of the protocol: which participants disagree, and which error is raised."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.layout import PayloadReport, Sharing, agreeing, payload_problems
from stepseal.protocol._messages import Captured, ComponentReport, Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["disagreements", "kind_of", "payload_reports", "summary", "told_once"]

_NUM_NAMED = 4
"""Number of participants that a message names; it only counts the others."""


def disagreements(captured: Mapping[str, Captured]) -> dict[str, Failure]:
    """Return, per participant, how it differs from the majority; empty if all captured one cut.

    Compares the step, the cut, the component names, and each component's kind, sharing, sets and
    fingerprint. Each participant must read exactly one payload, and one participant write it.

    Args:
        captured: reports of all participants, in ordinal order.
    """
    found: dict[str, Failure] = {}
    _compare(found, {p: f"step {c.step}" for p, c in captured.items()}, "called save for")
    _compare(found, {p: f"cut {sorted(c.cut.items())}" for p, c in captured.items()}, "captured at")
    names = {p: f"components {sorted(f.name for f in c.components)}" for p, c in captured.items()}
    _compare(found, names, "has")
    if found:
        return found
    facts = {p: {f.name: f for f in c.components} for p, c in captured.items()}
    for name in next(iter(facts.values()), {}):
        held = {p: f"{f[name].kind} {f[name].sharing}" for p, f in facts.items()}
        _compare(found, held, f"component {name}: all ranks must have one sharing: holds", name)
        sets = {p: f"[{f[name].sets}]" for p, f in facts.items()}
        what = f"component {name}: pass the same same_on= on every rank: declares the sets"
        _compare(found, sets, what, name)
        for coordinate, digests in _comparable({p: f[name] for p, f in facts.items()}).items():
            what = _must_agree(next(iter(facts.values()))[name], coordinate)
            _compare(found, digests, f"component {name}: {what}: has digest", name)
    if found:
        return found
    for name, reports in payload_reports(captured).items():
        first = next(iter(facts.values()))[name]
        for participant, problem in payload_problems(first.sharing, reports, first.axes).items():
            message = f"component {name}: {problem}"
            cause = Failure(errors.StateMismatch.kind, message, component=name)
            found.setdefault(participant, cause)
    return found


def payload_reports(
    captured: Mapping[str, Captured],
) -> dict[str, dict[str, PayloadReport | None]]:
    """Return, per component, the payload report of each participant."""
    found: dict[str, dict[str, PayloadReport | None]] = {}
    for participant, message in captured.items():
        for facts in message.components:
            read = None if facts.payload is None else PayloadReport(facts.payload, facts.writes)
            found.setdefault(facts.name, {})[participant] = read
    return found


def _comparable(facts: Mapping[str, ComponentReport]) -> dict[str, dict[str, str]]:
    """Return the fingerprints of those who must agree with each other, by what they share."""
    found: dict[str, dict[str, str]] = {}
    for participant, report in facts.items():
        shared = agreeing(report.sharing, report.payload, has_sets=bool(report.sets))
        if shared is not None:
            found.setdefault(shared, {})[participant] = report.fingerprint
    return found


def _must_agree(first: ComponentReport, coordinate: str) -> str:
    """Return who must agree in what, and what to do if they do not."""
    keys, who = "the same keys, shapes and dtypes", f"the ranks of {coordinate or 'the job'}"
    if not first.sets:
        return f"all ranks must hold {keys} (stages of a pipeline: declare sharing=ss.SHARDED)"
    if first.sharing == Sharing.SHARDED.value:
        return f"{who} must hold {keys}: correct same_on, or declare sharing=ss.SHARDED"
    return f"{who} must hold equal state: make it equal before the save, or declare PER_RANK"


def _compare(
    found: dict[str, Failure], values: Mapping[str, str], what: str, component: str | None = None
) -> None:
    """Add a cause for each participant that differs from the majority; the first wins a tie."""
    if len(set(values.values())) <= 1:
        return
    usual, _ = Counter(values.values()).most_common(1)[0]
    others = _shortened([p for p, value in values.items() if value == usual])
    for participant, value in values.items():
        if value != usual and participant not in found:
            message = f"{what} {value}, but {others}: {usual}"
            found[participant] = Failure(errors.StateMismatch.kind, message, component=component)


def _shortened(names: Sequence[str]) -> str:
    head = ", ".join(names[:_NUM_NAMED])
    return head if len(names) <= _NUM_NAMED else f"{head} and {len(names) - _NUM_NAMED} more"


def kind_of(failures: Iterable[Failure]) -> str:
    """Return the kind of error that all participants raise for these causes."""
    kinds = {cause.kind for cause in failures}
    if kinds == {errors.CommitTimeout.kind}:
        return errors.CommitTimeout.kind
    return errors.ParticipantFailed.kind


def summary(what: str, failures: Mapping[str, Failure], next_step: str) -> str:
    """Return one message with all failed participants and causes; equal causes appear once."""
    groups: dict[str, list[str]] = {}
    for participant, cause in sorted(failures.items()):
        groups.setdefault(cause.message.rstrip(". "), []).append(participant)
    shown = [f"{_shortened(names)}: {text}" for text, names in list(groups.items())[:8]]
    if len(groups) > len(shown):
        shown.append(f"and {len(groups) - len(shown)} more causes")
    return f"{what}: {'; '.join(shown)}. {next_step}"


def told_once(what: str, message: str) -> str:
    """Put `what` before the message, if it is not already there."""
    return message if message.startswith(what) else f"{what}: {message}"
