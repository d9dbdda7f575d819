"""A controller is told whether steps will find room once a step has shown its size."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tests.actors._owners import Trainer, coordinator, live

import stepseal as ss

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_room_is_told_once_a_size_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stepseal")

    def told() -> int:
        return sum(": room: a step takes about" in one.getMessage() for one in caplog.records)

    async def life() -> list[int]:
        trainer = Trainer()
        async with coordinator(tmp_path / "run", keep=ss.latest(2), relations=()) as coord:
            await coord.admit(*ss.in_process(trainer.ss))
            restored = await coord.restore()
            found = [told()]
            for step in range(1, 3):
                await coord.save(step + (restored.step if restored else 0))
                found.append(told())
            return found

    assert live(life()) == [0, 1, 1]
    assert live(life()) == [2, 2, 2]
