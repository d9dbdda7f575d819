"""Which operation of a job is struck: by its index, or by its name, which stays the same when the
threads take other turns.
"""

from __future__ import annotations

import re
import threading
from collections import Counter

from stepseal.storage import _local_files

__all__ = ["Strike", "pattern_of", "write_all_uncached"]

_RANDOM_NAME = re.compile(r"[0-9a-f]{32}(\.[0-9a-f]{16})?|\.[0-9a-f]{8}\.[0-9a-f]{16}")


def pattern_of(operation: str, key: str) -> str:
    """Return an operation with its random names blanked, as it is in every run."""
    return f"{operation} {_RANDOM_NAME.sub('*', key)}"


class Strike:
    """Decides which operations are struck: one, or all from one on, until it is lifted.

    Args:
        at: index of the operation, or its name with `#` and how often it has come by then.
        sticky: all later ones are struck, too.
    """

    def __init__(self, at: int | str, *, sticky: bool = False) -> None:
        self.struck = ""
        self._at = at
        self._sticky = sticky
        self._index = -1
        self._seen: Counter[str] = Counter()
        self._lifted = False
        self._lock = threading.Lock()

    def __call__(self, operation: str, key: str) -> bool:
        """Tell whether this operation is struck."""
        with self._lock:
            if self._lifted:
                return False
            self._index += 1
            if self.struck:
                return self._sticky
            pattern = pattern_of(operation, key)
            self._seen[pattern] += 1
            name = f"{pattern}#{self._seen[pattern]}"
            if self._at not in (self._index, name):
                return False
            self.struck = name
            return True

    @property
    def performed(self) -> set[str]:
        """Names of all operations up to the one that was struck, if any was."""
        return {f"{pattern}#{n + 1}" for pattern in self._seen for n in range(self._seen[pattern])}

    def lift(self) -> None:
        """Let everything succeed from now on."""
        with self._lock:
            self._lifted = True


def write_all_uncached() -> None:
    """Let this process write small files past the page cache, too, as large ones are."""
    _local_files._UNCACHED_FROM_BYTES = 1
