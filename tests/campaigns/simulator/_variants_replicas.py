"""Broken variants of the comparison of replicas; see `_variants`."""

from __future__ import annotations

from typing import Any

from stepseal.protocol._comparing import Comparison

__all__ = ["lowest_passes", "missing_is_equal", "not_compared"]

_real = Comparison._compare


def not_compared() -> list[tuple[object, str, object]]:
    """Whatever the participants hold is taken for equal."""
    return [(Comparison, "_compare", lambda *_: None)]


def missing_is_equal() -> list[tuple[object, str, object]]:
    """Who tells no digest is taken to hold what the others hold."""

    def compare(self: Comparison, name: str, reports: Any, digests: Any) -> None:  # noqa: ANN401
        told = [found[name] for found in digests.values() if name in found]
        filled = {p: {name: found.get(name, told[0])} for p, found in digests.items() if told}
        _real(self, name, reports, filled)

    return [(Comparison, "_compare", compare)]


def lowest_passes() -> list[tuple[object, str, object]]:
    """The lowest participant, which writes, is never found to differ."""

    def compare(self: Comparison, name: str, reports: Any, digests: Any) -> None:  # noqa: ANN401
        first, second = list(reports)[:2]
        _real(self, name, reports, {**digests, first: digests[second]})

    return [(Comparison, "_compare", compare)]
