"""What is hit in the hang proofs, where and how, and how long the calls of the others may take.

How a participant is hit at its gate:

- `kill`, `leave`: SIGKILL; its process ends without a goodbye;
- `stop`: SIGSTOP, and SIGCONT once the others have ended; `zombie`: SIGCONT only after the next
  start of the job has restored and saved;
- `block`: that thread never goes on (a `state_dict()` that never returns, a disk that hangs),
  while the process goes on to give signs of life;
- `pause`, `cut`, `to-hub`, `from-hub`: its line to the coordinator is parted, see `_relay`; for
  participant 0, which hosts the coordinator, the lines of all others.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from tests.campaigns.hang._relay import PARTITIONS

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.multi._ranks import Call

__all__ = ["LIMIT_S", "TOLERANCE_S", "Case", "How", "Result", "matrix", "parse_case"]

How = Literal["kill", "leave", "stop", "zombie", "block", "pause", "cut", "to-hub", "from-hub"]
OF_ANY = (
    "construct/before",
    "restore/join", "restore/read", "restore/check", "restore/stream", "restore/apply",
    "restore/applied",
    "save/before", "save/capture", "save/captured", "save/write",
    "close/before", "close/in-flight",
)  # fmt: skip
OF_OTHERS = ("connect/address", "connect/reached", "connect/hello", "save/prepared", "close/said")
OF_COORDINATOR = (
    "coordinator/listening", "coordinator/look", "coordinator/select", "coordinator/claim",
    "coordinator/claimed", "coordinator/begin", "coordinator/publish", "coordinator/rename",
    "coordinator/renamed", "coordinator/committed", "coordinator/told", "coordinator/latest",
    "close/linger",
)  # fmt: skip
_CONNECTING = (
    "construct/before", "connect/address", "connect/reached", "connect/hello",
    "coordinator/listening",
)  # fmt: skip
_BEHIND = (
    "save/captured", "save/write", "save/prepared", "coordinator/look", "coordinator/select",
    "coordinator/claim", "coordinator/claimed", "coordinator/begin", "coordinator/publish",
    "coordinator/rename", "coordinator/renamed", "coordinator/committed", "coordinator/told",
    "coordinator/latest",
)  # fmt: skip
"""Gates off the caller's thread: who blocks there returns from its calls nevertheless."""
TOLERANCE_S = 10.0
"""Of a busy machine; with it a limit is still below the deadline of a phase."""
LIMIT_S = 75.0
"""No participant runs for longer, whatever happens; far above the sum of all deadlines."""
_SHORT_S = 3.0
LOSS = ss.Deadlines(
    connect_s=15, capture_s=15, write_s=15, commit_s=15, check_s=15, apply_s=15, close_s=2,
    heartbeat_s=0.25, lost_s=1.5,
)  # fmt: skip
"""Who is gone must be noticed by silence or the end of its line: phases are far longer."""
BLOCK = ss.Deadlines(
    connect_s=_SHORT_S, capture_s=2, write_s=2, commit_s=2, check_s=2, apply_s=2, close_s=1.5,
    heartbeat_s=0.5, lost_s=20,
)  # fmt: skip
"""Who blocks gives signs of life: only the deadline of the phase ends the wait."""
_IDLE_S = 5.0
"""How long a participant waits for its own blocked writer, beyond the deadline."""


@dataclass(frozen=True, slots=True)
class Case:
    """One participant, hit once."""

    world: int
    gate: str
    victim: int
    how: How

    def __str__(self) -> str:
        """Return the name of the case, which `parse_case` takes."""
        return f"{self.how}:{self.gate}:{self.victim}of{self.world}"

    @property
    def parted(self) -> bool:
        """True if the network is hit, not a process."""
        return self.how in PARTITIONS

    @property
    def connecting(self) -> bool:
        """True if who is hit may never have had a line: the others miss it at their deadlines."""
        return self.gate in _CONNECTING or (self.parted and self.gate == "restore/join")

    @property
    def deadlines(self) -> ss.Deadlines:
        """Deadlines of the job."""
        if self.how == "block":
            return BLOCK
        if self.connecting:
            return dataclasses.replace(LOSS, connect_s=_SHORT_S, capture_s=_SHORT_S)
        return LOSS

    @property
    def judged(self) -> tuple[int, ...]:
        """Participants whose calls must come back: all but the one that cannot."""
        free = self.parted or (self.how == "block" and self.gate in _BEHIND)
        return tuple(rank for rank in range(self.world) if free or rank != self.victim)

    def limit_s(self, call: Call) -> float:
        """Return how long a call may take from when it could know."""
        if self.how == "block":
            return self._blocked_limit_s(call)
        limits = self.deadlines
        limit = limits.lost_s + 2 * limits.heartbeat_s
        if call.name == "close":
            limit += limits.close_s
        if limits.connect_s == _SHORT_S:  # who never connected is missed at the end of each phase
            limit = max(limit, _SHORT_S)
        return limit

    def _blocked_limit_s(self, call: Call) -> float:
        limits = self.deadlines
        own = _IDLE_S if call.rank == self.victim and call.name in ("next", "close") else 0.0
        match call.name:
            case "construct":
                return limits.connect_s
            case "restore":
                return limits.restore_s
            case "close":
                return own + 2 * limits.close_s + limits.save_s * (self.gate == "close/in-flight")
            case _ if self.gate.startswith("coordinator"):
                return own + limits.save_s
            case _:
                return own + limits.write_s


@dataclass(slots=True)
class Result:
    """What came of a case."""

    case: Case
    violations: list[str] = field(default_factory=list)
    over_s: float = float("-inf")
    """Longest time by which a call outlasted its limit; negative when none did."""
    noticed_s: float = 0.0
    """Longest time from the hit until a call that it failed came back."""
    kinds: list[str] = field(default_factory=list)
    """What the judged calls came to, once each."""


def parse_case(text: str) -> Case:
    """Return the case of a name.

    Raises:
        ValueError: it names none.
    """
    how, gate, who = text.split(":")
    victim, world = who.split("of")
    known = {*OF_ANY, *OF_OTHERS, *OF_COORDINATOR}
    if how not in get_args(How) or gate not in known:
        raise ValueError(f"{text}: expected HOW:GATE:NofM")
    return Case(int(world), gate, int(victim), how)  # type: ignore[arg-type]


def matrix(world: int, hows: Iterable[How], victims: Iterable[int]) -> Iterator[Case]:
    """Return every gate of the chosen participants, hit in the chosen ways."""
    for how in hows:
        for victim in victims:
            for gate in (*OF_ANY, *(OF_OTHERS if victim else OF_COORDINATOR)):
                yield Case(world, gate, victim, how)
