"""Real file systems without the flags of renameat2: save, restore, supersede, and be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from tests._mounts import fuse_mount, sshfs_mount

import stepseal as ss
from stepseal.doctor import judge_promises, probe
from stepseal.storage import LocalStorage, NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(params=["refuse", "ignore", "sshfs"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    name = request.param
    mounted = sshfs_mount(tmp_path) if name == "sshfs" else fuse_mount(tmp_path, name)
    with mounted as served:
        yield served.mountpoint


def live(root: Path, value: float, *steps: int, restore: int | None = None) -> float | None:
    """Run one life of a job whose model holds `value`; return what it resumed with."""
    model = torch.nn.Linear(2, 2)
    with ss.Checkpointer(root) as checkpointer:
        checkpointer.add("model", model)
        restored = checkpointer.restore(restore)
        resumed = float(model.weight[0, 0].item()) if restored else None
        for step in steps:
            torch.nn.init.constant_(model.weight, value + step)
            checkpointer.save(step).wait()
    return resumed


def test_it_saves_restores_and_supersedes(mount: Path) -> None:
    root = mount / "root"
    assert live(root, 0.0, 10, 20) is None
    assert live(root, 1000.0, 20, restore=10) == 10.0  # step 20 is outside the lineage now
    assert live(root, 0.0) == 1020.0
    run = ss.open(root)
    assert run.steps() == (10, 20)
    assert [list(run.step(step).verify()) for step in (10, 20)] == [[], []]
    assert run.step(20).manifest.durability == "best-effort"
    assert len(list((root / ".stepseal" / "superseded").iterdir())) == 1
    assert list((root / ".stepseal" / "staging").iterdir()) == []


def test_an_exchange_that_the_server_does_not_know_is_none(mount: Path) -> None:
    with LocalStorage.open(mount) as storage:
        for name in ("a", "b"):
            storage.make_dir(name)
            with storage.create_file(f"{name}/{name}") as handle:
                handle.write(b"1", 0)
        with pytest.raises(NotSupported):
            storage.exchange("a", "b")
        assert [storage.stat(f"{name}/{name}").size_bytes for name in ("a", "b")] == [1, 1]


def test_the_doctor_says_best_effort_and_why(mount: Path) -> None:
    found = probe(str(mount))
    assert found.missing.keys() in (
        {"noreplace", "exchange"},
        {"exchange"},  # the kernel looks for a taken name before it asks a server that ignores
    )
    states = {verdict.promise: verdict.state for verdict in judge_promises(found)}
    assert states["never strands you"] == "best effort"
    assert states["durable"] == "best effort"
    assert "does not hold" not in states.values()
    assert list(mount.iterdir()) == []
