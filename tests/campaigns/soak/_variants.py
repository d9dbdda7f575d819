"""Broken protocols for the soak, with the troubles in which they show."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.campaigns.kill._variants import VARIANTS, replace

from stepseal.retention._keep_rules import Latest
from stepseal.steps import _owned, _publish, _removal, _retire
from stepseal.steps._guards import Guards

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns.soak._round import Trouble

__all__ = ["SOAKED", "Soaked"]


_COMMIT_S = 0.4
"""Most of the time from step to step: a kill at any instant is likely to fall into it."""


@dataclass(frozen=True)
class Soaked:
    """A protocol to run instead of the real one."""

    patch: Callable[[], None]
    troubles: tuple[Trouble, ...]
    told: str
    """What a problem must say: on a slow machine a round may fail for other reasons."""
    seed: int = 0
    """Of a round that told it before; what is told depends on the scheduler, too."""


def _acknowledge_long_before() -> None:
    """Everybody is told of success when the commit begins, and the storage takes its time."""
    VARIANTS["acknowledged-before-commit"].patch()
    publish = _owned.OwnedSteps.publish

    def publish_late(self: _owned.OwnedSteps, *args: Any, **options: Any) -> str:  # noqa: ANN401
        time.sleep(_COMMIT_S)
        return publish(self, *args, **options)

    replace(_owned.OwnedSteps, "publish", publish_late)


def _no_incarnations() -> None:
    """Whoever has a step commits it, whoever owns the root by now."""
    for module in (_owned, _publish):
        replace(module, "check_current", lambda _storage, _incarnation: None)


def _ignore_guards() -> None:
    """Pruning goes by the keep rule alone, and looks at no pin and no lease."""
    for module in (_removal, _retire):
        replace(module, "read_guards", lambda *_: Guards())


def _keep_too_few() -> None:
    """The rule counts one step too many as kept."""
    replace(
        Latest,
        "choose",
        lambda _self, steps: {facts.step: "the newest" for facts in steps[-1:]},
    )


SOAKED = {
    "acknowledged-before-commit": Soaked(
        _acknowledge_long_before, ("kill-all",), "was acknowledged", seed=133
    ),
    "no-incarnation-check": Soaked(_no_incarnations, ("zombies", "twins"), "owned the root"),
    "prune-ignores-guards": Soaked(_ignore_guards, ("none", "pause"), "although it is pinned"),
    "prune-keeps-too-few": Soaked(
        _keep_too_few, ("none", "kill-all"), "was acknowledged and is gone"
    ),
}
