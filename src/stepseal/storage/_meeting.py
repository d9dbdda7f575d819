"""Several hosts meet in one directory: who sees whose files, how late, and by which clock.

Each participant creates a token that holds its clock, and answers every token that it sees with a
file that holds its own clock. So each learns three times of every other: when it wrote, when the
other saw it, and when it saw the answer. From these follow the delay there and back and how far the
clocks are apart, with an error of half that delay; no clock is trusted.

All names of one meeting lie in one folder. A participant leaves when all others have finished (or
have left), or at the deadline, and removes what it made; the last one removes the folder.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt, InvalidInput, StorageUnavailable
from stepseal.storage._access import DEFAULT_ACCESS
from stepseal.storage._compose import read_bytes
from stepseal.storage._local import LocalStorage
from stepseal.storage._probe import meeting_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage._access import Access

__all__ = ["Meeting", "Peer", "meet"]

_POLL_S = 0.02
_MAX_BYTES = 4096
_TOKEN, _SEEN, _DONE = "token", "seen", "done"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another participant of a meeting."""

    name: str
    """Host and process."""
    round_trip_s: float | None
    """Until its answer to our token was seen here; None: it never was."""
    clock_offset_s: float | None
    """Its clock minus ours."""
    clock_error_s: float | None
    """How far the offset may be off."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """What one participant saw of the others."""

    name: str
    me: str
    num_expected: int
    peers: tuple[Peer, ...]
    """Those whose token was seen, sorted by name."""
    waited_s: float

    @property
    def num_missing(self) -> int:
        """How many participants were never seen."""
        return self.num_expected - 1 - len(self.peers)

    @property
    def complete(self) -> bool:
        """All were seen, and all saw us."""
        return not self.num_missing and all(peer.round_trip_s is not None for peer in self.peers)


@dataclass(slots=True)
class _Sight:
    """What is known of one other participant so far."""

    name: str
    wrote_at: float
    answered_at: float | None = None
    """By its clock."""
    seen_at: float | None = None
    """By ours."""
    gone: bool = False


@dataclass(slots=True)
class _Visit:
    """One participant at work."""

    storage: LocalStorage
    folder: str
    clock: Callable[[], float]
    me: str = field(default_factory=lambda: secrets.token_hex(8))
    label: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    wrote_at: float = 0.0
    others: dict[str, _Sight] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def put(self, name: str) -> float:
        """Make a file that holds our name and clock, whole at once; return the clock."""
        now = self.clock()
        data = json.dumps({"name": self.label, "clock": now}).encode()
        hidden = f"{self.folder}/.{name}"
        self.made += [hidden, f"{self.folder}/{name}"]
        with self.storage.create_file(hidden) as handle:
            handle.write(data, 0)
            handle.sync()
        self.storage.rename(hidden, f"{self.folder}/{name}", replace=True)
        return now

    def look(self) -> None:
        """Answer new tokens, and take the answers to ours."""
        names = {entry.name for entry in self.storage.list_dir(self.folder)}
        for name in sorted(names):
            kind, _, rest = name.partition("-")
            if kind == _TOKEN and rest not in {self.me, *self.others}:
                self._greet(rest)
        for other, sight in self.others.items():
            answer = f"{_SEEN}-{self.me}-{other}"
            if sight.seen_at is None and answer in names and (found := self._read(answer)):
                sight.answered_at, sight.seen_at = found[1], self.clock()
            done = f"{_DONE}-{other}" in names or f"{_TOKEN}-{other}" not in names
            sight.gone = sight.gone or done

    def _greet(self, other: str) -> None:
        found = self._read(f"{_TOKEN}-{other}")
        if found is not None:
            self.put(f"{_SEEN}-{other}-{self.me}")
            self.others[other] = _Sight(found[0], found[1])

    def _read(self, name: str) -> tuple[str, float] | None:
        try:
            found = json.loads(read_bytes(self.storage, f"{self.folder}/{name}", _MAX_BYTES))
            return str(found["name"]), float(found["clock"])
        except (FileNotFoundError, StorageUnavailable, Corrupt, ValueError, KeyError, TypeError):
            return None  # seen in the listing and not yet readable: at the next look

    def leave(self) -> None:
        """Remove all that was made."""
        for key in self.made:
            with suppress(StorageUnavailable):
                self.storage.remove_file(key)

    def peers(self) -> tuple[Peer, ...]:
        """Return what came out."""
        found = []
        for sight in self.others.values():
            if sight.seen_at is None or sight.answered_at is None:
                found.append(Peer(sight.name, None, None, None))
                continue
            trip_s = sight.seen_at - self.wrote_at
            offset_s = sight.answered_at - (self.wrote_at + sight.seen_at) / 2
            found.append(Peer(sight.name, trip_s, offset_s, trip_s / 2))
        return tuple(sorted(found, key=lambda peer: peer.name))


def meet(
    path: str,
    name: str,
    *,
    num_participants: int,
    timeout_s: float,
    home: str = "",
    access: Access = DEFAULT_ACCESS,
    clock: Callable[[], float] = time.time,
) -> Meeting:
    """Wait until all participants have seen each other, at most `timeout_s`.

    Every participant, each with the same arguments. Blocks.

    Args:
        path: the directory that all should see, existing.
        name: of this meeting, used once.
        num_participants: how many take part, this one too.
        timeout_s: seconds to wait for the others.
        home: key of the folder to meet in, as `probe` has it.
        access: whether it may be a directory in which others can change names.
        clock: this host's wall clock.

    Raises:
        RootNotFound: nothing is at `path`.
        InvalidInput: more participants than expected were met: the name was used before; or
            `access` refuses the directory.
        StorageUnavailable: refused.
    """
    started = time.monotonic()
    deadline = started + timeout_s
    with (
        LocalStorage.open(path, access=access) as storage,
        meeting_folder(storage, home, name) as folder,
    ):
        visit = _Visit(storage, folder, clock)
        try:
            visit.wrote_at = visit.put(f"{_TOKEN}-{visit.me}")
            finished = False
            while time.monotonic() < deadline:
                visit.look()
                if len(visit.others) >= num_participants:
                    raise InvalidInput(
                        f"meeting {name!r} at {path}: expected {num_participants} participants, "
                        f"found {len(visit.others) + 1}. Choose a name that was not used before.",
                    )
                found = Meeting(
                    name, visit.label, num_participants, visit.peers(), time.monotonic() - started
                )
                if found.complete and not finished:
                    finished = True
                    visit.put(f"{_DONE}-{visit.me}")
                if finished and all(sight.gone for sight in visit.others.values()):
                    return found
                time.sleep(_POLL_S)
            waited_s = time.monotonic() - started
            return Meeting(name, visit.label, num_participants, visit.peers(), waited_s)
        finally:
            visit.leave()
