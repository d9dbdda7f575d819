"""What is held open can be read to its end, whoever removes the step meanwhile."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch

import stepseal as ss
from stepseal.components import DenseSink
from stepseal.errors import Corrupt
from stepseal.layout import whole
from stepseal.storage import LocalStorage
from stepseal.transfer import ReadRequest, StepReader

if TYPE_CHECKING:
    from pathlib import Path


def test_a_held_step_outlives_its_names_until_it_is_released(tmp_path: Path) -> None:
    weights = torch.arange(64.0)
    ss.save(tmp_path, model={"w": weights})
    manifest = ss.open(tmp_path).step(0).manifest
    reader = StepReader(LocalStorage.open(tmp_path), "step-0", manifest)
    target = torch.zeros(64)
    sink = DenseSink(target, whole((64,)), torch.float32)
    requests = [ReadRequest(stored, sink) for stored in reader.stored("model")["w"]]
    reader.hold(requests)
    reader.hold(requests)
    shutil.rmtree(tmp_path / "step-0")
    for _ in range(2):  # a stream leaves open what it was lent
        target.zero_()
        reader.stream(requests, check_cancelled=lambda: None)
        assert torch.equal(target, weights)
    reader.release()
    reader.release()
    with pytest.raises(Corrupt, match="found nothing"):
        reader.stream(requests, check_cancelled=lambda: None)
