"""When to save: rules of step numbers and triggers, as small values that combine with `|`.

A *rule* depends on the step number alone, so that all ranks come to one answer without a message. A
*trigger* is what no step number tells: minutes, a signal, a time limit. Ranks hear of it from the
coordinator, all at the same step.
"""

from __future__ import annotations

import datetime
import signal
import time
from dataclasses import dataclass
from typing import Protocol

from stepseal.errors import InvalidInput

__all__ = [
    "SaveRule", "When", "before", "check_mode", "check_rule", "every", "on_signal", "when_of",
]  # fmt: skip

_MARGIN_S = 120.0


class SaveRule(Protocol):
    """Says whether a step is to be saved; depends on the step alone, so that all ranks agree."""

    def due(self, step: int) -> bool:
        """Return True when `step` is to be saved."""
        ...


class _Combines:
    """What `|` combines: rules and triggers."""

    def __or__(self, other: SaveRule | Trigger) -> AnyOf:
        return AnyOf((self, other))  # type: ignore[arg-type]  # each subclass is one or the other


@dataclass(frozen=True)
class AnyOf(_Combines):
    """Due when any of its rules is, or when one of its triggers fires."""

    parts: tuple[SaveRule | Trigger, ...]

    def due(self, step: int) -> bool:
        """Return True when one rule says so."""
        return any(part.due(step) for part in self.parts if not isinstance(part, Trigger))


@dataclass(frozen=True)
class EverySteps(_Combines):
    """Due at each multiple of `steps`."""

    steps: int

    def due(self, step: int) -> bool:
        """Return True at multiples of `steps`, not at step 0."""
        return step > 0 and step % self.steps == 0


@dataclass(frozen=True)
class EveryMinutes(_Combines):
    """Fires when no save has begun for `minutes`."""

    minutes: float


@dataclass(frozen=True)
class OnSignal(_Combines):
    """Fires when any rank receives the signal."""

    signum: signal.Signals
    grace_s: float | None
    stop: bool


@dataclass(frozen=True)
class Before(_Combines):
    """Fires `margin_s` before a time at which the job is ended by others."""

    ends_at: float
    """Seconds since the epoch."""
    margin_s: float


Trigger = EveryMinutes | OnSignal | Before


def every(*, steps: int | None = None, minutes: float | None = None) -> EverySteps | EveryMinutes:
    """Save each `steps` training steps, or when no save has begun for `minutes`.

    Minutes count from the last save that began, or from the restore. The save comes at the next
    step, at the same one on all ranks. Rank 0's clock counts.

    Args:
        steps: a positive number of training steps.
        minutes: a positive number of minutes.

    Raises:
        InvalidInput: not exactly one is given, or it is not positive.
    """
    if (steps is None) == (minutes is None):
        raise InvalidInput(
            f"every(steps={steps!r}, minutes={minutes!r}): expected one of them. To save after "
            "either, combine: stepseal.every(steps=500) | stepseal.every(minutes=30)",
            expected="steps or minutes",
            found=(steps, minutes),
        )
    if minutes is not None:
        return EveryMinutes(_positive("every: minutes", minutes))
    if type(steps) is not int or steps < 1:
        raise InvalidInput(
            f"every(steps={steps!r}): expected an int of at least 1", expected=">= 1", found=steps
        )
    return EverySteps(steps)


def on_signal(
    name: str | signal.Signals, *, grace_s: float | None = None, stop: bool = True
) -> OnSignal:
    """Save when a process of the job receives a signal, and end the training loop.

    All ranks save at the same step, whichever of them received it, and `should_stop` becomes True
    there. A handler that was there before is called, too; the default action is not. The second
    SIGINT interrupts.

    Args:
        name: for example `SIGTERM`, or what Slurm sends with `--signal=USR1@120`.
        grace_s: seconds after the signal at which the processes are killed. A save that is not
            decided when 90 % of them have passed is given up; older steps stay. None: no limit.
        stop: False only saves.

    Raises:
        InvalidInput: there is no such signal, or nobody can handle it; `grace_s` is not positive.
    """
    try:
        number = name if isinstance(name, signal.Signals) else signal.Signals[name]
    except (KeyError, TypeError):
        raise InvalidInput(
            f"on_signal({name!r}): expected the name of a signal, such as 'SIGTERM' or 'SIGUSR1'",
            expected="a signal",
            found=name,
        ) from None
    if number in (signal.SIGKILL, signal.SIGSTOP):
        raise InvalidInput(f"on_signal({name!r}): no process can handle this signal", found=name)
    grace_s = None if grace_s is None else _positive("on_signal: grace_s", grace_s)
    return OnSignal(number, grace_s, stop)


def before(deadline: float | datetime.datetime, *, margin_s: float = _MARGIN_S) -> Before:
    """Save before a time at which others end the job, and end the training loop.

    It fires `margin_s` before the deadline, or two of the longest save so far if that is earlier.
    Rank 0's clock counts.

    Args:
        deadline: seconds since the epoch, such as `float(os.environ["SLURM_JOB_END_TIME"])`, or a
            `datetime`; one without a time zone is local time.
        margin_s: seconds; more than the longest training step and a save take together.

    Raises:
        InvalidInput: the deadline has passed, or is no time; `margin_s` is not positive.
    """
    if isinstance(deadline, datetime.datetime):
        deadline = deadline.timestamp()
    ends_at = _positive("before: deadline", deadline)
    if ends_at <= time.time():
        past = datetime.datetime.fromtimestamp(ends_at).astimezone().isoformat(" ", "seconds")
        raise InvalidInput(
            f"before({deadline!r}): expected a time to come, in seconds since the epoch; "
            f"{past} has passed",
            expected="a time to come",
            found=deadline,
        )
    return Before(ends_at, _positive("before: margin_s", margin_s))


@dataclass(frozen=True)
class When:
    """A rule and its triggers, taken apart."""

    rule: SaveRule | None = None
    signals: tuple[OnSignal, ...] = ()
    every_s: float | None = None
    """The fewest seconds of all `every(minutes=...)`."""
    before: Before | None = None
    """The earliest."""


def when_of(save: SaveRule | Trigger | None) -> When:
    """Return what `save=` means.

    Raises:
        InvalidInput: it is, or contains, neither a rule nor a trigger.
    """
    parts = [] if save is None else list(_parts(save))
    for part in parts:
        if not isinstance(part, Trigger):
            check_rule(part)
    minutes = [part.minutes for part in parts if isinstance(part, EveryMinutes)]
    limits = [part for part in parts if isinstance(part, Before)]
    has_rule = any(not isinstance(part, Trigger) for part in parts)
    return When(
        save if has_rule and not isinstance(save, Trigger) else None,
        tuple(part for part in parts if isinstance(part, OnSignal)),
        min(minutes) * 60 if minutes else None,
        min(limits, key=lambda one: one.ends_at - one.margin_s, default=None),
    )


def _parts(save: SaveRule | Trigger) -> list[SaveRule | Trigger]:
    if isinstance(save, AnyOf):
        return [found for part in save.parts for found in _parts(part)]
    return [save]


def check_rule(rule: object) -> None:
    """Refuse what is no save rule.

    Raises:
        InvalidInput: `rule` has no `due`.
    """
    if not callable(getattr(rule, "due", None)):
        raise InvalidInput(
            f"save={rule!r}: expected a rule such as stepseal.every(steps=500)",
            expected="a rule",
            found=type(rule).__name__,
        )


def check_mode(mode: object) -> None:
    """Refuse what does not say how to save.

    Raises:
        InvalidInput: `mode` is neither `async` nor `sync`.
    """
    if mode not in ("async", "sync"):
        raise InvalidInput(
            f"mode={mode!r}: expected 'async' or 'sync'", expected="async|sync", found=mode
        )


def _positive(what: str, value: object) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):  # type: ignore[operator]
        raise InvalidInput(
            f"{what}: expected a number above 0, found {value!r}", expected="> 0", found=value
        )
    return float(value)  # type: ignore[arg-type]
