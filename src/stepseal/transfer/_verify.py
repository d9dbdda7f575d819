"""Checks a step without restoring it: are all files there, and are all bytes intact?

Damage is reported, not raised, so that one damaged file does not hide another. `check_files` checks
names, kinds and sizes, and reads only part documents. `check_coverage` also reads indexes.
`verify_step` reads everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError
from stepseal.layout import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    coverage_problems,
    encode_manifest,
    external_folder,
    part_document_path,
    part_index_path,
    payload_path,
)
from stepseal.storage import KeyNotFound, read_bytes, walk_files
from stepseal.transfer._files import CommittedFiles
from stepseal.transfer._read import StepReader
from stepseal.transfer._values import Finding
from stepseal.transfer._verify_bytes import check_digested, check_payload, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stepseal.layout import FileEntry, Manifest
    from stepseal.storage import Storage
    from stepseal.transfer._values import StoredBox

__all__ = ["check_coverage", "check_files", "has_damage", "verify_step"]


def check_files(storage: Storage, step_key: str, manifest: Manifest) -> tuple[Finding, ...]:
    """Compare the files that a step lists with the files in its folder.

    Reads only part documents. The manifest's own file may be missing, because an attempt is checked
    before its manifest is written.

    Args:
        storage: the storage of the root.
        step_key: the step's folder.
        manifest: decoded from bytes whose digest the caller trusts.

    Returns:
        Files that are missing, have another kind or size, or are not listed by the step.
    """
    survey = _Survey(storage, step_key, manifest)
    survey.compare(is_committed=False)
    return tuple(survey.findings)


def check_coverage(
    storage: Storage, step_key: str, manifest: Manifest, *, reader: StepReader | None = None
) -> tuple[Finding, ...]:
    """Check that every element of every tensor is stored exactly once, and every tree is listed.

    Reads part documents and indexes, no tensors. Equal boxes must have equal digests.

    Args:
        storage: the storage of the root.
        step_key: the step's folder.
        manifest: decoded from bytes whose digest the caller trusts.
        reader: a reader that has already read the indexes of this step, to avoid a second read.

    Returns:
        Holes, overlaps, differing replicas, and items of components that the manifest lacks.
    """
    survey = _Survey(storage, step_key, manifest, reader)
    survey.check_components()
    return tuple(survey.findings)


def verify_step(
    storage: Storage,
    step_key: str,
    manifest: Manifest,
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[Finding, ...]:
    """Check every byte of every file of a step, and that every tensor is complete.

    Args:
        storage: the storage of the root.
        step_key: the step's folder.
        manifest: decoded from bytes whose digest the caller trusts.
        progress: called with the number of bytes read since its last call.

    Returns:
        The findings of `check_files` and `check_coverage`, and every item or file whose bytes
        differ from their digest.
    """
    survey = _Survey(storage, step_key, manifest)
    survey.compare(is_committed=True)
    survey.check_bytes(progress or (lambda _: None))
    survey.check_components()
    return tuple(survey.findings)


def has_damage(findings: Iterable[Finding]) -> bool:
    """Return whether a step is damaged; unlisted files are findings, but not damage."""
    return any(finding.severity == "damage" for finding in findings)


class _Survey:
    """The check of one step, and its findings so far."""

    def __init__(
        self,
        storage: Storage,
        step_key: str,
        manifest: Manifest,
        reader: StepReader | None = None,
    ) -> None:
        self.findings: list[Finding] = []
        self._storage = storage
        self._step_key = step_key
        self._manifest = manifest
        self._reader = reader or StepReader(storage, step_key, manifest)
        self._files = CommittedFiles(storage, step_key, manifest.step)
        self._unreadable: list[str] = []
        """Participants whose part document is unreadable, so that their files are not known."""
        self._broken: set[str] = set()
        """Paths that already have a finding."""

    def compare(self, *, is_committed: bool) -> None:
        """Compare names, kinds and sizes.

        Args:
            is_committed: whether the manifest's own file must exist, too.
        """
        expected = self._expected()
        try:
            found = dict(walk_files(self._storage, self._step_key))
        except CheckpointError as error:
            self._report("", error)
            return
        for path, size_bytes in expected.items():
            entry = found.pop(path, None)
            if entry is None:
                if path == MANIFEST and not is_committed:
                    continue
                self._add_once(
                    path, f"expected a file of {size_bytes} bytes, found {self._kind(path)}"
                )
            elif entry.kind != "file":
                self._add_once(path, f"expected a regular file, found {_named(entry.kind)}")
            elif entry.size_bytes != size_bytes:
                self._add_once(path, f"expected {size_bytes} bytes, found {entry.size_bytes}")
        may_be_listed = self._may_be_listed()
        for path, entry in found.items():
            if not may_be_listed(path):
                message = f"expected no entry of this name, found {_named(entry.kind)}"
                self.findings.append(Finding("extra", path, message))

    def check_bytes(self, progress: Callable[[int], None]) -> None:
        """Check the bytes of every file, except files that were reported already."""
        self._check_manifest()
        progress(self._size_of_documents())
        for entry in self._manifest.files:
            self._check_digested(entry, progress)
        for participant in self._readable():
            for entry in self._reader.part(participant).files:
                if entry.role != "payload":
                    self._check_digested(entry, progress)
        self._read_indexes()
        for participant in self._readable():
            self._check_payload(participant, progress)

    def check_components(self) -> None:
        """Check that every tensor is complete, and that every tree is listed."""
        self._read_indexes()
        names = {component.name for component in self._manifest.components}
        self._check_names(names)
        self._check_trees()
        self._check_engines()
        if self._unreadable:
            return  # already damaged; without all indexes, missing boxes cannot be found
        try:
            stored = {name: self._reader.stored(name) for name in sorted(names)}
        except CheckpointError as error:
            self._report("parts", error)
            return
        for name, keys in stored.items():
            for key, boxes in keys.items():
                label = f"{name}.{key}"
                self._check_tensor(label if label.isprintable() else ascii(label), boxes)

    def _read_indexes(self) -> None:
        """Report every participant whose part document or index is unusable, once."""
        for participant in self._readable():
            path = part_document_path(participant)
            try:
                part = self._reader.part(participant)
                path = part.index.path if part.index is not None else path
                self._reader.index(participant)
            except CheckpointError as error:
                self._report(path, error)
                self._unreadable.append(participant)

    def _expected(self) -> dict[str, int]:
        """Return path and size of every file that the step lists, as far as they are known."""
        expected = {MANIFEST: len(encode_manifest(self._manifest))}
        for entry in self._manifest.files:
            self._expect(expected, entry.path, entry.size_bytes)
        for reference in self._manifest.parts:
            document = reference.document
            self._expect(expected, document.path, document.size_bytes)
            try:
                part = self._reader.part(reference.participant)
            except CheckpointError as error:
                self._report(document.path, error)
                self._unreadable.append(reference.participant)
                continue
            for entry in part.files:
                self._expect(expected, entry.path, entry.size_bytes)
            if part.index is not None:
                self._expect(expected, part.index.path, part.index.size_bytes)
        return expected

    def _expect(self, expected: dict[str, int], path: str, size_bytes: int) -> None:
        if path in expected:
            self._add(path, "expected to be listed once, found it listed twice")
        expected[path] = size_bytes

    def _kind(self, path: str) -> str:
        """Return a text for the entry at a path that is not a file."""
        try:
            return _named(self._storage.stat(self._files.key(path)).kind)
        except KeyNotFound:
            return "nothing"
        except CheckpointError as error:
            return str(error)

    def _may_be_listed(self) -> Callable[[str], bool]:
        """Return a test for paths that an unreadable part document may list."""
        unreadable = set(self._unreadable)
        known = {part_index_path(participant) for participant in unreadable} | {
            payload_path(ordinal)
            for ordinal, participant in enumerate(self._manifest.participants)
            if participant in unreadable
        }

        def may_be_listed(path: str) -> bool:
            top, _, below = path.partition("/")
            owner = below.partition("/")[2].partition(".")[0]
            return (
                path in known
                or (top == "external" and bool(unreadable))
                or (top == "components" and owner in unreadable)
            )

        return may_be_listed

    def _readable(self) -> list[str]:
        unreadable = set(self._unreadable)
        return [name for name in self._manifest.participants if name not in unreadable]

    def _size_of_documents(self) -> int:
        return sum(part.document.size_bytes for part in self._manifest.parts)

    def _check_manifest(self) -> None:
        if MANIFEST in self._broken:
            return
        try:
            found = read_bytes(self._storage, self._files.key(MANIFEST), MAX_MANIFEST_BYTES)
        except CheckpointError as error:
            self._report(MANIFEST, error)
            return
        if found != encode_manifest(self._manifest):
            self._add(MANIFEST, "expected the manifest being verified, found other bytes")

    def _check_digested(self, entry: FileEntry, progress: Callable[[int], None]) -> None:
        if entry.path not in self._broken:
            for message in check_digested(self._files, entry, progress):
                self._add(entry.path, message)

    def _check_payload(self, participant: str, progress: Callable[[int], None]) -> None:
        part, index = self._reader.part(participant), self._reader.index(participant)
        progress(part.index.size_bytes if part.index is not None else 0)
        sizes = {entry.path: entry.size_bytes for entry in part.files}
        for number, path in enumerate(index.payloads):
            if path not in self._broken:
                for message in check_payload(self._files, index, number, sizes[path], progress):
                    self._add(path, message)

    def _check_tensor(self, name: str, stored: tuple[StoredBox, ...]) -> None:
        first = stored[0]
        boxes = [box.tensor.box for box in stored]
        for problem in coverage_problems(first.tensor.shape, boxes):
            self._add(first.path, f"{name}: expected each element once, found {problem}")
        known: dict[object, StoredBox] = {}
        for box in stored:
            other = known.setdefault(box.tensor.box, box)
            if other.tensor.chunk_digests != box.tensor.chunk_digests:
                message = f"{name}: expected the same bytes as in {other.path}, found other digests"
                self._add(box.path, message)

    def _check_names(self, names: set[str]) -> None:
        for participant in self._readable():
            index = self._reader.index(participant)
            found = {tensor.component for tensor in index.tensors}
            found.update(name for item in index.bytes_items for name, _ in item.entries)
            for name in sorted(found - names):
                message = f"expected components of the manifest, found {name!r:.80}"
                self._add(part_index_path(participant), message)

    def _check_trees(self) -> None:
        readable = set(self._readable())
        for component in self._manifest.components:
            if component.kind != "tree":
                continue
            for owner in sorted(set(component.payloads.values()) & readable):
                try:
                    self._reader.tree_files(component.name, owner)
                except CheckpointError as error:
                    self._report(f"components/{component.name}", error)

    def _check_engines(self) -> None:
        """Check that every external component has files, and that no others have some."""
        if self._unreadable:
            return  # already damaged; their files are not known
        listed = [self._manifest.files]
        listed += [self._reader.part(participant).files for participant in self._readable()]
        paths = {e.path for files in listed for e in files if e.role == "external"}
        found = {path.split("/")[1] for path in paths}
        names = {one.name for one in self._manifest.components if one.kind == "external"}
        for name in sorted(names - found):
            self._add_once(external_folder(name), "expected files of an engine, found none listed")
        for name in sorted(found - names):
            message = "expected files of external components only"
            self._add_once(external_folder(name), message)

    def _report(self, path: str, error: CheckpointError) -> None:
        """Turn an error into a finding."""
        self._add_once(path, explain(error))

    def _add_once(self, path: str, message: str) -> None:
        """Add damage that prevents reading a file, unless the path already has a finding."""
        if path not in self._broken:
            self._add(path, message)

    def _add(self, path: str, message: str) -> None:
        self._broken.add(path)
        self.findings.append(Finding("damage", path, message))


def _named(kind: str) -> str:
    return {"file": "a file", "directory": "a directory", "symlink": "a symlink"}.get(
        kind, "a FIFO, socket or device"
    )
