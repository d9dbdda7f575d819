"""Pins: steps that somebody wants kept, whatever the rules say.

A pin is a file named after its step; that the name is there is all that counts. Its content is for
people. A pin protects the number: whatever stands at `step-<N>`, and what was superseded there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt, StepNotFound, StorageUnavailable
from stepseal.layout import CONTROL, parse_step_name, seal, step_name, unseal, utc_text
from stepseal.steps._catalog import read_step
from stepseal.storage import KeyNotFound, make_dirs, put_if_absent, read_bytes

if TYPE_CHECKING:
    from stepseal.storage import Storage

__all__ = ["PINS", "Pins", "pin", "read_pin_reason", "read_pins", "unpin"]

PINS = f"{CONTROL}/pins"
"""One file per pinned step."""
_SUFFIX = ".json"
_MAX_BYTES = 1 << 16


class Pins:
    """The pins of one root.

    Args:
        storage: the root.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def add(self, step: int, run_id: str, *, reason: str = "") -> bool:
        """Pin a committed step; False if it was pinned already. See `pin`."""
        return pin(self._storage, step, run_id, reason=reason)

    def remove(self, step: int) -> bool:
        """Unpin a step; False if it was not pinned. See `unpin`."""
        return unpin(self._storage, step)

    def steps(self) -> frozenset[int]:
        """Return the pinned step numbers."""
        return read_pins(self._storage)

    def reason(self, step: int) -> str | None:
        """Return why a step is pinned; None where the pin does not tell."""
        return read_pin_reason(self._storage, step)


def pin(storage: Storage, step: int, run_id: str, *, reason: str = "") -> bool:
    """Keep a committed step until it is unpinned; return False if it was pinned already.

    Safe beside a coordinator that prunes: the pin is written first and the step looked at second,
    while pruning moves first and looks at the pins second. So either the pin is seen, or the step
    is found missing here. A pin that was made stays even then: somebody else may have been told
    meanwhile that the step is pinned already, and a prune that sees it puts the step back.

    Args:
        storage: the root.
        step: number of a committed step of this run.
        run_id: of the root.
        reason: for people.

    Raises:
        StepNotFound: there is no committed step of that number. The message says whether the pin
            stays: it does if the step went while it was pinned.
        StorageUnavailable: refused.

    Durability: on return the pin survives power loss.
    """
    _require_committed(storage, step, run_id, "Nothing was pinned")
    make_dirs(storage, PINS)
    body = {"step": step, "reason": reason, "pinned_at": utc_text(time.time())}
    is_new = put_if_absent(storage, _key(step), seal(body))
    _require_committed(
        storage, step, run_id, f"The pin stays; `stepseal unpin ROOT {step}` removes it"
    )
    return is_new


def unpin(storage: Storage, step: int) -> bool:
    """Leave a step to the rules again; return False if it was not pinned.

    Raises:
        StorageUnavailable: refused.
    """
    try:
        storage.remove_file(_key(step))
    except KeyNotFound:
        return False
    storage.sync_dir(PINS)
    return True


def read_pins(storage: Storage) -> frozenset[int]:
    """Return the pinned step numbers."""
    try:
        entries = storage.list_dir(PINS)
    except KeyNotFound:
        return frozenset()
    names = (e.name.removesuffix(_SUFFIX) for e in entries if e.name.endswith(_SUFFIX))
    return frozenset(step for name in names if (step := parse_step_name(name)) is not None)


def read_pin_reason(storage: Storage, step: int) -> str | None:
    """Return why a step is pinned, as it was said then; None where the pin does not tell."""
    key = _key(step)
    try:
        body = unseal(read_bytes(storage, key, _MAX_BYTES), what=key, max_bytes=_MAX_BYTES)
    except (StorageUnavailable, Corrupt):
        return None
    reason = body.get("reason") if isinstance(body, dict) else None
    return reason if isinstance(reason, str) else None


def _key(step: int) -> str:
    return f"{PINS}/{step_name(step)}{_SUFFIX}"


def _require_committed(storage: Storage, step: int, run_id: str, outcome: str) -> None:
    name = step_name(step)
    try:
        entry = read_step(storage, step, run_id)
    except StepNotFound:
        found = "nothing of this name"
    else:
        if entry.state == "committed":
            return
        found = f"{name} {entry.state}: {entry.problem.rstrip('.')}"
    raise StepNotFound(
        f"pin of step {step}: expected {name} to be a committed step of this run, found {found}. "
        f"{outcome}. `stepseal ls` shows the steps that are there.",
        step=step,
        path=name,
    )
