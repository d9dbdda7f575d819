from __future__ import annotations

from dataclasses import fields, replace

import pytest

from stepseal.errors import InvalidInput
from stepseal.protocol import Deadlines
from stepseal.protocol._deadlines import MAX_S

NAMES = [field.name for field in fields(Deadlines)]


def test_defaults_are_those_that_the_design_states() -> None:
    found = Deadlines()
    assert (found.capture_s, found.write_s, found.heartbeat_s, found.lost_s) == (120, 1800, 5, 30)
    assert found.save_s == 120 + 300 + 1800 + 300
    assert found.restore_s == 120 + 300 + 1800 + 300


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), MAX_S * 2, "5", None, True])
def test_every_limit_is_a_positive_finite_number(name: str, bad: object) -> None:
    with pytest.raises(InvalidInput, match=name):
        replace(Deadlines(), **{name: bad})  # type: ignore[arg-type]


def test_loss_takes_at_least_two_heartbeats() -> None:
    Deadlines(heartbeat_s=1, lost_s=2)
    with pytest.raises(InvalidInput, match="two heartbeats") as caught:
        Deadlines(heartbeat_s=1, lost_s=1.9)
    assert caught.value.expected == 2
