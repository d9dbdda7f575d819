"""What an error of a hang proof must say: who was hit, in which call and phase, and why it failed.

Only the one that was hit may be blamed. A participant that lost its line knows no phase of the
others: it says whether it had prepared, and what of the coordinator it missed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.campaigns.hang._cases import Case
    from tests.multi._ranks import Call

__all__ = ["unsaid"]

_WHERE = {
    "construct": "control plane: ", "restore": "restore",
    "save": "save of step 30", "wait": "save of step 30", "close": "save of step 30",
    "next": "save of step 40", "wait next": "save of step 40",
}  # fmt: skip
_RESTORE_PHASE = {
    "construct/before": "join", "connect/address": "join", "connect/reached": "join",
    "connect/hello": "join", "coordinator/listening": "join", "restore/join": "join",
    "coordinator/look": "select",
    "coordinator/select": "check", "restore/read": "check", "restore/check": "check",
    "restore/stream": "apply", "restore/apply": "apply", "restore/applied": "apply",
    "coordinator/claim": "claim", "coordinator/claimed": "claim",
}  # fmt: skip
_PHASES = ("join", "select", "check", "apply", "claim", "capture", "write", "none")
"""Those of a restore and of a save, in order; `none` where no call should have failed."""
_WRITING = ("save/captured", "save/write", "save/prepared", "close/in-flight")
"""Gates at which a save writes; at all others it waits for a capture."""
_SILENT = ("no sign of life",)
_ENDED = (
    "connection closed", "closed the connection", "connection failed",
    "connection to the coordinator failed", "cannot reach the coordinator",
)  # fmt: skip
_LATE = (
    "did not answer within", "no answer within", "gave no order within", "did not decide by",
    "did not make the staging folder within", "no address of the coordinator", "cannot reach",
)  # fmt: skip
_WHY = {
    "kill": _ENDED, "leave": _ENDED, "cut": _ENDED,
    "stop": _SILENT, "zombie": _SILENT, "pause": _SILENT,
    "to-hub": _SILENT + _ENDED, "from-hub": _SILENT + _ENDED,
    "block": _LATE,
}  # fmt: skip
"""Of a line that is parted in one direction, the silent end closes it, and the other hears that."""
_PREPARED = ("had prepared", "had not prepared", "Storage shows")


def unsaid(case: Case, call: Call) -> str:
    """Return what the error of a call does not say, or says wrongly; nothing if all is right."""
    message = str(call.facts["message"])
    if call.kind == "tainted":  # of an earlier restore, whose own error is judged
        return "" if "restore" in message else "that a restore failed"
    found = [
        _who(case, call, message),
        "" if _WHERE[call.name] in message else f"where: {_WHERE[call.name]!r}",
        _phase(case, call, message),
        _why(case, call, message),
    ]
    return "; ".join(text for text in found if text)


def _who(case: Case, call: Call, message: str) -> str:
    """The one that was hit is named, and nobody else is blamed."""
    victim, own = f"trainer/{case.victim}", f"trainer/{call.rank}"
    named = {*re.findall(r"trainer/\d+", message), *call.facts["failures"]}
    coordinator = "coordinator" in message
    if case.parted and case.victim == 0:
        # every line was hit: the coordinator misses others, and the others miss the coordinator
        return "" if coordinator or named - {victim} else "who: expected the coordinator"
    if victim not in message and not (coordinator and _is_lost_to(case, call)):
        return f"who: expected {victim}"
    innocent = sorted(named - {victim, own})
    if own in call.facts["failures"] and own != victim:
        innocent.append(own)
    return f"who: blames {', '.join(innocent)}" if innocent else ""


def _is_lost_to(case: Case, call: Call) -> bool:
    """Whether it is the coordinator that this participant misses."""
    return case.victim == 0 or (case.parted and call.rank == case.victim)


def _phase(case: Case, call: Call, message: str) -> str:
    if call.name == "construct":
        return ""
    told = re.search(r"phase (\w+)", message)
    expected = _expected_phase(case, call)
    if told is not None:
        # of a line that is parted, what was under way may still arrive: then a later phase fails
        allowed = _PHASES[_PHASES.index(expected) :] if case.parted else (expected,)
        return "" if told[1] in allowed else f"phase: expected {expected}, found {told[1]}"
    if not _is_lost_to(case, call):
        return f"phase: expected {expected}"
    if call.name == "restore" or "staging folder" in message:
        return ""
    return "" if any(word in message for word in _PREPARED) else "whether it had prepared"


def _expected_phase(case: Case, call: Call) -> str:
    if call.name == "restore":
        return _RESTORE_PHASE.get(case.gate, "none")
    of_step_30 = call.name in ("save", "wait", "close")
    return "write" if of_step_30 and case.gate in _WRITING else "capture"


def _why(case: Case, call: Call, message: str) -> str:
    reasons = _WHY[case.how]
    if case.connecting:
        reasons += _LATE
    if case.how == "block" and case.victim in (0, call.rank):
        reasons += _ENDED  # who blocks behind its calls closes, or is left by the others
    return "" if any(reason in message for reason in reasons) else f"why: one of {reasons}"
