"""Writes one participant's part of a step; afterwards the participant may report `Prepared`.

Order: payload, tree documents and segments, index, part document. Each file is synced and closed
before the next. Then the directories are synced, deepest first. The part document lists all other
files with digests, and is written last. Before it, a share of the files of engines is synced and
digested; these must not have changed by the time it is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput
from stepseal.layout import (
    BufferData,
    DocumentRef,
    FileEntry,
    Part,
    check_participant,
    encode_index,
    encode_part,
    hex_digests,
    part_document_path,
    part_index_path,
    payload_path,
    sha256_hex,
    tree_document_path,
    tree_segment_path,
)
from stepseal.transfer._blocks import (
    BLOCK_BYTES,
    DigestedWriter,
    FileWriter,
    StagedFiles,
    allocate,
)
from stepseal.transfer._external import Inventory
from stepseal.transfer._file_plan import plan_segment
from stepseal.transfer._payload import PayloadWriter
from stepseal.transfer._trees import encode_tree_document, segments_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.layout import DataSource, PartContents, PartIndex, TreeSource
    from stepseal.storage import Storage

__all__ = ["write_part"]


def write_part(
    storage: Storage,
    staging_key: str,
    *,
    step: int,
    attempt: str,
    participant: str,
    ordinal: int,
    contents: PartContents,
    check_cancelled: Callable[[], None],
    external: Sequence[str] = (),
    share: tuple[int, int] = (0, 1),
    take_index: Callable[[PartIndex], None] | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> DocumentRef:
    """Store one participant's part of a step, durably and with digests.

    Every participant calls it once per attempt. Blocks. Cannot be repeated: a failed attempt is
    aborted.

    Args:
        storage: the storage of the root.
        staging_key: the attempt's staging folder; it exists, and other participants write into it,
            too.
        step: training step.
        attempt: id of the save call, 32 hex digits.
        participant: the participant that writes; owner of all trees in `contents`.
        ordinal: position of the participant in the manifest's list.
        contents: descriptions; their data must not change before this call returns.
        check_cancelled: called before every write of up to 8 MiB; raises to cancel.
        external: components of which engines wrote the files; all engines have returned.
        share: number of this participant's share of these files, and of all shares.
        take_index: called with the index, if there are tensors, once they were written.
        on_bytes: called with the number of bytes of each write, and of what engines wrote.

    Returns:
        Path (inside the step folder), size and SHA-256 of the part document.

    Raises:
        InvalidInput: the contents could not be read back, or what an engine wrote cannot be saved.
        StorageUnavailable: the storage refused; the attempt must not be used.

    Durability: on return every file is closed, and survives power loss with its name.
    """
    check_participant(participant)
    inventories = [
        Inventory(storage, staging_key, name, share, check_cancelled) for name in external
    ]
    files = StagedFiles(storage, staging_key, on_bytes)
    writer = _PartWriter(files, check_cancelled)
    index = writer.write_payload(payload_path(ordinal), contents)
    for tree in _own_trees(contents.trees, participant):
        writer.write_tree(tree)
    index_ref = None
    if index is not None:
        if take_index is not None:
            take_index(index)
        index_ref = writer.write_document(part_index_path(participant), encode_index(index))
    for inventory in inventories:
        found = inventory.take()
        writer.entries += found
        on_bytes(sum(entry.size_bytes for entry in found))
    for inventory in inventories:
        inventory.look_again()
    part = Part(
        step=step,
        attempt=attempt,
        participant=participant,
        files=tuple(writer.entries),
        index=index_ref,
    )
    document = writer.write_document(part_document_path(participant), encode_part(part))
    files.sync_directories()
    return document


def _own_trees(trees: Sequence[TreeSource], participant: str) -> Sequence[TreeSource]:
    """Return the trees; refuse those of other owners, who may be writing the same files."""
    for tree in trees:
        if tree.owner != participant:
            raise InvalidInput(
                f"tree of component {tree.component!r} is not writable here: expected owner "
                f"{participant}, "
                f"found {tree.owner}. Let the owner write it.",
                component=tree.component,
                participant=participant,
                expected=participant,
                found=tree.owner,
            )
    return trees


class _PartWriter:
    """Writes the files of one part and collects their entries."""

    __slots__ = ("_check", "_files", "_scratch", "entries")

    def __init__(self, files: StagedFiles, check_cancelled: Callable[[], None]) -> None:
        self._files = files
        self._check = check_cancelled
        self._scratch = allocate(BLOCK_BYTES)
        self.entries: list[FileEntry] = []

    def write_payload(self, path: str, contents: PartContents) -> PartIndex | None:
        """Write the payload file; return its index, or None if there is nothing to write."""
        if not contents.tensors and not contents.bytes_copies:
            return None
        with self._files.create(path) as handle:
            writer = FileWriter(handle, self._scratch, self._check)
            index = PayloadWriter(writer).write(path, contents.tensors, contents.bytes_copies)
        self.entries.append(FileEntry(path, writer.offset, "payload", ()))
        return index

    def write_tree(self, tree: TreeSource) -> None:
        """Write a tree's document and segments."""
        path = tree_document_path(tree.component, tree.owner)
        self._write_digested(path, [BufferData(encode_tree_document(tree))])
        for number, arrays in enumerate(segments_of(tree)):
            data = [BufferData(plan_segment(arrays).header), *(array.data for array in arrays)]
            path = tree_segment_path(tree.component, tree.owner, number)
            self._write_digested(path, data)

    def write_document(self, path: str, data: bytes) -> DocumentRef:
        """Write a document whose SHA-256 another document records."""
        with self._files.create(path) as handle:
            FileWriter(handle, self._scratch, self._check).write_straight(BufferData(data))
        return DocumentRef(path, len(data), sha256_hex(data))

    def _write_digested(self, path: str, sources: Sequence[DataSource]) -> None:
        with self._files.create(path) as handle:
            writer = DigestedWriter(handle, self._scratch, self._check)
            for data in sources:
                writer.append_data(data)
            size_bytes, digests = writer.finish()
        self.entries.append(FileEntry(path, size_bytes, "tree", hex_digests(digests)))
