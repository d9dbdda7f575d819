"""The durability on a root, for manifests, and one warning if it is only best-effort.

Judged once, when the coordinator starts. Missing links or renames do not matter here: without
links the first claim fails, and renames have substitutes that are as durable.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepseal.layout import Durability
    from stepseal.storage import Storage

__all__ = ["durability_of"]

_log = logging.getLogger("stepseal")


def durability_of(storage: Storage) -> Durability:
    """Return the durability on a root, for manifests; warn with the reasons if it is `best-effort`.

    Coordinator only, once per life: syncs the root once, and reads its mount options.

    Raises:
        StorageUnavailable: a sync of the root failed, although the file system supports it.
    """
    facts = storage.sync_support()
    if facts.doubts:
        _log.warning(
            "stepseal: steps of this root may not survive power loss (durability: best-effort): "
            "%s. `stepseal doctor` on the root shows which promises hold.",
            "; ".join(facts.doubts),
        )
    return facts.durability
