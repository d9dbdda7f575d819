from __future__ import annotations

import pytest

from stepseal import errors
from stepseal.protocol._failures import error_from, failure_of


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_rebuilt_from_its_kind(name: str) -> None:
    cls = getattr(errors, name)
    found = error_from(cls.kind, "text", step=3)
    assert type(found) is cls
    assert found.step == 3


def test_unknown_kind_becomes_participant_failed() -> None:
    assert type(error_from("RuntimeError", "text")) is errors.ParticipantFailed


def test_every_error_of_the_tree_is_in_its_face() -> None:
    classes = {value for value in vars(errors).values() if isinstance(value, type)}
    tree = {cls for cls in classes if issubclass(cls, errors.CheckpointError)}
    assert {cls.__name__ for cls in tree} == set(errors.__all__)


def test_exception_of_a_program_is_told_by_its_class_and_raised_as_a_failed_participant() -> None:
    cause = failure_of(LookupError("no such thing"))
    assert (cause.kind, cause.message) == ("LookupError", "LookupError: no such thing")
    assert type(error_from(cause.kind, cause.message)) is errors.ParticipantFailed
