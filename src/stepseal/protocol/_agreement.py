"""Pure decisions of the protocol: which participants disagree, and which error is raised."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.layout import PayloadReport, agreeing, payload_problems
from stepseal.protocol._failures import Failure, named

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stepseal.protocol._messages import Captured, ComponentReport

__all__ = ["disagreements", "held_up", "kind_of", "late", "payload_reports", "summary", "told_once"]


def disagreements(captured: Mapping[str, Captured]) -> tuple[dict[str, Failure], dict[str, str]]:
    """Return how participants differ from the majority, and what is left out because of it.

    Compares the call, its step or version, the cut, the component names, and each component's
    kind, sharing, sets and fingerprint. Each participant must read exactly one payload, and one
    participant write it.

    Args:
        captured: reports of all participants, in ordinal order.

    Returns:
        The failure of each participant that differs, empty if all captured one cut; and each
        component that is not required, and differs or failed, with the reason.
    """
    found: dict[str, Failure] = {}
    acts = {p: "publish" if c.publish else "save" for p, c in captured.items()}
    _compare(found, acts, "called")
    act, noun = ("publish", "version") if "publish" in acts.values() else ("save", "step")
    _compare(found, {p: f"{noun} {c.step}" for p, c in captured.items()}, f"called {act} for")
    _compare(found, {p: f"cut {sorted(c.cut.items())}" for p, c in captured.items()}, "captured at")
    names = {p: f"components {sorted(f.name for f in c.components)}" for p, c in captured.items()}
    _compare(found, names, "has")
    if found:
        return found, {}
    facts = {p: {f.name: f for f in c.components} for p, c in captured.items()}
    left_out: dict[str, str] = {}
    for name in next(iter(facts.values()), {}):
        reports = {p: f[name] for p, f in facts.items()}
        wanted = {p: f"with required={f.required}" for p, f in reports.items()}
        differ: dict[str, Failure] = {}
        _compare(differ, wanted, f"component {name}: added", name)
        optional = not differ and not any(report.required for report in reports.values())
        differ = differ or _failed(reports) or _differences(name, reports)
        if differ and optional:
            left_out[name] = _listed(differ)
        else:
            found = {**differ, **found}
    return found, {} if found else left_out


def _failed(reports: Mapping[str, ComponentReport]) -> dict[str, Failure]:
    """Return who could not capture a component that is not required."""
    return {
        participant: Failure(errors.ParticipantFailed.kind, report.failed, component=report.name)
        for participant, report in reports.items()
        if report.failed
    }


def _differences(name: str, reports: Mapping[str, ComponentReport]) -> dict[str, Failure]:
    """Return how participants differ in one component."""
    found: dict[str, Failure] = {}
    held = {p: f"{f.kind} {f.sharing}" for p, f in reports.items()}
    _compare(found, held, f"component {name}: all ranks must have one sharing: holds", name)
    validated = {p: f"with validate={f.validate!r}" for p, f in reports.items()}
    _compare(found, validated, f"component {name}: added", name)
    sets = {p: f"[{f.sets}]" for p, f in reports.items()}
    what = f"component {name}: pass the same same_on= on every rank: declares the sets"
    _compare(found, sets, what, name)
    first = next(iter(reports.values()))
    for coordinate, digests in _comparable(reports).items():
        what = _must_agree(first, coordinate)
        _compare(found, digests, f"component {name}: {what}: has digest", name)
    if found:
        return found
    payloads = {p: _payload_report(f) for p, f in reports.items()}
    for participant, problem in payload_problems(first.sharing, payloads, first.axes).items():
        text = f"component {name}: {problem}"
        found[participant] = Failure(errors.StateMismatch.kind, text, component=name)
    return found


def payload_reports(
    captured: Mapping[str, Captured],
) -> dict[str, dict[str, PayloadReport | None]]:
    """Return, per component, the payload report of each participant."""
    found: dict[str, dict[str, PayloadReport | None]] = {}
    for participant, message in captured.items():
        for facts in message.components:
            found.setdefault(facts.name, {})[participant] = _payload_report(facts)
    return found


def _payload_report(facts: ComponentReport) -> PayloadReport | None:
    return None if facts.payload is None else PayloadReport(facts.payload, facts.writes)


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
    return f"{who} must hold {keys}: correct same_on, or declare sharing=ss.SHARDED"


def _compare(
    found: dict[str, Failure], values: Mapping[str, str], what: str, component: str | None = None
) -> None:
    """Add a cause for each participant that differs from the majority; the first wins a tie."""
    if len(set(values.values())) <= 1:
        return
    usual, _ = Counter(values.values()).most_common(1)[0]
    others = named([p for p, value in values.items() if value == usual])
    for participant, value in values.items():
        if value != usual and participant not in found:
            message = f"{what} {value}, but {others}: {usual}"
            found[participant] = Failure(errors.StateMismatch.kind, message, component=component)


def kind_of(failures: Iterable[Failure]) -> str:
    """Return the kind of error that all participants raise for these causes."""
    kinds = {cause.kind for cause in failures}
    if kinds == {errors.CommitTimeout.kind}:
        return errors.CommitTimeout.kind
    return errors.ParticipantFailed.kind


def summary(what: str, failures: Mapping[str, Failure], next_step: str) -> str:
    """Return one message with all failed participants and causes; equal causes appear once."""
    return f"{what}: {_listed(failures)}. {next_step}"


def late(names: Iterable[str], text: str, notes: Mapping[str, str | None]) -> dict[str, Failure]:
    """Return the failure of each participant that missed a deadline.

    Args:
        names: those participants.
        text: what they did not do.
        notes: participant to what else is known of it; None for one that waits for others.
    """
    kind = errors.CommitTimeout.kind
    texts = {one: f"{text}: {notes[one]}" if one in notes else text for one in names}
    return {one: Failure(kind, why) for one, why in texts.items() if notes.get(one, why)}


def held_up(frozen: Sequence[str], awaited: Iterable[str]) -> str:
    """Return who stayed frozen until the deadline, and for whom; empty if nobody did."""
    if not frozen:
        return ""
    return f", in which {named(frozen)} stayed frozen and {named([*awaited])} was awaited"


def _listed(failures: Mapping[str, Failure]) -> str:
    groups: dict[str, list[str]] = {}
    for participant, cause in sorted(failures.items()):
        groups.setdefault(cause.message.rstrip(". "), []).append(participant)
    shown = [f"{named(names)}: {text}" for text, names in list(groups.items())[:8]]
    if len(groups) > len(shown):
        shown.append(f"and {len(groups) - len(shown)} more causes")
    return "; ".join(shown)


def told_once(what: str, message: str) -> str:
    """Put `what` before the message, if it is not already there."""
    return message if message.startswith(what) else f"{what}: {message}"
