"""Keep rules: small values that choose among the good steps of a run, combined with `|`.

A rule is a pure function over the list of good steps. It is not the only criterion: guarded steps
and the newest good step always stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stepseal.steps import StepInfo

__all__ = ["KeepRule", "Retention", "as_retention", "latest", "most_kept"]

_DAY_S = 86_400.0


class KeepRule(Protocol):
    """Chooses steps to keep; a pure function of its argument.

    A rule that never keeps more than some number of steps may say so in a method `most_kept()`.
    """

    def choose(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """Return the steps to keep, each with the reason.

        Args:
            steps: all whole and resumable steps of the job's lineage, ascending.
        """
        ...

    def __str__(self) -> str:
        """Return a description for reasons, such as `the newest 3`."""
        ...


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Keeps every step that at least one of its rules keeps."""

    rules: tuple[KeepRule, ...]

    def choose(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """Return the union, each step with the reasons of all rules that chose it."""
        found: dict[int, str] = {}
        for rule in self.rules:
            for step, why in rule.choose(steps).items():
                found[step] = f"{found[step]}; {why}" if step in found else why
        return found

    def most_kept(self) -> int | None:
        """Return a bound for the union; the newest steps of one rule are among those of another."""
        newest = max((rule.count for rule in self.rules if isinstance(rule, Latest)), default=0)
        others = [most_kept(rule) for rule in self.rules if not isinstance(rule, Latest)]
        known = [count for count in others if count is not None]
        return newest + sum(known) if len(known) == len(others) else None

    def __or__(self, other: KeepRule) -> AnyOf:
        return AnyOf((*self.rules, other))

    def __str__(self) -> str:
        return " or ".join(str(rule) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Latest:
    """Keeps the newest `count` steps, by step number."""

    count: int

    def choose(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        """Return the newest steps."""
        return dict.fromkeys((facts.step for facts in steps[-self.count :]), f"among {self}")

    def most_kept(self) -> int:
        """Return the number."""
        return self.count

    def __or__(self, other: KeepRule) -> AnyOf:
        return AnyOf((self, other))

    def __str__(self) -> str:
        return f"the newest {self.count}"


def latest(count: int) -> Latest:
    """Keep the newest `count` whole, resumable steps of the job's lineage.

    Args:
        count: at least 1.

    Raises:
        InvalidInput: `count` is not a positive int.
    """
    if type(count) is not int or count < 1:
        raise InvalidInput(
            f"latest({count!r}): expected an int of at least 1. A job always keeps one step to "
            "resume from.",
            expected=">= 1",
            found=count,
        )
    return Latest(count)


@dataclass(frozen=True, slots=True)
class Retention:
    """Which steps stay, and how long removed steps can still be recovered by hand.

    Raises:
        InvalidInput: `keep` is not a rule, or a time is not a number of at least 0.
    """

    keep: KeepRule
    superseded_grace_s: float = _DAY_S
    """Seconds to keep steps after they were superseded or left the lineage."""
    trash_grace_s: float = 0.0
    """Seconds to keep a pruned step in the trash before it is deleted. With 0 it is deleted at
    once. Readers are safe in any case: a prune checks for leases before it deletes."""

    def __post_init__(self) -> None:
        if not callable(getattr(self.keep, "choose", None)):
            raise InvalidInput(
                f"keep={self.keep!r}: expected a rule such as stepseal.latest(3)",
                expected="a keep rule",
                found=type(self.keep).__name__,
            )
        for name in ("superseded_grace_s", "trash_grace_s"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < float("inf"):
                raise InvalidInput(
                    f"Retention: {name}: expected seconds of at least 0, found {value!r}",
                    expected=">= 0",
                    found=value,
                )


def most_kept(rule: KeepRule) -> int | None:
    """Return how many steps a rule keeps at most; None if they may be ever more."""
    bound = getattr(rule, "most_kept", None)
    return None if bound is None else bound()


def as_retention(keep: KeepRule | Retention | None) -> Retention | None:
    """Return a `Retention` for a keep rule; None, which keeps everything, stays None.

    Raises:
        InvalidInput: `keep` has another type.
    """
    return keep if keep is None or isinstance(keep, Retention) else Retention(keep)
