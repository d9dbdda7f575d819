"""The mount under a root dies in the middle of a job, and comes back, or something else does."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from tests._mounts import fuse_mount, sshfs_mount

import stepseal as ss
from stepseal.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests._mounts import Served

pytestmark = pytest.mark.slow


@pytest.fixture(params=["passthrough", "sshfs"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    mounted = sshfs_mount if request.param == "sshfs" else fuse_mount
    with mounted(tmp_path) as file_system:
        yield file_system


@pytest.fixture
def job(served: Served) -> Iterator[ss.Checkpointer]:
    """A job that has committed step 1."""
    checkpointer = ss.Checkpointer(served.mountpoint / "run", mode="sync")
    checkpointer.add("state", {"w": torch.ones(4)})
    checkpointer.restore()
    checkpointer.save(1)
    yield checkpointer
    checkpointer.close()


def test_the_job_goes_on_once_it_is_mounted_again(served: Served, job: ss.Checkpointer) -> None:
    served.die()
    with pytest.raises(StorageUnavailable, match=r"ENOTCONN.*Mount it again at the same path"):
        job.save(2)
    served.come_back()  # the advice, followed
    job.save(3)
    served.die()
    served.come_back()
    job.save(4)
    assert ss.open(served.mountpoint / "run").steps() == (1, 3, 4)


def test_an_empty_mountpoint_is_left_alone(served: Served, job: ss.Checkpointer) -> None:
    served.unmount()
    (served.mountpoint / "run").mkdir()
    with pytest.raises(StorageUnavailable, match="restart this process"):
        job.save(2)
    assert list((served.mountpoint / "run").iterdir()) == []
    (served.mountpoint / "run").rmdir()
    served.come_back()
    job.save(3)
    assert ss.open(served.mountpoint / "run").steps() == (1, 3)


def test_a_root_of_another_run_is_left_alone(
    served: Served, job: ss.Checkpointer, tmp_path: Path
) -> None:
    served.die()
    shutil.move(tmp_path / "source" / "run", tmp_path / "elsewhere")
    ss.save(tmp_path / "source" / "run", other={"value": torch.zeros(1)})
    served.come_back()
    with pytest.raises(StorageUnavailable, match="restart this process"):
        job.save(2)
    assert ss.open(served.mountpoint / "run").steps() == (0,)
