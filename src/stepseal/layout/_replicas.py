"""What several participants stored of one entry, compared by shape, dtype and digests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.layout._items import PartIndex

__all__ = ["replica_problems"]


def replica_problems(indexes: Mapping[str, PartIndex]) -> list[str]:
    """Return each entry that two participants stored differently; empty if replicas are equal.

    Compares dtypes and global shapes of all boxes of a tensor, digests of equal boxes, and digests
    of the copies of non-tensor leaves. Reads no bytes.

    Args:
        indexes: the part index of every participant, in ordinal order.
    """
    first: dict[object, tuple[str, object]] = {}
    problems: dict[tuple[str, str], str] = {}
    for participant, index in indexes.items():
        for tensor in index.tensors:
            entry = (tensor.component, tensor.key)
            form = f"{tensor.dtype} {list(tensor.shape)}"
            other, expected = first.setdefault(entry, (participant, form))
            where = first.setdefault((entry, tensor.box), (participant, tensor.chunk_digests))
            if form != expected:
                problems.setdefault(entry, f"{expected} on {other}, {form} on {participant}")
            elif where[1] != tensor.chunk_digests:
                problems.setdefault(entry, f"other elements on {participant} than on {where[0]}")
        for item in index.bytes_items:
            for entry in item.entries:
                other, value = first.setdefault(entry, (participant, item.chunk_digests))
                if value != item.chunk_digests:
                    problems.setdefault(entry, f"another value on {participant} than on {other}")
    return [f"component {name}: {key}: {text}" for (name, key), text in problems.items()]
