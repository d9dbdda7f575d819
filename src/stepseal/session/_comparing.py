"""What a participant tells of the replicas that it holds, and what is left out of a save."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.layout import DocumentRef, PartRef
from stepseal.protocol import Compared
from stepseal.transfer import ReadRequest, StepReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stepseal.components import CapturedComponent
    from stepseal.layout import PartIndex
    from stepseal.protocol import Compare, Write
    from stepseal.storage import Storage

__all__ = ["Staged", "answer_with", "left_out", "told_digests", "warn_left_out"]

_log = logging.getLogger("stepseal")

_MAX_PATHS = 100_000
"""Most digests that are told of one set; what comes after them has one digest together."""


def told_digests(
    captured: Sequence[CapturedComponent], index: PartIndex | None
) -> dict[str, dict[str, str]]:
    """Return one digest per component and set, of what was written and of what others write.

    Args:
        captured: the components that were written.
        index: of what was written; None where there were no tensors.
    """
    found = {}
    for one in captured:
        if one.digests is not None and one.required:
            one.digests.take_written(index)
            found[one.name] = one.digests.of_sets()
    return found


@dataclass(frozen=True, slots=True)
class Staged:
    """The staged files of an attempt, and its order to write."""

    storage: Storage
    write: Write
    step: int
    check_cancelled: Callable[[], None]
    """Called before each read; raises to give up."""


def answer_with(
    captured: Sequence[CapturedComponent], staged: Staged | None = None
) -> Callable[[Compare], Compared]:
    """Return what answers questions about replicas.

    Args:
        captured: what this participant holds.
        staged: what all have written; None before anything was written.
    """
    held = {one.name: one.digests for one in captured}

    def answer(asked: Compare) -> Compared:
        told: dict[str, dict[str, dict[str, str]]] = {}
        for component, names in asked.sets.items():
            digests = held.get(component)
            if digests is not None:
                told[component] = {name: _bounded(digests.of_paths(name)) for name in names}
        amounts = {}
        if staged is not None and asked.full:
            amounts = _amounts(captured, asked, staged)
        return Compared(asked.call, told, amounts)

    return answer


def _amounts(
    captured: Sequence[CapturedComponent], asked: Compare, staged: Staged
) -> dict[str, dict[str, str]]:
    """Return, by component and path, by how much live tensors differ from what others wrote.

    Reads the staged files and verifies them; memory: 8 MiB per thread, and 1 MiB per tensor that is
    being read.

    Raises:
        Corrupt: what was written is not what its digests say, or lacks a tensor.
    """
    from stepseal.components import DifferenceSink

    parts = tuple(
        PartRef(who, DocumentRef(one.path, one.size_bytes, one.sha256))
        for who, one in asked.parts.items()
    )
    known = _StagedParts(staged.step, staged.write.attempt, tuple(asked.parts), parts)
    reader = StepReader(staged.storage, staged.write.staging, known)
    found: dict[str, dict[str, str]] = {}
    for one in captured:
        if one.name not in asked.full or one.digests is None:
            continue
        stored = reader.stored(one.name)
        sinks = {source.key: DifferenceSink(source) for source in one.digests.held}
        requests = [
            ReadRequest(box, sink) for key, sink in sinks.items() for box in stored.get(key, ())
        ]
        reader.stream(requests, check_cancelled=staged.check_cancelled)
        found[one.name] = {key: text for key, sink in sinks.items() if (text := sink.text())}
    return found


@dataclass(frozen=True, slots=True)
class _StagedParts:
    """What is known of a step that is not committed; see `StepReader`."""

    step: int
    attempt: str
    participants: tuple[str, ...]
    parts: tuple[PartRef, ...]


def _bounded(digests: Mapping[str, str]) -> dict[str, str]:
    """Return short digests of the first paths, so that an answer is no larger than a message."""
    return {path: digests[path][:16] for path in sorted(digests)[:_MAX_PATHS]}


def left_out(
    captured: Sequence[CapturedComponent], reasons: Mapping[str, str]
) -> tuple[CapturedComponent, ...]:
    """Return the components that are written."""
    return tuple(one for one in captured if one.name not in reasons)


def warn_left_out(step: int, reasons: Mapping[str, str]) -> None:
    """Tell the user, on every rank, what the step will lack."""
    for name, why in reasons.items():
        _log.warning("stepseal: save of step %d goes on without %s: %s", step, name, why)
