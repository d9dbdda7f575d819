"""What the trainers share: a tiny engine, a crash, and the proof that the job went on exactly."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import stepseal as ss

__all__ = ["Crash", "Engine", "point", "pointed", "prove"]


class Crash(Exception):
    """Stands for whatever ends a job in the middle of a step."""


class Engine:
    """A model and an optimizer with momentum, so that weights alone are not enough to go on."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        self.model = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def step(self, samples: list[int]) -> None:
        """Train on some numbers."""
        batch = torch.tensor(samples, dtype=torch.float32).reshape(-1, 1).expand(-1, 3) / 10
        self.model(batch).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def frozen(self) -> dict[str, Any]:
        """Return a copy of the state, which training does not change."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return copy.deepcopy(state)

    def save_checkpoint(self, folder: str) -> None:
        """Write a file of its own below a folder, as engines do."""
        torch.save(self.frozen(), f"{folder}/engine.pt")

    def load_checkpoint(self, folder: str) -> None:
        """Read it back."""
        state = torch.load(f"{folder}/engine.pt")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def weights(self) -> list[float]:
        """Return the weights, to compare them."""
        return [round(value, 6) for p in self.model.parameters() for value in p.flatten().tolist()]


def point(path: str, commit: ss.Commit) -> None:
    """Name a commit in a file, whole, as other systems read it."""
    pathlib.Path(f"{path}.new").write_text(str(commit.step), "utf-8")
    pathlib.Path(f"{path}.new").replace(path)


def pointed(path: str) -> str:
    """Return what a pointer file says."""
    return f"{pathlib.Path(path).name}: {pathlib.Path(path).read_text('utf-8')}"


def prove(life: Callable[[str, int | None], Coroutine[Any, Any, list[float]]]) -> None:
    """Run a job with a crash and a restart, and one without; both must end alike.

    Args:
        life: runs the job on a folder from where it stands, until it ends or crashes at a step.
    """
    with tempfile.TemporaryDirectory() as calm, tempfile.TemporaryDirectory() as stormy:
        expected = asyncio.run(life(calm, None))
        with contextlib.suppress(Crash):
            asyncio.run(life(stormy, 5))
        print("crashed in step 5; the job starts again")
        found = asyncio.run(life(stormy, None))
        print(f"undisturbed: {expected}\nresumed:     {found}")
        if found != expected:
            raise SystemExit("the resumed job ended elsewhere")
        print("equal")
