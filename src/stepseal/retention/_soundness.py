"""Whether all files of a commit are there, looked at once per attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.errors import StepNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.layout import Manifest
    from stepseal.steps import KnownStep, RemoveSteps, StepEntry

    Inspect = Callable[[StepEntry, Manifest], Sequence[str]]

__all__ = ["file_problems"]


def file_problems(
    removal: RemoveSteps, run_id: str, inspect: Inspect, sound: set[str], known: KnownStep
) -> Sequence[str]:
    """Return the problems of the files of a commit, one line each.

    Args:
        removal: the step store.
        run_id: run id of the root.
        inspect: looks at the files of a manifest that was just read.
        sound: attempts whose files were found complete; one more is added here.
        known: the commit.
    """
    if known.attempt in sound:
        return ()
    try:
        entry = removal.entry(known.step, run_id, known.area)
    except StepNotFound:
        return ("it was removed meanwhile",)
    manifest = entry.manifest
    if entry.state != "committed" or manifest is None or manifest.attempt != known.attempt:
        return (entry.problem or "another attempt has taken its place",)
    problems = inspect(entry, manifest)
    if not problems:
        sound.add(known.attempt)
    return problems
