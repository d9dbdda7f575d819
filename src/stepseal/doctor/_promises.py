"""What the findings of a probe and a meeting mean for the promises; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stepseal.doctor._checks import ABILITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.doctor._meeting import Meeting
    from stepseal.doctor._probe import Probe

__all__ = ["PromiseJudgement", "judge_promises"]

_OTHER_PLACE = "Use a root on ext4, xfs, btrfs, NFS or Lustre"
_MAX_CLOCK_S = 30.0
"""Half of what an expired lease is given for clocks that differ."""


@dataclass(frozen=True, slots=True)
class PromiseJudgement:
    """Whether one promise holds."""

    promise: str
    state: Literal["holds", "best effort", "does not hold", "not tested"]
    why: str
    advice: str = ""
    """What to do; empty if nothing is needed."""


def judge_promises(
    probe: Probe, meeting: Meeting | None = None, *, immovable: Sequence[str] = ()
) -> tuple[PromiseJudgement, ...]:
    """Return one judgement per promise that depends on the file system or on the clocks.

    Args:
        probe: what the file system does.
        meeting: what several hosts saw of each other; None if none met.
        immovable: steps of the root that the file system refuses to move.
    """
    return (
        _needing(
            "atomic", probe, "fsync", "rename_dir",
            why="a renamed directory appears whole, and files are synced before it",
            advice=f"{_OTHER_PLACE}; object stores mounted as folders cannot do this.",
        ),
        _durable(probe),
        PromiseJudgement("verified", "holds", "rests on digests alone, not on the file system"),
        _never_strands(probe, immovable),
        _needing(
            "concurrent jobs", probe, "exclusive_create", "link",
            why="if several create or link one name at once, exactly one succeeds",
            advice=f"{_OTHER_PLACE}: two jobs on this root could both claim it.",
        ),
        _one_view(meeting),
        _needing(
            "safe to load", probe, "modes",
            why="modes 0600 and 0700 are kept",
            advice="Keep others away from this root: use a mount with POSIX modes.",
        ),
        _clocks(probe, meeting),
    )  # fmt: skip


def _faults(probe: Probe, *abilities: str) -> list[str]:
    """Return a text for each of these abilities that is missing."""
    return [f"{ABILITIES[a]}: {probe.missing[a]}" for a in abilities if a in probe.missing]


def _needing(
    promise: str, probe: Probe, *abilities: str, why: str, advice: str
) -> PromiseJudgement:
    """Return the judgement on a promise that needs all of these abilities."""
    missing = _faults(probe, *abilities)
    if missing:
        return PromiseJudgement(promise, "does not hold", "; ".join(missing), advice)
    return PromiseJudgement(promise, "holds", why)


def _durable(probe: Probe) -> PromiseJudgement:
    promise, mount = "durable", probe.mount
    missing = _faults(probe, "fsync")
    doubts = "; ".join([*missing, *probe.sync_doubts])
    if missing or (mount is not None and (mount.in_memory or mount.is_volatile)):
        advice = f"{_OTHER_PLACE}, mounted without `volatile`."
        return PromiseJudgement(promise, "does not hold", doubts, advice)
    if doubts:
        advice = "Manifests say best-effort: do not count on the newest steps after power loss."
        return PromiseJudgement(promise, "best effort", doubts, advice)
    why = "fsync of files and directories is accepted"
    if mount is not None and mount.fs_type in {"nfs", "nfs4"}:
        why += "; the server must export with `sync`"
    if mount is not None and mount.fs_type == "overlay":
        why += "; as long as this container's layer is kept"
    return PromiseJudgement(promise, "holds", why)


def _never_strands(probe: Probe, immovable: Sequence[str]) -> PromiseJudgement:
    promise = "never strands you"
    missing = _faults(probe, "noreplace", "exchange")
    if immovable:
        why = f"{', '.join(immovable[:5])} ({len(immovable)} in all) cannot be renamed (EXDEV), as "
        why += "part of a container image: no save can supersede them"
        advice = "Copy the root to a volume (cp -a), or mount the overlay with redirect_dir=on."
        return PromiseJudgement(promise, "does not hold", why, advice)
    if not missing:
        why = "renames never replace, and an exchange supersedes in one call"
        return PromiseJudgement(promise, "holds", why)
    substitutes = _faults(probe, "rename_keeps_full_dir", "link")
    if substitutes:
        why = "; ".join([*missing, *substitutes])
        return PromiseJudgement(promise, "does not hold", why, f"{_OTHER_PLACE}.")
    effects = []
    if "exchange" in probe.missing:
        effects.append("no exchange: superseding takes two moves")
    if "noreplace" in probe.missing:
        effects.append("no RENAME_NOREPLACE: a rename may replace an empty folder, nothing else")
    advice = "Nothing: no step of the lineage is ever replaced."
    return PromiseJudgement(promise, "best effort", "; ".join(effects), advice)


def _one_view(meeting: Meeting | None) -> PromiseJudgement:
    promise = "one view, all hosts"
    if meeting is None:
        advice = "Run `stepseal doctor ROOT --meet NAME --participants N` on each host."
        return PromiseJudgement(promise, "not tested", "only this host was tested", advice)
    if meeting.delay_s is None:
        seen = ", ".join(peer.name for peer in meeting.peers) or "nobody"
        silent = ", ".join(peer.name for peer in meeting.peers if not peer.answered)
        num_missed = meeting.num_expected - 1 - len(meeting.peers)
        why = f"{num_missed} of {meeting.num_expected} participants not seen (seen: {seen})"
        why += f"; no answer from {silent}" if silent else ""
        advice = "Check that these hosts mount the same directory, and were started in time."
        return PromiseJudgement(promise, "does not hold", why, advice)
    why = f"all {meeting.num_expected} see each other, {meeting.delay_s:.2f} s after the last join"
    return PromiseJudgement(promise, "holds", why)


def _clocks(probe: Probe, meeting: Meeting | None) -> PromiseJudgement:
    skews = [("file system", probe.clock_off_s)]
    skews += [(peer.name, peer.clock_off_s) for peer in (meeting.peers if meeting else ())]
    name, worst = max(skews, key=lambda skew: abs(skew[1]))
    why = f"{name} is {worst:+.2f} s from this host"
    if abs(worst) > _MAX_CLOCK_S:
        return PromiseJudgement("clocks agree", "best effort", why, "Set the clocks (chrony, NTP).")
    return PromiseJudgement("clocks agree", "holds", why)
