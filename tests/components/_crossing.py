"""Captures that cross from one rank to another, as files."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.components._types import CapturedComponent


def put(path: Path, capture: CapturedComponent) -> None:
    """Store a capture with its bytes copied."""
    tensors = tuple(dataclasses.replace(item, data=bytes(item.data)) for item in capture.tensors)  # type: ignore[arg-type]
    trees = tuple(
        dataclasses.replace(
            tree,
            arrays=tuple(
                dataclasses.replace(array, data=bytes(array.data))  # type: ignore[arg-type]
                for array in tree.arrays
            ),
        )
        for tree in capture.trees
    )
    path.write_bytes(pickle.dumps(dataclasses.replace(capture, tensors=tensors, trees=trees)))


def get(path: Path) -> Any:  # noqa: ANN401 - what was put
    """Return a capture that any rank stored."""
    return pickle.loads(path.read_bytes())
