"""Steps of one module, and restores of it through a conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import stepseal as ss

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from stepseal.components import Conversion

__all__ = ["refused", "restored", "saved", "saved_beside_a_counter"]


def saved(root: Path, model: nn.Module, sharing: ss.Sharing | None = None) -> Path:
    with ss.Checkpointer(root, mode="sync") as ckpt:
        ckpt.add("model", model, sharing=sharing)
        ckpt.restore()
        ckpt.save(1)
    return root


def saved_beside_a_counter(root: Path, model: nn.Module, sharing: ss.Sharing | None) -> None:
    with ss.Checkpointer(root, mode="sync") as ckpt:
        ckpt.add("model", model, sharing=sharing)
        ckpt.add("other", {"counter": 7})
        ckpt.restore()
        ckpt.save(1)


def restored(
    root: Path, model: nn.Module, conversion: Conversion, sharing: ss.Sharing | None = None
) -> str:
    """Return what the report says of a model that was restored through a conversion."""
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("model", model, sharing=sharing)
        found = ckpt.restore(convert={"model": conversion})
    assert found is not None
    return found.report["model"]


def refused(root: Path, model: nn.Module, conversion: Conversion) -> tuple[str, ...]:
    """Return the differences that a load and a restore name; nothing may change."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ss.errors.StateMismatch) as caught:
        ss.load(root, model=model, convert={"model": conversion})
    with pytest.raises(ss.errors.StateMismatch) as again:
        restored(root, model, conversion)
    assert caught.value.problems == again.value.problems
    assert not caught.value.tainted
    after = model.state_dict()
    assert all(
        torch.equal(after[key].view(torch.uint8), before[key].view(torch.uint8)) for key in before
    )
    return caught.value.problems
