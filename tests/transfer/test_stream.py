from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

import pytest
from tests.transfer._steps import (
    KEY,
    STEP,
    ByteSink,
    contents,
    flip,
    not_cancelled,
    random_bytes,
    read_file,
    read_tensor,
    replace_file,
    tensor,
    write_step,
)

from stepseal.errors import Corrupt, StateMismatch, StorageUnavailable
from stepseal.layout import CHUNK_BYTES, Box, whole
from stepseal.testing import MemoryStorage
from stepseal.transfer import ReadRequest, StepReader

if TYPE_CHECKING:
    from typing_extensions import Self

    from stepseal.layout import PartContents
    from stepseal.storage import ReadHandle, Storage


def row_shards(shape: tuple[int, int], num_shards: int, data: bytes) -> dict[str, PartContents]:
    """Return parts that each hold some rows of a float32 matrix."""
    rows, columns = shape[0] // num_shards, shape[1]
    size = rows * columns * 4
    return {
        f"trainer/{n}": contents(
            [tensor("w", data[n * size :][:size], shape, Box((n * rows, 0), (rows, columns)))]
        )
        for n in range(num_shards)
    }


def columns_of(data: bytes, num_columns: int, first: int, count: int) -> bytes:
    pitch = num_columns * 4
    return b"".join(
        data[start + first * 4 : start + (first + count) * 4]
        for start in range(0, len(data), pitch)
    )


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_row_shards_are_read_as_column_shards(storage: Storage, num_threads: int) -> None:
    shape = (64, 24)
    data = random_bytes(64 * 24 * 4)
    reader = StepReader(storage, KEY, write_step(storage, row_shards(shape, 4, data)))
    sinks = [ByteSink(Box((0, first), (64, 12))) for first in (0, 12)]
    requests = [ReadRequest(box, sink) for sink in sinks for box in reader.stored("model")["w"]]
    reader.stream(requests, check_cancelled=not_cancelled, num_threads=num_threads)
    for sink, first in zip(sinks, (0, 12), strict=True):
        assert sink.data == columns_of(data, 24, first, 12)
        assert set(sink.counts) == {1}


def test_tensor_of_many_chunks_is_resharded(storage: Storage) -> None:
    shape = (4, 700_000)
    data = random_bytes(4 * 700_000 * 4)
    reader = StepReader(storage, KEY, write_step(storage, row_shards(shape, 2, data)))
    sink = read_tensor(reader, "w", Box((1, 300_000), (2, 400_000)))
    expected = columns_of(data[700_000 * 4 : 3 * 700_000 * 4], 700_000, 300_000, 400_000)
    assert sink.data == expected


class Meter:
    """Storage that counts the bytes that are read of payload."""

    def __init__(self, inner: MemoryStorage) -> None:
        self.inner = inner
        self.reads: list[tuple[str, int, int]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def open_read(self, key: str) -> ReadHandle:
        return MeteredHandle(self.inner.open_read(key), key, self)  # type: ignore[return-value]


class MeteredHandle:
    def __init__(self, inner: ReadHandle, key: str, meter: Meter) -> None:
        self.inner, self.key, self.meter = inner, key, meter
        self.size_bytes = inner.size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.inner.close()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if self.key.endswith(".distcp"):
            self.meter.reads.append((self.key, offset, buffer.nbytes))
        self.inner.read_into(buffer, offset)


def metered(parts: dict[str, PartContents]) -> tuple[Meter, StepReader]:
    meter = Meter(MemoryStorage())
    manifest = write_step(meter.inner, parts)
    return meter, StepReader(meter, KEY, manifest)  # type: ignore[arg-type]


def test_reads_only_chunks_that_hold_wanted_elements() -> None:
    shape = (8, CHUNK_BYTES // 2)  # two chunks per row
    meter, reader = metered({"a": contents([tensor("w", bytes(8 * 2 * CHUNK_BYTES), shape)])})
    read_tensor(reader, "w", Box((2, 0), (3, 10)))
    assert sum(size for _, _, size in meter.reads) == 3 * CHUNK_BYTES
    meter.reads.clear()
    read_tensor(reader, "w", Box((2, 0), (1, 10)))
    assert sum(size for _, _, size in meter.reads) == CHUNK_BYTES


def test_small_tensors_share_reads_in_file_order() -> None:
    parts = {"a": contents([tensor(f"t{n}", random_bytes(64, n), (16,)) for n in range(300)])}
    meter, reader = metered(parts)
    sinks = {key: ByteSink(whole((16,))) for key in reversed(list(reader.stored("model")))}
    requests = [ReadRequest(reader.stored("model")[key][0], sinks[key]) for key in sinks]
    reader.stream(requests, check_cancelled=not_cancelled)
    assert len(meter.reads) == 1
    for n in range(300):
        assert sinks[f"t{n}"].data == random_bytes(64, n)


def test_no_read_is_larger_than_the_buffer() -> None:
    parts = {"a": contents([tensor("w", bytes(20 << 20), (5 << 20,))])}
    meter, reader = metered(parts)
    sink = CountingSink(whole((5 << 20,)))
    reader.stream(
        [ReadRequest(reader.stored("model")["w"][0], sink)], check_cancelled=not_cancelled
    )
    assert max(size for _, _, size in meter.reads) <= 8 << 20
    assert sum(size for _, _, size in meter.reads) == sink.num_bytes == 20 << 20
    assert sink.num_threads_at_once == 1


class CountingSink:
    def __init__(self, wanted: Box) -> None:
        self.wanted = wanted
        self.num_bytes = 0
        self.num_threads_at_once = 0
        self._inside = 0
        self._lock = threading.Lock()

    def write(self, stored: Box, start: int, data: memoryview) -> None:
        assert stored == self.wanted
        assert start * 4 % CHUNK_BYTES == 0
        with self._lock:
            self._inside += 1
            self.num_threads_at_once = max(self.num_threads_at_once, self._inside)
        self.num_bytes += data.nbytes
        with self._lock:
            self._inside -= 1


def test_scalars_and_empty_boxes() -> None:
    parts = {"a": contents([tensor("s", b"abcd", ()), tensor("e", b"", (0, 3))])}
    storage = MemoryStorage()
    reader = StepReader(storage, KEY, write_step(storage, parts))
    assert read_tensor(reader, "s", Box((), ())).data == b"abcd"
    assert read_tensor(reader, "e", Box((0, 0), (0, 3))).num_writes == 0
    assert read_tensor(reader, "s", Box((), ())).num_writes == 1


def test_of_equal_boxes_one_is_used() -> None:
    parts = {name: contents([tensor("w", b"same" * 4, (4,))]) for name in ("a", "b", "c")}
    storage = MemoryStorage()
    sink = read_tensor(StepReader(storage, KEY, write_step(storage, parts)), "w", whole((4,)))
    assert sink.data == b"same" * 4
    assert (sink.num_writes, sink.counts) == (1, [1] * 4)


def test_equal_boxes_with_other_bytes_are_refused() -> None:
    parts = {name: contents([tensor("w", name.encode() * 16, (4,))]) for name in ("a", "b")}
    storage = MemoryStorage()
    reader = StepReader(storage, KEY, write_step(storage, parts))
    with pytest.raises(Corrupt, match="expected the same bytes as a wrote") as caught:
        read_tensor(reader, "w", whole((4,)))
    assert (caught.value.participant, caught.value.component) == ("b", "model")


@pytest.mark.parametrize(
    ("boxes", "problem"),
    [
        ([Box((0,), (2,))], "no box"),
        ([Box((0,), (3,)), Box((2,), (2,))], "both hold"),
        ([Box((3,), (1,))], "no box"),
    ],
)
def test_cover_is_checked_before_anything_is_written(boxes: list[Box], problem: str) -> None:
    storage = MemoryStorage()
    parts = {
        str(n): contents([tensor("w", bytes(4 * box.sizes[0]), (4,), box)])
        for n, box in enumerate(boxes)
    }
    parts["good"] = contents([tensor("v", bytes(4), (1,))])
    reader = StepReader(storage, KEY, write_step(storage, parts))
    good, bad = ByteSink(whole((1,))), ByteSink(whole((4,)))
    requests = [ReadRequest(reader.stored("model")["v"][0], good)]
    requests += [ReadRequest(box, bad) for box in reader.stored("model")["w"]]
    with pytest.raises(Corrupt, match=problem):
        reader.stream(requests, check_cancelled=not_cancelled)
    assert good.num_writes == bad.num_writes == 0


@pytest.mark.parametrize("wanted", [Box((0,), (5,)), Box((0, 0), (1, 1)), Box((-1,), (2,))])
def test_wishes_outside_the_saved_tensor_are_refused(wanted: Box) -> None:
    storage = MemoryStorage()
    parts = {"a": contents([tensor("w", bytes(16), (4,))])}
    reader = StepReader(storage, KEY, write_step(storage, parts))
    with pytest.raises(StateMismatch, match=r"model.w: expected a box inside .* \[4\]"):
        read_tensor(reader, "w", wanted)


def test_no_flipped_byte_of_data_is_delivered() -> None:
    storage = MemoryStorage()
    data = random_bytes(2_500_000)
    parts = {"trainer/0": contents([tensor("w", data, (625_000,))])}
    manifest = write_step(storage, parts)
    payload = read_file(storage, "__0_0.distcp")
    reader = StepReader(storage, KEY, manifest)
    stored = reader.stored("model")["w"][0]
    for position in (0, 1, 1_048_575, 1_048_576, 2_000_000, 2_499_999):
        at = stored.tensor.data_offset + position
        replace_file(storage, "__0_0.distcp", flip(payload, at, 1 << position % 8))
        with pytest.raises(Corrupt) as caught:
            read_tensor(reader, "w", whole((625_000,)))
        error = caught.value
        chunk = stored.tensor.data_offset + position // CHUNK_BYTES * CHUNK_BYTES
        assert f"byte {chunk}," in error.message
        assert "model.w of trainer/0" in error.message
        assert (error.step, error.component, error.participant, error.path) == (
            STEP,
            "model",
            "trainer/0",
            f"{KEY}/__0_0.distcp",
        )


def test_bad_chunk_does_not_reach_the_sink() -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, {"a": contents([tensor("w", b"\1" * 64, (16,))])})
    reader = StepReader(storage, KEY, manifest)
    stored = reader.stored("model")["w"][0]
    payload = read_file(storage, stored.path)
    replace_file(storage, stored.path, flip(payload, stored.tensor.data_offset + 63))
    sink = ByteSink(whole((16,)))
    with pytest.raises(Corrupt):
        reader.stream([ReadRequest(stored, sink)], check_cancelled=not_cancelled)
    assert sink.num_writes == 0


@pytest.mark.parametrize("change", ["shorter", "longer", "missing"])
def test_payload_of_wrong_size_is_refused(storage: Storage, change: str) -> None:
    manifest = write_step(storage, {"a": contents([tensor("w", bytes(64), (16,))])})
    payload = read_file(storage, "__0_0.distcp")
    replace_file(storage, "__0_0.distcp", payload[:-1] if change == "shorter" else payload + b"x")
    if change == "missing":
        storage.remove_file(f"{KEY}/__0_0.distcp")
    expected = "found nothing" if change == "missing" else f"expected {len(payload)} bytes"
    with pytest.raises(Corrupt, match=expected):
        read_tensor(StepReader(storage, KEY, manifest), "w", whole((16,)))


def test_swapped_payloads_of_equal_size_are_refused(storage: Storage) -> None:
    manifest = write_step(storage, row_shards((4, 16), 2, random_bytes(256)))
    storage.exchange(f"{KEY}/__0_0.distcp", f"{KEY}/__1_0.distcp")
    with pytest.raises(Corrupt, match="expected digest"):
        read_tensor(StepReader(storage, KEY, manifest), "w", whole((4, 16)))


class GivenUp(Exception):
    pass


@pytest.mark.parametrize("num_threads", [1, 3])
def test_can_be_cancelled_between_reads(num_threads: int) -> None:
    storage = MemoryStorage()
    parts = {"a": contents([tensor("w", bytes(40 << 20), (10 << 20,))])}
    reader = StepReader(storage, KEY, write_step(storage, parts))
    sink = CountingSink(whole((10 << 20,)))
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls >= 3:
            raise GivenUp

    stored = reader.stored("model")["w"]
    with pytest.raises(GivenUp):
        reader.stream(
            [ReadRequest(box, sink) for box in stored],
            check_cancelled=check,
            num_threads=num_threads,
        )
    assert sink.num_bytes <= 16 << 20


class FailingSink:
    def __init__(self, wanted: Box) -> None:
        self.wanted = wanted

    def write(self, stored: Box, start: int, data: memoryview) -> None:
        raise StorageUnavailable("no room", errno=errno.ENOMEM)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_error_of_a_sink_reaches_the_caller(num_threads: int) -> None:
    storage = MemoryStorage()
    parts = {"a": contents([tensor("w", bytes(20 << 20), (5 << 20,))])}
    reader = StepReader(storage, KEY, write_step(storage, parts))
    request = ReadRequest(reader.stored("model")["w"][0], FailingSink(whole((5 << 20,))))
    with pytest.raises(StorageUnavailable, match="no room"):
        reader.stream([request], check_cancelled=not_cancelled, num_threads=num_threads)
    assert not [t for t in threading.enumerate() if t.name.startswith("stepseal-read")]
