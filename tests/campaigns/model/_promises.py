"""The promises of the model, judged in every state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.campaigns.model._moves import (
    ATTEMPTS,
    GONE,
    PLACED,
    WHOLE,
    in_lineage,
    selected,
)

if TYPE_CHECKING:
    from tests.campaigns.model._moves import Rules, State

__all__ = ["broken_promise"]


def broken_promise(state: State, rules: Rules) -> str:
    """Return the first promise that does not hold in this state, or nothing."""
    if state.wrong:
        return state.wrong
    for attempt in ATTEMPTS:
        if state.where[attempt] != PLACED:
            continue
        if state.parts[attempt] != (WHOLE, WHOLE):
            return "a step is whole, of one attempt"
        if state.aborted >> attempt & 1:
            return "no abort of what is committed"
    doing, read = state.reader
    if doing in ("reading", "reading on") and state.where[read] == GONE:
        return "what is leased is not deleted"
    return _stranded(state, rules)


def _stranded(state: State, rules: Rules) -> str:
    """Judge what another start of the job would find now."""
    owed = [
        attempt
        for attempt in ATTEMPTS
        if state.told >> attempt & 1 and in_lineage(state, attempt) and attempt != state.rotten
    ]
    newest = max(owed, key=lambda attempt: state.steps[attempt], default=-1)
    if newest < 0:
        return ""
    found, tried = selected(state, rules), 0
    while found >= 0 and found == state.rotten and rules.verify and rules.fall_back:
        tried |= 1 << found
        found = selected(state, rules, tried)
    if found >= 0 and found == state.rotten:
        return "no wrong byte is loaded" if not rules.verify else "a restore falls back"
    if found < 0 or state.steps[found] < state.steps[newest]:
        return "a restart finds what was acknowledged"
    if not in_lineage(state, found):
        return "a restart stays in the lineage"
    return ""
