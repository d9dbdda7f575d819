"""How an admission reaches a rank that nobody can call: as a file in the root, for its owner alone.

`.stepseal/admissions/<participant>.json`, mode 0600, holds an address and a secret. The controller
puts it there, and the rank removes it once it has connected. One that was left behind is for a life
that is over, or a coordinator that is gone: it admits nobody.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from stepseal.actors._admission import Admission
from stepseal.errors import InvalidInput
from stepseal.layout import CONTROL
from stepseal.steps import locate_root, open_store
from stepseal.storage import (
    Access,
    KeyNotFound,
    make_dirs,
    read_bytes,
    replace_durable,
    sweep_temporaries,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["RankMember", "put_letter", "ranks", "read_letter", "remove_letter"]

_FOLDER = f"{CONTROL}/admissions"
_MAX_BYTES = 1 << 16


def _key(participant: str) -> str:
    return f"{_FOLDER}/{participant}.json"


def put_letter(admission: Admission) -> None:
    """Leave an admission in its root, in place of the one before.

    Raises:
        StorageUnavailable: the storage refused.
    """
    dir_mode = stat.S_IMODE(os.stat(admission.root).st_mode) & 0o755 | 0o700
    mine = Access(file_mode=0o600, dir_mode=dir_mode, allow_shared=True)
    storage = open_store(admission.root, access=mine).storage
    key = _key(admission.participant)
    folder = key.rpartition("/")[0]
    make_dirs(storage, folder)
    sweep_temporaries(storage, folder, now_s=time.time())
    replace_durable(storage, key, admission.encode())


def read_letter(root: str | os.PathLike[str], participant: str, access: Access) -> Admission | None:
    """Return the admission that lies in the root, for this root; None without one.

    Raises:
        RootNotFound: there is no root.
        InvalidInput: the file is no admission.
        StorageUnavailable: the storage refused.
    """
    storage = open_store(root, access=access).storage
    try:
        found = Admission.decode(read_bytes(storage, _key(participant), _MAX_BYTES))
    except KeyNotFound:
        return None
    return replace(found, root=locate_root(root))  # which has another path on the controller's host


def remove_letter(root: str | os.PathLike[str], participant: str, access: Access) -> None:
    """Remove an admission that was read; do nothing where it is gone."""
    with suppress(KeyNotFound):
        open_store(root, access=access).storage.remove_file(_key(participant))


class RankMember:
    """A rank that finds its admission in the root, and begins its calls at safe points."""

    doorbell = None

    def __init__(self, participant: str) -> None:
        self.id = participant

    async def admit(self, admission: Admission, executor: Executor) -> None:
        """Leave the admission in the root; the coordinator waits until the rank has connected."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(executor, put_letter, admission)

    def leave(self, *, is_lost: bool) -> None:
        """Do nothing: the process is not ours."""


def ranks(role: str, size: int) -> list[RankMember]:
    """Return members for all ranks of a role that make their own steps, each an `ss.Rank`.

    They may be started before or after they are admitted; they share the root with the controller.

    Args:
        role: role of the ranks.
        size: their number.
    """
    if size < 1:
        raise InvalidInput(f"ranks({role!r}, {size}): expected at least one rank", found=size)
    return [RankMember(f"{role}/{rank}") for rank in range(size)]
