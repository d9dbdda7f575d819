"""Tensors of every kind that a step can hold, and a model's whole state for comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
COMPLEX = (torch.complex64, torch.complex128)
INTS = (
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


def every_kind(seed: int) -> dict[str, torch.Tensor]:
    """Return a tensor of each dtype, and of each awkward shape and layout."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(3, 5, generator=generator) * 100 - 50
    whole = (base.abs() * 2.5).to(torch.int64)
    found = {str(dtype): base.to(dtype) for dtype in (*FLOATS, *FLOAT8, *COMPLEX)}
    found |= {str(dtype): whole.to(dtype) for dtype in INTS}
    found = {name.removeprefix("torch."): tensor for name, tensor in found.items()}
    return found | {
        "bool": base > 0,
        "scalar": base[1, 1].clone(),
        "scalar_int": whole[1, 1].clone(),
        "empty": torch.empty(0),
        "empty_rows": torch.empty(0, 4, dtype=torch.bfloat16),
        "transposed": base.t(),
        "strided": base[:, ::2],
        "expanded": base[:, :1].expand(3, 4),
        "one_row": base[1],
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def blank(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of the same shapes and dtypes with other content."""
    return {key: torch.ones(value.shape).to(value.dtype) for key, value in state.items()}


class Net(nn.Module):
    """A small model of odd sizes: over four ranks its shards are uneven, and some are empty."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(5, 7)
        self.second = nn.Linear(7, 3)
        self.last = nn.Linear(3, 1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(torch.tanh(self.second(torch.tanh(self.first(batch)))))
        return out


def adamw(model: nn.Module) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices},
        {"params": vectors, "weight_decay": 0.0, "lr": 0.01},
    ]
    return torch.optim.AdamW(groups, lr=0.05)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    batch = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss: torch.Tensor = model(batch).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def full(value: Any) -> Any:  # noqa: ANN401 - any state
    """Return a state with every DTensor gathered; all ranks call it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: full(item) for key, item in value.items()}
    return value


def whole_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return model and optimizer as one plain dict by parameter name; all ranks call it."""
    state = {
        name: full(optimizer.state.get(parameter, {}))
        for name, parameter in model.named_parameters()
    }
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return {"model": full(dict(model.state_dict())), "state": state, "groups": groups}
