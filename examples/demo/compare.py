"""Are two saved steps the same, to the last bit? Read through stepseal, component by component."""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING, Any

import torch

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["bits", "component_digest", "leaf_digests", "tensor_differences"]


def bits(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's elements."""
    dense = tensor.detach().contiguous()
    return ctypes.string_at(dense.data_ptr(), dense.numel() * dense.element_size())


def leaf_digests(step: ss.Step) -> dict[str, dict[str, str]]:
    """Return, for each component of a step, the SHA-256 of every leaf by its path.

    A leaf is a tensor (with dtype and shape) or a plain value (with its type); state that each rank
    has of its own counts once per rank.
    """
    names = [entry.name for entry in step.manifest.components]
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for fqn, tensor in step.tensors().items():
        prefix = fqn.partition(".")[0]
        component = prefix if prefix in names else "model"  # the model's names stand bare
        found[component].update(_leaves(fqn, tensor))
    for entry in step.manifest.components:
        for owner in sorted(set(entry.payloads.values())):
            try:
                value = step.value(entry.name, owner)
            except ss.errors.StepNotFound:
                continue  # tensors only
            found[entry.name].update(_leaves(owner, value))
    return found


def component_digest(leaves: Mapping[str, str]) -> str:
    """Return one digest of all leaves of a component."""
    lines = "".join(f"{path} {digest}\n" for path, digest in sorted(leaves.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def tensor_differences(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]
) -> list[str]:
    """Return the names of tensors that one side lacks, or that differ in dtype, shape or a bit."""
    return [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours
        or name not in theirs
        or ours[name].dtype != theirs[name].dtype
        or ours[name].shape != theirs[name].shape
        or bits(ours[name]) != bits(theirs[name])
    ]


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any saved state
    kind = type(value).__name__
    if isinstance(value, dict):
        yield path, _sha256(f"{kind} of {len(value)}".encode())
        for key, one in value.items():
            yield from _leaves(f"{path}[{key!r}]", one)
    elif isinstance(value, (list, tuple)):
        yield path, _sha256(f"{kind} of {len(value)}".encode())
        for index, one in enumerate(value):
            yield from _leaves(f"{path}[{index}]", one)
    elif isinstance(value, torch.Tensor):
        yield path, _sha256(f"{value.dtype} {tuple(value.shape)}".encode(), bits(value))
    elif hasattr(value, "tobytes"):  # NumPy's random state
        yield path, _sha256(f"{value.dtype} {value.shape}".encode(), value.tobytes())
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        yield path, _sha256(f"{kind} {value!r}".encode())
    else:
        raise TypeError(f"{path}: cannot compare a {kind}")


def _sha256(*pieces: bytes) -> str:
    return hashlib.sha256(b"\0".join(pieces)).hexdigest()
