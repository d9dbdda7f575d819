"""A meeting of several hosts in one directory: which files each sees, how late, and clock offsets.

Each participant creates a token file. A participant that sees all tokens writes an answer with the
time of its clock, and stays until it sees all answers. By our clock, a peer wrote its answer after
our token and before we saw the answer; if the answer's time is outside this range, the peer's clock
is off by at least the difference.

All files of one meeting are in one folder. A participant removes its token when it leaves. It
removes its answer only if it gives up: answers stay until the last token is gone, so that every
participant can read them.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.doctor._folder import work_folder
from stepseal.errors import Corrupt, InvalidInput, StorageUnavailable
from stepseal.storage import Access, LocalStorage, read_bytes, replace_durable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Meeting", "Peer", "meet"]

_POLL_S = 0.02
_MAX_BYTES = 4096
_TOKEN, _ANSWER = "token-", "answer-"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another participant of a meeting."""

    name: str
    """Host and process."""
    answered: bool
    """We saw its answer, so it saw all participants."""
    clock_off_s: float
    """Smallest possible offset of its clock from ours; 0 if its times fit or are not known."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """What one participant saw of the others."""

    me: str
    num_expected: int
    peers: tuple[Peer, ...]
    """Participants whose token we saw, sorted by name."""
    delay_s: float | None
    """Seconds between seeing all tokens and seeing all answers; None if an answer is missing."""


class _Visit:
    """State of this participant during a meeting."""

    def __init__(self, storage: LocalStorage, folder: str, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._folder = folder
        self._clock = clock
        self._id = secrets.token_hex(8)
        self.me = f"{socket.gethostname()}:{os.getpid()}"
        self.tokens: dict[str, str] = {}
        """Identity of each participant, including this one, to its name."""
        self.answers: dict[str, float] = {}
        """Identity to the smallest possible offset of its clock."""
        self._came_at = clock()

    def put(self, kind: str) -> None:
        """Create a file with our name and clock atomically."""
        data = json.dumps({"name": self.me, "clock": self._clock()}).encode()
        replace_durable(self._storage, f"{self._folder}/{kind}{self._id}", data)

    def look(self) -> None:
        """Read new files."""
        for entry in self._storage.list_dir(self._folder):
            kind, _, identity = entry.name.partition("-")
            known = self.tokens if f"{kind}-" == _TOKEN else self.answers
            if f"{kind}-" not in {_TOKEN, _ANSWER} or identity in known:
                continue
            try:
                data = read_bytes(self._storage, f"{self._folder}/{entry.name}", _MAX_BYTES)
                found = json.loads(data)
                name, at = str(found["name"]), float(found["clock"])
            except (StorageUnavailable, Corrupt, ValueError, KeyError, TypeError):
                continue  # listed and not yet readable: at the next look
            if f"{kind}-" == _TOKEN:
                self.tokens[identity] = name
            else:
                self.answers[identity] = at - min(max(at, self._came_at), self._clock())

    def leave(self, *, gives_up: bool) -> None:
        """Remove our token, and all answers if no token is left."""
        self._remove(f"{_TOKEN}{self._id}")
        if gives_up:
            self._remove(f"{_ANSWER}{self._id}")
        names: list[str] = []
        with suppress(StorageUnavailable):  # the last participant has removed the folder
            names = [entry.name for entry in self._storage.list_dir(self._folder)]
        if not any(name.startswith(_TOKEN) for name in names):
            for name in names:
                self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(StorageUnavailable):
            self._storage.remove_file(f"{self._folder}/{name}")

    def peers(self) -> tuple[Peer, ...]:
        """Return the other participants that were seen."""
        found = [
            Peer(name, other in self.answers, self.answers.get(other, 0.0))
            for other, name in self.tokens.items()
            if other != self._id
        ]
        return tuple(sorted(found, key=lambda peer: peer.name))


def meet(
    path: str,
    name: str,
    *,
    num_participants: int,
    timeout_s: float,
    access: Access | None = None,
    clock: Callable[[], float] = time.time,
) -> Meeting:
    """Wait until all participants have seen each other, at most `timeout_s`.

    Every participant calls it with the same arguments. Blocks.

    Args:
        path: an existing directory that all participants should see.
        name: name of the meeting, never used before.
        num_participants: number of participants, including this one.
        timeout_s: seconds to wait for the others.
        access: whether other users may be able to change names in the directory.
        clock: this host's wall clock.

    Raises:
        RootNotFound: `path` does not exist.
        InvalidInput: there are more participants than expected, so the name was used before; or
            `access` refuses the directory.
        StorageUnavailable: the storage refused an operation.
    """
    deadline = time.monotonic() + timeout_s
    with (
        LocalStorage.open(path, access=access or Access()) as storage,
        work_folder(storage, f"meet-{name}") as folder,
    ):
        visit = _Visit(storage, folder, clock)
        delay_s: float | None = None
        try:
            delay_s = _wait_for_all(visit, name, num_participants, deadline)
        finally:
            visit.leave(gives_up=delay_s is None)
        return Meeting(visit.me, num_participants, visit.peers(), delay_s)


def _wait_for_all(visit: _Visit, name: str, num_expected: int, deadline: float) -> float | None:
    visit.put(_TOKEN)
    all_seen_at: float | None = None
    while time.monotonic() < deadline:
        visit.look()
        if len(visit.tokens) > num_expected:
            raise InvalidInput(
                f"meeting {name!r}: expected {num_expected} participants, found "
                f"{len(visit.tokens)}. Choose a name that was not used before.",
            )
        if len(visit.tokens) == num_expected and all_seen_at is None:
            all_seen_at = time.monotonic()
            visit.put(_ANSWER)
        if all_seen_at is not None and visit.answers.keys() >= visit.tokens.keys():
            return time.monotonic() - all_seen_at
        time.sleep(_POLL_S)
    return None
