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
    forms: dict[tuple[str, str], tuple[str, str, tuple[int, ...]]] = {}
    boxes: dict[tuple[str, str, tuple[int, ...]], tuple[str, bytes]] = {}
    values: dict[tuple[str, str], tuple[str, bytes]] = {}
    problems: dict[tuple[str, str], str] = {}
    for participant, index in indexes.items():
        for tensor in index.tensors:
            entry = (tensor.component, tensor.key)
            form = (participant, tensor.dtype, tensor.shape)
            first = forms.setdefault(entry, form)
            place = (*entry, tensor.box.offsets)  # parts that overlap are found elsewhere
            holder, digests = boxes.setdefault(place, (participant, tensor.chunk_digests))
            if form[1:] != first[1:]:
                problems.setdefault(entry, f"{_shown(*first)}, {_shown(*form)}")
            elif digests != tensor.chunk_digests:
                problems.setdefault(entry, f"other elements on {participant} than on {holder}")
        for item in index.bytes_items:
            for entry in item.entries:
                other, value = values.setdefault(entry, (participant, item.chunk_digests))
                if value != item.chunk_digests:
                    problems.setdefault(entry, f"another value on {participant} than on {other}")
    return [f"component {name}: {key}: {text}" for (name, key), text in problems.items()]


def _shown(participant: str, dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)} on {participant}"
