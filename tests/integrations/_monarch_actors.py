"""Monarch actors for tests; the module needs Monarch."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from monarch.actor import Actor, endpoint

import stepseal as ss
from stepseal.integrations import monarch as ss_monarch

__all__ = ["AsyncBuffer", "Bare", "Trainer"]


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


class Trainer(ss_monarch.Actor, Actor):
    """One of a group of trainers, with sync endpoints."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.weights = Weights()
        self.ss = ss.Participant("trainer", rank=rank, size=size, cut=self._cut)
        self.ss.add("weights", self.weights, sharing=ss.PER_RANK)

    def _cut(self) -> dict[str, Any]:
        return {"watermark": self.weights.value}

    @endpoint
    def work(self, amount: int) -> int:
        self.weights.value += amount
        return self.weights.value

    @endpoint
    def die_in_the_next_capture(self) -> None:
        self.weights.dies = True


class AsyncBuffer(ss_monarch.Actor, Actor):
    """What the trainers read, with async endpoints that await in the middle of a change."""

    def __init__(self) -> None:
        self.first: list[int] = []
        self.second: list[int] = []
        self.ss = ss.Participant("buffer", cut=lambda: {"position": len(self.second)})
        self.ss.add("both", {"first": self.first, "second": self.second})

    @endpoint
    async def put(self, *samples: int) -> int:
        for sample in samples:
            self.first.append(sample)
            await asyncio.sleep(0)
            self.second.append(sample)
        return len(self.second)


class Bare(Actor):
    """An actor that does not inherit what it needs."""

    @endpoint
    def fail(self) -> None:
        raise ValueError("fails")
