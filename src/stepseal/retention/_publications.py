"""Which publications stay: the newest few, and whatever is being read.

They are no steps: keep rules, pins and the lineage do not count for them, nor they for steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput
from stepseal.layout import Area
from stepseal.retention._soundness import file_problems

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from stepseal.retention._soundness import Inspect
    from stepseal.steps import PruneReport, RemoveSteps

__all__ = ["check_publish_keep", "outdated", "prune_published"]


def check_publish_keep(keep: object) -> int:
    """Return `keep` if it is a number of publications to keep.

    Raises:
        InvalidInput: it is not an int of at least 1.
    """
    if type(keep) is not int or keep < 1:
        raise InvalidInput(
            f"publish_keep={keep!r}: expected an int of at least 1: the newest publication always "
            "stays.",
            expected=">= 1",
            found=keep,
        )
    return keep


def outdated(sound: Sequence[int], keep: int, leased: Collection[int]) -> tuple[int, ...]:
    """Return the versions to remove.

    Args:
        sound: all versions whose files are there, ascending.
        keep: how many stay.
        leased: versions that are being read.
    """
    return tuple(version for version in sound[:-keep] if version not in leased)


def prune_published(
    removal: RemoveSteps,
    run_id: str,
    incarnation: int,
    keep: int,
    *,
    inspect: Inspect,
    sound: set[str] | None = None,
) -> PruneReport | None:
    """Remove publications that are not among the newest, and finish what a crash interrupted.

    Nothing is removed while no publication is known to be sound; damaged ones stay and do not
    count. A publication that is being read stays until a later call.

    Args:
        removal: the step store.
        run_id: run id of the root.
        incarnation: the life that prunes; a newer one stops it.
        keep: how many stay.
        inspect: returns the problems of a publication's files.
        sound: see `plan_prune`.

    Returns:
        What was done; None if there is no sound publication.

    Raises:
        NotCurrent: a newer incarnation owns the root.
        StorageUnavailable: the root cannot be listed or read.
    """
    area = Area.PUBLISHED
    trashed = removal.trash(area)
    complete: set[str] = set() if sound is None else sound
    found = {
        known.step: known
        for known in removal.entries(run_id, area)
        if known.state == "committed"
        and not file_problems(removal, run_id, inspect, complete, known)
    }
    if not found:
        return None
    doomed = outdated(sorted(found), keep, removal.guards(area).leased)
    work = removal.retirement(incarnation, trash_grace_s=0.0, trashed=trashed)
    if doomed:  # newer ones may be visible, but not durable yet
        work.attempt(work.confirm_commits, area)
    for version in doomed:
        work.attempt(work.remove_step, found[version])
    for name in trashed:
        if name.endswith(
            (".pruned", ".deleting", ".in-place")
        ):  # others are left by saves, and swept
            work.attempt(work.settle_trashed, name, True)
    return work.report
