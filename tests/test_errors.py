"""The exception tree is as drawn, crosses processes whole, and never renames a kind."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

from stepseal import errors
from stepseal.errors import CheckpointError

KINDS: dict[str, tuple[str, int]] = {
    "CheckpointError": ("checkpoint_error", 1),
    "InvalidInput": ("invalid_input", 2),
    "UnsupportedState": ("unsupported_state", 2),
    "StateMismatch": ("state_mismatch", 1),
    "NotRestored": ("not_restored", 2),
    "Tainted": ("tainted", 1),
    "RootNotFound": ("root_not_found", 10),
    "StepNotFound": ("step_not_found", 4),
    "NoResumableStep": ("no_resumable_step", 1),
    "StepExists": ("step_exists", 1),
    "NotCurrent": ("not_current", 1),
    "StorageUnavailable": ("storage_unavailable", 1),
    "WaitTimeout": ("wait_timeout", 1),
    "ParticipantFailed": ("participant_failed", 1),
    "CommitTimeout": ("commit_timeout", 1),
    "CoordinatorLost": ("coordinator_lost", 1),
    "OutcomeUnknown": ("outcome_unknown", 1),
    "Corrupt": ("corrupt", 3),
    "IncompatibleFormat": ("incompatible_format", 1),
    "InternalError": ("internal_error", 1),
}
"""Name to (kind, exit code). Append only: programs and scripts depend on both."""

CONTEXT: dict[str, object] = {
    "step": 200,
    "component": "model",
    "participant": "trainer/3",
    "path": "parts/trainer/3.json",
    "expected": (4, 8),
    "found": (4, 9),
    "errno": 28,
    "problems": ("a: wrong", "b: missing"),
    "reasons": {"step-100": "digest"},
    "failures": {"trainer/3": "ENOSPC"},
}

Drawn = dict[str, tuple[str | None, str | None]]


def drawing() -> Drawn:
    """Return each drawn class with its parent and its builtin base."""
    drawn: Drawn = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*)([A-Z]\w+)(?: +also (\w+))?(?: |$)", line)
        if match is None or match[2] not in errors.__all__:
            continue
        indent = len(match[1])
        above = [node for node in above if node[0] < indent]
        drawn[match[2]] = (above[-1][1] if above else None, match[3])
        above.append((indent, match[2]))
    return drawn


def real() -> Drawn:
    tree: Drawn = {}
    for name, cls in classes().items():
        own = [base.__name__ for base in cls.__bases__ if issubclass(base, CheckpointError)]
        others = [base.__name__ for base in cls.__bases__ if not issubclass(base, CheckpointError)]
        assert len(own) <= 1
        assert len(others) <= 1
        is_root = cls is CheckpointError
        tree[name] = (own[0] if own else None, others[0] if others and not is_root else None)
    return tree


def classes() -> dict[str, type[CheckpointError]]:
    found = inspect.getmembers(errors, inspect.isclass)
    return {name: cls for name, cls in found if issubclass(cls, CheckpointError)}


def test_drawing_equals_the_class_tree() -> None:
    assert drawing() == real()


def test_groups_in_the_drawing_are_what_the_catcher_does() -> None:
    groups = re.findall(r"^[├└]── ([a-z ]+)$", errors.__doc__ or "", re.MULTILINE)
    assert groups == [
        "fix the call",
        "look elsewhere",
        "give way",
        "retry",
        "ask who",
        "stop and investigate",
    ]


def test_all_lists_every_class() -> None:
    assert sorted(errors.__all__) == sorted(classes())


def test_kinds_and_exit_codes_are_stable() -> None:
    assert {name: (cls.kind, cls.exit_code) for name, cls in classes().items()} == KINDS


def test_kinds_are_unique() -> None:
    kinds = [cls.kind for cls in classes().values()]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("name", KINDS)
def test_builtin_bases_catch(name: str) -> None:
    cls = classes()[name]
    assert issubclass(cls, Exception)
    parent, builtin = drawing()[name]
    for base in (parent and classes()[parent], builtin and getattr(builtins, builtin)):
        if base:
            with pytest.raises(base, match="what failed"):
                raise cls("what failed")


@pytest.mark.parametrize("name", KINDS)
def test_pickles_with_every_attribute(name: str) -> None:
    error = classes()[name]("save failed: step 200: expected 4, found 3.", **CONTEXT)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is type(error)
        assert str(copy) == str(error) == "save failed: step 200: expected 4, found 3."
        assert copy.args == error.args
        assert {key: getattr(copy, key) for key in CONTEXT} == CONTEXT


@pytest.mark.parametrize("name", KINDS)
def test_absent_context_is_empty(name: str) -> None:
    error = classes()[name]("what failed")
    empty = {key: getattr(error, key) for key in CONTEXT}
    collections: dict[str, object] = {"problems": (), "reasons": {}, "failures": {}}
    assert empty == dict.fromkeys(CONTEXT) | collections


@pytest.mark.parametrize("name", KINDS)
def test_is_documented(name: str) -> None:
    own = classes()[name].__doc__
    assert own
    assert own != CheckpointError.__doc__ or name == "CheckpointError"
