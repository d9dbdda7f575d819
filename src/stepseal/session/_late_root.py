"""Opens a root that another process of the job has made, where this host may see it late.

An NFS client remembers for up to a minute that a path did not exist, an automounter mounts when
somebody asks, and a volume may be attached after the job has started. So the first look is not the
last one. A folder without the format marker is the place where a volume is still to be mounted.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from stepseal.errors import RootNotFound
from stepseal.steps import open_store

if TYPE_CHECKING:
    from stepseal.steps import StepStore
    from stepseal.storage import Access

__all__ = ["open_late_root"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


def open_late_root(root: str, access: Access, limit_s: float, maker: str) -> StepStore:
    """Open a root that exists for sure; look again until this host sees it.

    Args:
        root: absolute path.
        access: modes of what is made, and whether shared directories are accepted.
        limit_s: seconds to wait until this host sees it.
        maker: who has just said that it exists, for the message.

    Raises:
        RootNotFound: this host did not see it in time.
        CheckpointError: see `open_store`.
    """
    end = time.monotonic() + limit_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            steps = open_store(root, access=access)
            steps.run_id()
        except RootNotFound as error:
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise RootNotFound(
                    f"no root at {root} on host {socket.gethostname()}: {maker} made it, and this "
                    f"host did not see it within {limit_s:g} s. Is it on storage that all hosts "
                    "share, and mounted here at this path?",
                    path=root,
                    errno=error.errno,
                ) from error
        else:
            return steps
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
