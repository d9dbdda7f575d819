"""How the command line opens a root and finds a step in it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from stepseal.cli._output import warn
from stepseal.errors import CheckpointError, Corrupt, InvalidInput, StepNotFound
from stepseal.layout import Area, parse_step_name
from stepseal.steps import (
    CopiedStep,
    StepEntry,
    is_step_folder,
    locate_root,
    open_step_folder,
    open_store,
    refuse_newer,
)
from stepseal.storage import Access
from stepseal.transfer import StepReader

if TYPE_CHECKING:
    from stepseal.layout import Manifest
    from stepseal.steps import StepStore

__all__ = [
    "OpenRoot",
    "StepSize",
    "find_step",
    "measure_step",
    "open_root",
    "open_root_or_step",
    "parse_step",
]


@dataclass(frozen=True, slots=True)
class StepSize:
    """The size of a committed step, and the state that its parts show."""

    size_bytes: int | None
    """None if the size is not known; `problem` says why."""
    state: Literal["committed", "damaged"]
    """`damaged`: a part document differs from its digest in the manifest."""
    problem: str


@dataclass(frozen=True, slots=True)
class OpenRoot:
    """A root, opened for reading."""

    path: str
    steps: StepStore
    run_id: str
    only: str | None = None
    """Key of the one step or publication that was asked for by its path, None for a root."""

    def key(self, entry: StepEntry) -> str:
        """Return where a step or publication lies: in a copy, at the top."""
        return "" if isinstance(self.steps, CopiedStep) else entry.name


def open_root(path: str, *, allow_shared: bool = False) -> OpenRoot:
    """Open a root; raise RootNotFound if the path is not a root.

    Args:
        path: of the root.
        allow_shared: also create files in a root that other users can write to.
    """
    absolute = locate_root(path)
    steps = open_store(absolute, access=Access(allow_shared=allow_shared))
    if problem := steps.writable_problem():
        warn(f"{absolute} is {problem}: the files read here may be replaced at any time")
    return OpenRoot(absolute, steps, steps.run_id())


def open_root_or_step(path: str) -> OpenRoot:
    """Open a root, or the folder of a step or publication, in its root or copied elsewhere.

    Raises:
        RootNotFound: it is neither.
        Corrupt, IncompatibleFormat: of the manifest of a step folder.
    """
    if not is_step_folder(path):
        return open_root(path)
    place = locate_root(path)
    steps, manifest, key = open_step_folder(place)
    if key:
        return replace(open_root(place[: -len(key) - 1] or os.sep), only=key)
    return OpenRoot(place, steps, manifest.run_id, manifest.key)


def find_step(root: OpenRoot, wanted: str) -> StepEntry:
    """Return a step by number, by folder name, or `latest` (newest of the lineage).

    A publication is found by its folder name: `v-7`, or `published/v-7`.

    Raises:
        InvalidInput: `wanted` has none of these forms.
        StepNotFound: the step does not exist, or the folder is foreign.
        IncompatibleFormat: a newer release wrote it.
    """
    if wanted == "latest":
        return _latest(root)
    published = Area.PUBLISHED
    version = published.parse(wanted.removeprefix(f"{published.folder}/"))
    if version is None:
        step = parse_step(wanted, "a number such as 200, step-200, latest, or v-7 of a publication")
        entry = root.steps.entry(step, root.run_id)
    else:
        entry = root.steps.entry(version, root.run_id, published)
    refuse_newer(entry)
    if entry.state == "foreign":
        raise StepNotFound(
            f"{entry.name} is not of this run: {entry.problem}. `stepseal ls` lists the contents "
            "of the root.",
            step=entry.step,
            path=entry.name,
        )
    return entry


def parse_step(text: str, expected: str = "a number such as 200, or step-200") -> int:
    """Return the step that an argument names by its number or its folder.

    Raises:
        InvalidInput: the text is neither.
    """
    step = parse_step_name(text if text.startswith("step-") else f"step-{text}")
    if step is None:
        raise InvalidInput(f"step {text!r}: expected {expected}")
    return step


def _latest(root: OpenRoot) -> StepEntry:
    newest = root.steps.newest(root.run_id)
    if newest is not None:
        return newest
    raise StepNotFound(
        f"{root.path}: no sound step in the lineage. `stepseal ls` lists the contents of the root."
    )


def measure_step(root: OpenRoot, entry: StepEntry, manifest: Manifest) -> StepSize:
    """Return the total size of all files of a committed step, from its part documents.

    Args:
        root: the root of the step.
        entry: the committed step.
        manifest: the step's manifest.
    """
    reader = StepReader(root.steps.storage, root.key(entry), manifest)
    total = sum(file.size_bytes for file in manifest.files)
    try:
        total += reader.parts_bytes()
    except CheckpointError as error:
        return _look_again(root, entry, error)
    return StepSize(total, "committed", "")


def _look_again(root: OpenRoot, entry: StepEntry, error: CheckpointError) -> StepSize:
    """Find out whether the step is damaged, was removed meanwhile, or cannot be read."""
    if not isinstance(error, Corrupt):
        return StepSize(None, "committed", f"size not known: {error}")
    try:
        stands = root.steps.entry(entry.step, root.run_id, entry.area)
    except StepNotFound:
        stands = None
    except CheckpointError as refusal:
        return StepSize(None, "committed", f"size not known: {refusal}")
    if stands is None or stands.manifest_sha256 != entry.manifest_sha256:
        return StepSize(None, "committed", "pruned or superseded during this command")
    return StepSize(None, "damaged", str(error))
