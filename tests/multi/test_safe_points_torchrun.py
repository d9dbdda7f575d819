"""torchrun ranks beside actors: every save is at one step of all ranks, and a resume is exact."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.protocol._conversations import PATIENT

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.serial]

_JOB = Path(__file__).with_name("safe_points_job.py")
_NUM_SAVES = 120
_LIMITS = dataclasses.replace(PATIENT, connect_s=300)
"""torchrun and its ranks start slowly on a busy machine."""
_MORE = 30
"""Steps that are compared after the resume."""


@contextmanager
def running(root: Path, folder: Path, size: int) -> Iterator[subprocess.Popen[str]]:
    """Start the job under torchrun; it must end well."""
    folder.mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(size), str(_JOB), str(root), str(folder),
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        try:
            yield job
            assert job.wait(300) == 0, (folder / "log").read_text()[-4000:]
        finally:
            job.kill()
            job.wait(60)


def end_after(folder: Path, step: int) -> None:
    """Let the ranks end once they have done this step."""
    (folder / "new").write_text(str(step))
    os.rename(folder / "new", folder / "end")


def history(folder: Path, rank: int) -> tuple[int | None, dict[int, float]]:
    """Return the step that a rank resumed from, and the loss of each step."""
    lines = [json.loads(line) for line in (folder / f"history.{rank}").read_text().splitlines()]
    return lines[0]["resumed"], {line["step"]: line["loss"] for line in lines[1:]}


@pytest.mark.parametrize("size", [2, 3])
def test_saves_at_any_time_are_at_one_step_and_resume_exactly(tmp_path: Path, size: int) -> None:
    root, first, second = tmp_path / "root", tmp_path / "first", tmp_path / "second"
    samples: list[int] = []

    def buffer() -> ss.Participant:
        own = ss.Participant("buffer", cut=lambda: {"samples": len(samples)})
        own.add("buffer", samples)
        return own

    def coordinator() -> Any:  # noqa: ANN401 - a Coordinator
        return ss.Coordinator(
            root, order=("trainer", "buffer"), deadlines=_LIMITS, keep=ss.latest(2)
        )

    async def save_often() -> int:
        chance, at = random.Random(size), 0
        with buffer() as own:
            async with coordinator() as coord:
                with running(root, first, size):
                    await coord.admit(*ss.ranks("trainer", size), *ss.in_process(own))
                    assert await coord.restore() is None
                    for number in range(1, _NUM_SAVES + 1):
                        await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))
                        samples.append(number)
                        await coord.save(number)
                        step = ss.open(root).step(number)
                        found = [
                            step.value("state", f"trainer/{rank}")["step"] for rank in range(size)
                        ]
                        assert len(set(found)) == 1, f"save {number}: {found}"
                        assert step.manifest.cut == {"trainer.step": found[0], "samples": number}
                        assert found[0] > at, "each save stops the ranks anew"
                        at = found[0]
                    end_after(first, at + _MORE)
        return at

    async def resume(at: int) -> None:
        samples.clear()
        with buffer() as own:
            async with coordinator() as coord:
                with running(root, second, size):
                    await coord.admit(*ss.ranks("trainer", size), *ss.in_process(own))
                    restored = await coord.restore()
                    assert restored is not None
                    assert restored.step == _NUM_SAVES
                    assert samples == [*range(1, _NUM_SAVES + 1)]
                    end_after(second, at + _MORE)

    at = asyncio.run(save_often())
    asyncio.run(resume(at))
    for rank in range(size):
        _, whole = history(first, rank)
        resumed, rest = history(second, rank)
        assert resumed == at
        assert rest == {step: loss for step, loss in whole.items() if at < step <= at + _MORE}
    assert ss.open(root).step(_NUM_SAVES).verify() == ()
