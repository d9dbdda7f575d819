"""Reads a committed step: documents, indexes and trees as a whole, tensors as a stream into sinks.

Digests form a chain: the manifest has the SHA-256 of the part documents, these have the digests of
the index and the tree files, and the index has the digests of all chunks of tensor data. Data is
parsed or returned only after its digest was checked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

from stepseal.errors import InvalidInput
from stepseal.layout import (
    MAX_INDEX_BYTES,
    MAX_PART_BYTES,
    PartIndex,
    TreeContents,
    coverage_problems,
    decode_index,
    decode_part,
    parse_payload_path,
    part_bytes,
    payload_sizes,
    tree_document_path,
    tree_segment_path,
)
from stepseal.transfer._files import CommittedFiles
from stepseal.transfer._plan import plan_reads
from stepseal.transfer._stream import Streamer
from stepseal.transfer._trees import (
    MAX_TREE_DOCUMENT_BYTES,
    arrays_of_segment,
    decode_tree_document,
)
from stepseal.transfer._values import StoredBox

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.layout import DocumentRef, FileEntry, Part, PartRef
    from stepseal.storage import Storage
    from stepseal.transfer._values import ReadRequest

__all__ = ["StepReader"]

_TREE_SUFFIX = re.compile(r"\.json|(\.[1-9][0-9]*)?\.safetensors")


class KnowsParts(Protocol):
    """What reading needs of a manifest; also of a step that has none yet."""

    @property
    def step(self) -> int:
        """Number of the step."""
        ...

    @property
    def attempt(self) -> str:
        """The attempt that wrote the parts."""
        ...

    @property
    def participants(self) -> tuple[str, ...]:
        """All participants, in ordinal order."""
        ...

    @property
    def parts(self) -> tuple[PartRef, ...]:
        """Where the part documents lie, and their digests."""
        ...


class StepReader:
    """Reads one step, committed or staged. Each document is read once and kept; not thread-safe.

    Args:
        storage: the storage of the root.
        step_key: the step's folder.
        manifest: decoded from bytes whose digest the caller trusts; or what is known of a step that
            is not committed.
    """

    def __init__(self, storage: Storage, step_key: str, manifest: KnowsParts) -> None:
        self._manifest = manifest
        self._files = CommittedFiles(storage, step_key, manifest.step)
        self._references = {part.participant: part.document for part in manifest.parts}
        self._ordinals = {name: number for number, name in enumerate(manifest.participants)}
        self._parts: dict[str, Part] = {}
        self._entries: dict[str, dict[str, FileEntry]] = {}
        self._indexes: dict[str, PartIndex] = {}
        self._stored: dict[str, dict[str, tuple[StoredBox, ...]]] | None = None

    def part(self, participant: str) -> Part:
        """Return the part of a participant.

        Raises:
            InvalidInput: the step has no such participant.
            Corrupt: the document differs from the manifest's digest, or names files that are not
                its own.
        """
        if participant not in self._parts:
            part = self._read_part(participant)
            self._parts[participant] = part
            self._entries[participant] = {entry.path: entry for entry in part.files}
        return self._parts[participant]

    def parts_bytes(self) -> int:
        """Return the size of all files of the parts; reads every part document, and keeps none.

        Raises:
            Corrupt: a document differs from the manifest's digest.
        """
        total = 0
        for ref in self._manifest.parts:
            data = self._part_document(ref.document, ref.participant)
            total += len(data) + part_bytes(data, what=self._files.key(ref.document.path))
        return total

    def index(self, participant: str) -> PartIndex:
        """Return the index of a participant's payload; empty if it has none.

        Raises:
            InvalidInput: the step has no such participant.
            Corrupt: the index differs from its digest, or does not fit the payload files.
        """
        if participant not in self._indexes:
            self._indexes[participant] = self._read_index(participant)
        return self._indexes[participant]

    def stored(self, component: str) -> dict[str, tuple[StoredBox, ...]]:
        """Return all stored boxes of a component's tensors by key, in the order of participants.

        Reads every index of the step on the first call.

        Raises:
            Corrupt: an index is damaged, or the boxes of a key differ in dtype or global shape.
        """
        if self._stored is None:
            self._stored = self._collect()
        return self._stored.get(component, {})

    def check_whole(self, stored: Sequence[StoredBox]) -> None:
        """Check that the boxes of a tensor fill it and that its files exist, before allocating it.

        Args:
            stored: all boxes of one tensor.

        Raises:
            InvalidInput: a box names a participant that the step does not have.
            Corrupt: an element is missing or stored twice, or a file is missing or has another
                size.
        """
        first = stored[0].tensor
        for problem in coverage_problems(first.shape, [box.tensor.box for box in stored]):
            raise self._files.damaged(
                stored[0].path,
                f"{first.key!r:.80}: expected each element once, found {problem}",
                component=first.component,
            )
        for box in stored:
            self.part(box.participant)
            size_bytes = self._entries[box.participant][box.path].size_bytes
            self._files.open(box.path, size_bytes, participant=box.participant).close()

    def has_tree(self, component: str, owner: str) -> bool:
        """Return whether a participant wrote a tree for a component.

        Raises:
            InvalidInput: the step has no such participant.
            Corrupt: the part document is damaged.
        """
        self.part(owner)
        return tree_document_path(component, owner) in self._entries[owner]

    def tree_files(self, component: str, owner: str) -> tuple[FileEntry, ...]:
        """Return the document and then the segments of a tree, as the part lists them.

        Raises:
            InvalidInput: the step has no such participant.
            Corrupt: there is no such tree, one of its segments is not listed, or the part document
                is damaged.
        """
        self.part(owner)
        entries = self._entries[owner]
        stem = tree_document_path(component, owner).removesuffix("json")
        num_segments = sum(path.startswith(stem) for path in entries) - 1
        paths = [
            tree_document_path(component, owner),
            *(tree_segment_path(component, owner, number) for number in range(num_segments)),
        ]
        for path in paths:
            if path not in entries:
                problem = "expected this file of a tree, found no such entry in the part"
                raise self._files.damaged(path, problem, component=component, participant=owner)
        return tuple(entries[path] for path in paths)

    @property
    def tree_bytes(self) -> int:
        """Bytes of trees that were read so far."""
        return self._files.tree_bytes

    def read_tree(self, component: str, owner: str) -> TreeContents:
        """Read a whole tree that a participant wrote, and verify it.

        Raises:
            InvalidInput: the step has no such participant.
            Corrupt: there is no such tree, or one of its files is damaged.
        """
        first, *segments = self.tree_files(component, owner)
        names = {"component": component, "participant": owner}
        data = self._files.read_digested(first, MAX_TREE_DOCUMENT_BYTES, **names)
        document = decode_tree_document(data, what=self._files.key(first.path))
        arrays: dict[str, tuple[str, tuple[int, ...], memoryview]] = {}
        for entry in segments:
            data = self._files.read_digested(entry, None, **names)
            found = arrays_of_segment(data, what=self._files.key(entry.path))
            if twice := sorted(arrays.keys() & found.keys()):
                problem = f"expected arrays of other names, found {twice[0]!r:.80} again"
                raise self._files.damaged(entry.path, problem, **names)
            arrays.update(found)
        return TreeContents(document, arrays)

    def hold(self, requests: Sequence[ReadRequest]) -> None:
        """Open all that `stream` reads for these requests, and keep it open until `release`.

        On a local file system what is open can be read to its end even when the step is removed.

        Raises:
            StateMismatch, Corrupt: as `stream`, before any sink is written.
            StorageUnavailable: refused, for example because too many files are open.
        """
        for batch in plan_reads(self._files, requests):
            self.part(batch.participant)
            size_bytes = self._entries[batch.participant][batch.path].size_bytes
            self._files.hold(batch.path, size_bytes, participant=batch.participant)

    def release(self) -> None:
        """Close what is held. Idempotent."""
        self._files.release()

    def stream(
        self,
        requests: Sequence[ReadRequest],
        *,
        check_cancelled: Callable[[], None],
        num_threads: int = 2,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Fill sinks with verified bytes.

        Reads each file from start to end, and only the needed chunks. A sink receives every wanted
        element exactly once, from one thread at a time. Of equal boxes, one is read. Memory: 8 MiB
        per thread.

        Args:
            requests: for each sink, at least all boxes of its tensor that overlap `wanted`.
            check_cancelled: called before every read, by one thread at a time; raises to cancel.
            num_threads: number of threads that read and verify.
            on_bytes: called with the number of bytes after each read, by several threads.

        Raises:
            StateMismatch: a sink wants elements outside the saved tensor; no sink was written.
            Corrupt: an element is in no stored box or in several (no sink was written), or bytes
                differ from their digest (sinks may have received other, verified bytes).
        """
        batches = plan_reads(self._files, requests)
        for participant in {request.stored.participant for request in requests}:
            self.part(participant)
        sizes = {
            path: entry.size_bytes
            for entries in self._entries.values()
            for path, entry in entries.items()
        }
        Streamer(self._files, batches, sizes, check_cancelled, on_bytes).run(num_threads)

    def _read_part(self, participant: str) -> Part:
        ref = self._references.get(participant)
        if ref is None:
            raise InvalidInput(
                f"step {self._manifest.step} has no part of {participant!r:.80}: expected one of "
                "its "
                f"{len(self._references)} participants",
                step=self._manifest.step,
                participant=participant,
            )
        data = self._part_document(ref, participant)
        part = decode_part(data, what=self._files.key(ref.path))
        found = (part.step, part.attempt, part.participant)
        expected = (self._manifest.step, self._manifest.attempt, participant)
        if found != expected:
            problem = f"expected the part of {expected}, found {found}"
            raise self._files.damaged(ref.path, problem, participant=participant)
        for entry in part.files:
            if not self._is_own(entry, participant):
                problem = f"expected files of {participant}, found {entry.path}"
                raise self._files.damaged(ref.path, problem, participant=participant)
        return part

    def _part_document(self, ref: DocumentRef, participant: str) -> memoryview:
        return self._files.read_document(ref, MAX_PART_BYTES, participant=participant)

    def _is_own(self, entry: FileEntry, participant: str) -> bool:
        """Return whether a file belongs to this participant, so that two parts never share one."""
        if entry.role == "payload":
            found = parse_payload_path(entry.path)
            return found is not None and found[0] == self._ordinals[participant]
        if entry.role == "tree":
            stem = f"components/{entry.path.split('/')[1]}/{participant}"
            suffix = entry.path.removeprefix(stem)
            return suffix != entry.path and _TREE_SUFFIX.fullmatch(suffix) is not None
        return True

    def _read_index(self, participant: str) -> PartIndex:
        part = self.part(participant)
        if part.index is None:
            return PartIndex((), (), ())
        data = self._files.read_document(part.index, MAX_INDEX_BYTES, participant=participant)
        index = decode_index(data, what=self._files.key(part.index.path))
        ends = payload_sizes(index)
        listed = {entry.path: entry.size_bytes for entry in part.files if entry.role == "payload"}
        if ends != listed:
            problem = f"expected items that fill {listed}, found ends at {ends}"
            raise self._files.damaged(part.index.path, problem, participant=participant)
        return index

    def _collect(self) -> dict[str, dict[str, tuple[StoredBox, ...]]]:
        boxes: dict[str, dict[str, list[StoredBox]]] = defaultdict(dict)
        for participant in self._manifest.participants:
            index = self.index(participant)
            for tensor in index.tensors:
                box = StoredBox(participant, index.payloads[tensor.file], tensor)
                known = boxes[tensor.component].setdefault(tensor.key, [])
                if known and not _agree(known[0], box):
                    first = known[0]
                    problem = (
                        f"{tensor.key!r:.80}: expected {first.tensor.dtype} "
                        f"{list(first.tensor.shape)} as "
                        f"{first.participant} has it, found {tensor.dtype} {list(tensor.shape)}"
                    )
                    raise self._files.damaged(
                        f"parts/{participant}.safetensors",
                        problem,
                        component=tensor.component,
                        participant=participant,
                    )
                known.append(box)
        return {
            component: {key: tuple(found) for key, found in keys.items()}
            for component, keys in boxes.items()
        }


def _agree(first: StoredBox, other: StoredBox) -> bool:
    return (first.tensor.dtype, first.tensor.shape) == (other.tensor.dtype, other.tensor.shape)
