"""Actions that the coordinator's protocol asks its driver for, and the driver's answers.

The protocol itself does no I/O: events go in, actions come out. A driver (threads and storage, or a
simulator) performs the actions and feeds the answers back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.layout import Area

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.layout import StepRef
    from stepseal.protocol._figures import Figures
    from stepseal.protocol._messages import (
        Captured,
        Decided,
        Failure,
        Fresh,
        FromCoordinator,
        PartReport,
        Restored,
        RestoreFailed,
    )
    from stepseal.protocol._opening import Opening

__all__ = [
    "Action",
    "BeginStaging",
    "Claim",
    "Claimed",
    "Connected",
    "Discard",
    "DriverEvent",
    "Inform",
    "IoFailed",
    "Publish",
    "PublishUnknown",
    "Published",
    "Select",
    "Selected",
    "Send",
    "Staged",
    "Told",
]


@dataclass(frozen=True, slots=True)
class Send:
    """Deliver a message to one participant."""

    to: str
    message: FromCoordinator


@dataclass(frozen=True, slots=True)
class Told:
    """Report the outcome of an opened call to whoever opened it."""

    outcome: Decided | Restored | Fresh | RestoreFailed
    report: Mapping[str, str] = field(default_factory=dict)
    """Component to what a restore did with it."""


@dataclass(frozen=True, slots=True)
class Connected:
    """Report that a life that was admitted has connected, and has told what it holds."""

    life: str


@dataclass(frozen=True, slots=True)
class BeginStaging:
    """Make the staging folder of a new attempt; answer `Staged` or `IoFailed`."""

    call: int
    step: int
    attempt: str
    area: Area = Area.STEPS


@dataclass(frozen=True, slots=True)
class Publish:
    """Check, seal and commit the attempt; answer `Published`, `IoFailed` or `PublishUnknown`."""

    call: int
    step: int
    attempt: str
    staging: str
    captured: Mapping[str, Captured]
    parts: Mapping[str, PartReport]
    deadline: float
    """Monotonic time after which the step must not be committed any more."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Component that was not written to the reason."""
    opening: Opening | None = None
    """What the controller said of the step; None where the participants made the call."""
    area: Area = Area.STEPS
    figures: Figures | None = None
    """What the call has cost so far, for people."""


@dataclass(frozen=True, slots=True)
class Warn:
    """Tell the user of the coordinator; no answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Inform:
    """Tell the user of the coordinator that a call ended well; no answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Discard:
    """Remove the staging folder of an aborted attempt; no answer, a failure is only logged."""

    staging: str


@dataclass(frozen=True, slots=True)
class Select:
    """Find the step to restore; answer `Selected` or `IoFailed`."""

    call: int
    step: int | None
    exclude: tuple[int, ...]
    unverified: bool = False
    """Also accept a foreign DCP folder."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim the next incarnation; answer `Claimed` or `IoFailed`."""

    call: int
    parent: StepRef | None


Action = (
    Send
    | Told
    | (Warn | Inform)
    | Connected
    | (BeginStaging | Publish | Discard)
    | (Select | Claim)
)


@dataclass(frozen=True, slots=True)
class Staged:
    """The staging folder exists and its entry is durable."""

    call: int
    staging: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Published:
    """The step is committed and durable."""

    call: int
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class PublishUnknown:
    """The commit was made, but its durability could not be confirmed."""

    call: int
    cause: Failure


@dataclass(frozen=True, slots=True)
class IoFailed:
    """The driver could not do what was asked; nothing was committed."""

    call: int
    cause: Failure


@dataclass(frozen=True, slots=True)
class Selected:
    """The newest step that may be resumed, or None."""

    call: int
    ref: StepRef | None
    attempt: str
    has_commits: bool
    """The root holds at least one committed step, resumable or not."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Step name to the reason why the step was not chosen."""
    unverified: bool = False
    """The step is a foreign DCP folder; `ref` holds the SHA-256 of its `.metadata`."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Component to the role that saved it; empty where nobody knows."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The root belongs to this incarnation now."""

    call: int
    incarnation: int


DriverEvent = Staged | Published | PublishUnknown | IoFailed | Selected | Claimed
