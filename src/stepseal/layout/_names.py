"""Names and paths inside a step: how they are spelled, and which ones are refused.

Pure string rules, equal on all platforms; no I/O. A path is relative to the step folder, and its
segments are joined by `/`.
"""

from __future__ import annotations

import re
from itertools import pairwise
from numbers import Integral
from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput
from stepseal.layout._validate import show

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeGuard

__all__ = [
    "CONTROL",
    "DCP_INDEX",
    "LATEST",
    "MANIFEST",
    "MARKER",
    "MAX_DCP_INDEX_BYTES",
    "MAX_STEP",
    "check_component_name",
    "check_participant",
    "check_step",
    "component_problem",
    "dcp_fqn",
    "dcp_path",
    "external_folder",
    "parse_payload_path",
    "parse_step_name",
    "part_document_path",
    "part_index_path",
    "participant_problem",
    "path_problem",
    "path_set_problems",
    "payload_path",
    "role_of",
    "step_name",
    "tree_document_path",
    "tree_segment_path",
]

MANIFEST = "manifest.json"
"""The commit record, in the step folder."""
DCP_INDEX = ".metadata"
"""The index that stock DCP readers expect, in the step folder."""
MAX_DCP_INDEX_BYTES = 64 << 20
"""Largest `.metadata` that is read; only foreign folders have one that is read."""
MARKER = "stepseal.json"
"""The format marker, in the root."""
CONTROL = ".stepseal"
"""Folder of everything that is not a step, in the root."""
LATEST = "latest"
"""Advisory text for pollers, in the root."""
MAX_STEP = 2**53 - 1
"""Largest step number: the largest integer that every JSON reader keeps exact."""

_MAX_SEGMENT_BYTES = 255
_MAX_PATH_BYTES = 1024
_MAX_PARTICIPANT_SEGMENTS = 3
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,15})")
_PAYLOAD = re.compile(r"__(0|[1-9][0-9]{0,8})_(0|[1-9][0-9]{0,8})\.distcp")
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
# No dot here: `a` and `a.json/b`, or `3.1` and segment 1 of `3`, would claim the same path.
_PARTICIPANT_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


def check_step(step: object, what: str = "step") -> int:
    """Return `step` as an int if it is a step number, an integer of any type from 0 to 2**53-1.

    Args:
        step: the number.
        what: what it counts, for the message.

    Raises:
        InvalidInput: anything else, bool included.
    """
    number = -1 if isinstance(step, bool) or not isinstance(step, Integral) else int(step)
    if 0 <= number <= MAX_STEP:
        return number
    raise InvalidInput(
        f"{what} is not usable: expected an int from 0 to {MAX_STEP}, found {show(step)}",
        expected=f"0..{MAX_STEP}",
        found=show(step),
    )


def step_name(step: int) -> str:
    """Return the folder name of a step, such as `step-200`; raise InvalidInput for a bad number."""
    return f"step-{check_step(step)}"


def parse_step_name(name: str) -> int | None:
    """Return the step of a canonical folder name, or None for any other name."""
    match = _STEP.fullmatch(name)
    step = int(match[1]) if match else -1
    return step if 0 <= step <= MAX_STEP else None


def component_problem(name: object) -> str | None:
    """Return why `name` is not a valid component name, or None."""
    if isinstance(name, str) and _COMPONENT.fullmatch(name) and not name.endswith("."):
        return None
    return f"expected a component name such as `model`, found {show(name)}"


def participant_problem(participant: object) -> str | None:
    """Return why `participant` is not a valid participant id, or None."""
    segments = participant.split("/", _MAX_PARTICIPANT_SEGMENTS) if _is_str(participant) else []
    if 1 <= len(segments) <= _MAX_PARTICIPANT_SEGMENTS and all(
        _PARTICIPANT_SEGMENT.fullmatch(segment) for segment in segments
    ):
        return None
    return f"expected a participant such as `trainer/3`, found {show(participant)}"


def role_of(participant: str) -> str:
    """Return the role of a participant: its id without the last segment, which is its rank.

    An id of one segment has the empty role.
    """
    return participant.rpartition("/")[0]


def check_component_name(name: object) -> str:
    """Return `name` if it is a valid component name.

    A component name has 1 to 64 of `A-Z a-z 0-9 _ . -`. It does not begin with `.` or `-`, and
    does not end with `.`.

    Raises:
        InvalidInput: anything else.
    """
    if problem := component_problem(name):
        raise InvalidInput(
            f"component name is not usable: {problem}. Use letters, digits, `_`, `.` and `-`.",
            component=show(name),
        )
    assert isinstance(name, str)
    return name


def check_participant(participant: object) -> str:
    """Return `participant` if it is a valid id: 1 to 3 segments joined by `/`.

    A segment has 1 to 64 of `A-Z a-z 0-9 _ -` and does not begin with `-`. Dots are not allowed,
    so that two participants never share a path.

    Raises:
        InvalidInput: anything else.
    """
    if problem := participant_problem(participant):
        raise InvalidInput(
            f"participant is not usable: {problem}. Use letters, digits, `_` and `-`.",
            participant=show(participant),
        )
    assert isinstance(participant, str)
    return participant


def path_problem(path: object) -> str | None:
    """Return why `path` is not a safe path inside a step, or None.

    A safe path is relative, has at most 1024 bytes, and segments of at most 255 of
    `A-Z a-z 0-9 . _ -`. A segment never ends with a dot. It begins with one only in `.metadata`, at
    the top or as the last segment below `external/<component>/`.
    """
    if not isinstance(path, str):
        return f"expected a path, found {show(path)}"
    if len(path) > _MAX_PATH_BYTES:
        return f"expected at most {_MAX_PATH_BYTES} bytes, found {len(path)}"
    segments = path.split("/")
    foreign = segments[0] == "external" and len(segments) > 2
    for number, segment in enumerate(segments):
        if not _SEGMENT.fullmatch(segment):
            return f"expected segments of letters, digits, `.`, `_` and `-`, found {show(path)}"
        if len(segment) > _MAX_SEGMENT_BYTES:
            return f"expected segments of at most {_MAX_SEGMENT_BYTES} bytes, found {len(segment)}"
        index_name = segment == DCP_INDEX and number == len(segments) - 1
        if segment.startswith(".") and not (index_name and (number == 0 or foreign)):
            return f"expected no segment that begins with a dot, found {show(path)}"
        if segment.endswith("."):
            return f"expected no segment that ends with a dot, found {show(path)}"
    return None


def path_set_problems(paths: Iterable[str]) -> list[str]:
    """Return the pairs of paths that cannot coexist: equal except for case, or a file as folder."""
    problems: list[str] = []
    # With `/` sorted before everything else, a folder is followed by what it holds.
    ordered = sorted((path.casefold().replace("/", "\0"), path) for path in paths)
    for (first, path), (second, other) in pairwise(ordered):
        if first == second:
            problems.append(f"{show(path)} and {show(other)} are the same file")
        elif second.startswith(f"{first}\0"):
            problems.append(f"{show(path)} is a file and the folder of {show(other)}")
    return problems


def dcp_fqn(component: str, key: str) -> str:
    """Return the FQN of a tensor for stock DCP readers; keys of the model have no prefix."""
    return key if component == "model" else f"{component}.{key}"


def dcp_path(component: str, key: str) -> tuple[str, ...]:
    """Return the path of a tensor inside the nested state dict that stock DCP readers build."""
    return (key,) if component == "model" else (component, key)


def payload_path(ordinal: int, number: int = 0) -> str:
    """Return the path of a participant's payload file.

    Args:
        ordinal: position of the participant in the manifest's list.
        number: counts the payload files of one participant.
    """
    return f"__{ordinal}_{number}.distcp"


def parse_payload_path(path: str) -> tuple[int, int] | None:
    """Return `(ordinal, number)` of a payload file, or None for any other path."""
    match = _PAYLOAD.fullmatch(path)
    return (int(match[1]), int(match[2])) if match else None


def part_document_path(participant: str) -> str:
    """Return the path of the document that lists what a participant wrote."""
    return f"parts/{participant}.json"


def part_index_path(participant: str) -> str:
    """Return the path of a participant's columnar index."""
    return f"parts/{participant}.safetensors"


def external_folder(component: str) -> str:
    """Return the path of the folder that holds the files of an external component."""
    return f"external/{component}"


def tree_document_path(component: str, owner: str) -> str:
    """Return the path of a tree payload's structure and scalars."""
    return f"components/{component}/{owner}.json"


def tree_segment_path(component: str, owner: str, number: int) -> str:
    """Return the path of a tree payload's array file `number`, counted from 0."""
    suffix = f".{number}" if number else ""
    return f"components/{component}/{owner}{suffix}.safetensors"


def _is_str(value: object) -> TypeGuard[str]:
    return isinstance(value, str)
