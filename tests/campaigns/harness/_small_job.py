"""A small job of two participants with state of every kind, its saved steps, and ways to harm them.

Both participants live in this process, each with live objects of its own, so that what a restore
brings back is compared bit for bit with what was saved.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

import stepseal as ss
from stepseal.errors import CheckpointError
from stepseal.layout import CHUNK_BYTES, StoredItem
from stepseal.steps._catalog import read_marker, read_step
from stepseal.storage import LocalStorage
from stepseal.testing import World, find_difference, snapshot
from stepseal.transfer import StepReader, verify_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.session import Restored
    from stepseal.storage import Storage

T = TypeVar("T")

STEPS = (10, 20, 30)
NEWEST = "step-30"
NUM_PARTICIPANTS = 2
QUICK = ss.Deadlines(
    connect_s=20, capture_s=20, write_s=20, commit_s=20, check_s=20, apply_s=20, close_s=5
)
_DTYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool,
    torch.uint8, torch.int16, torch.int64,
)  # fmt: skip


_LARGE = 5 * (1 << 19) + 4
"""Elements of 1 byte: two whole chunks, and a piece of one."""


class _Net(nn.Module):
    def __init__(self, seed: int, *, large: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(96, 64)
        self.second = nn.Linear(64, 5, dtype=torch.bfloat16)
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator).to(parameter.dtype)
        for dtype in _DTYPES:
            values = (torch.rand(3, 7, generator=generator) * 100).to(dtype)
            self.register_buffer(f"of_{str(dtype).removeprefix('torch.')}", values)
        if large:
            self.register_buffer("large", torch.zeros(_LARGE, dtype=torch.uint8))
        self.register_buffer("empty", torch.empty(0, 4))
        self.register_buffer("scalar", torch.tensor(float("nan")))


class Participant:
    """The live objects of one participant; all state follows from `rank` and what it was taught.

    The files of all steps have the same sizes, so that nothing but digests tells them apart.
    """

    def __init__(self, rank: int, *, large: bool = False) -> None:
        self.model = _Net(seed=7, large=large)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.counters: dict[str, Any] = {"seen": 0, "best": float("inf"), "name": "run"}
        self.loader: dict[str, Any] = {
            "order": [3 - rank, 1, 2],
            "window": torch.arange(6 + rank, dtype=torch.int32),
            "noise": torch.zeros(5, dtype=torch.bfloat16),
            "nested": {"rank": rank, 4: (None, True, b"\x00\xff")},
        }
        if large:
            self.loader["large"] = torch.zeros(_LARGE, dtype=torch.uint8)

    def add_to(self, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("model", self.model)
        checkpointer.add("optimizer", self.optimizer)
        checkpointer.add("lr_scheduler", self.scheduler)
        checkpointer.add("counters", self.counters, sharing=ss.REPLICATED)
        checkpointer.add("loader", self.loader, sharing=ss.PER_RANK)

    def train(self, step: int, salt: int = 0) -> None:
        generator = torch.Generator().manual_seed(step + salt)
        for parameter in self.model.parameters():
            parameter.grad = torch.rand(parameter.shape, generator=generator).to(parameter.dtype)
        for buffer in self.model.buffers():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 100)
        self.optimizer.step()
        self.scheduler.step()
        self.counters |= {"seen": step * 1000 + salt, "best": step + 0.5}
        self.loader["noise"].copy_(torch.rand(5, generator=generator))
        self.loader["order"][-1] = step
        if "large" in self.loader:
            self.loader["large"].random_(generator=generator)

    def scramble(self) -> None:
        """Leave state that no restored step would have anywhere."""
        with torch.no_grad():
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                tensor.fill_(1)
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    tensor.fill_(1)
        self.optimizer.param_groups[0]["lr"] = -1.0
        self.scheduler.last_epoch = -5
        self.counters.clear()
        self.counters["seen"] = -1
        self.loader.clear()
        self.loader["order"] = []

    def state(self) -> dict[str, Any]:
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        state = {
            "model": dict(self.model.state_dict()),
            "optimizer": [dict(self.optimizer.state.get(p, {})) for p in self.model.parameters()],
            "groups": groups,
            "lr_scheduler": self.scheduler.state_dict(),
            "counters": self.counters,
            "loader": self.loader,
        }
        found: dict[str, Any] = snapshot(state)
        return found


class Life:
    """One incarnation of the job; every call is made by all participants at once.

    Args:
        storage: of each participant, by rank.
        large: the state has a tensor and an array of several chunks.
    """

    def __init__(self, storage: Callable[[int], Storage], *, large: bool = False) -> None:
        world = World(NUM_PARTICIPANTS, storage, deadlines=QUICK)
        self.participants = [Participant(rank, large=large) for rank in range(NUM_PARTICIPANTS)]
        self._pool = ThreadPoolExecutor(NUM_PARTICIPANTS)
        self._checkpointers = [world.checkpointer(rank) for rank in range(NUM_PARTICIPANTS)]
        for participant, checkpointer in zip(self.participants, self._checkpointers, strict=True):
            participant.add_to(checkpointer)

    def outcomes(self, call: Callable[[ss.Checkpointer], T]) -> list[T | CheckpointError]:
        """Return per participant what the call returned or raised."""

        def one(checkpointer: ss.Checkpointer) -> T | CheckpointError:
            try:
                return call(checkpointer)
            except CheckpointError as error:
                return error

        return list(self._pool.map(one, self._checkpointers))

    def all(self, call: Callable[[ss.Checkpointer], T]) -> T:
        """Return what the call returned for participant 0; raises if it failed for any."""
        first, *_ = self._pool.map(call, self._checkpointers)
        return first

    def restore(self, step: int | None = None) -> Restored:
        restored = self.all(lambda checkpointer: checkpointer.restore(step))
        assert restored is not None
        return restored

    def train_and_save(self, step: int, salt: int = 0) -> list[dict[str, Any]]:
        for participant in self.participants:
            participant.train(step, salt)
        states = self.states()
        self.all(lambda checkpointer: checkpointer.save(step).wait())
        return states

    def states(self) -> list[dict[str, Any]]:
        return [participant.state() for participant in self.participants]

    def scramble(self) -> None:
        for participant in self.participants:
            participant.scramble()

    def close(self) -> None:
        self.outcomes(lambda checkpointer: checkpointer.close())
        self._pool.shutdown()


@dataclass(frozen=True, slots=True)
class SavedRoot:
    """A root with three committed steps, and the state that each of them holds."""

    path: Path
    storage: LocalStorage
    run_id: str
    saved: dict[int, list[dict[str, Any]]]
    """Step to the state of each participant."""
    large: bool = False

    def life(self, storage: Callable[[int], Storage] | None = None) -> Life:
        return Life(storage or (lambda _: self.storage), large=self.large)

    def files(self, step: str = NEWEST) -> dict[str, int]:
        """Return path inside the step and size of every file."""
        folder = self.path / step
        return {
            str(path.relative_to(folder)): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def damage(self, step: int) -> list[str]:
        """Return what `verify` says about a step: the damaged paths with their messages."""
        entry = read_step(self.storage, step, self.run_id)
        if entry.manifest is None or entry.state != "committed":
            return [f"manifest.json: {entry.problem}"]
        return self.findings(step, "damage")

    def findings(self, step: int, severity: str) -> list[str]:
        """Return what `verify` finds in a step with a sound manifest."""
        entry = read_step(self.storage, step, self.run_id)
        assert entry.manifest is not None
        found = verify_step(self.storage, entry.name, entry.manifest)
        return [f"{f.path}: {f.message}" for f in found if f.severity == severity]

    def tensor_ranges(self) -> dict[str, list[tuple[int, int]]]:
        """Return where tensor data lies in each payload file of the newest step."""
        entry = read_step(self.storage, STEPS[-1], self.run_id)
        assert entry.manifest is not None
        reader = StepReader(self.storage, NEWEST, entry.manifest)
        ranges: dict[str, list[tuple[int, int]]] = {}
        for participant in entry.manifest.participants:
            index = reader.index(participant)
            for tensor in index.tensors:
                found = ranges.setdefault(index.payloads[tensor.file], [])
                found.append((tensor.data_offset, tensor.data_offset + tensor.data_size))
        return ranges

    def item_bounds(self) -> dict[str, set[int]]:
        """Return where items, records, data and chunks begin and end in each payload of the newest
        step.
        """
        entry = read_step(self.storage, STEPS[-1], self.run_id)
        assert entry.manifest is not None
        reader = StepReader(self.storage, NEWEST, entry.manifest)
        bounds: dict[str, set[int]] = {}
        for participant in entry.manifest.participants:
            index = reader.index(participant)
            for item in chain[StoredItem](index.tensors, index.bytes_items):
                found = bounds.setdefault(f"{NEWEST}/{index.payloads[item.file]}", set())
                for start, size in (
                    (item.item_offset, item.item_size),
                    (item.record_offset, item.record_size),
                    (item.data_offset, item.data_size),
                ):
                    found |= {start, start + size}
                found |= set(
                    range(item.data_offset, item.data_offset + item.data_size, CHUNK_BYTES)
                )
        return bounds

    def wrong_values(self, life: Life, step: int) -> str | None:
        """Say where live state differs from what `step` holds, or None."""
        difference = find_difference(self.saved[step], life.states())
        return None if difference is None else str(difference)

    def forget_claims(self) -> None:
        """Remove the claims of all incarnations but the first, so that lineage stays as it was."""
        for path in (self.path / ".stepseal" / "incarnations").iterdir():
            if path.name != "1.json":
                path.unlink()


def save_small_job(path: Path, salt: int = 0, *, large: bool = False) -> SavedRoot:
    """Run the job's first life over a new root.

    Args:
        path: of the root.
        salt: below 1000; jobs that differ in it have different state of the same sizes.
        large: as for `Life`.
    """
    storage = LocalStorage.create(str(path))
    life = Life(lambda _: storage, large=large)
    assert life.outcomes(lambda checkpointer: checkpointer.restore()) == [None, None]
    saved = {step: life.train_and_save(step, salt) for step in STEPS}
    life.close()
    return SavedRoot(path, storage, read_marker(storage), saved, large)


@contextmanager
def new_folder() -> Iterator[Path]:
    """Yield a folder that is gone afterwards, in memory where the machine has such a place."""
    home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="stepseal-campaign-", dir=home) as folder:
        yield Path(folder)


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Keep one bit of a file flipped."""
    flip(path, bit)
    try:
        yield
    finally:
        flip(path, bit)


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    with path.open("r+b", buffering=0) as file:
        file.seek(bit // 8)
        value = file.read(1)[0] ^ (1 << bit % 8)
        file.seek(bit // 8)
        file.write(bytes([value]))
