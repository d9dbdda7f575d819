"""What a restore does to objects: a failing load is named, and new tensors are ordinary ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import stepseal as ss

if TYPE_CHECKING:
    from pathlib import Path


class Counter:
    """Raises on load, if it is told so."""

    def __init__(self, error: Exception | None = None) -> None:
        self.count, self._error = 1, error

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._error is not None:
            raise self._error
        self.count = state["count"]


def test_a_component_that_fails_while_it_is_applied_is_named(tmp_path: Path) -> None:
    root, cause = tmp_path / "root", ValueError("no scale")
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("counter", Counter())
        ckpt.save(1)
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("counter", Counter(cause))
        with pytest.raises(ss.errors.ParticipantFailed, match="ValueError: no scale") as caught:
            ckpt.restore()
        assert caught.value.component == "counter"
        assert caught.value.__cause__ is cause
        assert caught.value.tainted
        assert "restore(policies={'counter': 'skip'})" in str(caught.value)
        ckpt.restore(policies={"counter": "skip"})  # the advice


@pytest.mark.parametrize("live_state", [False, True])
def test_a_restore_in_inference_mode_makes_ordinary_tensors(
    tmp_path: Path, live_state: bool
) -> None:
    root = tmp_path / "root"
    model, extra = nn.Linear(2, 2), {"mean": torch.zeros(2), "count": 0}
    for first in (True, False):
        optimizer = torch.optim.AdamW(model.parameters())
        if first or live_state:
            model(torch.ones(2)).sum().backward()
            optimizer.step()
        with ss.Checkpointer(root) as ckpt:
            ckpt.add("model", model)
            ckpt.add("optimizer", optimizer)
            ckpt.add("extra", extra)
            if first:
                ckpt.save(1)
            else:
                with torch.inference_mode(), torch.device("meta"):
                    ckpt.restore()
                    assert torch.is_inference_mode_enabled()
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    made = [*model.parameters(), *extra.values()]
    made += [value for state in optimizer.state.values() for value in state.values()]
    tensors = [value for value in made if isinstance(value, torch.Tensor)]
    assert len(tensors) == 9
    assert not any(tensor.is_inference() or tensor.is_meta for tensor in tensors)


def test_a_module_that_was_made_in_inference_mode_is_filled(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with ss.Checkpointer(root) as ckpt:
        source = nn.Linear(2, 2)
        ckpt.add("model", source)
        ckpt.save(1)
    with torch.inference_mode(), ss.Checkpointer(root) as ckpt:
        model = nn.Linear(2, 2)
        ckpt.add("model", model)
        ckpt.restore()
    assert torch.equal(model.weight, source.weight)
