"""Who is still applying when a restore has failed elsewhere stops, and says that state is a mix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import stepseal as ss
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.protocol import ParticipantDriver


class _Notes:
    """State that calls somebody when it is given back."""

    def __init__(self, on_load: Callable[[], object]) -> None:
        self.loaded = False
        self._on_load = on_load

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 1}

    def load_state_dict(self, _state: dict[str, Any]) -> None:
        self.loaded = True
        self._on_load()


def _job(world: World, first: _Notes, second: _Notes) -> ss.Checkpointer:
    checkpointer = world.checkpointer(0)
    checkpointer.add("first", first)
    checkpointer.add("second", second)
    return checkpointer


@pytest.mark.parametrize("how", ["lost", "failed"])
def test_apply_stops_when_the_restore_has_failed(how: str) -> None:
    memory = MemoryStorage()
    quiet = (_Notes(lambda: None), _Notes(lambda: None))
    with _job(World(1, lambda _: memory), *quiet) as checkpointer:
        checkpointer.save(1).wait()
    world = World(1, lambda _: memory, deadlines=ss.Deadlines(apply_s=0.05, close_s=0.1))
    drivers: list[ParticipantDriver] = []

    def end() -> None:
        if how == "lost":
            world._hub.close()
        else:
            while not drivers[0].restore_ended(1):  # the coordinator's deadline passes
                pass

    first, second = _Notes(end), _Notes(lambda: None)
    checkpointer = _job(world, first, second)
    drivers.append(checkpointer._wiring.driver)
    with pytest.raises(ss.errors.CheckpointError) as caught:
        checkpointer.restore()
    expected = ss.errors.CoordinatorLost if how == "lost" else ss.errors.CommitTimeout
    assert isinstance(caught.value, expected)
    assert caught.value.tainted
    assert (first.loaded, second.loaded) == (True, False)
    with pytest.raises(ss.errors.Tainted):
        checkpointer.save(2)
    checkpointer.close()
