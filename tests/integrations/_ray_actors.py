"""Ray actors for tests: plain classes, which the tests turn into actors."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import stepseal as ss
from stepseal.integrations import ray as ss_ray

__all__ = ["AsyncBuffer", "Bare", "Buffer", "Trainer"]


class Weights:
    """A component that may die in a capture."""

    def __init__(self) -> None:
        self.value = 0
        self.dies = False

    def state_dict(self) -> dict[str, Any]:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Trainer:
    """One of a group of trainers."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.weights = Weights()
        self.ss = ss.Participant("trainer", rank=rank, size=size, cut=self._cut)
        self.ss.add("weights", self.weights, sharing=ss.PER_RANK)

    def _cut(self) -> dict[str, Any]:
        return {"watermark": self.weights.value}

    def work(self, amount: int) -> int:
        self.weights.value += amount
        return self.weights.value

    def die_in_the_next_capture(self) -> None:
        self.weights.dies = True


class Buffer:
    """What the trainers read."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.ss = ss.Participant("buffer", cut=lambda: {"position": len(self.samples)})
        self.ss.add("samples", self.samples)

    def put(self, *samples: int) -> int:
        self.samples.extend(samples)
        return len(self.samples)

    def loaded(self) -> bool:
        """Return whether torch is loaded in the process of this actor."""
        return "torch" in sys.modules


class AsyncBuffer(ss_ray.AsyncActor):
    """A buffer whose methods await in the middle of a change."""

    def __init__(self) -> None:
        self.first: list[int] = []
        self.second: list[int] = []
        self.ss = ss.Participant("buffer", cut=lambda: {"position": len(self.second)})
        self.ss.add("both", {"first": self.first, "second": self.second})

    async def put(self, sample: int) -> int:
        self.first.append(sample)
        self.second.append(sample)
        await asyncio.sleep(0)
        return len(self.second)


class Bare:
    """An async actor that does not inherit what it needs."""

    def __init__(self) -> None:
        self.ss = ss.Participant("buffer")
        self.ss.add("samples", [])

    async def put(self) -> None: ...
