"""Streams planned reads from storage into sinks, with a digest check in between.

Each thread has one buffer of `BLOCK_BYTES`. Bytes go from there to a sink only after the digests of
their chunks matched.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from stepseal.layout import CHUNK_BYTES, DIGEST_BYTES, ITEMSIZE, chunk_digests, num_chunks
from stepseal.transfer._blocks import BLOCK_BYTES, allocate
from stepseal.transfer._files import first_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stepseal.errors import Corrupt
    from stepseal.storage import ReadHandle
    from stepseal.transfer._files import CommittedFiles
    from stepseal.transfer._plan import Batch, Piece

__all__ = ["Streamer"]

_SINK_LOCKS = 61
"""Sinks share this many locks: few threads rarely meet, and one lock per sink costs more."""


class Streamer:
    """One run over a list of batches.

    Args:
        files: the step's files.
        batches: the reads.
        sizes: size in bytes of each payload file, by path.
        check_cancelled: called before each read, by one thread at a time.
        on_bytes: called with the number of bytes after each read, by several threads.
    """

    def __init__(
        self,
        files: CommittedFiles,
        batches: Sequence[Batch],
        sizes: Mapping[str, int],
        check_cancelled: Callable[[], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        self._files = files
        self._num_batches = len(batches)
        self._batches = iter(batches)
        self._sizes = sizes
        self._check = check_cancelled
        self._on_bytes = on_bytes
        self._stopped = False
        self._next_lock = threading.Lock()
        self._sink_locks = tuple(threading.Lock() for _ in range(_SINK_LOCKS))

    def run(self, num_threads: int) -> None:
        """Deliver everything, or raise the first error after all threads have ended."""
        num_threads = min(num_threads, self._num_batches)
        if num_threads <= 1:
            self._work()
            return
        with ThreadPoolExecutor(num_threads, "stepseal-read") as pool:
            workers = []
            with suppress(RuntimeError):  # as many as can be had
                for _ in range(num_threads):
                    workers.append(pool.submit(self._work))  # noqa: PERF401 - keeps those before
            try:
                if not workers:
                    self._work()
                for worker in workers:
                    worker.result()
            finally:
                self._stopped = True  # even if this thread is interrupted while it waits

    def _work(self) -> None:
        buffer = allocate(BLOCK_BYTES)
        handle: ReadHandle | None = None
        path = ""
        try:
            while (batch := self._next()) is not None:
                if handle is None or path != batch.path:
                    if handle is not None:
                        handle.close()
                    path = batch.path
                    handle = self._files.open(
                        path, self._sizes[path], participant=batch.participant
                    )
                view = buffer[: batch.stop - batch.start]
                handle.read_into(view, batch.start)
                self._on_bytes(view.nbytes)
                for piece in batch.pieces:
                    at = piece.offset - batch.start
                    self._deliver(piece, view[at : at + piece.stop - piece.start])
        finally:
            self._stopped = True
            if handle is not None:
                handle.close()

    def _next(self) -> Batch | None:
        with self._next_lock:
            if self._stopped:
                return None
            self._check()
            return next(self._batches, None)

    def _deliver(self, piece: Piece, data: memoryview) -> None:
        tensor = piece.stored.tensor
        first = piece.start // CHUNK_BYTES
        expected = tensor.chunk_digests[
            first * DIGEST_BYTES : (first + num_chunks(data.nbytes)) * DIGEST_BYTES
        ]
        found = chunk_digests(data)
        if found != expected:
            raise self._damaged(piece, expected, found)
        with self._sink_locks[hash(piece.sink) % _SINK_LOCKS]:
            piece.sink.write(tensor.box, piece.start // ITEMSIZE[tensor.dtype], data)

    def _damaged(self, piece: Piece, expected: bytes, found: bytes) -> Corrupt:
        number = first_difference(found, expected)
        at = slice(number * DIGEST_BYTES, (number + 1) * DIGEST_BYTES)
        stored = piece.stored
        problem = (
            f"{stored.tensor.component}.{stored.tensor.key} of {stored.participant}: expected "
            "digest "
            f"{expected[at].hex()} of the chunk at byte {piece.offset + number * CHUNK_BYTES}, "
            f"found {found[at].hex()}"
        )
        return self._files.damaged(
            stored.path,
            problem,
            component=stored.tensor.component,
            participant=stored.participant,
            expected=expected[at].hex(),
            found=found[at].hex(),
        )
