"""What a manifest may say about durability on this root, and the one warning where that is less.

Judged once, when the coordinator starts. Missing links or renames are no part of it: without links
the first claim fails, and renames have substitutes that lose nothing.
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
    """Return what manifests say of this root; warns with the reasons where it is `best-effort`.

    Coordinator only, once per life: one sync of the root, and a look at its mount.

    Raises:
        StorageUnavailable: the root cannot be synced, and not because it never can.
    """
    facts = storage.sync_support()
    if facts.doubts:
        _log.warning(
            "stepseal: steps of this root may not survive power loss (durability: best-effort): "
            "%s. `stepseal doctor` on the root says what holds.",
            "; ".join(facts.doubts),
        )
    return facts.durability
