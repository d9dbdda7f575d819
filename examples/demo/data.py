"""Real text that every machine with Python has, and a loader that knows where it stands.

The text is the sources and documents of Python's standard library, read as bytes.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ByteLoader", "read_library"]

_SUFFIXES = (".py", ".txt", ".rst")
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "encodings", "__pycache__"}
"""Not the library itself, or tables rather than text."""


def read_library(max_bytes: int = 16 << 20, folder: Path | None = None) -> Tensor:
    """Return the text of the standard library as one uint8 tensor, the same on every call.

    Args:
        max_bytes: stop here; files are taken in the order of their names.
        folder: where to look; None takes the standard library of this Python.
    """
    found = bytearray()
    for path in _texts(folder or Path(sysconfig.get_path("stdlib"))):
        found += path.read_bytes()
        if len(found) >= max_bytes:
            break
    return torch.frombuffer(found[:max_bytes], dtype=torch.uint8)


def _texts(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        yield from (Path(where, name) for name in sorted(files) if name.endswith(_SUFFIXES))


class ByteLoader:
    """Deals out windows of a text, shuffled anew in each epoch; no two ranks get the same window.

    Its state is three numbers, so that a restored loader goes on with the very next window.
    """

    def __init__(
        self, text: Tensor, context: int, batch: int, *, rank: int, num_ranks: int, seed: int
    ) -> None:
        self._text = text
        self._context = context
        self._batch = batch
        self._rank, self._num_ranks = rank, num_ranks
        self._seed = seed
        self.epoch = 0
        self.position = 0
        """Windows that this rank has had in this epoch."""
        self._order = self._shuffle()
        if len(self._order) < batch:
            raise ValueError(f"text: expected {batch} windows per rank, found {len(self._order)}")

    def next_batch(self) -> Tensor:
        """Return the next windows, int64 [batch, context + 1]."""
        if self.position + self._batch > len(self._order):
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._shuffle()
        windows = self._order[self.position : self.position + self._batch]
        self.position += self._batch
        starts = windows[:, None] * self._context
        return self._text[starts + torch.arange(self._context + 1)].long()

    def state_dict(self) -> dict[str, int]:
        """Return where this rank stands."""
        return {"seed": self._seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._seed, self.epoch = state["seed"], state["epoch"]
        self.position = state["position"]
        self._order = self._shuffle()

    def _shuffle(self) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed + self.epoch)
        num_windows = (len(self._text) - 1) // self._context
        return torch.randperm(num_windows, generator=generator)[self._rank :: self._num_ranks]
