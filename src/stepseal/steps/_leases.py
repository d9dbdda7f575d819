"""Leases: steps that somebody reads right now, so that pruning leaves them in place.

A lease is a file whose name says everything: step, expiry, holder. Whoever reads takes the lease
first and looks at the step second; pruning moves the step first and looks at the leases second. So
one of the two always notices the other, without any clock. Clocks only end the lease of a reader
that died; `SKEW_S` is what they may differ.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.errors import StorageUnavailable
from stepseal.layout import CONTROL, seal, step_name
from stepseal.storage import KeyNotFound

if TYPE_CHECKING:
    from stepseal.storage import Storage

__all__ = ["LEASES", "SKEW_S", "Lease", "drop_expired", "read_leases", "release_lease",
           "renew_lease", "take_lease"]  # fmt: skip

LEASES = f"{CONTROL}/leases"
"""One file per reader."""
SKEW_S = 60
"""A lease protects this long past its expiry, because clocks differ."""
_NAME = re.compile(r"step-(0|[1-9][0-9]{0,15})\.([0-9a-f]{8})\.([0-9a-f]{16})\.json")


@dataclass(frozen=True, slots=True)
class Lease:
    """One reader's hold on one step."""

    step: int
    expires_at_s: int
    """Unix time by the holder's clock."""
    holder: str
    """16 random hex digits."""

    @property
    def key(self) -> str:
        """Where it stands."""
        return f"{LEASES}/{step_name(self.step)}.{self.expires_at_s:08x}.{self.holder}.json"


def take_lease(storage: Storage, step: int, *, ttl_s: float, now_s: float) -> Lease:
    """Keep a step in place while it is read; afterwards look whether it still stands there.

    Args:
        storage: the root.
        step: number of the step.
        ttl_s: seconds after which it ends by itself.
        now_s: Unix time.

    Raises:
        KeyNotFound: the root has no folder for leases.
        StorageUnavailable: refused, for example on a read-only root; nothing is left.

    Durability: none: readers die with their hosts, and a lost lease is renewed.
    """
    lease = Lease(step, int(now_s + ttl_s) + 1, secrets.token_hex(8))
    body = {"step": step, "host": socket.gethostname(), "pid": os.getpid()}
    handle = storage.create_file(lease.key)
    try:
        with handle:
            handle.write(seal(body), 0)
    except StorageUnavailable:
        # its name alone holds the step: nobody would end it before its expiry
        try:
            release_lease(storage, lease)
        except StorageUnavailable:
            return lease
        raise
    return lease


def renew_lease(storage: Storage, lease: Lease, *, ttl_s: float, now_s: float) -> Lease:
    """Return the lease with a later expiry.

    Raises:
        KeyNotFound: it expired and was dropped.
        StorageUnavailable: refused.
    """
    renewed = Lease(lease.step, int(now_s + ttl_s) + 1, lease.holder)
    if renewed != lease:
        storage.rename(lease.key, renewed.key)
    return renewed


def release_lease(storage: Storage, lease: Lease) -> None:
    """End a lease; one that was dropped meanwhile is none.

    Raises:
        StorageUnavailable: refused; it ends by itself.
    """
    try:
        storage.remove_file(lease.key)
    except KeyNotFound:
        return


def read_leases(storage: Storage, now_s: float) -> dict[int, int]:
    """Return the leased steps with their latest expiry."""
    leased: dict[int, int] = {}
    for lease in _leases(storage):
        if lease.expires_at_s + SKEW_S >= now_s:
            leased[lease.step] = max(lease.expires_at_s, leased.get(lease.step, 0))
    return leased


def drop_expired(storage: Storage, now_s: float) -> None:
    """Remove the leases of readers that died.

    Raises:
        StorageUnavailable: refused.
    """
    for lease in _leases(storage):
        if lease.expires_at_s + SKEW_S < now_s:
            release_lease(storage, lease)


def _leases(storage: Storage) -> list[Lease]:
    try:
        entries = storage.list_dir(LEASES)
    except KeyNotFound:
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in entries)
    return [Lease(int(m[1]), int(m[2], 16), m[3]) for m in matches if m]
