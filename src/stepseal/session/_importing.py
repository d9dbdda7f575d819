"""A foreign DCP folder as the first step of a new root, through the ordinary commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.errors import (
    InvalidInput,
    NotRestored,
    RootNotFound,
    StepNotFound,
    UnsupportedState,
)
from stepseal.layout import check_step
from stepseal.session._checkpointer import Checkpointer
from stepseal.session._saving import collection_paused
from stepseal.steps import locate_root, open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from stepseal.foreign import DcpFolder
    from stepseal.storage import Access

__all__ = ["Imported", "import_dcp"]


@dataclass(frozen=True, slots=True)
class Imported:
    """What `import_dcp` made."""

    step: int
    path: str
    """Folder of the step."""
    source: str
    """Folder that was read; it is unchanged."""
    source_sha256: str
    """SHA-256 of its `.metadata`, also in the step's tags."""
    components: Mapping[str, str]
    """Component to its kind and size."""
    skipped: Mapping[str, str]
    """FQN of each value that was left out, with the reason."""


def import_dcp(
    source: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    step: int,
    skip_bytes: bool = False,
    access: Access | None = None,
) -> Imported:
    """Store a folder that stock `torch.distributed.checkpoint` wrote as one committed step.

    Nothing in the folder is unpickled or changed. What it holds is taken as it is: DCP writes no
    digests, so damage from before the import stays unseen. All of it must fit into memory. Call
    it in one process, outside a job.

    Args:
        source: the folder with `.metadata`.
        root: a new root, or one without any step.
        step: number of the new step.
        skip_bytes: leave out non-tensor values that hold more than plain types, and components of
            which nothing is left.
        access: of `root`, as for `Checkpointer`.

    Raises:
        StepNotFound: `source` is no DCP folder.
        NotRestored: `root` already holds steps: an import never joins the history of a run.
        UnsupportedState: the folder names something that is not taken from foreign checkpoints, or
            nothing of it is left.
        Corrupt: the folder is not whole, or not what DCP writes.
        InvalidInput: `step` is no step number, a top-level key cannot name a component, or this
            process is one of several of a job; or `root` is a DCP folder itself, or others can
            write there.
    """
    import torch.distributed as dist

    step = check_step(step)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise InvalidInput("import_dcp: expected one process, found a job of several ranks")
    place = locate_root(source, "source")
    target = locate_root(root)
    skipped: dict[str, str] | None = {} if skip_bytes else None
    with collection_paused():
        folder = _open(place)
        _check_empty(target)
        read = {name: folder.imported(name, skipped) for name in folder.components}
    components = {name: found for name, found in read.items() if found is not None}
    if not components:
        raise UnsupportedState(f"{place}: nothing is left to import.", path=place)
    with Checkpointer(target, mode="sync", access=access, alone=True) as checkpointer:
        for name, component in components.items():
            checkpointer.add(name, component)
        tags = [f"imported from dcp {folder.sha256}"]
        saved = checkpointer.save(step, tags=tags).wait()
    left_out = skipped or {}
    sizes = {}
    for name in components:
        stored = folder.components[name]
        num_values = sum(fqn not in left_out for fqn in stored.values.values())
        count, what = (len(stored.tensors), "tensor") if stored.tensors else (num_values, "value")
        sizes[name] = f"{count} {what}{'' if count == 1 else 's'}"
    return Imported(step, saved.path, place, folder.sha256, sizes, left_out)


def _open(place: str) -> DcpFolder:
    from stepseal.foreign import DcpFolder

    try:
        storage = open_store(place).storage
    except RootNotFound as error:
        raise StepNotFound(f"{place}: no such folder.", path=place) from error
    return DcpFolder(storage, "", f"{place}/")


def _check_empty(target: str) -> None:
    try:
        steps = open_store(target)
    except RootNotFound:
        return
    commits = [entry for entry in steps.entries() if entry.is_commit]
    if commits:
        raise NotRestored(
            f"{target}: expected a root without steps, found {len(commits)}, the newest "
            f"{commits[-1].name}. An import never joins the history of a run: name a new root.",
            path=target,
        )
