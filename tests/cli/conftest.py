"""One root with everything that the command line can meet, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import stepseal as ss

if TYPE_CHECKING:
    from pathlib import Path


def save_run(root: Path, *steps: int, restore: int | None = None) -> None:
    """Save a model and its counters at each step, as one more life of the job."""
    model = torch.nn.Linear(4, 3)
    counters = {"seen": 0}
    with ss.Checkpointer(root) as checkpointer:
        checkpointer.add("model", model)
        checkpointer.add("counters", counters)
        checkpointer.restore(restore)
        for step in steps:
            counters["seen"] = step
            checkpointer.save(
                step,
                metrics={"loss": 1 / step, "bad": float("nan")},
                tags=["nice"],
                cut={"policy_version": step, "mode": "on"},
            ).wait()


@pytest.fixture(scope="session")
def eventful_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root: 10 and 30 good, 15 outside the lineage, 20 and 40 damaged, 50 to 52 foreign.

    Tests leave it as it is.
    """
    root = tmp_path_factory.mktemp("cli") / "root"
    save_run(root, 10, 15)
    save_run(root, 20, 30, restore=10)
    save_run(root, 40)
    payload = root / "step-20" / "__0_0.distcp"
    data = bytearray(payload.read_bytes())
    data[-300] ^= 1
    payload.write_bytes(data)
    (root / "step-40" / "manifest.json").write_text("{}")
    (root / "step-50").mkdir()
    (root / "step-51").write_text("mine")
    (root / "step-52").symlink_to("step-30")
    (root / "step-060").mkdir()
    (root / "my-checkpoint").mkdir()
    return root
