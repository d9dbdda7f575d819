"""The messages between participants and the coordinator: small JSON documents, never pickle.

A call is one `save` or `restore`. All participants make the same calls in the same order, so they
number them equally. Messages are hints: storage alone decides whether a step exists. `failure_of`
shortens texts and makes them encodable, so that a failure can always be sent.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec

from stepseal import errors
from stepseal.protocol._failures import Failure
from stepseal.protocol._granting import SaveAnswer, SaveAsked, SaveGranted, SaveRefused
from stepseal.protocol._opening import Begin, BeginRestore, BeginSave, Dismiss, Holds, Thaw
from stepseal.protocol._progressed import Progressed
from stepseal.protocol._reports import ComponentReport, PartReport
from stepseal.protocol._restore_messages import (
    Applied,
    Apply,
    Candidate,
    Checked,
    Fresh,
    Rejected,
    RestoreCalled,
    Restored,
    RestoreFailed,
)  # fmt: skip
from stepseal.protocol._safe_points import AskSafePoint, Lapsed, SafePoint, Target, ToRank
from stepseal.protocol._triggers import Due, Fired

__all__ = [
    "Aborted", "Applied", "Apply", "AskSafePoint", "BeginRestore", "BeginSave", "Candidate",
    "Captured", "Challenge", "Checked", "Committed", "Compare", "Compared", "ComponentReport",
    "Decided", "Dismiss", "Due", "EnginesReturned", "Failed", "Failure", "Fired", "Fresh",
    "FromCoordinator", "FromParticipant", "Goodbye", "Heartbeat", "Hello", "Holds", "Lapsed",
    "PartReport", "Prepared", "Progressed", "Proof", "Refused", "Rejected", "RestoreCalled",
    "RestoreFailed", "Restored", "SafePoint", "SaveAnswer", "SaveAsked", "SaveGranted",
    "SaveRefused", "TakeInventory", "Target", "Thaw", "Unresolved", "Welcome", "Write",
    "decode_from_coordinator", "decode_from_participant", "encode_message",
]  # fmt: skip

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages: immutable, tagged by class name, unknown fields refused."""


class Hello(_Message, frozen=True):
    """First message of a participant on a new connection."""

    participant: str
    token: str
    version: str
    life: str = ""
    """The admission that it answers; empty where participants are known from the start."""

    def __repr__(self) -> str:
        """Return a text without the secret token, for logs and tracebacks."""
        return f"Hello({self.participant!r}, version={self.version!r})"


class Challenge(_Message, frozen=True):
    """Asks who listens here, before `Hello` gives the token away; at most one per connection."""

    nonce: str


class Heartbeat(_Message, frozen=True):
    """Shows that the sender is alive; sent in both directions."""


class Captured(_Message, frozen=True):
    """The participant holds a private copy of all its components for this call."""

    call: _Number
    step: _Number
    components: list[ComponentReport]
    cut: dict[str, str | int | float | bool | None]
    metrics: dict[str, float | Literal["nan", "inf", "-inf"]]
    """May be NaN or infinite; JSON holds these as text."""
    tags: list[str]
    publish: bool = False


class EnginesReturned(_Message, frozen=True):
    """Every engine of the participant has written its files into the attempt."""

    call: _Number
    attempt: str


class Prepared(_Message, frozen=True):
    """Every file of the part is written, synced and closed."""

    call: _Number
    attempt: str
    part: PartReport
    digests: dict[str, dict[str, str]] = {}
    """Component and name of a set to the digest of what this participant holds of it."""


class Compared(_Message, frozen=True):
    """Answers a `Compare`."""

    call: _Number
    digests: dict[str, dict[str, dict[str, str]]]
    """Component, name of the set and path of a tensor or value to its digest."""
    amounts: dict[str, dict[str, str]] = {}
    """Component and path of a tensor that is not as written, to by how much, in words."""


class Failed(_Message, frozen=True):
    """The participant cannot contribute to a save."""

    call: _Number
    step: _Number
    phase: str
    cause: Failure
    publish: bool = False


class Goodbye(_Message, frozen=True):
    """The participant is done; it does not answer any more."""


class Proof(_Message, frozen=True):
    """Answers a `Challenge`: only who knows the token can make it."""

    digest: str


class Welcome(_Message, frozen=True):
    """The coordinator accepts this participant; also the answer to a goodbye."""


class Refused(_Message, frozen=True):
    """The coordinator refuses this participant and closes the connection."""

    kind: str
    message: str


class Write(_Message, frozen=True):
    """All participants captured: write your part into the attempt's staging folder."""

    call: _Number
    attempt: str
    staging: str
    nonce: str
    ordinal: _Number
    left_out: dict[str, str] = {}
    """Component that is not written, on no participant, to the reason."""


class Compare(_Message, frozen=True):
    """Tell the digests of these sets tensor by tensor, as they differ; compare what was written."""

    call: _Number
    sets: dict[str, list[str]]
    """Component to the names of its sets."""
    full: list[str] = []
    """Components of which what others wrote is compared with memory, element by element."""
    parts: dict[str, PartReport] = {}
    """All parts, in ordinal order, where there is something in `full`."""


class TakeInventory(_Message, frozen=True):
    """The engines of all participants have returned: sync, digest and list what they wrote."""

    call: _Number
    attempt: str


class Committed(_Message, frozen=True):
    """The step exists and is durable."""

    call: _Number
    attempt: str
    step: _Number
    manifest_sha256: str
    size_bytes: int | None = None
    """Bytes of all parts. Like the two below, for people, and None where nobody knows."""
    blocked_s: float | None = None
    """Longest time for which an owner was blocked."""
    committed_s: float | None = None
    """Time from the first call to the commit."""


class Aborted(_Message, frozen=True):
    """The attempt will never be committed."""

    call: _Number
    step: _Number
    kind: str
    message: str
    failures: dict[str, Failure]
    cause: Failure | None = None
    """The coordinator's own failure, if no participant failed."""


class Unresolved(_Message, frozen=True):
    """The coordinator does not know whether the step is durable; storage shows it later."""

    call: _Number
    attempt: str
    step: _Number
    message: str


Decided = Committed | Aborted | Unresolved
FromParticipant = (
    Hello
    | Challenge
    | Heartbeat
    | Captured
    | EnginesReturned
    | Prepared
    | Compared
    | Failed
    | RestoreCalled
    | Checked
    | Applied
    | Rejected
    | (SafePoint | SaveAsked | Fired | Progressed)
    | (Goodbye | Holds)
)
FromCoordinator = (
    Heartbeat
    | Proof
    | Welcome
    | Refused
    | Write
    | TakeInventory
    | Compare
    | Committed
    | Aborted
    | Unresolved
    | Candidate
    | Apply
    | (Restored | Fresh | RestoreFailed)
    | (Begin | Thaw | SaveAnswer)
    | ToRank
    | Dismiss
)
"""Any message of the coordinator."""

_encoder = msgspec.json.Encoder()
_participant_decoder = msgspec.json.Decoder(FromParticipant)
_coordinator_decoder = msgspec.json.Decoder(FromCoordinator)


def encode_message(message: FromParticipant | FromCoordinator) -> bytes:
    """Return the message as JSON."""
    if isinstance(message, Captured):
        metrics = {name: _jsonable(value) for name, value in message.metrics.items()}
        message = msgspec.structs.replace(message, metrics=metrics)
    return _encoder.encode(message)


def _jsonable(value: float | str) -> float | str:
    if isinstance(value, str):
        return value
    number = float(value)  # any number type, NumPy's too
    return number if math.isfinite(number) else str(number)


def decode_from_participant(data: bytes) -> FromParticipant:
    """Return the message a participant sent.

    Raises:
        InvalidInput: the bytes are not a message of this protocol.
    """
    message: FromParticipant = _decode(_participant_decoder, data)
    return message


def decode_from_coordinator(data: bytes) -> FromCoordinator:
    """Return the message the coordinator sent.

    Raises:
        InvalidInput: the bytes are not a message of this protocol.
    """
    message: FromCoordinator = _decode(_coordinator_decoder, data)
    return message


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:  # noqa: ANN401 - see callers
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        message = f"control plane: {len(data)} bytes are not a message of this protocol: {error}"
        raise errors.InvalidInput(message) from error
