"""Several hosts meet in one directory: who sees whose files, how late, and by which clock.

Each participant puts a token. Who sees the tokens of all says so with an answer that holds its
clock, and stays until it sees the answers of all. By our clock, an answer was written after our
token and before we saw it; a clock that says otherwise is off by at least the difference.

All names of one meeting lie in one folder. A participant removes its token when it leaves, and its
answer only if it gives up: answers stay until the last token is gone, so that nobody misses one.
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
    """It saw all, as far as we see."""
    clock_off_s: float
    """How far its clock is off ours at least; 0 if its times fit, or none is known."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """What one participant saw of the others."""

    me: str
    num_expected: int
    peers: tuple[Peer, ...]
    """Those whose token was seen, sorted by name."""
    delay_s: float | None
    """From when all were seen here until all had been seen to say the same; None: not all did."""


class _Visit:
    """One participant at work."""

    def __init__(self, storage: LocalStorage, folder: str, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._folder = folder
        self._clock = clock
        self._id = secrets.token_hex(8)
        self.me = f"{socket.gethostname()}:{os.getpid()}"
        self.tokens: dict[str, str] = {}
        """Identity of each participant, this one too, to its name."""
        self.answers: dict[str, float] = {}
        """Identity to how far its clock is off."""
        self._came_at = clock()

    def put(self, kind: str) -> None:
        """Make a file that holds our name and clock, whole at once."""
        data = json.dumps({"name": self.me, "clock": self._clock()}).encode()
        replace_durable(self._storage, f"{self._folder}/{kind}{self._id}", data)

    def look(self) -> None:
        """Read what is new."""
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
        """Remove our token, and all answers if nobody is left to read them."""
        self._remove(f"{_TOKEN}{self._id}")
        if gives_up:
            self._remove(f"{_ANSWER}{self._id}")
        names: list[str] = []
        with suppress(StorageUnavailable):  # whoever left last has removed the folder
            names = [entry.name for entry in self._storage.list_dir(self._folder)]
        if not any(name.startswith(_TOKEN) for name in names):
            for name in names:
                self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(StorageUnavailable):
            self._storage.remove_file(f"{self._folder}/{name}")

    def peers(self) -> tuple[Peer, ...]:
        """Return what is known of the others."""
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

    Every participant, each with the same arguments. Blocks.

    Args:
        path: the directory that all should see, existing.
        name: of this meeting, used once.
        num_participants: how many take part, this one too.
        timeout_s: seconds to wait for the others.
        access: whether it may be a directory in which others can change names.
        clock: this host's wall clock.

    Raises:
        RootNotFound: nothing is at `path`.
        InvalidInput: more participants than expected were met: the name was used before; or
            `access` refuses the directory.
        StorageUnavailable: refused.
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
