"""What every participant's state is at a step of a life: known beforehand, and read back from live
objects and from storage in one form."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import stepseal as ss
from stepseal.storage import read_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Replica", "digest_of", "expected_step", "names", "stored_step"]

Values = dict[str, Any]
_NEVER = 9  # a life and a step that no job reaches


def names(world: int) -> tuple[str, ...]:
    """Return all participant ids."""
    return tuple(f"trainer/{rank}" for rank in range(world))


class Replica:
    """The live objects of one participant.

    Sizes on storage do not depend on life or step, so that nothing but digests tells them apart.

    Args:
        rank: whose.
        engine: whether it has an engine, too, that writes a file per rank.
    """

    def __init__(self, rank: int, *, engine: bool = False) -> None:
        self.rank = rank
        self._has_engine = engine
        self._in_engine = ""
        self.model = torch.nn.Linear(4, 3)
        self.cursor: dict[str, Any] = {}
        self.counters: dict[str, Any] = {}
        self.fill(_NEVER, _NEVER)

    def add_to(self, checkpointer: ss.Checkpointer) -> None:
        """Make all of it part of every step."""
        checkpointer.add("model", self.model, sharing=ss.REPLICATED)
        checkpointer.add("cursor", self.cursor, sharing=ss.PER_RANK)
        checkpointer.add("counters", self.counters, sharing=ss.GLOBAL)
        if self._has_engine:
            checkpointer.add("engine", ss.External(save=self._save, load=self._load))

    def _save(self, folder: str) -> None:
        Path(folder, _engine_file(self.rank)).write_text(self._in_engine)

    def _load(self, folder: str) -> None:
        self._in_engine = Path(folder, _engine_file(self.rank)).read_text()

    def fill(self, life: int, step: int) -> None:
        """Take the state of `step` in `life`."""
        wanted = _expected(life, step, self.rank)
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor(wanted["model"]["weight"]))
            self.model.bias.copy_(torch.tensor(wanted["model"]["bias"]))
        cursor = dict(wanted["cursor"], seen=torch.tensor(wanted["cursor"]["seen"]))
        self.cursor.clear()
        self.cursor.update(cursor)
        self.counters.clear()
        self.counters.update(wanted["counters"])
        self._in_engine = _in_engine(life, step, self.rank)

    def differs_from(self, life: int, step: int) -> str:
        """Return in words how the live state differs from that of `step` in `life`, or nothing."""
        model = {"weight": self.model.weight.tolist(), "bias": self.model.bias.tolist()}
        cursor, counters = _plain(self.cursor), self.counters
        found: Values = {"model": model, "cursor": cursor, "counters": counters}
        wanted = _expected(life, step, self.rank)
        if self._has_engine:
            found["engine"], wanted["engine"] = self._in_engine, _in_engine(life, step, self.rank)
        return "" if found == wanted else f"rank {self.rank}: expected {wanted}, found {found}"


def _expected(life: int, step: int, rank: int) -> Values:
    seed = 1000 * life + step
    return {
        "model": {
            "weight": [[float(seed + 4 * row + column) for column in range(4)] for row in range(3)],
            "bias": [float(seed - row) for row in range(3)],
        },
        "cursor": {"rank": rank, "life": life, "step": step, "seen": [seed * 10 + rank] * 7},
        "counters": {"life": life, "step": step, "shuffle": f"{seed:06d}"},
    }


def _engine_file(rank: int) -> str:
    return f"rank_{rank:05}.bin"


def _in_engine(life: int, step: int, rank: int) -> str:
    return f"life {life:05}, step {step:05}, rank {rank:05}"


def expected_step(
    life: int, step: int, participants: Sequence[str], *, engine: bool = False
) -> Values:
    """Return what a whole step must hold."""
    each = {name: _expected(life, step, rank) for rank, name in enumerate(participants)}
    first = each[participants[0]]
    cursors = {name: values["cursor"] for name, values in each.items()}
    found = {"model": first["model"], "cursor": cursors, "counters": first["counters"]}
    if engine:
        found["engine"] = [_in_engine(life, step, rank) for rank in range(len(participants))]
    return found


def stored_step(step: ss.Step) -> Values:
    """Read a whole step from storage, in the form of `expected_step`."""
    cursors = {name: _plain(step.value("cursor", name)) for name in step.manifest.participants}
    model = {name: tensor.tolist() for name, tensor in step.tensors("*").items()}
    found = {"model": model, "cursor": cursors, "counters": step.value("counters")}
    if any(component.kind == "external" for component in step.manifest.components):
        ranks = range(len(step.manifest.participants))
        keys = [f"{step._key}/external/engine/{_engine_file(rank)}" for rank in ranks]
        found["engine"] = [read_bytes(step._storage, key, 100).decode() for key in keys]
    return found


def digest_of(values: Values) -> str:
    """Return a short digest for the log."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _plain(values: Values) -> Values:
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
