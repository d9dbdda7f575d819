"""Leases: they protect steps and publications from pruning while they are being read.

A lease is a file; its name holds the step, the expiry and the holder. A reader takes the lease
first and checks that the step is there second. A prune moves the step first and reads the leases
second. So one of the two always notices the other, independent of clocks. Clocks matter only for
leases of killed readers; clocks may differ by `SKEW_S`.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stepseal.errors import StorageUnavailable
from stepseal.layout import CONTROL, Area, seal
from stepseal.storage import KeyNotFound

if TYPE_CHECKING:
    from stepseal.storage import Storage

__all__ = ["LEASES", "SKEW_S", "Lease", "drop_expired", "read_leases", "release_lease",
           "renew_lease", "take_lease"]  # fmt: skip

LEASES = f"{CONTROL}/leases"
"""One file per reader."""
SKEW_S = 60
"""Seconds for which a lease protects a step after its expiry, because clocks differ."""
_NAME = re.compile(r"(step-|v-)(0|[1-9][0-9]{0,15})\.([0-9a-f]{8})\.([0-9a-f]{16})\.json")


@dataclass(frozen=True, slots=True)
class Lease:
    """One reader's hold on one step."""

    step: int
    expires_at_s: int
    """Unix time by the holder's clock."""
    holder: str
    """16 random hex digits."""
    area: Area = Area.STEPS

    @property
    def key(self) -> str:
        """Key of the lease file."""
        name = self.area.folder_name(self.step)
        return f"{LEASES}/{name}.{self.expires_at_s:08x}.{self.holder}.json"


def take_lease(
    storage: Storage, step: int, *, ttl_s: float, now_s: float, area: Area = Area.STEPS
) -> Lease:
    """Protect a step while it is being read; the caller must then check that the step is there.

    Args:
        storage: the root.
        step: number of the step, or version of the publication.
        ttl_s: seconds after which the lease expires.
        now_s: Unix time.
        area: where it lies.

    Raises:
        KeyNotFound: the root has no folder for leases.
        StorageUnavailable: the storage refused, for example a read-only root; no file is left.

    Durability: none; a reader does not survive a power loss of its host either.
    """
    lease = Lease(step, int(now_s + ttl_s) + 1, secrets.token_hex(8), area)
    body = {area.noun: step, "host": socket.gethostname(), "pid": os.getpid()}
    handle = storage.create_file(lease.key)
    try:
        with handle:
            handle.write(seal(body), 0)
    except StorageUnavailable:
        # the file's name alone protects the step until its expiry
        try:
            release_lease(storage, lease)
        except StorageUnavailable:
            return lease
        raise
    return lease


def renew_lease(storage: Storage, lease: Lease, *, ttl_s: float, now_s: float) -> Lease:
    """Return the lease with a later expiry.

    Raises:
        KeyNotFound: the lease expired and was removed.
        StorageUnavailable: the storage refused.
    """
    renewed = replace(lease, expires_at_s=int(now_s + ttl_s) + 1)
    if renewed != lease:
        storage.rename(lease.key, renewed.key)
    return renewed


def release_lease(storage: Storage, lease: Lease) -> None:
    """End a lease; does nothing if it was removed meanwhile.

    Raises:
        StorageUnavailable: the storage refused; the lease will expire.
    """
    try:
        storage.remove_file(lease.key)
    except KeyNotFound:
        return


def read_leases(storage: Storage, now_s: float, area: Area = Area.STEPS) -> dict[int, int]:
    """Return the leased steps, or publications, with their latest expiry."""
    leased: dict[int, int] = {}
    for lease in _leases(storage):
        if lease.area is area and lease.expires_at_s + SKEW_S >= now_s:
            leased[lease.step] = max(lease.expires_at_s, leased.get(lease.step, 0))
    return leased


def drop_expired(storage: Storage, now_s: float) -> None:
    """Remove expired leases of readers that were killed.

    Raises:
        StorageUnavailable: the storage refused.
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
    areas = {area.prefix: area for area in Area}
    return [Lease(int(m[2]), int(m[3], 16), m[4], areas[m[1]]) for m in matches if m]
