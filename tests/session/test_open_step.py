"""A step folder that was copied elsewhere is whole, in Python and on the command line."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import stepseal as ss
from stepseal.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> nn.Linear:
    """Return what step 40 of `tmp_path/a` holds; copies are `best` and `other/step-40`."""
    model = nn.Linear(3, 2)
    ss.save(tmp_path / "a", step=40, model=model, progress={"tokens": 7})
    ss.save(tmp_path / "other", step=1, model=model)
    shutil.copytree(tmp_path / "a" / "step-40", tmp_path / "best")
    shutil.copytree(tmp_path / "a" / "step-40", tmp_path / "other" / "step-40")
    shutil.copytree(tmp_path / "a" / "step-40", tmp_path / "alone" / "step-40")
    return model


PLACES = ["a/step-40", "best", "other/step-40", "alone/step-40"]


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_is_read_wherever_it_lies(tmp_path: Path, model: nn.Linear, place: str) -> None:
    step = ss.open_step(tmp_path / place)
    assert (step.step, step.path) == (40, str(tmp_path / place))
    assert step.verify() == ()
    assert step.value("progress") == {"tokens": 7}
    assert step.metrics == {}
    tensors = step.tensors(component="model")
    assert set(tensors) == set(step.tensor_names()) == {"weight", "bias"}
    assert torch.equal(tensors["weight"], model.weight)
    assert not list(tmp_path.rglob("leases/*"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("model")
def test_the_command_line_takes_a_folder(tmp_path: Path, place: str) -> None:
    shown = CliRunner().invoke(main, ["show", str(tmp_path / place), "--tensors", "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert (found["step"], found["state"], len(found["tensors"])) == (40, "committed", 2)
    verified = CliRunner().invoke(main, ["verify", str(tmp_path / place), "--json"])
    assert verified.exit_code == 0, verified.output
    (one,) = json.loads(verified.stdout)["steps"]
    assert (one["step"], one["state"], one["findings"]) == (40, "whole", [])


@pytest.mark.usefixtures("model")
def test_damage_of_a_copy_is_found(tmp_path: Path) -> None:
    (payload,) = (tmp_path / "best").rglob("*.distcp")
    payload.write_bytes(bytes(byte ^ 1 for byte in payload.read_bytes()))
    step = ss.open_step(tmp_path / "best")
    assert {finding.severity for finding in step.verify()} == {"damage"}
    with pytest.raises(ss.errors.Corrupt):
        step.tensors()
    assert CliRunner().invoke(main, ["verify", str(tmp_path / "best")]).exit_code == 3
    (tmp_path / "best" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ss.errors.Corrupt):
        ss.open_step(tmp_path / "best")


@pytest.mark.usefixtures("model")
def test_what_is_no_step_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ss.errors.StepNotFound, match="no such folder"):
        ss.open_step(tmp_path / "none")
    with pytest.raises(ss.errors.StepNotFound, match="step-40"):
        ss.open_step(tmp_path / "a")
    assert CliRunner().invoke(main, ["show", str(tmp_path / "best"), "41"]).exit_code == 4
    assert CliRunner().invoke(main, ["show", str(tmp_path / "best"), "40"]).exit_code == 0
    assert CliRunner().invoke(main, ["ls", str(tmp_path / "best")]).exit_code == 10
