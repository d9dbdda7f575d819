"""What a participant is told when it is admitted: everything that it needs to take part."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from stepseal._version import __version__
from stepseal.errors import InvalidInput
from stepseal.protocol import Deadlines  # noqa: TC001 - the decoder needs it

__all__ = ["Admission"]


@dataclass(frozen=True, slots=True)
class Admission:
    """One life of a participant: made by the coordinator, handed over by the framework."""

    participant: str
    life: str
    """Random text that no other admission has."""
    root: str
    """Absolute path of the root."""
    host: str
    port: int
    """Where the coordinator listens."""
    token: str = field(repr=False)
    """Secret that the connection must show."""
    version: str
    """Release that the coordinator runs."""
    deadlines: Deadlines

    def encode(self) -> bytes:
        """Return it as JSON, for channels that carry bytes."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Admission:
        """Return an admission from its JSON.

        Raises:
            InvalidInput: the bytes are no admission.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError) as error:
            raise InvalidInput(f"{len(data)} bytes are not an admission: {error}") from error

    def check(self, participant: str) -> None:
        """Refuse an admission of somebody else, or by another release.

        Args:
            participant: who was handed this.

        Raises:
            InvalidInput: it is one.
        """
        if self.participant != participant:
            raise InvalidInput(
                f"{participant} was handed the admission of {self.participant}: is the list of "
                "actors in the order of their ranks?",
                participant=participant,
            )
        if self.version != __version__:
            raise InvalidInput(
                f"{participant} runs stepseal {__version__!r}: expected {self.version!r}, as the "
                "coordinator does. Install the same release everywhere.",
                participant=participant,
            )
