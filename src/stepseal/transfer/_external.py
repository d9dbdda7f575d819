"""Files that another engine wrote into a step: taken stock of at a save, verified before a restore.

All participants see one folder per component. Each takes every n-th of its sorted paths, so that
the work is shared without a word. A file that is about to be committed must not change any more;
one that is about to be handed to an engine must be listed, and nothing else may lie beside it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput
from stepseal.layout import (
    FileEntry,
    chunk_digests,
    external_folder,
    hex_digests,
    path_problem,
    path_set_problems,
)
from stepseal.storage import KeyNotFound, walk_files
from stepseal.transfer._blocks import BLOCK_BYTES, allocate
from stepseal.transfer._files import CommittedFiles
from stepseal.transfer._verify_bytes import check_digested

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stepseal.layout import Manifest
    from stepseal.storage import Entry, Storage
    from stepseal.transfer._read import StepReader

__all__ = ["MAX_EXTERNAL_FILES", "Inventory", "check_external", "external_files"]

MAX_EXTERNAL_FILES = 50_000
"""Most files of one external component in a step."""

_KINDS = {"directory": "a directory whose path is too long", "symlink": "a symlink"}
_NAMED = 10
_NUM_SYNCS = 8
_STILL_WRITES = (
    "The engine still writes after its `save` returned. Let `save` return only when all files are "
    "complete and closed, or use the engine without its background writer"
)


class Inventory:
    """One participant's share of the files that an engine wrote into an attempt.

    Made after the engines of all participants have returned.

    Args:
        storage: the storage of the root.
        staging_key: the attempt's folder.
        component: whose files.
        share: number of this share, and of all shares.
        check_cancelled: called before each block is read; raises to cancel.

    Raises:
        InvalidInput: the engine wrote nothing, too much, or what a step cannot hold; `.problems`
            lists all.
    """

    def __init__(
        self,
        storage: Storage,
        staging_key: str,
        component: str,
        share: tuple[int, int],
        check_cancelled: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._staging_key = staging_key
        self._component = component
        self._check = check_cancelled
        found = _listed(storage, staging_key, component)
        self._refuse(self._problems(found))
        first, num_shares = share
        self._mine = {path: found[path] for path in sorted(found)[first::num_shares]}

    def take(self) -> list[FileEntry]:
        """Sync and digest every file of the share, and the directories above them.

        Durability: on return the files and their names below the folder of all external components
        survive power loss.
        """
        for directory in _directories(self._mine):
            self._storage.adopt(self._key(directory))
        self._adopt_files()
        entries = []
        scratch = allocate(BLOCK_BYTES)
        for path, listed in self._mine.items():
            try:
                entries.append(self._digested(path, listed.size_bytes, scratch))
            except KeyNotFound as error:
                raise self._changed(path, "found nothing") from error
        return entries

    def _adopt_files(self) -> None:
        """Sync all files of the share, several at once, which file systems do together."""
        adopt, keys = self._storage.adopt, [self._key(path) for path in self._mine]
        with ThreadPoolExecutor(_NUM_SYNCS, thread_name_prefix="stepseal-adopt") as pool:
            try:
                adopted = pool.map(adopt, keys)
            except RuntimeError:  # the interpreter is ending, or a limit forbids more threads
                adopted = map(adopt, keys)
            try:
                for path, listed in self._mine.items():
                    self._check()
                    try:
                        self._require_same(path, listed, next(adopted))
                    except KeyNotFound as error:
                        raise self._changed(path, "found nothing") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def look_again(self) -> None:
        """Compare every file of the share with what it was when the folder was listed.

        Raises:
            InvalidInput: a file has changed since, or is gone.
        """
        for path, listed in self._mine.items():
            try:
                found = self._storage.stat(self._key(path))
            except KeyNotFound as error:
                raise self._changed(path, "found nothing") from error
            self._require_same(path, listed, found)

    def _problems(self, found: dict[str, Entry]) -> tuple[list[str], str]:
        """Return what is wrong with the files of the folder, and what to do."""
        if not found:
            where = self._storage.local_path(self._key(external_folder(self._component)))
            return (
                [f"expected files below {where}, found none"],
                "The engine must write into the folder whose path it is given, and nowhere else",
            )
        if len(found) > MAX_EXTERNAL_FILES:
            return (
                [f"expected at most {MAX_EXTERNAL_FILES} files, found {len(found)}"],
                "Let the engine write fewer, larger files",
            )
        device = self._storage.stat(self._staging_key).device
        odd = [
            f"{ascii(path)[1:-1]}: {problem}"
            for path, entry in found.items()
            if (problem := _entry_problem(entry, device) or path_problem(path))
        ]
        odd += path_set_problems(found)
        advice = (
            "Let the engine write regular files that have one name each, made of letters, digits, "
            "`.`, `_` and `-`, and do not begin with a dot (`.metadata` may)"
        )
        return odd, advice

    def _refuse(self, found: tuple[list[str], str]) -> None:
        problems, advice = found
        if problems:
            shown = "; ".join(problems[:_NAMED])
            more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise InvalidInput(
                f"component {self._component}: what its engine wrote cannot be saved: "
                f"{shown}{more}. {advice}.",
                component=self._component,
                problems=tuple(problems),
            )

    def _digested(self, path: str, size_bytes: int, scratch: memoryview) -> FileEntry:
        digests = []
        with self._storage.open_read(self._key(path)) as handle:
            if handle.size_bytes != size_bytes:
                raise self._changed(path, f"found {handle.size_bytes} bytes, before {size_bytes}")
            for start in range(0, size_bytes, BLOCK_BYTES):
                self._check()
                block = scratch[: min(BLOCK_BYTES, size_bytes - start)]
                handle.read_into(block, start)
                digests.append(chunk_digests(block))
        return FileEntry(path, size_bytes, "external", hex_digests(b"".join(digests)))

    def _require_same(self, path: str, listed: Entry, found: Entry) -> None:
        before, now = _state(listed), _state(found)
        if now != before:
            words = zip(
                ("kind", "bytes", "inode", "time of change in ns"), before, now, strict=True
            )
            which = ", ".join(f"{word} {b} and then {n}" for word, b, n in words if b != n)
            raise self._changed(path, f"found {which}")

    def _changed(self, path: str, found: str) -> InvalidInput:
        problem = f"{path}: expected that it stays as it was when all engines had returned, {found}"
        return InvalidInput(
            f"component {self._component}: {problem}. {_STILL_WRITES}.",
            component=self._component,
            path=path,
            problems=(problem,),
        )

    def _key(self, path: str) -> str:
        return f"{self._staging_key}/{path}"


def external_files(reader: StepReader, manifest: Manifest, component: str) -> list[FileEntry]:
    """Return the files that a step lists for an external component, in the order of their paths.

    Raises:
        Corrupt: a part document is damaged.
    """
    within = f"{external_folder(component)}/"
    everywhere = [manifest.files, *(reader.part(one).files for one in manifest.participants)]
    found = [
        entry
        for files in everywhere
        for entry in files
        if entry.role == "external" and entry.path.startswith(within)
    ]
    return sorted(found, key=lambda entry: entry.path)


def check_external(
    storage: Storage,
    step_key: str,
    manifest: Manifest,
    reader: StepReader,
    component: str,
    *,
    share: tuple[int, int],
) -> None:
    """Check that an engine's folder holds exactly what the step lists, and verify a share of it.

    Args:
        storage: the storage of the root.
        step_key: the step's folder.
        manifest: of the step, verified.
        reader: of the step; it has or reads the part documents.
        component: whose files.
        share: number of this participant's share of the bytes, and of all shares.

    Raises:
        Corrupt: a file is missing, not listed, of another kind or size, or differs from its
            digests.
    """
    files = CommittedFiles(storage, step_key, manifest.step)
    listed = external_files(reader, manifest, component)
    expected = {entry.path: entry for entry in listed}
    found = _listed(storage, step_key, component)
    folder = external_folder(component)
    if not listed or len(expected) != len(listed):
        problem = "expected files, each listed once, found "
        problem += "some listed twice" if listed else "none listed"
        raise files.damaged(folder, problem, component=component)
    for path in sorted(expected.keys() | found.keys()):
        here = found.get(path)
        if path not in expected:
            problem = "expected no entry of this name beside what the engine wrote, found one"
            raise files.damaged(ascii(path)[1:-1], problem, component=component)
        if here is None or here.kind != "file":
            problem = f"expected a regular file, found {'nothing' if here is None else here.kind}"
            raise files.damaged(path, problem, component=component)
        if here.size_bytes != expected[path].size_bytes:
            problem = f"expected {expected[path].size_bytes} bytes, found {here.size_bytes}"
            raise files.damaged(path, problem, component=component)
    first, num_shares = share
    for entry in listed[first::num_shares]:
        for problem in check_digested(files, entry, lambda _: None):
            raise files.damaged(entry.path, problem, component=component)


def _listed(storage: Storage, step_key: str, component: str) -> dict[str, Entry]:
    """Return everything in a component's folder but directories, by its path inside the step."""
    folder = external_folder(component)
    try:
        found = walk_files(storage, f"{step_key}/{folder}" if step_key else folder)
    except KeyNotFound:
        return {}
    return {f"{folder}/{path}": entry for path, entry in found}


def _directories(paths: Iterable[str]) -> list[str]:
    """Return all directories above these paths, inside the step; the uppermost ones first."""
    found: set[str] = set()
    for path in paths:
        while (path := path.rpartition("/")[0]) and path not in found:
            found.add(path)
    return sorted(found)


def _entry_problem(entry: Entry, device: int) -> str | None:
    if entry.kind != "file":
        return (
            f"expected a regular file, found {_KINDS.get(entry.kind, 'a FIFO, socket or device')}"
        )
    if entry.num_names != 1:
        return f"expected a file with one name, found {entry.num_names} (hard links)"
    if entry.device != device:
        return "expected a file on the file system of the root, found it on a mount"
    return None


def _state(entry: Entry) -> tuple[str, int, int, int]:
    return entry.kind, entry.size_bytes, entry.inode, entry.modified_ns
