"""What people are told of a call, from its figures; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stepseal.layout import size_text
from stepseal.protocol import _actions as actions
from stepseal.protocol._figures import Cost, View, seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.protocol._figures import Figures

__all__ = ["of_commit", "of_restore", "views_of"]


class _Call(Protocol):
    """A round, as far as people ask for it."""

    phase: str
    figures: Figures
    participants: tuple[str, ...]

    @property
    def what(self) -> str: ...


def of_commit(found: _Call, now: float) -> tuple[Cost, actions.Inform]:
    """Return what a commit cost, and what people are told of it.

    The text is such as `step 500: 5.0 GiB from 8 ranks, blocked 0.12 s, committed after 1.9 s`.
    """
    cost = size_bytes, blocked_s, _ = found.figures.of_commit(now)
    size = "" if size_bytes is None else f"{size_text(size_bytes)} "
    blocked = "" if blocked_s is None else f"blocked {seconds_text(blocked_s)}, "
    name, took = found.what.removeprefix("save of "), seconds_text(found.figures.took_s(now))
    who = _everybody(found)
    return cost, actions.Inform(f"{name}: {size}from {who}, {blocked}committed after {took}")


def of_restore(
    found: _Call, step: int | None, num_passed_over: int, now: float
) -> list[actions.Action]:
    """Return what people are told of a restore: `step 500: 5.0 GiB restored to 8 ranks in 3.2 s`.

    Args:
        found: the restore.
        step: that was restored; None for a fresh start.
        num_passed_over: newer steps that were not restored.
        now: monotonic time.
    """
    if step is None:
        return [actions.Inform("fresh start: nothing was restored")]
    size, took = size_text(found.figures.size_bytes), seconds_text(found.figures.took_s(now))
    more = f"; {_counted(num_passed_over, 'newer step')} passed over" if num_passed_over else ""
    who = _everybody(found)
    return [actions.Inform(f"step {step}: {size} restored to {who} in {took}{more}")]


def views_of(rounds: Iterable[_Call]) -> tuple[View, ...]:
    """Return how far calls are."""
    return tuple(
        View(
            found.what,
            found.phase,
            found.figures.size_bytes,
            found.figures.of_bytes,
            _everybody(found),
            found.figures.called_at_s,
        )
        for found in rounds
    )


def _everybody(found: _Call) -> str:
    return _counted(len(found.participants), found.figures.noun)


def _counted(num: int, noun: str) -> str:
    return f"{num} {noun}{'' if num == 1 else 's'}"
