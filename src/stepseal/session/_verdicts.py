"""What all ranks raise, alike, from what failed on some of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from stepseal.errors import CheckpointError, ParticipantFailed, StepNotFound
from stepseal.protocol import Failure, details_of, error_from

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["error_of", "verdict"]

_SHOWN = 4


def verdict(notes: Mapping[int, Any], duty: str, state: str) -> dict[str, Any]:
    """Return what all ranks raise, JSON; empty if nothing failed.

    Args:
        notes: rank to its failure, or to None.
        duty: what the ranks could not do.
        state: what that means for the job.
    """
    failures = {rank: msgspec.convert(note, Failure) for rank, note in notes.items() if note}
    if not failures:
        return {}
    others = {rank: one for rank, one in failures.items() if one.kind != StepNotFound.kind}
    failures = others or failures  # a step that is gone is gone for all; anything else is told
    kinds = {failure.kind for failure in failures.values()}
    kind = kinds.pop() if len(kinds) == 1 else ParticipantFailed.kind
    shown = [f"rank {rank}: {one.message}" for rank, one in sorted(failures.items())[:_SHOWN]]
    more = f"; and {len(failures) - _SHOWN} ranks more" if len(failures) > _SHOWN else ""
    return {
        "kind": kind,
        "message": f"could not {duty}: {'; '.join(shown)}{more} {state}",
        "failures": {
            str(rank): msgspec.to_builtins(one) for rank, one in sorted(failures.items())[:_SHOWN]
        },
    }


def error_of(answer: Mapping[str, Any]) -> CheckpointError:
    """Return the error of a verdict."""
    told = answer.get("failures", {})
    failures = {f"rank {rank}": msgspec.convert(one, Failure) for rank, one in told.items()}
    texts = {name: failure.message for name, failure in failures.items()}
    details = details_of(None, failures)
    return error_from(answer["kind"], answer["message"], failures=texts, **details)
