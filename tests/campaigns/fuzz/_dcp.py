"""Judges of the decoders of foreign DCP folders: an index, and the record of a value."""

from __future__ import annotations

import io
import sys
from typing import Any

import torch
from tests.security._forge import BASE, NEWEST

from stepseal.foreign import ForeignItem, read_metadata
from stepseal.foreign._records import Record
from stepseal.foreign._values import Budget, read_value
from stepseal.layout import DCP_INDEX, coverage_problems, path_problem
from stepseal.testing import MemoryStorage

__all__ = ["dcp_indexes", "dcp_records", "judge_dcp_index", "judge_dcp_record"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def judge_dcp_index(data: bytes) -> str | None:
    """Read an index; it names files of its folder, and every element of every tensor once."""
    before = set(sys.modules)
    found = read_metadata(data, DCP_INDEX)
    if imported := set(sys.modules) - before:
        return f"imported {sorted(imported)}"
    boxes = [item for tensor in found.tensors.values() for _, item in tensor.boxes]
    for item in (*boxes, *found.values.values()):
        if problem := _item_problem(item):
            return problem
    for tensor in found.tensors.values():
        if problems := coverage_problems(tensor.shape, [box for box, _ in tensor.boxes]):
            return f"{tensor.fqn}: {problems[0]}"
    missing = (found.tensors.keys() | found.values.keys()) ^ found.paths.keys()
    return f"no path, or no record, of {sorted(missing)}" if missing else None


def _item_problem(item: ForeignItem) -> str | None:
    if path_problem(item.path) is not None:
        return f"{item.path!r} was called safe"
    sizes = (item.offset, item.length)
    if any(type(size) is not int or not 0 <= size < 2**63 for size in sizes):
        return f"{item.path!r}: a range of {sizes}"
    return None


def judge_dcp_record(data: bytes) -> str | None:
    """Read a record; what comes out is plain, and nothing was imported for it."""
    storage = MemoryStorage()
    with storage.create_file("record") as file:
        file.write(data, 0)
    before = set(sys.modules)
    with storage.open_read("record") as handle:
        record = Record(handle, ForeignItem("record", 0, len(data)), "record")
        found = read_value(record, Budget())
    if imported := set(sys.modules) - before:
        return f"imported {sorted(imported)}"
    return _not_plain(found)


def _not_plain(value: Any) -> str | None:  # noqa: ANN401 - hostile
    if type(value) in _PLAIN or isinstance(value, (torch.Tensor, torch.dtype, torch.Size)):
        return None
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = list(value)
    else:
        return f"a value of {type(value)}"
    return next((problem for part in parts if (problem := _not_plain(part))), None)


def dcp_indexes() -> list[bytes]:
    """Return good indexes."""
    return [(BASE / f"step-{NEWEST}" / DCP_INDEX).read_bytes()]


def dcp_records() -> list[bytes]:
    """Return good records of values, as DCP writes them."""
    values = [{"lr": 0.1, "betas": (0.9, 0.999), "names": ["a", b"b", None]}, torch.ones(2, 3), 7]
    records = []
    for value in values:
        file = io.BytesIO()
        torch.save(value, file)
        records.append(file.getvalue())
    return records
