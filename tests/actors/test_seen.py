"""The controller of actors is told what a save costs, as rank 0 of other jobs is."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from tests.actors._owners import live
from tests.actors.test_in_process import World

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    import stepseal as ss


def test_one_record_per_call_and_the_figures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved: list[ss.Saved] = []

    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(7)
            saved.append(await coord.save(7))
            await coord.restore()
            texts.append(repr(coord))
            texts.append(repr(world.buffer.ss))

    texts: list[str] = []
    with caplog.at_level(logging.INFO, logger="stepseal"):
        live(life())
    first, second = [t for t in caplog.messages if t.startswith("stepseal: step 7: ")]
    cost = r"blocked [\d.]+ s, committed after [\d.]+ s"
    assert re.fullmatch(rf"stepseal: step 7: .*B from 4 participants, {cost}", first)
    assert re.fullmatch(r"stepseal: step 7: .*B restored to 4 participants in [\d.]+ s", second)
    (one,) = saved
    assert one.size_bytes is not None
    assert one.size_bytes > 0
    assert one.blocked_s is not None
    assert one.committed_s is not None
    assert 0 < one.blocked_s <= one.committed_s
    assert texts[0] == f"<Coordinator at {tmp_path}/run: newest step 7>"
    assert texts[1].endswith(": admitted>")
