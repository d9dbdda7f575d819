"""Pins: they keep a step by hand, whatever the keep rules choose.

A pin is a file named after its step. Its existence protects the step; its content is for people. A
pin protects a number: any step at `step-<N>`, and steps that were superseded there.
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
        """Return why a step is pinned; None if the pin has no readable reason."""
        return read_pin_reason(self._storage, step)


def pin(storage: Storage, step: int, run_id: str, *, reason: str = "") -> bool:
    """Keep a committed step until it is unpinned; return False if it was pinned already.

    Safe to run concurrently with a prune. This function writes the pin first and checks the step
    second; a prune moves the step first and reads the pins second. So either the prune sees the
    pin, or this function finds the step missing. The pin stays even then: another caller may rely
    on it already, and a prune that sees it puts the step back.

    Args:
        storage: the root.
        step: number of a committed step of this run.
        run_id: run id of the root.
        reason: note for people.

    Raises:
        StepNotFound: there is no committed step of that number. If the step vanished during the
            call, the pin stays, and the message says so.
        StorageUnavailable: the storage refused.

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
    """Remove the pin of a step; return False if it was not pinned.

    Raises:
        StorageUnavailable: the storage refused.
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
    """Return the reason stored in a pin; None if the pin has no readable reason."""
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
        found = "no such entry"
    else:
        if entry.state == "committed":
            return
        found = f"{name} {entry.state}: {entry.problem.rstrip('.')}"
    raise StepNotFound(
        f"pin of step {step}: expected {name} to be a committed step of this run, found {found}. "
        f"{outcome}. `stepseal ls` lists the steps of the root.",
        step=step,
        path=name,
    )
