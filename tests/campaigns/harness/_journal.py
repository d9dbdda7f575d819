"""Shares of a long campaign that are done, kept in a file: who stops it may go on where it stopped.

One line of JSON per share. The first line names the code under test and the campaign by a digest of
their sources, because what was found of other code is no finding.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Journal", "sources"]

S = TypeVar("S", bound="Hashable")
R = TypeVar("R")

_HOUSE = Path(__file__).resolve().parents[3]


def sources() -> str:
    """Return a digest of the code under test and of all campaigns."""
    digest = hashlib.sha256()
    for folder in ("src", "tests/campaigns"):
        for path in sorted((_HOUSE / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(_HOUSE)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Journal(Generic[S, R]):
    """What came of the shares that are done.

    Args:
        path: the file, made if absent; None keeps nothing beyond this process.
        share: type of a share.
        report: type of what came of one.

    Raises:
        ValueError: the file is of other code.
    """

    def __init__(self, path: Path | None, share: type[S], report: type[R]) -> None:
        self.reports: dict[S, R] = {}
        self._path = path
        self._earlier_s = 0.0
        self._began = time.monotonic()
        if path is None:
            return
        if not path.exists():
            path.write_text(f"{sources()}\n")
        digest, *lines = path.read_bytes().split(b"\n")
        if digest.decode() != sources():
            raise ValueError(f"{path} is of other code; name another file, or remove it")
        whole = msgspec.json.Decoder(tuple[float, share, report])  # type: ignore[valid-type]
        for line in lines[:-1]:  # behind the last newline is nothing, or a torn line
            self._earlier_s, done, found = whole.decode(line)
            self.reports[done] = found
        path.write_bytes(b"".join(line + b"\n" for line in [digest, *lines[:-1]]))

    @property
    def seconds(self) -> float:
        """Seconds that all this took, in this run and those before it."""
        return self._earlier_s + time.monotonic() - self._began

    def add(self, share: S, report: R) -> None:
        """Note what came of a share."""
        self.reports[share] = report
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode((self.seconds, share, report)) + b"\n")
