"""A foreign DCP folder on storage: its index, and its tensors and values, read by exact ranges.

No byte of it is unpickled, and nothing is known of its integrity: DCP writes no digests.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stepseal.components import (
    ImportedState,
    ValueBudget,
    check_tensor_record,
    optimizer_value,
    read_dcp_index,
    read_tensor_record,
    read_value_record,
)
from stepseal.errors import Corrupt, StepNotFound, UnsupportedState
from stepseal.layout import DCP_INDEX, MAX_DCP_INDEX_BYTES, sha256_hex
from stepseal.storage import KeyNotFound, read_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from stepseal.components import ForeignComponent, ForeignIndex, ForeignItem, ForeignTensor
    from stepseal.layout import Box
    from stepseal.storage import ReadHandle, Storage

__all__ = ["DcpFolder", "state_of", "value_of"]

_log = logging.getLogger("stepseal")
_BUFFERED_BYTES = 1 << 20
"""Records up to this size are read at once, larger ones range by range."""


class DcpFolder:
    """One foreign folder.

    Args:
        storage: where.
        key: the folder; empty for the storage's own root.
        shown: what messages put before the key.

    Raises:
        StepNotFound: there is no `.metadata`.
        UnsupportedState, Corrupt: `.metadata` is refused; see `read_dcp_index`.
        Corrupt: a record lies outside its file.
    """

    def __init__(self, storage: Storage, key: str, shown: str = "") -> None:
        self._storage = storage
        self._prefix = f"{key}/" if key else ""
        self._shown = f"{shown}{self._prefix}"
        path, name = f"{self._prefix}{DCP_INDEX}", f"{self._shown}{DCP_INDEX}"
        try:
            data = read_bytes(storage, path, MAX_DCP_INDEX_BYTES)
        except KeyNotFound as error:
            raise StepNotFound(
                f"{name}: expected a folder that torch.distributed.checkpoint wrote, found no "
                f"{DCP_INDEX}.",
                path=path,
            ) from error
        self.sha256 = sha256_hex(data)
        self.index: ForeignIndex = read_dcp_index(data, name)
        self._budget = ValueBudget()
        self._read: dict[str, _Value] = {}
        self._check_files()

    def tensor(self, tensor: ForeignTensor) -> torch.Tensor:
        """Return a whole tensor on the CPU.

        Raises:
            UnsupportedState, Corrupt: a record is refused.
        """
        dtype = getattr(torch, tensor.dtype)
        if len(tensor.boxes) == 1 and tensor.boxes[0].box.sizes == tensor.shape:
            return next(self.boxes(tensor))[1]
        whole = torch.empty(tensor.shape, dtype=dtype, device="cpu")
        for box, piece in self.boxes(tensor):
            place = whole
            for dim, (offset, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
                place = place.narrow(dim, offset, size)
            place.copy_(piece)
        return whole

    def boxes(
        self, tensor: ForeignTensor, wanted: Collection[Box] | None = None
    ) -> Iterator[tuple[Box, torch.Tensor]]:
        """Yield boxes of a tensor with their elements, contiguous, one after the other.

        Args:
            tensor: which.
            wanted: only these boxes; None for all.
        """
        for stored in tensor.boxes:
            if wanted is not None and stored.box not in wanted:
                continue
            with self._open(stored.item) as handle:
                record = _Record(handle, stored.item)
                what = f"{self._shown}{stored.item.path}, {tensor.fqn!r:.120}"
                found = read_tensor_record(
                    record.read, record.size, what, dtype=tensor.dtype, shape=stored.box.sizes
                )
            yield stored.box, found

    def check(self, tensor: ForeignTensor, wanted: Collection[Box]) -> None:
        """Check the records of boxes of a tensor without reading their elements.

        Raises:
            UnsupportedState, Corrupt: a record is refused.
        """
        for stored in tensor.boxes:
            if stored.box in wanted:
                with self._open(stored.item) as handle:
                    record = _Record(handle, stored.item)
                    what = f"{self._shown}{stored.item.path}, {tensor.fqn!r:.120}"
                    check_tensor_record(
                        record.read, record.size, what, dtype=tensor.dtype, shape=stored.box.sizes
                    )

    def values(
        self, component: ForeignComponent, skipped: dict[str, str] | None = None
    ) -> dict[str, object]:
        """Return the values of a component by key.

        Args:
            component: whose.
            skipped: takes the FQN of each value that is refused, and why; None raises instead.

        Raises:
            UnsupportedState, Corrupt: a value is refused; the message names its FQN.
        """
        found: dict[str, object] = {}
        for key, fqn in component.values.items():
            try:
                found[key] = self._value(fqn)
            except (Corrupt, UnsupportedState) as error:
                if skipped is None:
                    raise
                _log.warning("stepseal: left out: %s", error)
                skipped[fqn] = str(error)
        return found

    def _value(self, fqn: str) -> object:
        """Return a value; a record that several share is read once, and paid for by each."""
        item = self.index.values[fqn]
        what = f"{self._shown}{item.path}, {fqn!r:.120}"
        record = f"{item.offset}+{item.length} {item.path}"
        known = self._read.get(record)
        if known is None:
            known = self._read[record] = self._read_value(item, what)
            if known.refusal is not None:
                raise known.refusal
        elif known.refusal is not None:
            raise type(known.refusal)(f"{what}: {known.refusal}", path=what)
        elif not self._budget.spend(known.cost):
            problem = "expected values in proportion to the bytes of the folder, found more"
            raise Corrupt(f"{what}: {problem}. It is not loaded.", path=what, problems=(problem,))
        return known.value

    def _read_value(self, item: ForeignItem, what: str) -> _Value:
        before = self._budget.spent
        try:
            with self._open(item) as handle:
                record = _Record(handle, item)
                value = read_value_record(record.read, record.size, what, self._budget)
        except (Corrupt, UnsupportedState) as error:
            return _Value(None, 0, error)
        return _Value(value, self._budget.spent - before)

    def _open(self, item: ForeignItem) -> ReadHandle:
        path = f"{self._prefix}{item.path}"
        try:
            return self._storage.open_read(path)
        except KeyNotFound as error:
            text = f"{self._shown}{item.path}: expected a payload file, found nothing."
            raise Corrupt(text, path=path) from error

    def _check_files(self) -> None:
        ends: dict[str, ForeignItem] = {}
        for item in self.index.items():
            known = ends.setdefault(item.path, item)
            if item.offset + item.length > known.offset + known.length:
                ends[item.path] = item
        for path, item in ends.items():
            with self._open(item) as handle:
                if item.offset + item.length > handle.size_bytes:
                    raise Corrupt(
                        f"{self._shown}{path}: expected at least {item.offset + item.length} "
                        f"bytes, found {handle.size_bytes}. The folder is not whole.",
                        path=path,
                    )


def state_of(
    folder: DcpFolder,
    components: Mapping[str, ForeignComponent],
    name: str,
    skipped: dict[str, str] | None,
) -> ImportedState | None:
    """Read one component, and lay it out as stepseal's own component of its kind would.

    Returns:
        What is to be stored; None where all of it was left out.

    Raises:
        UnsupportedState, Corrupt: a record is refused.
    """
    component = components[name]
    try:
        values = folder.values(component, skipped)
    except (Corrupt, UnsupportedState) as error:
        raise type(error)(
            f"{error} skip_bytes=True (--skip-bytes) leaves such values out.",
            path=error.path,
            found=error.found,
            problems=error.problems,
        ) from error
    if not component.tensors and not values:
        return None
    if not component.tensors:
        nested = component.nested(values)
        top = {key: nested[key] for key in nested if isinstance(key, str)}
        return ImportedState({}, nested, top)
    tensors = {key: folder.tensor(tensor) for key, tensor in component.tensors.items()}
    return ImportedState(tensors, value_of(components, name, values), values)


def value_of(
    components: Mapping[str, ForeignComponent], name: str, values: Mapping[str, object]
) -> object:
    """Return what the tree of a component of kind `tensors` holds beside its tensors."""
    model = components.get("model")
    if name != "model" and model is not None:
        shapes = {key: tensor.shape for key, tensor in model.tensors.items()}
        found = optimizer_value(components[name], values, shapes)
        if found is not None:
            return found
    return dict(values) or None


@dataclass(frozen=True, slots=True)
class _Value:
    """What the record of a value came to."""

    value: object
    cost: int
    """What it took of the folder's budget."""
    refusal: Corrupt | UnsupportedState | None = None


class _Record:
    """Reads ranges of one record; a small record is read once."""

    def __init__(self, handle: ReadHandle, item: ForeignItem) -> None:
        self.size = item.length
        self._handle = handle
        self._offset = item.offset
        self._whole = self._fresh(0, self.size) if self.size <= _BUFFERED_BYTES else None

    def read(self, offset: int, size: int) -> memoryview:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"bytes {offset} to {offset + size} of {self.size}")
        if self._whole is not None:
            return memoryview(bytearray(self._whole[offset : offset + size]))
        return self._fresh(offset, size)

    def _fresh(self, offset: int, size: int) -> memoryview:
        data = memoryview(bytearray(size))
        if size:
            self._handle.read_into(data, self._offset + offset)
        return data
