"""The `.metadata` file that stock DCP (`torch.distributed.checkpoint`) readers need.

Written for them and never read by stepseal: it is a pickle.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from stepseal.errors import InvalidInput
from stepseal.layout import dcp_fqn, dcp_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.layout import PartIndex, StoredTensor

__all__ = ["build_dcp_index"]

_VERSION = "1.0.0"  # as DCP's own planner writes it


def build_dcp_index(indexes: Sequence[PartIndex]) -> bytes:
    """Return the pickled DCP metadata of a step; equal input gives equal bytes.

    Keys are named as `layout.dcp_fqn` says. What several participants stored (equal replicas)
    appears once.

    Args:
        indexes: the part index of every participant.

    Raises:
        InvalidInput: two components lay claim to one name, or parts disagree about a tensor.
    """
    index = _Index()
    for part in indexes:
        for tensor in part.tensors:
            index.add_tensor(part.payloads[tensor.file], tensor)
        for item in part.bytes_items:
            place = _StorageInfo(part.payloads[item.file], item.record_offset, item.record_size)
            for component, key in item.entries:
                index.add_bytes(component, key, place, item.chunk_digests)
    metadata = Metadata(
        state_dict_metadata=index.entries,
        planner_data=index.paths,
        storage_data=index.places,
        storage_meta=None,
        version=_VERSION,
    )
    return pickle.dumps(metadata)


class _Index:
    """Collects the three tables of DCP's metadata."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.paths: dict[str, tuple[str, ...]] = {}
        self.places: dict[MetadataIndex, _StorageInfo] = {}
        self._values: dict[str, bytes] = {}
        """Digest of each non-tensor leaf."""

    def add_tensor(self, path: str, tensor: StoredTensor) -> None:
        """Add one box of a tensor."""
        fqn = self._claim(tensor.component, tensor.key)
        dtype, size = getattr(torch, tensor.dtype), torch.Size(tensor.shape)
        entry = self.entries.get(fqn)
        if entry is None:
            entry = TensorStorageMetadata(TensorProperties(dtype=dtype), size, [])
            self.entries[fqn] = entry
        elif (
            not isinstance(entry, TensorStorageMetadata)
            or entry.size != size
            or entry.properties.dtype != dtype
        ):
            raise InvalidInput(
                f"DCP index cannot be made: key {fqn}: expected one kind, dtype and shape in all "
                "parts, found "
                f"several. Save it under equal code on all participants.",
                component=tensor.component,
                path=tensor.key,
            )
        offsets = torch.Size(tensor.box.offsets)
        where = MetadataIndex(fqn, offsets, len(entry.chunks))
        if where not in self.places:
            entry.chunks.append(ChunkStorageMetadata(offsets, torch.Size(tensor.box.sizes)))
            self.places[where] = _StorageInfo(path, tensor.record_offset, tensor.record_size)

    def add_bytes(self, component: str, key: str, place: _StorageInfo, digest: bytes) -> None:
        """Add one non-tensor leaf; several may share a record, and several parts one leaf."""
        fqn = self._claim(component, key)
        if self._values.get(fqn) == digest:
            return
        if fqn in self.entries:
            raise InvalidInput(
                f"DCP index cannot be made: key {fqn}: expected one value, found two. Rename one "
                "of them.",
                component=component,
                path=key,
            )
        self._values[fqn] = digest
        self.entries[fqn] = BytesStorageMetadata()
        self.places[MetadataIndex(fqn)] = place

    def _claim(self, component: str, key: str) -> str:
        """Return the name of a leaf and note its path in the nested state dict."""
        fqn, path = dcp_fqn(component, key), dcp_path(component, key)
        if self.paths.setdefault(fqn, path) != path:
            raise InvalidInput(
                f"DCP index cannot be made: key {fqn}: expected it in one component, found it in "
                f"{self.paths[fqn][0]} and {component}. Rename the component or the model's key.",
                component=component,
                path=key,
            )
        return fqn
