"""Saving the state of each rank as one component: what the tests of replicas share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tests.session._sets import in_world

from stepseal.errors import ParticipantFailed
from stepseal.layout import decode_manifest
from stepseal.storage import read_bytes
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import stepseal as ss

States = list[dict[str, Any]]


def save_all(
    states: Sequence[Any],
    storage: MemoryStorage | None = None,
    **options: Any,  # noqa: ANN401 - of add
) -> list[Any]:
    """Save the state of each rank as one component; return per rank None or the error."""

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("state", states[rank], **({"kind": "tensors"} | options))
        ckpt.save(1).wait()

    return in_world(len(states), storage or MemoryStorage(), work)


def refused(found: list[Any]) -> ParticipantFailed:
    """Return the one error that all ranks raised."""
    assert all(isinstance(one, ParticipantFailed) for one in found), found
    assert len({(str(one), tuple(one.failures), one.path, one.problems) for one in found}) == 1
    error: ParticipantFailed = found[0]
    return error


def manifest_of(storage: MemoryStorage) -> Any:  # noqa: ANN401
    return decode_manifest(read_bytes(storage, "step-1/manifest.json", 1 << 20))


def pair(key: str, good: Any, bad: Any) -> States:  # noqa: ANN401 - tensors or values
    return [{"same": torch.ones(3), key: good}, {"same": torch.ones(3), key: bad}]
