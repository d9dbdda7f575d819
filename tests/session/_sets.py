"""A job whose state is equal on the ranks of a set: what the tests of sets of ranks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import stepseal as ss
from stepseal.errors import CheckpointError
from stepseal.testing import World

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stepseal.components import DeclaredSharing
    from stepseal.testing import MemoryStorage

GROUPS = [[0, 2], [1, 3]]
"""Of four ranks on a mesh (dp=2, tp=2): equal along dp, different along tp."""
QUICK = ss.Deadlines(
    connect_s=20, capture_s=20, write_s=20, commit_s=20, check_s=20, apply_s=20, close_s=5
)


class Live:
    """A tree, a module and its optimizer, all of one value."""

    def __init__(self, value: float = 0.0) -> None:
        self.tree: dict[str, Any] = {"value": 0.0, "table": torch.zeros(3)}
        self.module = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1, momentum=0.9)
        self.fill(value)

    def fill(self, value: float) -> None:
        """Take the state that belongs to a value."""
        self.tree["value"] = value
        with torch.no_grad():
            for tensor in (self.tree["table"], *self.module.parameters()):
                tensor.fill_(value)
        for parameter in self.module.parameters():
            momentum = torch.full_like(parameter, value)
            self.optimizer.state[parameter] = {"momentum_buffer": momentum}

    def values(self) -> set[float]:
        """Return every value in it; one if it is of one value."""
        state = [one["momentum_buffer"] for one in self.optimizer.state.values()]
        tensors = [self.tree["table"], *self.module.parameters(), *state]
        return {self.tree["value"], *(x for t in tensors for x in t.detach().flatten().tolist())}

    def add_to(self, ckpt: ss.Checkpointer, sharing: Any, **options: Any) -> None:  # noqa: ANN401
        """Add all three with one sharing."""
        for name in ("tree", "module", "optimizer"):
            ckpt.add(name, getattr(self, name), sharing=sharing, **options)


def in_world(
    num: int,
    storage: MemoryStorage,
    work: Callable[[int, ss.Checkpointer], Any],
    nodes: Sequence[int] | None = None,
) -> list[Any]:
    """Return per rank what `work` returned or raised, in a life of its own."""

    def one(rank: int, ckpt: ss.Checkpointer) -> Any:  # noqa: ANN401 - its own
        try:
            with ckpt:
                return work(rank, ckpt)
        except CheckpointError as error:
            return error

    return World(num, lambda _: storage, deadlines=QUICK, nodes=nodes).run(one)


def save(
    storage: MemoryStorage,
    sharing: DeclaredSharing | Mapping[int, Any] | None,
    values: Sequence[float],
    *,
    step: int = 1,
    nodes: Sequence[int] | None = None,
) -> list[Any]:
    """Save state of a value per rank as one step; return per rank None or the error."""

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        declared = sharing[rank] if isinstance(sharing, dict) else sharing
        Live(values[rank]).add_to(ckpt, declared)
        if step > 1:
            ckpt.restore(policies=dict.fromkeys(("tree", "module", "optimizer"), "skip"))
        ckpt.save(step).wait()

    return in_world(len(values), storage, work, nodes)


def restored(
    storage: MemoryStorage,
    sharing: Any,  # noqa: ANN401 - by rank, or for all
    num: int,
    *,
    nodes: Sequence[int] | None = None,
    **options: Any,  # noqa: ANN401 - of add
) -> list[Any]:
    """Return per rank the value that it restored, or the error after which nothing changed."""

    def work(rank: int, ckpt: ss.Checkpointer) -> set[float] | CheckpointError:
        live = Live(-1.0)
        live.add_to(ckpt, sharing[rank] if isinstance(sharing, dict) else sharing, **options)
        try:
            ckpt.restore()
        except CheckpointError as error:
            assert live.values() == {-1.0}
            return error
        return live.values()

    return in_world(num, storage, work, nodes)
