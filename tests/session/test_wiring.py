from __future__ import annotations

import pytest
from tests.protocol._conversations import PATIENT, Inbox

from stepseal import errors
from stepseal.components import Topology
from stepseal.layout import MARKER
from stepseal.protocol import InProcessHub
from stepseal.protocol._failures import Failure
from stepseal.session import JobOptions, coordinate
from stepseal.steps import PosixSteps
from stepseal.storage import create_durable
from stepseal.testing import MemoryStorage


def test_root_that_cannot_be_used_closes_the_hub() -> None:
    storage, hub, told = MemoryStorage(), InProcessHub(), Inbox()
    create_durable(storage, MARKER, b"damaged")
    hub.link("a/0").start(told)
    with pytest.raises(errors.Corrupt):
        coordinate(PosixSteps(storage), Topology(0, ("a/0",)), JobOptions(PATIENT), hub)
    assert isinstance(told.next(), Failure)
