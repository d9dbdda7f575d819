"""Shows readers of publications that the publisher lives: a file whose name changes while it does.

A reader sees only the file system, perhaps from another host. So the coordinator of a life that has
published renames a file every `BEAT_S` seconds, and renames it a last time when it ends. A reader
takes a publisher for lost when the name has not changed for `LOST_S`, of which only the time counts
in which the reader ran and looked: both may have been suspended, and clocks of two hosts are never
compared. A newer claim shows that another life owns the root, which may not have published yet.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from typing import TYPE_CHECKING, Literal

from stepseal.errors import CheckpointError
from stepseal.layout import CONTROL, seal
from stepseal.process import OwnTime, start_thread
from stepseal.steps._claims import highest_claim
from stepseal.storage import KeyNotFound, make_dirs

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage

__all__ = ["BEAT_S", "LOST_S", "PUBLISHERS", "PublisherWatch", "PublishingLife", "drop_older"]

PUBLISHERS = f"{CONTROL}/publishers"
"""One file per life that has published."""
BEAT_S = 10.0
"""Seconds between two changes of the name."""
LOST_S = 90.0
"""Seconds without a change after which a publisher counts as lost: a listing over NFS may be a
minute old."""
_LOOK_S = 5.0
"""Seconds that count at most between two looks of a reader."""
_NAME = re.compile(r"([1-9][0-9]{0,15})\.([0-9a-f]{8}|closed)\.json")
_log = logging.getLogger("stepseal")


class PublishingLife:
    """Shows that a life of the job publishes, from `start` to `close`.

    Args:
        storage: the root.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._key = ""
        self._count = 0
        self._incarnation = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, incarnation: int) -> None:
        """Create the file of an incarnation and begin to change its name. Idempotent.

        The file of an older incarnation of this process is left to the sweep.

        Raises:
            StorageUnavailable: the storage refused.
            ParticipantFailed: the thread that changes it cannot be had.

        Durability: none; a publisher does not survive a power loss of its host either.
        """
        if incarnation == self._incarnation:
            return
        self._stop()
        over = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(over,), name="stepseal-publisher", daemon=True
        )
        start_thread(thread)
        self._over, self._thread = over, thread
        try:
            self._create(incarnation)
        except BaseException:
            self._stop()
            raise

    def _create(self, incarnation: int) -> None:
        make_dirs(self._storage, PUBLISHERS, base=CONTROL)
        key = f"{PUBLISHERS}/{incarnation}.{0:08x}.json"
        body = {"incarnation": incarnation, "host": socket.gethostname(), "pid": os.getpid()}
        with self._storage.create_file(key) as handle:
            handle.write(seal(body), 0)
        self._incarnation, self._key, self._count = incarnation, key, 0

    def _run(self, over: threading.Event) -> None:
        while not over.wait(BEAT_S):
            if not self.beat():
                return

    def beat(self) -> bool:
        """Change the name once; False if a newer life has removed the file."""
        self._count = (self._count + 1) % 2**32
        return self._rename(f"{self._count:08x}")

    def _rename(self, word: str) -> bool:
        key = f"{PUBLISHERS}/{self._incarnation}.{word}.json"
        try:
            self._storage.rename(self._key, key)
        except KeyNotFound:
            return False
        except CheckpointError as error:
            _log.warning("stepseal: readers may take this publisher for lost: %s", error)
            return True
        self._key = key
        return True

    def close(self) -> None:
        """Show that this life ended as it should; does nothing if it never published."""
        if self._stop():
            self._rename("closed")

    def _stop(self) -> bool:
        """End the thread; False if there is none."""
        thread, self._thread = self._thread, None
        if thread is None:
            return False
        self._over.set()
        thread.join()
        return True


class PublisherWatch:
    """What a reader knows of the publisher, over several looks.

    Args:
        storage: the root.
        clock: seconds in which this process ran and looked; None takes its own.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float] | None = None) -> None:
        self._storage = storage
        self._clock = clock or OwnTime(_LOOK_S)
        self._seen: tuple[int, str] | None = None
        self._since_s = 0.0
        self._lived = 0
        """Incarnation of the publisher that was seen to live."""

    def look(self) -> Literal["unknown", "alive", "finished", "lost"]:
        """Return what the newest life of the job shows now.

        `unknown`: it has not published yet, or ended before this watch began, and a new one may be
        starting. `finished`: it was closed.

        Raises:
            StorageUnavailable: the storage refused.
        """
        newest = self._newest()
        if newest is None or newest[0] < highest_claim(self._storage):
            self._seen = None
            return "unknown"
        now_s = self._clock()
        if newest != self._seen:
            if self._seen is not None and self._seen[0] == newest[0]:
                self._lived = newest[0]
            self._seen, self._since_s = newest, now_s
        is_late = now_s - self._since_s >= LOST_S
        if newest[1] == "closed":
            return "finished" if is_late or self._lived == newest[0] else "unknown"
        return "lost" if is_late else "alive"

    def _newest(self) -> tuple[int, str] | None:
        try:
            entries = self._storage.list_dir(PUBLISHERS)
        except KeyNotFound:
            return None
        matches = [m for entry in entries if (m := _NAME.fullmatch(entry.name))]
        return max(((int(m[1]), m[2]) for m in matches), default=None)


def drop_older(storage: Storage, incarnation: int) -> None:
    """Remove the files of lives before this one.

    Raises:
        StorageUnavailable: the storage refused.
    """
    try:
        entries = storage.list_dir(PUBLISHERS)
    except KeyNotFound:
        return
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match is not None and int(match[1]) < incarnation:
            try:
                storage.remove_file(f"{PUBLISHERS}/{entry.name}")
            except KeyNotFound:
                continue  # its publisher has just renamed it; the next sweep removes it
