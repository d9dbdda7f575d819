"""Case V7: replicas compared with what was written, in memory that depends on no size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._replicas import refused, save_all
from tests.session._sets import QUICK

import stepseal as ss
from stepseal.components import DifferenceSink
from stepseal.components._frames import frame_for
from stepseal.components._live_data import TensorData, byte_view
from stepseal.errors import ParticipantFailed
from stepseal.layout import CHUNK_BYTES, TensorSource, whole
from stepseal.storage import read_bytes
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer, Self

    from stepseal.storage import ReadHandle


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_v7_the_failure_says_by_how_much_and_where_it_begins(odd: int) -> None:
    states: Any = [{"w": torch.ones(100), "v": torch.ones(2, 2)} for _ in range(3)]
    for at, by in ((50, 0.5), (60, -0.25)):
        states[odd]["w"][at] += by
    assert all(torch.allclose(s["w"], states[0]["w"], atol=1) for s in states)
    error = refused(save_all(states, validate="full"))
    text = "2 of 100 elements differ, by at most 0.5, the first at index 50"
    assert error.problems == (f"component state: w ({text})",)
    assert error.path == "w"
    assert text in str(error)


def test_v7_trees_are_compared_and_named() -> None:
    options: dict[str, Any] = {"kind": "tree", "sharing": ss.REPLICATED, "validate": "full"}
    states = [{"a": [torch.ones(3)]}, {"a": [torch.zeros(3)]}]
    assert refused(save_all(states, **options)).path == "a.0"
    assert save_all(states[:1] * 2, **options) == [None, None]


def amount(mine: torch.Tensor, other: torch.Tensor) -> str:
    """Return by how much a live tensor differs from a stored one."""
    shape = tuple(mine.shape)
    name = str(mine.dtype).removeprefix("torch.")
    frame = frame_for(mine.dtype, shape)
    live = TensorSource("c", "w", name, shape, whole(shape), TensorData(mine), frame)
    sink = DifferenceSink(live)
    data, step = byte_view(other.contiguous()), 3 * CHUNK_BYTES
    for start in range(0, data.nbytes, step):
        sink.write(live.box, start // mine.element_size(), data[start : start + step])
    return sink.text()


@pytest.mark.parametrize(
    ("mine", "other", "text"),
    [
        (torch.ones(3), torch.ones(3), ""),
        (torch.zeros(0), torch.zeros(0), ""),
        (torch.tensor(1.5), torch.tensor(1.0), "1 of 1 elements differ, by at most 0.5"),
        (torch.tensor([0.0]), torch.tensor([-0.0]), "1 of 1 elements differ, by at most 0,"),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), "by at most inf"),
        (torch.tensor([3 + 4j]), torch.tensor([0j]), "by at most 5,"),
        (torch.tensor([True, False]), torch.tensor([True, True]), "1 of 2 elements differ, by at"),
        (
            torch.tensor([2.0], dtype=torch.bfloat16),
            torch.tensor([1.0], dtype=torch.bfloat16),
            "1,",
        ),
        (
            torch.tensor([2.0]).to(torch.float8_e4m3fn),
            torch.tensor([1.0]).to(torch.float8_e4m3fn),
            "by at most 1,",
        ),
        (torch.tensor([250], dtype=torch.uint8), torch.tensor([1], dtype=torch.uint8), "249,"),
        (torch.arange(6.0).view(2, 3).T, torch.arange(6.0).view(2, 3).T.clone(), ""),
        (torch.arange(6.0).view(2, 3).T, torch.zeros(3, 2), "5 of 6 elements differ, by at most 5"),
    ],
)
def test_v7_amounts_of_any_dtype_and_layout(
    mine: torch.Tensor, other: torch.Tensor, text: str
) -> None:
    found = amount(mine, other)
    assert text in found
    assert bool(text) == bool(found)


def test_v7_indices_count_over_all_pieces() -> None:
    other = torch.zeros(2 * CHUNK_BYTES, dtype=torch.int32)
    mine = other.clone()
    mine[CHUNK_BYTES + 7] = 9
    mine[-1] = 4
    assert amount(mine, other) == (
        f"2 of {2 * CHUNK_BYTES} elements differ, by at most 9, the first at index "
        f"{CHUNK_BYTES + 7}"
    )


class Watched:
    """A storage that tells how much one read takes, and lets bytes of payload files change."""

    def __init__(self, inner: MemoryStorage, flip: Callable[[str], bool]) -> None:
        self._inner = inner
        self._flip = flip
        self.largest = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the verb
        return getattr(self._inner, name)

    def open_read(self, key: str) -> ReadHandle:
        return WatchedReader(self, self._inner.open_read(key), flip=self._flip(key))


class WatchedReader:
    """An open file of a `Watched`."""

    def __init__(self, storage: Watched, inner: ReadHandle, *, flip: bool) -> None:
        self._storage, self._inner, self._flip = storage, inner, flip
        self.size_bytes = inner.size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._inner.close()

    def read_into(self, target: Buffer, offset: int) -> None:
        view = memoryview(target)
        self._storage.largest = max(self._storage.largest, view.nbytes)
        self._inner.read_into(target, offset)
        if self._flip and view.nbytes > CHUNK_BYTES:
            view[-1] ^= 1


def save_watched(size: int, flip: Callable[[str], bool] = lambda _key: False) -> tuple[Any, int]:
    """Save two tensors on two ranks with `full`; return what came of it, and the largest read."""
    storages = [Watched(MemoryStorage(), flip)]
    storages.append(Watched(storages[0]._inner, flip))

    def work(rank: int, ckpt: ss.Checkpointer) -> BaseException | None:
        state = {"a": torch.ones(size), "b": torch.zeros(size)}
        with ckpt:
            ckpt.add("state", state, validate="full")
            try:
                ckpt.save(1)
            except ParticipantFailed as error:
                return error
        return None

    found = World(2, lambda rank: storages[rank], deadlines=QUICK).run(work)
    naive = Watched(storages[0]._inner, lambda _key: False)
    for entry in naive.list_dir("step-1") if found == [None, None] else ():
        if entry.name.endswith(".distcp"):
            read_bytes(naive, f"step-1/{entry.name}", 1 << 30)
            assert naive.largest > 4 * size
    return found, max(one.largest for one in storages)


@pytest.mark.parametrize("size", [1 << 19, 6 << 20])
def test_v7_memory_does_not_grow_with_the_tensor(size: int) -> None:
    """One read holds 8 MiB at most, and the live tensor is looked at in pieces of one MiB."""
    found, largest = save_watched(size)
    assert found == [None, None]
    assert largest <= 8 << 20


def test_v7_what_is_not_as_it_was_written_is_not_committed() -> None:
    found, _ = save_watched(1 << 20, lambda key: key.endswith(".distcp"))
    error = refused(found)
    assert "is damaged" in str(error)


def test_v7_a_save_with_full_is_synchronous() -> None:
    storage = MemoryStorage()

    def work(_: int, ckpt: ss.Checkpointer) -> bool:
        with ckpt:
            ckpt.add("state", {"w": torch.ones(4)}, validate="full")
            return ckpt.save(1).done()

    assert World(2, lambda _: storage, deadlines=QUICK).run(work) == [True, True]
