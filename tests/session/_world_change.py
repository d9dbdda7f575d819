"""A job with state of each rank, which a function deals out anew where the world changes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from tests.session._sets import in_world

import stepseal as ss
from stepseal.errors import CheckpointError
from stepseal.storage import read_bytes
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Sequence


class Buffer:
    """What one rank holds of a replay buffer: items of its own, a table, and a count."""

    def __init__(self, rank: int = -1, num_items: int = 0) -> None:
        self.state: dict[str, Any] = {
            "items": [100 * rank + number for number in range(num_items)],
            "table": torch.full((num_items,), float(rank)),
            "seen": 10 + rank,
        }


def deal(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> dict[str, Any]:
    """Deal out the items of all ranks anew; rank 0 goes on with the count of all."""
    assert new.index is not None
    num = len(new.coordinates)
    return {
        "items": [item for state in states for item in state["items"]][new.index :: num],
        "table": torch.cat([state["table"] for state in states])[new.index :: num],
        "seen": sum(state["seen"] for state in states) if new.index == 0 else 0,
    }


def naive(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> Any:  # noqa: ANN401
    """Give each rank the state of its number, as a file per rank would do."""
    assert new.index is not None
    return states[new.index % len(states)]


def saved(num: int = 4) -> MemoryStorage:
    storage = MemoryStorage()

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("replay", Buffer(rank, 3 + rank).state, sharing=ss.PER_RANK)
        ckpt.add("model", {"w": torch.ones(2)})
        ckpt.restore()
        ckpt.save(1).wait()

    assert in_world(num, storage, work) == [None] * num
    return storage


def restored(
    storage: MemoryStorage,
    num: int,
    reshard: Any,  # noqa: ANN401 - by rank, or for all
    **options: Any,  # noqa: ANN401 - of restore
) -> list[Any]:
    """Return per rank the state and the report, or the error after which nothing changed."""

    def work(rank: int, ckpt: ss.Checkpointer) -> Any:  # noqa: ANN401 - see above
        live, weights = Buffer().state, torch.zeros(2)
        before = {**live, "items": list(live["items"])}
        one = reshard[rank] if isinstance(reshard, dict) else reshard
        ckpt.add("replay", live, sharing=ss.PER_RANK, on_world_change=one)
        ckpt.add("model", {"w": weights})
        try:
            found = ckpt.restore(**options)
        except CheckpointError as error:
            same = (live["items"], live["seen"]) == (before["items"], before["seen"])
            is_touched = error.tainted or not same or bool(weights.any())
            return AssertionError(f"touched by {error}") if is_touched else error
        assert found is not None
        return live, found

    return in_world(num, storage, work)


def items_of(found: list[Any]) -> Counter[int]:
    return Counter(item for state, _ in found for item in state["items"])


EVERY_ITEM = Counter(100 * rank + number for rank in range(4) for number in range(3 + rank))


def damaged_second() -> MemoryStorage:
    """Return a root with two steps; in the second one, the state of rank 3 is damaged."""
    storage = saved()

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        state = Buffer(rank, 3 + rank).state
        ckpt.add("replay", state, sharing=ss.PER_RANK)
        ckpt.add("model", {"w": torch.ones(2)})
        ckpt.restore()
        state["seen"] += 100
        ckpt.save(2).wait()

    assert in_world(4, storage, work) == [None] * 4
    path = "step-2/components/replay/trainer/3.json"
    data = bytearray(read_bytes(storage, path, 1 << 20))
    data[len(data) // 2] ^= 1
    storage.remove_file(path)
    with storage.create_file(path) as file:
        file.write(data, 0)
    return storage
