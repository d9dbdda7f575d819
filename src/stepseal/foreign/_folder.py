"""A foreign DCP folder on storage: its index, and its tensors and values, read by exact ranges.

Nothing is unpickled. Integrity cannot be checked, because DCP writes no digests.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from stepseal.components import SavedComponent, SavedTensor, Sharing, tree_of
from stepseal.errors import Corrupt, StepNotFound, UnsupportedState
from stepseal.foreign._components import ImportedComponent, components_of, optimizer_tree
from stepseal.foreign._metadata import read_metadata
from stepseal.foreign._records import Record
from stepseal.foreign._values import Budget, place_of, read_value
from stepseal.layout import DCP_INDEX, MAX_DCP_INDEX_BYTES, Box, intersect, sha256_hex, whole
from stepseal.storage import KeyNotFound, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stepseal.foreign._metadata import ForeignItem, ForeignTensor
    from stepseal.storage import ReadHandle, Storage

__all__ = ["DcpFolder"]

_log = logging.getLogger("stepseal")


class DcpFolder:
    """One foreign folder.

    Args:
        storage: the storage that holds the folder.
        key: the folder; empty for the storage's own root.
        shown: text that messages put before the key.

    Raises:
        StepNotFound: there is no `.metadata`.
        UnsupportedState, Corrupt: `.metadata` is refused; see `read_metadata`.
        Corrupt: a record lies outside its file.
        InvalidInput: a top-level key cannot name a component.
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
        self._index = read_metadata(data, name)
        self._budget = Budget()
        self._known: dict[str, tuple[object, int] | Corrupt | UnsupportedState] = {}
        self._check_files()
        self.components = components_of(self._index)

    def boxes(self, tensor: ForeignTensor, wanted: Box) -> Iterator[tuple[Box, torch.Tensor]]:
        """Yield each stored box of a tensor that overlaps `wanted`, with its contiguous data.

        Raises:
            UnsupportedState, Corrupt: a record is refused.
        """
        for box, item in tensor.boxes:
            if intersect(box, wanted) is not None:
                with self._record(item, tensor.fqn) as record:
                    found = place_of(record, tensor.dtype, box.sizes).tensor(record)
                yield box, found

    def check(self, tensor: ForeignTensor, wanted: Box) -> None:
        """Check the records of all stored boxes that overlap `wanted`, without reading elements.

        Raises:
            UnsupportedState, Corrupt: a record is refused.
        """
        for box, item in tensor.boxes:
            if intersect(box, wanted) is not None:
                with self._record(item, tensor.fqn) as record:
                    place_of(record, tensor.dtype, box.sizes)

    def imported(self, name: str, skipped: dict[str, str] | None) -> ImportedComponent | None:
        """Read a whole component for storing; None if all of it was left out.

        Args:
            name: name of the component.
            skipped: receives the FQN of each refused value, and why; None raises instead.

        Raises:
            UnsupportedState, Corrupt: a record is refused.
        """
        component = self.components[name]
        try:
            values = self._values(name, skipped)
        except (Corrupt, UnsupportedState) as error:
            raise type(error)(
                f"{error} skip_bytes=True (--skip-bytes) leaves such values out.",
                path=error.path,
                found=error.found,
                problems=error.problems,
            ) from error
        tensors = {key: self._tensor(tensor) for key, tensor in component.tensors.items()}
        if tensors:
            return ImportedComponent(name, tensors, values, self._optimizer(name, values))
        nested = component.nested(values)
        copies = {key: value for key, value in nested.items() if isinstance(key, str)}
        return ImportedComponent(name, {}, copies, nested) if values else None

    def saved(self, name: str, kind: str) -> SavedComponent:
        """Return a component in the form in which a step would hold it for a live one of this kind.

        Raises:
            UnsupportedState, Corrupt: a record is refused.
        """
        component, values = self.components[name], self._values(name)
        saved: dict[str, SavedTensor] = {}
        tree: object = self._optimizer(name, values) or values or None
        if kind == "tree":
            leaves = values | {key: self._tensor(t) for key, t in component.tensors.items()}
            tree = component.nested({key: leaves[key] for key in component.paths})
        else:
            saved = {k: SavedTensor(k, t.dtype, t.shape) for k, t in component.tensors.items()}
        contents = None if tree is None else tree_of(tree, name)
        return SavedComponent(name, kind, Sharing.GLOBAL, saved, contents, 1)

    def _tensor(self, tensor: ForeignTensor) -> torch.Tensor:
        """Return a whole tensor on the CPU."""
        target = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device="cpu")
        for box, piece in self.boxes(tensor, whole(tensor.shape)):
            if box.sizes == tensor.shape:
                return piece
            ends = zip(box.offsets, box.sizes, strict=True)
            target[tuple(slice(start, start + size) for start, size in ends)] = piece
        return target

    def _optimizer(self, name: str, values: Mapping[str, object]) -> object:
        """Return the tree of the component if it is the model's optimizer, else None."""
        model = self.components.get("model")
        if name == "model" or model is None:
            return None
        return optimizer_tree(self.components[name], values, model)

    def _values(self, name: str, skipped: dict[str, str] | None = None) -> dict[str, object]:
        """Return the values of a component by key."""
        found: dict[str, object] = {}
        for key, fqn in self.components[name].values.items():
            try:
                found[key] = self._value(fqn)
            except (Corrupt, UnsupportedState) as error:
                if skipped is None:
                    raise
                _log.warning("stepseal: left out: %s", error)
                skipped[fqn] = str(error)
        return found

    def _value(self, fqn: str) -> object:
        """Return a value; a shared record is read once, and charged to the budget for each use."""
        item = self._index.values[fqn]
        place = f"{item.offset}+{item.length} {item.path}"
        known = self._known.get(place)
        if known is None:
            self._budget.allow(item.length)
            before = self._budget.spent
            try:
                with self._record(item, fqn) as record:
                    value = read_value(record, self._budget)
            except (Corrupt, UnsupportedState) as error:
                self._known[place] = error
                raise
            self._known[place] = (value, self._budget.spent - before)
            return value
        what = self._what(item, fqn)
        if not isinstance(known, tuple):
            raise type(known)(f"{what}: {known}", path=what)
        self._budget.spend(known[1], what)
        return known[0]

    def _what(self, item: ForeignItem, fqn: str) -> str:
        return f"{self._shown}{item.path}, {fqn!r:.120}"

    @contextmanager
    def _record(self, item: ForeignItem, fqn: str) -> Iterator[Record]:
        with self._open(item.path) as handle:
            yield Record(handle, item, self._what(item, fqn))

    def _open(self, file: str) -> ReadHandle:
        path = f"{self._prefix}{file}"
        try:
            return self._storage.open_read(path)
        except KeyNotFound as error:
            text = f"{self._shown}{file}: expected a payload file, found no such file."
            raise Corrupt(text, path=path) from error

    def _check_files(self) -> None:
        """Refuse records that lie outside their file."""
        for path, end in self._index.sizes.items():
            with self._open(path) as handle:
                if end > handle.size_bytes:
                    raise Corrupt(
                        f"{self._shown}{path}: expected at least {end} bytes, found "
                        f"{handle.size_bytes}. The folder is not whole.",
                        path=path,
                    )
