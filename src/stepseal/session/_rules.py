"""When to save: rules as small values that combine with `|`; all ranks come to one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stepseal.errors import InvalidInput

__all__ = ["SaveRule", "check_rule", "check_when", "every"]


class SaveRule(Protocol):
    """Says whether a step is to be saved; depends on the step alone, so that all ranks agree."""

    def due(self, step: int) -> bool:
        """Return True when `step` is to be saved."""
        ...


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Due when any of its rules is."""

    rules: tuple[SaveRule, ...]

    def due(self, step: int) -> bool:
        """Return True when one rule says so."""
        return any(rule.due(step) for rule in self.rules)

    def __or__(self, other: SaveRule) -> AnyOf:
        return AnyOf((*self.rules, other))


@dataclass(frozen=True, slots=True)
class EverySteps:
    """Due at each multiple of `steps`."""

    steps: int

    def due(self, step: int) -> bool:
        """Return True at multiples of `steps`, not at step 0."""
        return step > 0 and step % self.steps == 0

    def __or__(self, other: SaveRule) -> AnyOf:
        return AnyOf((self, other))


def every(*, steps: int) -> EverySteps:
    """Save each `steps` training steps.

    Args:
        steps: a positive number of training steps.

    Raises:
        InvalidInput: `steps` is not a positive int.
    """
    if type(steps) is not int or steps < 1:
        raise InvalidInput(
            f"every(steps={steps!r}): expected an int of at least 1", expected=">= 1", found=steps
        )
    return EverySteps(steps)


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


def check_when(rule: object, mode: object) -> None:
    """Refuse what says neither when to save nor how.

    Raises:
        InvalidInput: `mode` is neither `async` nor `sync`, or `rule` is no save rule and not None.
    """
    if mode not in ("async", "sync"):
        raise InvalidInput(
            f"mode={mode!r}: expected 'async' or 'sync'", expected="async|sync", found=mode
        )
    if rule is not None:
        check_rule(rule)
