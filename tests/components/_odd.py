"""Tensors whose bytes do not simply lie in memory as their elements."""

from __future__ import annotations

import torch

__all__ = ["odd_tensors"]


def odd_tensors() -> list[torch.Tensor]:
    matrix = torch.arange(12.0).view(3, 4)
    complex_row = torch.tensor([1 + 2j, 3 - 4j])
    return [
        matrix,
        matrix.t(),
        matrix[:, 1:3],
        matrix[1:].requires_grad_(),
        torch.tensor(2.5),
        torch.empty(0, 3),
        torch.ones(2, dtype=torch.bfloat16).expand(3, 2),
        complex_row.conj(),
        complex_row.conj().imag,  # carries the neg bit
        torch.arange(300_000, dtype=torch.int64),
        torch.arange(600_000, dtype=torch.int64)[::2],
    ]
