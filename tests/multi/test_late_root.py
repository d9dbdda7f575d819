"""Two ranks, of which one sees the root late, or never: its shared storage is mounted late."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import stepseal as ss

pytestmark = pytest.mark.slow

_JOB = Path(__file__).with_name("late_root_job.py")
_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("never", [False, True])
def test_a_host_that_sees_the_root_late_joins_and_one_that_never_does_is_told_of(
    tmp_path: Path, never: bool
) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mount namespaces need root and unshare")
    shared = tmp_path / "shared"
    shared.mkdir()
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no mount namespaces here: {done.stderr.decode()}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = [sys.executable, "-W", "ignore", str(_JOB), str(shared), str(tmp_path / "real")]
    job += ["never"] if never else []
    real = f"mkdir {tmp_path}/real; mount --bind {shared} {tmp_path}/real"
    other_host = f'{real}; mount -t tmpfs none {shared}; exec "$@"'
    commands = [job, ["unshare", "-m", "bash", "-ec", other_host, "bash", *job]]
    ranks = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}",
            },
        )
        for rank, command in enumerate(commands)
    ]
    try:
        said = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if never:
        for text in said:
            assert text.startswith("RootNotFound: "), said
            assert "rank 1: no root at" in text
            assert "rank 0 made it, and this host did not see it" in text
            assert "storage that all hosts share" in text
    else:
        assert said == ["saved", "saved"]
        assert ss.open(shared / "run").steps() == (1,)
