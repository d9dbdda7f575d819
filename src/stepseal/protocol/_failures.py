"""Failures: causes in a form that crosses processes, and the errors made from them.

`failure_of` shortens texts and makes them encodable, so that a failure can always be sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from stepseal import errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Failure",
    "details_of",
    "error_from",
    "failure_of",
    "messages_of",
    "named",
    "shortened",
]

_NUM_NAMED = 4
"""Number of participants that a message names; it only counts the others."""

MAX_TEXT = 2000
"""Characters of one cause that are sent; the log of the failed process has the rest."""
MAX_FAILURES = 256
"""Causes that are sent in one answer; the text gives the total number."""
MAX_PROBLEMS = 100
"""Findings of one cause that are sent."""

_ERRORS: dict[str, type[errors.CheckpointError]] = {
    cls.kind: cls for cls in (getattr(errors, name) for name in errors.__all__)
}


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why something failed, in a form that crosses processes."""

    kind: str
    """Stable kind of the error, as in `stepseal.errors`."""
    message: str
    path: str | None = None
    errno: int | None = None
    component: str | None = None
    problems: list[str] = []
    """Findings one by one, at most `MAX_PROBLEMS`."""


def failure_of(error: BaseException) -> Failure:
    """Describe any exception so that other participants can report it.

    For an error of stepseal, the kind is that of its class in `stepseal.errors`, which every
    receiver knows; an internal subclass such as `KeyNotFound` uses the kind of its base class. For
    any other exception, the kind is the class name; `error_from` turns it into `ParticipantFailed`.
    """
    if isinstance(error, errors.CheckpointError):
        # Take the failure of the one participant without the summary around it.
        message = next(iter(error.failures.values())) if len(error.failures) == 1 else str(error)
        return Failure(
            _public_kind(error),
            _text(message),
            _path(error.path),
            error.errno,
            error.component,
            [_text(problem) for problem in error.problems[:MAX_PROBLEMS]],
        )
    if isinstance(error, OSError):
        kind = errors.StorageUnavailable.kind
        return Failure(kind, _text(str(error)), _path(error.filename), error.errno)
    return Failure(type(error).__name__, _text(f"{type(error).__name__}: {error}"))


def _public_kind(error: errors.CheckpointError) -> str:
    classes = (cls for cls in type(error).__mro__ if issubclass(cls, errors.CheckpointError))
    return next(cls.kind for cls in classes if cls.kind in _ERRORS)


def _text(value: str) -> str:
    """Return shortened text that JSON can hold; a file name may contain undecodable bytes."""
    plain = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return plain if len(plain) <= MAX_TEXT else f"{plain[:MAX_TEXT]}... (cut)"


def _path(value: object) -> str | None:
    return None if value is None else _text(str(value))


def error_from(kind: str, message: str, **context: object) -> errors.CheckpointError:
    """Rebuild an error of the tree from its kind; unknown kinds become ParticipantFailed."""
    return _ERRORS.get(kind, errors.ParticipantFailed)(message, **context)


def messages_of(failures: Mapping[str, Failure]) -> dict[str, str]:
    """Return the message of each participant, in the form of `CheckpointError.failures`."""
    return {participant: cause.message for participant, cause in failures.items()}


def shortened(failures: Mapping[str, Failure]) -> dict[str, Failure]:
    """Return at most `MAX_FAILURES` of the failures, to keep an answer small."""
    return dict(sorted(failures.items())[:MAX_FAILURES])


def details_of(cause: Failure | None, failures: Mapping[str, Failure]) -> dict[str, Any]:
    """Return the attributes of an error: the first value of each, and all problems."""
    causes = [*([] if cause is None else [cause]), *failures.values()]
    return {
        "component": next((c.component for c in causes if c.component), None),
        "path": next((c.path for c in causes if c.path), None),
        "errno": next((c.errno for c in causes if c.errno), None),
        "problems": tuple(dict.fromkeys(p for c in causes for p in c.problems)),
    }


def named(participants: Sequence[str]) -> str:
    """Return the first few participants in words, and the number of the others."""
    head = ", ".join(participants[:_NUM_NAMED])
    more = len(participants) - _NUM_NAMED
    return head if more <= 0 else f"{head} and {more} more"
