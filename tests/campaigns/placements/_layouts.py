"""How tensors are split over ranks, drawn by a seed, and built by torch's own means.

A layout is text, such as `2x3 [S0, R]` or `2x3 fsdp(S0)`: the sizes of the mesh, then its
placements; `fsdp(...)` is tensor parallelism on the last axis with FSDP2 over it, which makes the
strided shards; `plain` is a tensor without a mesh.
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Tensor", "World", "draw_layout", "draw_tensors", "elements", "kind_of", "local_bytes"]

_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.complex64, torch.int64, torch.int32, torch.uint8, torch.bool,
)  # fmt: skip
_SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17)
"""Of a dim: below, at and above the number of ranks; odd ones split unevenly."""
_LARGE = 4
"""Tensors of each step that are large: parts of them take more than a chunk."""
_LARGE_BYTES = 9 << 18
_FSDP = "fsdp"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A whole tensor, whose elements its seed gives."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    seed: str

    def __str__(self) -> str:
        """Return what it is, in words."""
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


def draw_tensors(seed: str, number: int) -> dict[str, Tensor]:
    """Return tensors by key; the first are large, the others have zero to three small dims."""
    chance = random.Random(seed)
    found = {}
    for at in range(number):
        dtype = chance.choice(_DTYPES)
        shape = tuple(chance.choice(_SIZES) for _ in range(chance.choice((0, 1, 1, 2, 2, 2, 3))))
        if at < _LARGE:
            shape = (_LARGE_BYTES // dtype.itemsize // 31 + 1, 31)
        key = f"layers.{at}.weight"
        found[key] = Tensor(shape, dtype, f"{seed}/{key}")
    return found


def elements(tensor: Tensor, other: str = "") -> torch.Tensor:
    """Return the elements of a tensor; of another one of its kind with `other`."""
    return _elements(tensor, other).clone()


@functools.lru_cache(maxsize=256)
def _elements(tensor: Tensor, other: str) -> torch.Tensor:
    seed = random.Random(tensor.seed + other).getrandbits(60)
    generator = torch.Generator().manual_seed(seed)
    if tensor.dtype is torch.bool:
        return torch.rand(tensor.shape, generator=generator) > 0.5
    if tensor.dtype.is_complex or tensor.dtype.is_floating_point:
        base = torch.complex64 if tensor.dtype.is_complex else torch.float32
        return torch.randn(tensor.shape, generator=generator, dtype=base).to(tensor.dtype)
    return torch.randint(0, 200, tensor.shape, generator=generator).to(tensor.dtype)


def draw_layout(seed: str, world: int, tensor: Tensor) -> str:
    """Return how a world of this size holds a tensor."""
    chance = random.Random(seed)
    if chance.random() < 0.06:
        return "plain"
    meshes = [(world,), *((n, world // n) for n in range(1, world + 1) if world % n == 0)]
    mesh = chance.choice(meshes)
    if len(mesh) == 2 and tensor.shape and chance.random() < 0.5:
        inner = chance.choice(["S0", "S0", "R", *_of_dims(tensor), *_of_dims(tensor)])
        return f"{_sizes(mesh)} {_FSDP}({inner})"
    drawn = [chance.choice(["R", *_of_dims(tensor), *_of_dims(tensor)]) for _ in mesh]
    return f"{_sizes(mesh)} [{', '.join(drawn)}]"


def _of_dims(tensor: Tensor) -> list[str]:
    return [f"S{dim}" for dim in range(len(tensor.shape))]


def _sizes(mesh: tuple[int, ...]) -> str:
    return "x".join(map(str, mesh))


def kind_of(layout: str) -> str:
    """Return what a layout is an example of."""
    sizes, _, placements = layout.partition(" ")
    if f"{_FSDP}(S0)" in placements:
        return "strided"
    return f"{sizes.count('x') + 1}-D" if placements else layout


class World:
    """The meshes of one process group, made once each, and what is built on them."""

    def __init__(self) -> None:
        self._meshes: dict[str, DeviceMesh] = {}

    def build(
        self, tensors: Mapping[str, Tensor], layouts: Mapping[str, str], other: str = ""
    ) -> dict[str, torch.Tensor]:
        """Return live tensors in these layouts; with `other`, of other elements."""
        found: dict[str, torch.Tensor] = {}
        modules: dict[str, nn.ParameterDict] = {}
        for key, layout in layouts.items():
            whole = elements(tensors[key], other)
            sizes, _, placements = layout.partition(" ")
            if layout == "plain":
                found[key] = whole
            elif placements.startswith(_FSDP):
                inner = [_placement(placements.removeprefix(f"{_FSDP}(").removesuffix(")"))]
                local = distribute_tensor(whole, self.mesh(sizes)["tp"], inner, src_data_rank=None)
                parameter = nn.Parameter(local, requires_grad=False)
                modules.setdefault(sizes, nn.ParameterDict())[key.replace(".", "/")] = parameter
            else:
                split = [_placement(one) for one in re.findall(r"S\d|R", placements)]
                found[key] = distribute_tensor(whole, self.mesh(sizes), split, src_data_rank=None)
        for sizes, module in modules.items():  # as in a real job: FSDP2 over what is parallel
            fully_shard(module, mesh=self.mesh(sizes)["dp"])
            found |= {name.replace("/", "."): one.detach() for name, one in module.items()}
        return {key: found[key] for key in layouts}

    def mesh(self, sizes: str) -> DeviceMesh:
        """Return the mesh of these sizes, such as `2x3`."""
        if sizes not in self._meshes:
            shape = tuple(map(int, sizes.split("x")))
            names = ("dp", "tp")[-len(shape) :]
            self._meshes[sizes] = init_device_mesh("cpu", shape, mesh_dim_names=names)
        return self._meshes[sizes]


def _placement(text: str) -> Placement:
    return Replicate() if text == "R" else Shard(int(text[1:]))


def local_bytes(tensor: torch.Tensor) -> tuple[tuple[int, ...], bytes]:
    """Return shape and bytes of what this rank holds."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    flat = local.detach().contiguous().reshape(-1).view(torch.uint8)
    return tuple(local.shape), flat.numpy().tobytes()
