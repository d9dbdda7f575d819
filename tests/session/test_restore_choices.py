"""What a job may leave out of a restore, and what it must never pass over in silence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

import stepseal as ss
from stepseal.layout import encode_document, sha256_hex
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from pathlib import Path


def save_two(storage: MemoryStorage) -> None:
    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        weights = torch.arange(6.0)
        ckpt.add("model", {"w": weights})
        ckpt.add("data", {"position": rank}, sharing=ss.PER_RANK)
        with ckpt:
            ckpt.restore()
            ckpt.save(1)

    World(2, lambda _: storage).run(work)


def test_per_rank_state_refuses_another_world_and_says_how_to_go_on() -> None:
    storage = MemoryStorage()
    save_two(storage)

    def work(_: int, ckpt: ss.Checkpointer) -> tuple[torch.Tensor, dict[str, int], ss.Restored]:
        weights, data = torch.zeros(6), {"position": -1}
        ckpt.add("model", {"w": weights})
        ckpt.add("data", data, sharing=ss.PER_RANK)
        with ckpt:
            with pytest.raises(ss.errors.StateMismatch, match="2 participants, now 3") as caught:
                ckpt.restore()
            assert caught.value.problems[0].startswith("component data: ")
            assert not weights.any()
            restored = ckpt.restore(policies={"data": "skip"})
            assert restored is not None
            ckpt.save(2).wait()
        return weights, data, restored

    for weights, data, restored in World(3, lambda _: storage).run(work):
        assert torch.equal(weights, torch.arange(6.0))
        assert data == {"position": -1}
        assert restored.report["data"] == "left as it was (skip)"


def test_a_saved_component_that_is_gone_is_named_and_can_be_left_out() -> None:
    storage = MemoryStorage()
    save_two(storage)

    def work(_: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("model", {"w": torch.zeros(6)})
        with ckpt:
            with pytest.raises(ss.errors.StateMismatch, match=r"policies=\{'data': 'skip'\}"):
                ckpt.restore()
            assert ckpt.restore(policies={"data": "skip"}) is not None

    World(2, lambda _: storage).run(work)


def make_newer(manifest: Path) -> None:
    """Rewrite a sealed manifest as a newer format version would have written it."""
    body = json.loads(manifest.read_text())["body"]
    body["format_version"] = 2
    sealed = {"body": body, "sha256": sha256_hex(encode_document(body))}
    manifest.write_bytes(encode_document(sealed))


def test_a_step_of_a_newer_format_is_never_passed_over_or_put_aside(tmp_path: Path) -> None:
    weights = torch.ones(3)
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("model", {"w": weights})
        ckpt.restore()
        ckpt.save(1)
        weights += 1
        ckpt.save(2)
    make_newer(tmp_path / "step-2" / "manifest.json")
    before = (tmp_path / "step-2" / "manifest.json").read_bytes()

    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("model", {"w": weights})
        with pytest.raises(ss.errors.IncompatibleFormat, match="step-2"):
            ckpt.restore()
        with pytest.raises(ss.errors.IncompatibleFormat):
            ckpt.restore(step=2)
        assert ckpt.restore(step=1) is not None
        assert torch.equal(weights, torch.ones(3))
        with pytest.raises(ss.errors.StepExists):
            ckpt.save(2)
        ckpt.save(3)

    assert (tmp_path / "step-2" / "manifest.json").read_bytes() == before
    with pytest.raises(ss.errors.IncompatibleFormat):
        ss.open(tmp_path).step(2)
    assert [entry.state for entry in ss.open(tmp_path).entries()] == [
        "committed",
        "newer",
        "committed",
    ]


def test_errors_of_the_coordinator_carry_path_and_errno(tmp_path: Path) -> None:
    (tmp_path / "step-4").mkdir()
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("model", {"w": torch.ones(3)})
        with pytest.raises(ss.errors.StepExists) as caught:
            ckpt.save(4)
    assert caught.value.path == "step-4"
    assert str(caught.value).count("save of step 4") == 1
