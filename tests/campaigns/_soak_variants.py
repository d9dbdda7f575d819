"""Broken protocols for the soak, with the troubles in which they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.campaigns._variants import VARIANTS, replace

from stepseal.commit import _performer, _publish

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns._soak_round import Trouble

__all__ = ["SOAKED", "Soaked"]


@dataclass(frozen=True)
class Soaked:
    """A protocol to run instead of the real one."""

    patch: Callable[[], None]
    troubles: tuple[Trouble, ...]


def _no_incarnations() -> None:
    """Whoever has a step commits it, whoever owns the root by now."""
    for module in (_performer, _publish):
        replace(module, "check_current", lambda _storage, _incarnation: None)


SOAKED = {
    "acknowledged-before-commit": Soaked(
        VARIANTS["acknowledged-before-commit"].patch, ("kill", "kill-all")
    ),
    "no-incarnation-check": Soaked(_no_incarnations, ("zombies", "twins")),
}
