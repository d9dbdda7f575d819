"""How the command line opens a root and finds a step in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.cli._output import warn
from stepseal.commit import (
    StepEntry,
    in_lineage,
    lineage_limits,
    list_steps,
    read_claims,
    read_marker,
    read_step,
    refuse_newer,
)
from stepseal.errors import Corrupt, InvalidInput, StepNotFound
from stepseal.layout import parse_step_name
from stepseal.storage import Access, LocalStorage, root_path
from stepseal.transfer import StepReader

if TYPE_CHECKING:
    from stepseal.layout import Manifest
    from stepseal.storage import Storage

__all__ = ["OpenRoot", "find_step", "open_root", "step_size_bytes"]


@dataclass(frozen=True, slots=True)
class OpenRoot:
    """A root that was opened for reading."""

    path: str
    storage: Storage
    run_id: str


def open_root(path: str, *, allow_shared: bool = False) -> OpenRoot:
    """Open a root; RootNotFound when it is none.

    Args:
        path: of the root.
        allow_shared: also make names in it where other users can write.
    """
    absolute = root_path(path)
    storage = LocalStorage.open(absolute, access=Access(allow_shared=allow_shared))
    if problem := storage.writable_problem():
        warn(f"{absolute} is {problem}: what is read here may be another the next time")
    return OpenRoot(absolute, storage, read_marker(storage, absolute))


def find_step(root: OpenRoot, wanted: str) -> StepEntry:
    """Return a step by number, by folder name, or `latest` (newest of the lineage).

    Raises:
        InvalidInput: `wanted` is none of these.
        StepNotFound: there is no such step, or it is foreign.
        IncompatibleFormat: a newer release wrote it.
    """
    if wanted == "latest":
        return _latest(root)
    step = parse_step_name(wanted if wanted.startswith("step-") else f"step-{wanted}")
    if step is None:
        raise InvalidInput(f"step {wanted!r}: expected a number such as 200, step-200, or latest")
    entry = read_step(root.storage, step, root.run_id)
    refuse_newer(entry)
    if entry.state == "foreign":
        raise StepNotFound(
            f"{entry.name} is no step of this run: {entry.problem}. `stepseal ls` shows the steps "
            "that are there.",
            step=step,
            path=entry.name,
        )
    return entry


def _latest(root: OpenRoot) -> StepEntry:
    limits = lineage_limits(read_claims(root.storage))
    for entry in reversed(list_steps(root.storage, root.run_id)):
        manifest = entry.manifest
        if manifest is None or entry.state != "committed":
            continue
        if in_lineage(limits, manifest.incarnation, entry.step):
            return entry
    raise StepNotFound(f"{root.path}: no committed step yet")


def step_size_bytes(storage: Storage, name: str, manifest: Manifest) -> int | None:
    """Return the bytes of all files as the part documents say, or None if one is unreadable."""
    reader = StepReader(storage, name, manifest)
    total = sum(entry.size_bytes for entry in manifest.files)
    try:
        for ref in manifest.parts:
            part = reader.part(ref.participant)
            total += ref.document.size_bytes + sum(entry.size_bytes for entry in part.files)
            total += 0 if part.index is None else part.index.size_bytes
    except (Corrupt, OSError):
        return None
    return total
