"""What the findings of a probe mean for the promises; pure.

Lives here because the commit is what rests on these calls: which of them a promise needs, and which
has a substitute, is decided by the protocol and by nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stepseal.storage import ABILITIES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.storage import Meeting, Probe

__all__ = ["PromiseJudgement", "judge_promises"]

State = Literal["holds", "best effort", "does not hold", "not tested"]
_OTHER_PLACE = "Use a root on ext4, xfs, btrfs, NFS or Lustre"
_MIN_FREE_BYTES = 1 << 30
_MIN_FREE_INODES = 10_000
_MAX_CLOCK_S = 5.0


@dataclass(frozen=True, slots=True)
class PromiseJudgement:
    """What becomes of one promise."""

    promise: str
    state: State
    why: str
    advice: str = ""
    """What to do; empty where nothing is."""


def judge_promises(probe: Probe, meeting: Meeting | None = None) -> tuple[PromiseJudgement, ...]:
    """Return a judgement on each promise that depends on the file system, and on its room."""
    return (
        _atomic(probe),
        _durable(probe),
        PromiseJudgement("verified", "holds", "rests on digests alone, not on the file system"),
        _never_strands(probe),
        _concurrent(probe),
        _one_view(probe),
        _all_hosts(meeting),
        _private(probe),
        _fast(probe),
        _room(probe),
        _clock(probe, meeting),
    )


def _faults(probe: Probe, *abilities: str) -> list[str]:
    """Return what is known to be missing among these, in words."""
    return [
        f"{ABILITIES[found.ability]}: {found.detail}"
        for found in probe.findings
        if found.ability in abilities and found.honoured is False
    ]


def _untold(probe: Probe, *abilities: str) -> list[str]:
    return [
        f"{found.ability}: {found.detail}"
        for found in probe.findings
        if found.ability in abilities and found.honoured is None
    ]


def _needing(
    promise: str, probe: Probe, *abilities: str, why: str, advice: str
) -> PromiseJudgement:
    """Return the judgement on a promise that needs all of these."""
    missing, untold = _faults(probe, *abilities), _untold(probe, *abilities)
    if missing:
        return PromiseJudgement(promise, "does not hold", _joined(missing), advice)
    if untold:
        return _not_told(promise, untold)
    return PromiseJudgement(promise, "holds", why)


def _not_told(promise: str, untold: list[str]) -> PromiseJudgement:
    full = any(reason.endswith(("ENOSPC", "EDQUOT")) for reason in untold)
    advice = "Free space, then run it again." if full else "Run it again."
    return PromiseJudgement(promise, "not tested", _joined(untold), advice)


def _atomic(probe: Probe) -> PromiseJudgement:
    needed = ("fsync_file", "rename_dir")
    why = "a renamed directory appears whole, and files are synced before it"
    advice = f"{_OTHER_PLACE}; object stores mounted as folders cannot do this."
    return _needing("atomic", probe, *needed, why=why, advice=advice)


def _durable(probe: Probe) -> PromiseJudgement:
    promise, mount = "durable", probe.mount
    missing = _faults(probe, "fsync_file")
    lost = mount is not None and (mount.in_memory or mount.is_volatile)
    if missing or lost:
        advice = f"{_OTHER_PLACE}, mounted without `volatile`."
        return PromiseJudgement(
            promise, "does not hold", _joined([*missing, *probe.sync_doubts]), advice
        )
    doubts = [*_faults(probe, "fsync_dir"), *probe.sync_doubts]
    if doubts:
        advice = "Manifests say best-effort: do not count on the newest steps after power loss."
        return PromiseJudgement(promise, "best effort", _joined(doubts), advice)
    untold = _untold(probe, "fsync_file", "fsync_dir")
    if untold:
        return _not_told(promise, untold)
    why = "fsync of files and directories is accepted"
    if mount is not None and mount.fs_type in {"nfs", "nfs4"}:
        return PromiseJudgement(promise, "holds", f"{why}; the server must export with `sync`")
    if mount is not None and mount.fs_type == "overlay":
        return PromiseJudgement(
            promise, "holds", f"{why}; as long as this container's layer is kept"
        )
    return PromiseJudgement(promise, "holds", why)


def _never_strands(probe: Probe) -> PromiseJudgement:
    promise = "never strands you"
    flags = ("noreplace_file", "noreplace_dir", "exchange")
    missing = _faults(probe, *flags)
    if not missing:
        why = "renames never replace, and an exchange supersedes in one call"
        return _needing(promise, probe, *flags, why=why, advice="")
    substitute = _faults(probe, "rename_keeps_full_dir", "link")
    if substitute:
        why = _joined([*missing, *substitute])
        return PromiseJudgement(promise, "does not hold", why, f"{_OTHER_PLACE}.")
    effects = []
    if _faults(probe, "exchange"):
        effects.append("no exchange: superseding takes two moves")
    if _faults(probe, "noreplace_file", "noreplace_dir"):
        effects.append("no RENAME_NOREPLACE: an empty folder may give way, and nothing else")
    why = _joined(effects)
    return PromiseJudgement(
        promise, "best effort", why, "Nothing: no step of the lineage is ever replaced."
    )


def _concurrent(probe: Probe) -> PromiseJudgement:
    needed = ("exclusive_create", "link", "one_winner")
    why = "of several processes on this host exactly one creates or links a name"
    advice = f"{_OTHER_PLACE}: two jobs on this root could both claim it."
    return _needing("concurrent jobs", probe, *needed, why=why, advice=advice)


def _one_view(probe: Probe) -> PromiseJudgement:
    why = "another process here sees files and renamed folders at its first look"
    advice = "Look for caching options of the mount."
    return _needing("one view, this host", probe, "seen_at_once", why=why, advice=advice)


def _all_hosts(meeting: Meeting | None) -> PromiseJudgement:
    promise = "one view, all hosts"
    if meeting is None:
        advice = "Run `stepseal doctor ROOT --meet NAME --participants N` on each host."
        return PromiseJudgement(promise, "not tested", "this host alone was asked", advice)
    blind = [peer.name for peer in meeting.peers if peer.round_trip_s is None]
    if not meeting.complete:
        seen = ", ".join(peer.name for peer in meeting.peers) or "nobody"
        missed = f"{meeting.num_missing} of {meeting.num_expected}"
        why = f"{missed} participants not seen (seen: {seen})"
        why += f"; no answer from {', '.join(blind)}" if blind else ""
        advice = "Check that these hosts mount the same directory, and were started in time."
        return PromiseJudgement(promise, "does not hold", why, advice)
    slowest = max((peer.round_trip_s or 0.0 for peer in meeting.peers), default=0.0)
    why = f"all {meeting.num_expected} see each other, there and back in {slowest:.2f} s at most"
    return PromiseJudgement(promise, "holds", why)


def _private(probe: Probe) -> PromiseJudgement:
    why = "symlinks are refused, and modes 0600 and 0700 are kept"
    advice = "Keep others away from this root: use a mount with POSIX modes."
    return _needing("safe to load", probe, "nofollow", "modes", why=why, advice=advice)


def _fast(probe: Probe) -> PromiseJudgement:
    if probe.honours("direct_io"):
        return PromiseJudgement(
            "fast", "holds", f"O_DIRECT works; fsync takes {_milliseconds(probe)}"
        )
    why = f"{_joined([*_faults(probe, 'direct_io'), *_untold(probe, 'direct_io')])}"
    return PromiseJudgement(
        "fast", "best effort", f"{why}; fsync takes {_milliseconds(probe)}", "Nothing."
    )


def _room(probe: Probe) -> PromiseJudgement:
    problems = []
    if probe.free_bytes < _MIN_FREE_BYTES:
        problems.append(f"{probe.free_bytes / (1 << 20):.0f} MiB free")
    if probe.free_inodes is not None and probe.free_inodes < _MIN_FREE_INODES:
        problems.append(f"{probe.free_inodes} inodes free")
    if problems:
        return PromiseJudgement(
            "room", "best effort", _joined(problems), "Free space before you save."
        )
    why = f"{probe.free_bytes / (1 << 30):.1f} GiB free"
    return PromiseJudgement("room", "holds", why + (f"; {probe.quota}" if probe.quota else ""))


def _clock(probe: Probe, meeting: Meeting | None) -> PromiseJudgement:
    skews = [("file system", probe.clock_skew_s, probe.clock_skew_error_s)]
    skews += [
        (peer.name, peer.clock_offset_s, peer.clock_error_s)
        for peer in (() if meeting is None else meeting.peers)
        if peer.clock_offset_s is not None and peer.clock_error_s is not None
    ]
    name, worst, error = max(skews, key=lambda skew: abs(skew[1]) - skew[2])
    why = f"{name} is {worst:+.2f} s from this host (within {error:.2f} s)"
    if abs(worst) - error > _MAX_CLOCK_S:
        return PromiseJudgement("clocks agree", "best effort", why, "Set the clocks (chrony, NTP).")
    return PromiseJudgement("clocks agree", "holds", why)


def _milliseconds(probe: Probe) -> str:
    if probe.fsync_s is None:
        return "a time that cannot be told"
    return f"{1000 * probe.fsync_s:.2f} ms"


def _joined(reasons: Iterable[str]) -> str:
    return "; ".join(reasons)
