"""The messages of a restore; `_messages` has what all messages have in common."""

from __future__ import annotations

from typing import Annotated

import msgspec

from stepseal.protocol._failures import Failure  # noqa: TC001 - the decoder needs it

__all__ = [
    "Applied", "Apply", "Candidate", "Checked", "Fresh", "Rejected", "RestoreCalled",
    "RestoreFailed", "Restored",
]  # fmt: skip

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]

_Bits = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]+$")]
"""A bit for each entry of a saved component, in hex."""


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of these messages."""


class RestoreCalled(_Message, frozen=True):
    """The participant called `restore`."""

    call: _Number
    step: _Number | None
    fresh: bool
    policies: dict[str, str]
    """Component to what is done with it; every component that was added here is named."""
    unverified: bool = False
    """Also accept a foreign DCP folder, if the root has no steps or if the step is one."""
    by_world: list[str] = []
    """Components that are restored for the same number of participants only, sorted."""
    only: bool = False
    """Components of the step that `policies` does not name are left out."""
    check_only: bool = False
    """Nothing is applied and nothing is claimed."""
    conversions: dict[str, str] = {}
    """Component to a digest of how its keys and dtypes are converted."""
    sets: dict[str, str] = {}
    """Component to a text about the sets of participants that share its payloads."""


class Checked(_Message, frozen=True):
    """The candidate fits: all but tensor bytes was verified, and live state is unchanged."""

    call: _Number
    round: _Number
    left: dict[str, _Bits] = {}
    """Component whose participants take different entries to those left to others, as bits."""
    report: dict[str, str] = {}
    """Component to what is done with it; the same from all participants of a role."""


class Applied(_Message, frozen=True):
    """All verified bytes arrived in live state."""

    call: _Number
    round: _Number


class Rejected(_Message, frozen=True):
    """The candidate cannot be restored here."""

    call: _Number
    round: _Number
    touched: bool
    """Live state was already changed."""
    cause: Failure


class Candidate(_Message, frozen=True):
    """Check this committed step against your live state; change nothing yet."""

    call: _Number
    round: _Number
    step: _Number
    attempt: str
    manifest_sha256: str
    """SHA-256 of the manifest; for an `unverified` candidate, of its `.metadata`."""
    unverified: bool = False
    """A foreign DCP folder, whose bytes no digest covers."""


class Apply(_Message, frozen=True):
    """Every participant has checked the candidate: stream it into live state now."""

    call: _Number
    round: _Number


class Restored(_Message, frozen=True):
    """Every participant has applied the candidate, and the incarnation is claimed."""

    call: _Number
    step: _Number
    incarnation: _Number | None
    """None where the candidate was only checked."""
    skipped: dict[str, str]
    unverified: bool = False


class Fresh(_Message, frozen=True):
    """Nothing was restored: the root is empty, or fresh=True. The incarnation is claimed."""

    call: _Number
    incarnation: _Number | None
    """None where a restore was only checked."""


class RestoreFailed(_Message, frozen=True):
    """The restore failed; no participant continues it."""

    call: _Number
    kind: str
    message: str
    reasons: dict[str, str]
    failures: dict[str, Failure]
    tainted: bool
    cause: Failure | None = None
    """The coordinator's own failure, if no participant failed."""
    left: dict[str, _Bits] = {}
    """Component to the entries that all participants left, as bits."""
