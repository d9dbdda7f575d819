"""What a disk may hold after power was lost: which writes of a recording an image has.

Power is lost at some entry of the diary. All writes before the last flush until then are there. Of
the later ones all, none, a prefix, or any others may be, and one that is larger than a block may
be there in part: a disk may reorder within a flush window, and tears between blocks.
"""

from __future__ import annotations

import os
import random
from bisect import bisect_left
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from tests.campaigns.ext4._disk import FLUSH, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tests.campaigns.ext4._record import Recording
    from tests.campaigns.harness._log import Event

__all__ = ["BLOCK_BYTES", "Image", "build", "choose"]

BLOCK_BYTES = 4096
_ZEROS = bytes(BLOCK_BYTES)
_FORGOTTEN_FLUSHES = 8
_PROMISES = {"acknowledged", "branched"}
_RIGHT_AFTER_A_PROMISE = 0.3
"""Of all images: what was promised last is what is most easily lost."""


@dataclass(frozen=True)
class Image:
    """One state of the disk."""

    number: int
    """Together with the recording it says everything about the image."""
    flush: int
    """Entry until which all writes are there."""
    lost_at: int
    """Entry before which power was lost; their number, if after all."""
    pieces: tuple[tuple[int, int], ...]
    """Writes after the flush that are there, each an entry and a block of it, in order."""

    def events(self, recording: Recording) -> list[Event]:
        """Return what the job had been told when power was lost."""
        if self.lost_at == len(recording.entries):
            return [event for _, event in recording.events]
        position = recording.entries[self.lost_at][0]
        return [event for at, event in recording.events if at <= position]


def choose(recording: Recording, numbers: Iterable[int], *, lying: bool = False) -> Iterator[Image]:
    """Return images that differ, by their numbers.

    Args:
        recording: of which.
        numbers: which; those that equal an earlier one are left out.
        lying: for a disk that answers to a flush before it has carried it out.
    """
    entries = recording.entries
    first = next(n for n, entry in enumerate(entries) if entry[0] >= recording.mounted_at)
    flushes = [n for n, entry in enumerate(entries) if entry[1] == FLUSH and n >= first]
    moments = [*(at for at, event in recording.events if event.kind in _PROMISES)]
    seen = set()
    for number in numbers:
        chance = random.Random(f"image {number}")
        lost_at = chance.randint(first, len(entries))
        if chance.random() < _RIGHT_AFTER_A_PROMISE:
            moment = chance.choice(moments)
            lost_at = bisect_left(entries, moment, key=lambda entry: entry[0])
            lost_at = min(lost_at + chance.choice([0, 0, 1, 2]), len(entries))
        done = [first - 1, *flushes[: bisect_left(flushes, lost_at)]]
        flush = done[-_FORGOTTEN_FLUSHES:][0] if lying else done[-1]
        pending = [n for n in range(flush + 1, lost_at) if entries[n][1] == WRITE]
        image = Image(number, flush, lost_at, tuple(_survivors(recording, pending, chance)))
        state = (flush, image.pieces, len(image.events(recording)))
        if state not in seen:
            seen.add(state)
            yield image


def _survivors(
    recording: Recording, pending: list[int], chance: random.Random
) -> Iterator[tuple[int, int]]:
    """Choose which writes, and which blocks of them, reached the disk."""
    how = chance.choice(["all", "none", "half", "half", "all but one", "torn", "last only"])
    missing = chance.choice(pending) if pending else -1
    for entry in pending:
        num_blocks = -(-len(recording.entries[entry][3]) // BLOCK_BYTES)
        kept = {
            "all": True,
            "none": False,
            "half": chance.random() < 0.5,
            "all but one": entry != missing,
            "torn": True,
            "last only": entry == pending[-1],
        }[how]
        for block in range(num_blocks):
            if kept and (how != "torn" or chance.random() < 0.5):
                yield entry, block


def build(recording: Recording, images: Iterable[Image], path: Path) -> Iterator[Image]:
    """Write one image after the other to a file, and yield it while the file holds it.

    In the order of their flushes, so that what is common to them is put together once.
    """
    disk = _Disk(recording.size_bytes)
    done = 0
    ordered = sorted(images, key=lambda image: image.flush)
    for flush, same in groupby(ordered, key=lambda image: image.flush):
        for _, kind, offset, data in recording.entries[done : flush + 1]:
            if kind == WRITE:
                disk.write(offset, data)
        done = flush + 1
        for image in same:
            undo = disk.overlay(_pieces(recording, image))
            disk.dump(path)
            yield image
            undo()


def _pieces(recording: Recording, image: Image) -> Iterator[tuple[int, bytes]]:
    for entry, block in image.pieces:
        _, _, offset, data = recording.entries[entry]
        start = block * BLOCK_BYTES
        yield offset + start, data[start : start + BLOCK_BYTES]


class _Disk:
    """Bytes, and which blocks of them were ever written with something else than zeros."""

    def __init__(self, size_bytes: int) -> None:
        self._data = bytearray(size_bytes)
        self._used: set[int] = set()

    def write(self, offset: int, data: bytes) -> None:
        self._data[offset : offset + len(data)] = data
        for block in _blocks(offset, data):
            start = block * BLOCK_BYTES
            if self._data[start : start + BLOCK_BYTES] == _ZEROS:
                self._used.discard(block)
            else:
                self._used.add(block)

    def overlay(self, pieces: Iterable[tuple[int, bytes]]) -> Callable[[], None]:
        """Write for now; return what takes it back."""
        before: list[tuple[int, bytes]] = []
        for offset, data in pieces:
            before.append((offset, bytes(self._data[offset : offset + len(data)])))
            self.write(offset, data)

        def undo() -> None:
            for offset, data in reversed(before):
                self.write(offset, data)

        return undo

    def dump(self, path: Path) -> None:
        """Make a file hold exactly this, without blocks for zeros."""
        view = memoryview(self._data)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, len(view))
            for _, run in groupby(enumerate(sorted(self._used)), key=lambda at: at[1] - at[0]):
                blocks = [block for _, block in run]
                start, stop = blocks[0] * BLOCK_BYTES, (blocks[-1] + 1) * BLOCK_BYTES
                assert os.pwrite(fd, view[start:stop], start) == stop - start
        finally:
            os.close(fd)


def _blocks(offset: int, data: bytes) -> range:
    return range(offset // BLOCK_BYTES, -(-(offset + len(data)) // BLOCK_BYTES))
