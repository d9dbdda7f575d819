"""Whether a process is a job by itself, or one of several that did not say so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from stepseal.components import Topology

__all__ = ["check_alone"]


def check_alone(topology: Topology, *, alone: bool) -> None:
    """Refuse a process that its launcher started as one of several, but that has no process group.

    Each such process would take itself for the whole job. Launchers set WORLD_SIZE; a number of
    tasks of the scheduler says nothing, as one task may be all of a job.

    Args:
        topology: who takes part, by the process group.
        alone: the user says that this process is a job by itself.

    Raises:
        InvalidInput: it is one of several; or `alone`, and it has a process group of several.
    """
    if alone and topology.world_size > 1:
        raise InvalidInput(
            f"alone=True: expected no process group, found one of {topology.world_size} ranks. "
            "Leave it out: all ranks save one step together.",
            expected=1,
            found=topology.world_size,
        )
    size = os.environ.get("WORLD_SIZE", "")
    if alone or topology.world_size > 1 or not size.isdecimal() or int(size) <= 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():  # of this process alone
        return
    raise InvalidInput(
        f"WORLD_SIZE={size}, but this process has no process group: expected it to be one of {size}"
        " ranks that save together. Call torch.distributed.init_process_group() before "
        "Checkpointer(...). If this process saves by itself, into a root that no other process "
        "writes, pass alone=True to Checkpointer.",
        expected="a process group",
        found=None,
    )
