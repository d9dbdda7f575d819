"""Two layers that are cut over ranks by hand, in plain tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from examples.trainers.common import WIDTH

__all__ = ["Shard"]


class Summed(torch.autograd.Function):
    """Adds up the parts of a result over ranks; every part gets the whole gradient."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Any) -> torch.Tensor:  # noqa: ANN401 - torch's
        """Return the sum."""
        whole = part.clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401 - torch's
        """Pass the gradient on."""
        return gradients[0], None


class Shard(nn.Module):
    """Some rows of one layer and the same columns of the next."""

    def __init__(self, number: int, count: int, group: Any) -> None:  # noqa: ANN401 - a group
        super().__init__()
        torch.manual_seed(number)  # ranks along tp differ, ranks along dp do not
        hidden = 2 * WIDTH // count
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH, bias=False)
        self._group = group

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Map (batch, width) to (batch, width)."""
        part = self.down(torch.dropout(torch.relu(self.up(batch)), 0.2, train=True))
        found: torch.Tensor = Summed.apply(part, self._group)  # type: ignore[no-untyped-call]
        return found
