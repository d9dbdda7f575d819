"""Every error stepseal raises, as one tree grouped by what the catcher does next.

CheckpointError
├── fix the call
│   ├── InvalidInput          also ValueError         an argument, name or setting is wrong
│   │   ├── UnsupportedState                          a value no codec knows; `.path` leads to it
│   │   ├── StateMismatch                             saved and live state differ; `.problems`
│   │   └── NotRestored                               the root has commits; call `restore()` first
│   └── Tainted                                       a restore failed half way; do not use or save
├── look elsewhere
│   ├── RootNotFound          also FileNotFoundError  no such root
│   ├── StepNotFound          also FileNotFoundError  no committed step of that number
│   └── NoResumableStep       also FileNotFoundError  no commit can be resumed; `.reasons`
├── give way
│   ├── StepExists            also FileExistsError    already committed, or a foreign folder there
│   └── NotCurrent                                    a newer incarnation of the job owns the root
├── retry
│   ├── StorageUnavailable    also OSError            the storage refused; `.errno` says how
│   └── WaitTimeout           also TimeoutError       not there yet; it goes on, so wait again
├── ask who
│   ├── ParticipantFailed                             `.failures` maps participant to cause
│   │   └── CommitTimeout     also TimeoutError       some did not answer by the deadline
│   ├── CoordinatorLost       also ConnectionError    the coordinator is gone; not committed
│   └── OutcomeUnknown        also TimeoutError       not known yet if saved; nothing was deleted
├── stop and investigate
│   ├── Corrupt                                       bytes break digest or format; `.problems`
│   └── IncompatibleFormat                            written by a newer format version
└── InternalError                                     a defect of stepseal itself; please report it

All errors pickle, because they cross processes. `kind` is stable and append-only; `exit_code` is
the CLI's.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "CheckpointError",
    "CommitTimeout",
    "CoordinatorLost",
    "Corrupt",
    "IncompatibleFormat",
    "InternalError",
    "InvalidInput",
    "NoResumableStep",
    "NotCurrent",
    "NotRestored",
    "OutcomeUnknown",
    "ParticipantFailed",
    "RootNotFound",
    "StateMismatch",
    "StepExists",
    "StepNotFound",
    "StorageUnavailable",
    "Tainted",
    "UnsupportedState",
    "WaitTimeout",
]


class CheckpointError(Exception):
    """Root of all errors that stepseal raises on purpose.

    Args:
        message: what failed, where, what was expected and found, and the next step, in one or two
            lines.
        context: any of the attributes below. Without a value, `problems`, `reasons` and `failures`
            are empty, `tainted` is False, and all others are None.

    The attributes `step`, `component`, `participant`, `path`, `expected`, `found`, `errno`,
    `problems`, `reasons`, `failures` and `tainted` (live state was changed) give programs the
    facts of the message.
    """

    kind: ClassVar[str] = "checkpoint_error"
    exit_code: ClassVar[int] = 1

    step: int | None
    component: str | None
    participant: str | None
    path: str | None
    expected: object
    found: object
    errno: int | None
    problems: tuple[str, ...]
    reasons: dict[str, str]
    failures: dict[str, str]
    tainted: bool

    def __init__(self, message: str, **context: Any) -> None:  # noqa: ANN401 - differs by key
        super().__init__(message)
        self.message = message
        self._context = context
        self.step = context.get("step")
        self.component = context.get("component")
        self.participant = context.get("participant")
        self.path = context.get("path")
        self.expected = context.get("expected")
        self.found = context.get("found")
        self.errno = context.get("errno")
        self.problems = tuple(context.get("problems", ()))
        self.reasons = dict(context.get("reasons", {}))
        self.failures = dict(context.get("failures", {}))
        self.tainted = bool(context.get("tainted", False))

    def __str__(self) -> str:
        """Return the message; builtin base classes such as OSError would format it differently."""
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as message and context, so that the error crosses processes whole."""
        return (_rebuild, (type(self), self.message, self._context))


def _rebuild(cls: type[CheckpointError], message: str, context: dict[str, Any]) -> CheckpointError:
    return cls(message, **context)


class InvalidInput(CheckpointError, ValueError):
    """An argument, name or configuration is wrong; nothing was written."""

    kind = "invalid_input"
    exit_code = 2


class UnsupportedState(InvalidInput):
    """A component holds a value that no codec knows; `path` leads to it inside the state."""

    kind = "unsupported_state"


class StateMismatch(InvalidInput):
    """Saved and live state differ; `problems` lists every key, shape, dtype and component.

    Also raised by a save, for what ranks hold differently under one name; nothing was committed.
    """

    kind = "state_mismatch"
    exit_code = 1


class NotRestored(InvalidInput):
    """The root already has commits, and this job saved without calling `restore()` first."""

    kind = "not_restored"


class Tainted(CheckpointError):
    """A restore failed after it began to change live state; another, successful one clears this."""

    kind = "tainted"


class RootNotFound(CheckpointError, FileNotFoundError):
    """The path is not a stepseal root."""

    kind = "root_not_found"
    exit_code = 10


class StepNotFound(CheckpointError, FileNotFoundError):
    """The root has no committed step with that number; a damaged step raises `Corrupt` instead."""

    kind = "step_not_found"
    exit_code = 4


class NoResumableStep(CheckpointError, FileNotFoundError):
    """The root has commits, but none can be resumed; `reasons` says why for each step."""

    kind = "no_resumable_step"


class StepExists(CheckpointError, FileExistsError):
    """The step is already committed, or a folder that stepseal did not write is in its place."""

    kind = "step_exists"


class NotCurrent(CheckpointError):
    """A newer incarnation of the job has claimed the root; this one must not commit any more."""

    kind = "not_current"


class StorageUnavailable(CheckpointError, OSError):
    """The storage refused an operation on `path`; `errno` has the reason. Retrying may help."""

    kind = "storage_unavailable"


class WaitTimeout(CheckpointError, TimeoutError):
    """A save or a version was not there in time, and may still come; wait again.

    Of a version, `found` is the newest one that is published, None if there is none.
    """

    kind = "wait_timeout"


class ParticipantFailed(CheckpointError):
    """At least one participant failed; `failures` maps it to its cause. Nothing was committed."""

    kind = "participant_failed"


class CommitTimeout(ParticipantFailed, TimeoutError):
    """The participants in `failures` missed the deadline. Nothing was committed."""

    kind = "commit_timeout"


class CoordinatorLost(CheckpointError, ConnectionError):
    """The coordinator is gone and storage shows that it did not commit the step."""

    kind = "coordinator_lost"


class OutcomeUnknown(CheckpointError, TimeoutError):
    """It is not known yet whether the step was committed. Nothing was deleted; look again later."""

    kind = "outcome_unknown"


class Corrupt(CheckpointError):
    """Stored bytes differ from their digest or break the format; `problems` lists all findings."""

    kind = "corrupt"
    exit_code = 3


class IncompatibleFormat(CheckpointError):
    """The data was written by a newer format version than this release understands."""

    kind = "incompatible_format"


class InternalError(CheckpointError):
    """A defect of stepseal itself; please report it with the message."""

    kind = "internal_error"
