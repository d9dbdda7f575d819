"""Owners of components for tests: trainers, a buffer that they read, and a data source."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tests.protocol._conversations import PATIENT

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

__all__ = ["MADE", "Buffer", "Dataset", "Trainer", "coordinator", "live", "participant"]

T = TypeVar("T")
MADE: list[ss.Participant] = []
"""Participants that a test made and that must be closed after it."""


def participant(role: str, **options: Any) -> ss.Participant:  # noqa: ANN401
    """Return a participant that is closed after the test."""
    MADE.append(ss.Participant(role, **options))
    return MADE[-1]


class Trainer:
    """Trains on what the buffer holds; `watermark` says up to where."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.model = torch.nn.Linear(3, 2)
        self.watermark = 0
        self.own = {"rank": rank, "drawn": 0}
        self.ss = participant("trainer", rank=rank, size=size, cut=self.cut)
        self.ss.add("model", self.model, sharing=ss.REPLICATED)
        self.ss.add("own", self.own, sharing=ss.PER_RANK)

    def cut(self) -> dict[str, int]:
        return {"watermark": self.watermark}

    def fill(self, value: float) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(value)
        self.own["drawn"] = int(value)

    def holds(self) -> float:
        values = {one for p in self.model.parameters() for one in p.flatten().tolist()}
        (value,) = values
        assert value == self.own["drawn"]
        return float(value)


class Buffer:
    """Holds samples; `position` counts them."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.ss = participant("buffer", cut=lambda: {"position": len(self.samples)})
        self.ss.add("buffer", (lambda: {"samples": list(self.samples)}, self._put), kind="tree")

    def _put(self, state: dict[str, Any]) -> None:
        self.samples = list(state["samples"])


class Dataset:
    """Has only two endpoints, which answer later, as actors do."""

    def __init__(self) -> None:
        self.state = {"index": 0}

    async def state_dict(self) -> dict[str, int]:
        await asyncio.sleep(0)
        return dict(self.state)

    async def load_state_dict(self, state: dict[str, int]) -> None:
        await asyncio.sleep(0)
        self.state = dict(state)


def coordinator(root: Path, **options: Any) -> ss.Coordinator:  # noqa: ANN401
    """Return a coordinator of trainers, a buffer and a data source."""
    usual: dict[str, Any] = {
        "order": ("trainer", "buffer", "dataset"),
        "relations": ("watermark <= position",),
        "deadlines": PATIENT,
    }
    return ss.Coordinator(root, **(usual | options))


def live(work: Coroutine[Any, Any, T]) -> T:
    """Run a controller's life to its end."""
    return asyncio.run(work)
