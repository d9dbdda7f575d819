"""Whatever an engine wrote is synced before the commit, file and directories, as strace sees it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.campaigns.strace._calls import why_not

_HOUSE = Path(__file__).resolve().parents[3]
_FSYNC = re.compile(r"(\d+) +f(?:data)?sync\(\d+<([^>]*)>(?:\)\s+= 0| <unfinished)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. f(?:data)?sync resumed>\)\s+= 0")
_COMMIT = re.compile(r'renameat2?\(.*"step-1"')

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

JOB = """
import pathlib, sys
import stepseal as ss
from stepseal.storage import Syscalls


def save(folder):
    inside = pathlib.Path(folder, "global_step1", "deep")
    inside.mkdir(parents=True)
    for name in ("a.pt", "b.pt"):
        inside.joinpath(name).write_text(name)
    pathlib.Path(folder, "latest").write_text("global_step1")


with ss.Checkpointer(sys.argv[1]) as ckpt:
    ckpt.add("engine", ss.External(save=save, load=print))
    {broken}
    ckpt.save(1).wait()
"""
BROKEN = {
    "": set(),
    "ckpt._wiring.steps.storage.adopt = ckpt._wiring.steps.storage.stat": {
        "", "global_step1", "global_step1/deep", "global_step1/deep/a.pt",
        "global_step1/deep/b.pt", "latest",
    },
    "Syscalls.fsync_dir = lambda self, fd: None": {"", "global_step1", "global_step1/deep"},
}  # fmt: skip
"""Code that breaks the job to the entries of the engine's folder that are then left unsynced."""


def unsynced(folder: Path, broken: str) -> set[str]:
    """Run a job under strace; return what of the engine's was not synced before the commit."""
    trace, root = folder / "trace", folder / "root"
    calls = "trace=fsync,fdatasync,renameat2,renameat"
    command = ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", calls, "-e", "signal=none"]
    command += [sys.executable, "-c", JOB.format(broken=broken or "pass"), str(root)]
    house = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": house})
    synced: set[str] = set()
    begun: dict[str, str] = {}  # by thread: several sync at once, and strace interleaves them
    for line in trace.read_text().splitlines():
        if _COMMIT.search(line):
            break
        path = ""
        if (resumed := _RESUMED.search(line)) is not None:
            path = begun.pop(resumed[1], "")
        elif (found := _FSYNC.search(line)) is not None:
            path = found[2]
            if line.rstrip().endswith("<unfinished ...>"):
                begun[found[1]], path = path, ""
        if "/external/engine" in path:
            synced.add(path.partition("/external/engine")[2].lstrip("/"))
    else:
        raise AssertionError("no commit was seen")
    here = root / "step-1" / "external" / "engine"
    return {"", *(str(path.relative_to(here)) for path in here.rglob("*"))} - synced


@pytest.fixture(autouse=True)
def needs_strace() -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("broken", BROKEN, ids=["as it is", "nothing adopted", "no directories"])
def test_files_and_directories_of_an_engine_are_synced(tmp_path: Path, broken: str) -> None:
    assert unsynced(tmp_path.resolve(), broken) == BROKEN[broken]
