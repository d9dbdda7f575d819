"""Every time limit of the protocol, in one value; seconds on a monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, fields

from stepseal.errors import InvalidInput

__all__ = ["MAX_S", "Deadlines"]

MAX_S = 1e8
"""Three years: every wait ends."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Time limits for every wait between participants and the coordinator.

    Raises:
        InvalidInput: a limit is not a positive number up to `MAX_S`, or `lost_s` is below two
            heartbeats.
    """

    connect_s: float = 120.0
    """Until all participants have connected to the coordinator."""
    capture_s: float = 120.0
    """From the first participant that captured to the last."""
    write_s: float = 1800.0
    """From the order to write to the last participant that prepared."""
    commit_s: float = 300.0
    """For the coordinator's own work: staging before the parts are written; index, manifest and
    commit after them; the claim in a restore."""
    check_s: float = 300.0
    """For reading and checking everything but tensor bytes in a restore."""
    apply_s: float = 1800.0
    """For streaming tensors in a restore."""
    close_s: float = 30.0
    """For `close` to wait until the others have said goodbye."""
    heartbeat_s: float = 5.0
    """Between two heartbeats."""
    lost_s: float = 30.0
    """Silence after which a participant or the coordinator counts as lost."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value <= MAX_S:
                raise InvalidInput(
                    f"deadlines: {field.name}: expected seconds above 0 and at most {MAX_S:g}, "
                    f"found {value!r}",
                    expected=f"0 < seconds <= {MAX_S:g}",
                    found=value,
                )
        if self.lost_s < 2 * self.heartbeat_s:
            raise InvalidInput(
                f"deadlines: lost_s: expected at least two heartbeats ({2 * self.heartbeat_s} s), "
                f"found {self.lost_s} s. Raise lost_s or lower heartbeat_s.",
                expected=2 * self.heartbeat_s,
                found=self.lost_s,
            )

    def of_phase(self, phase: str, *, staged: bool) -> float | None:
        """Return the limit of a phase of a save in which participants are awaited, else None.

        Args:
            phase: of a `SaveRound`.
            staged: whether the attempt has its folder; optional components are compared before.
        """
        if phase == "compare":
            return self.write_s if staged else self.capture_s
        limits = {"capture": self.capture_s, "engines": self.write_s, "write": self.write_s}
        return limits.get(phase)

    @property
    def save_s(self) -> float:
        """Longest time from one participant's capture to the outcome.

        `commit_s` counts twice: the coordinator stages before the parts, and publishes after them.
        """
        return self.capture_s + self.commit_s + self.write_s + self.commit_s

    @property
    def restore_s(self) -> float:
        """Longest time of one restore round."""
        return self.connect_s + self.check_s + self.apply_s + self.commit_s
