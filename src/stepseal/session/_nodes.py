"""On which node each rank of a job is: each says a text, and equal texts are one node."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput
from stepseal.session._host import boot_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["node_text", "numbered", "packed", "unpacked"]


def node_text(node: str | int | None) -> str:
    """Return the text by which this process names its node, empty if it knows none.

    Args:
        node: what the user said; None takes torchrun's `GROUP_RANK`, or else the boot id of the
            machine, which containers on it share.

    Raises:
        InvalidInput: `node` is neither a text nor a number.
    """
    if node is not None:
        if type(node) not in (str, int) or node == "":
            raise InvalidInput(f"node: expected a name or a number, found {node!r:.80}")
        return f"named {node}"
    if group_rank := os.environ.get("GROUP_RANK"):
        return f"GROUP_RANK {group_rank}"
    try:
        return f"boot {boot_id()}"
    except OSError:
        return ""


def numbered(texts: Sequence[str]) -> tuple[int, ...]:
    """Return the number of each rank's node; nodes are numbered by their lowest rank.

    Returns:
        Empty if a rank knows no node, or the ranks name them in different ways.
    """
    if not all(texts) or len({text.split(" ", 1)[0] for text in texts}) != 1:
        return ()
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(text, len(numbers)) for text in texts)


def packed(numbers: Iterable[int]) -> list[list[int]]:
    """Return numbers as runs of equal ones, which are few where neighbours share a node."""
    return [[number, len(list(run))] for number, run in itertools.groupby(numbers)]


def unpacked(runs: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return the numbers that `packed` was given."""
    return tuple(number for number, count in runs for _ in range(count))
