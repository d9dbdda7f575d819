"""Captures that cross from one rank to another, as files."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

from tests.components._memory import bytes_of

from stepseal.layout import BufferData

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.components._types import CapturedComponent
    from stepseal.layout import DataSource


def put(path: Path, capture: CapturedComponent) -> None:
    """Store a capture with its bytes copied."""
    tensors = tuple(dataclasses.replace(one, data=_copy(one.data)) for one in capture.tensors)
    trees = tuple(
        dataclasses.replace(
            tree,
            arrays=tuple(
                dataclasses.replace(array, data=_copy(array.data)) for array in tree.arrays
            ),
        )
        for tree in capture.trees
    )
    path.write_bytes(pickle.dumps(dataclasses.replace(capture, tensors=tensors, trees=trees)))


def _copy(data: DataSource) -> DataSource:
    return BufferData(bytes_of(data))


def get(path: Path) -> Any:  # noqa: ANN401 - what was put
    """Return a capture that any rank stored."""
    return pickle.loads(path.read_bytes())
