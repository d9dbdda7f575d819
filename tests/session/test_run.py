from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._states import Net, adamw, every_kind, train

import stepseal as ss
from stepseal.testing import MemoryStorage, World, assert_identical

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps with metrics, tags and cuts."""
    folder = tmp_path_factory.mktemp("run")
    model = Net(1)
    optimizer = adamw(model)
    with ss.Checkpointer(folder, mode="sync") as checkpointer:
        checkpointer.add("model", model)
        checkpointer.add("optimizer", optimizer)
        checkpointer.add("critic", every_kind(3))
        checkpointer.add("progress", {"seen": [1, 2, (3, None)]})
        facts: list[dict[str, Any]] = [
            {"metrics": {"loss": 3.0, "eval/acc": 0.5}, "tags": ["first", "release"]},
            {"metrics": {"loss": math.nan, "eval/acc": math.inf}},
            {"metrics": {"loss": 1.5}, "cut": {"policy_version": 7, "clean": True, "note": None}},
        ]
        for step, fact in enumerate(facts, 1):
            train(model, optimizer, step)
            checkpointer.save(step, **fact)
    return folder


def test_facts_are_in_the_manifest(root: Path) -> None:
    run = ss.open(root)
    assert run.steps() == (1, 2, 3)
    first, second, third = (run.step(step) for step in run.steps())
    assert first.metrics == {"loss": 3.0, "eval/acc": 0.5}
    assert first.manifest.tags == ("first", "release")
    assert first.manifest.cut == {}
    assert math.isnan(second.metrics["loss"])
    assert second.metrics["eval/acc"] == math.inf
    assert third.manifest.cut == {"policy_version": 7, "clean": True, "note": None}
    assert third.manifest.parent is not None
    assert third.manifest.parent.step == 2
    assert {entry.name for entry in third.manifest.components} == {
        "model",
        "optimizer",
        "critic",
        "progress",
    }
    assert {"stepseal", "torch", "python"} <= third.manifest.versions.keys()


def test_best_takes_the_metric_and_never_nan(root: Path) -> None:
    run = ss.open(root)

    def best(metric: str, mode: str = "min") -> int | None:
        step = run.best(metric, mode=mode)
        return None if step is None else step.step

    assert (best("loss"), best("loss", "max")) == (3, 1)
    assert (best("eval/acc"), best("eval/acc", "max")) == (1, 2)
    assert best("no such metric") is None
    with pytest.raises(ss.errors.InvalidInput, match="mode"):
        best("loss", "median")


def test_latest_and_entries(root: Path) -> None:
    run = ss.open(root)
    latest = run.latest()
    assert latest is not None
    assert (latest.step, latest.path) == (3, str(root / "step-3"))
    assert [entry.state for entry in run.entries()] == ["committed"] * 3
    assert latest.verify() == ()
    assert (root / "latest").read_text() == "step-3\n"


def test_tensors_by_pattern(root: Path) -> None:
    step = ss.open(root).step(1)
    assert list(step.tensors("first.*")) == ["first.bias", "first.weight"]
    assert list(step.tensors("optimizer.state.last.bias.*")) == [
        f"optimizer.state.last.bias.{name}" for name in ("exp_avg", "exp_avg_sq", "step")
    ]
    assert_identical(
        {f"critic.{key}": value for key, value in sorted(every_kind(3).items())},
        step.tensors("critic.*"),
    )
    assert set(step.tensors()) == set(step.tensor_names())
    with pytest.raises(ss.errors.StepNotFound, match=r"no tensor matches 'missing\.\*'"):
        step.tensors("missing.*")


def test_values_of_components(root: Path) -> None:
    step = ss.open(root).step(1)
    assert step.value("progress") == {"seen": [1, 2, (3, None)]}
    assert step.value("optimizer")["groups"][1]["options"]["lr"] == 0.01
    with pytest.raises(ss.errors.StepNotFound, match="components:"):
        step.value("nobody")


def test_what_is_not_there_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ss.errors.StepNotFound):
        ss.open(root).step(9)
    with pytest.raises(ss.errors.RootNotFound):
        ss.open(tmp_path / "nowhere")
    with pytest.raises(ss.errors.RootNotFound):
        ss.open(tmp_path)
    assert list(tmp_path.iterdir()) == []  # reading makes nothing


def test_cuts_must_agree_among_participants() -> None:
    memory = MemoryStorage()

    def work(rank: int, checkpointer: ss.Checkpointer) -> str:
        with checkpointer:
            checkpointer.add("model", {"w": torch.ones(2)})
            with pytest.raises(ss.errors.ParticipantFailed) as caught:
                checkpointer.save(1, cut={"policy_version": rank})
            checkpointer.save(1, cut={"policy_version": 1}).wait(30)
        return str(caught.value)

    first, second = World(2, lambda _: memory).run(work)
    assert first == second
    assert "policy_version" in first
    assert "trainer/1" in first
