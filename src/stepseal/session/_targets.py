"""What a restore fills, as one participant sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.components import RNGComponent, skip_advice
from stepseal.errors import CheckpointError, ParticipantFailed, StateMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from stepseal.components import Component, RestorePlan, SavedComponent, Topology

__all__ = ["Targets", "apply_all", "reported"]


def reported(component: Component, plan: RestorePlan, how: str = "restored") -> str:
    """Return what the report of a restore says of one component."""
    note = getattr(plan, "note", "")
    return f"{how} ({component.kind}, {len(plan.sinks)} tensors{note and f', {note}'})"


def apply_all(
    plans: Iterable[tuple[Component, RestorePlan]], check_cancelled: Callable[[], None]
) -> None:
    """Finish each component after all sinks were filled; changes live state.

    Raises:
        CheckpointError: from a component, as it is.
        ParticipantFailed: a component raised anything else; that exception is the cause.
    """
    for component, plan in plans:
        check_cancelled()
        try:
            plan.apply()
        except CheckpointError:
            raise
        except Exception as error:
            text = (
                f"component {component.name} could not be restored: it raised "
                f"{type(error).__name__}: {error}. Add an object that takes the saved state; "
                f"{skip_advice(component.name)}"
            )
            raise ParticipantFailed(text, component=component.name) from error


@dataclass(frozen=True, slots=True)
class Targets:
    """The live state that a restore fills."""

    components: Sequence[Component]
    skip: frozenset[str]
    """Names to leave as they are, live or saved."""
    known: frozenset[str]
    """Names of all live components, skipped ones included."""
    topology: Topology

    def plans(
        self,
        step: int,
        saved: Collection[str],
        open_saved: Callable[[Component], SavedComponent],
    ) -> tuple[tuple[Component, RestorePlan], ...]:
        """Plan how each live component takes its saved state, the RNG last; touch nothing.

        Args:
            step: number of the step, for errors.
            saved: names of the components that the step holds.
            open_saved: returns what the step holds for a component.

        Raises:
            StateMismatch: saved and live state differ; `.problems` lists every difference.
        """
        problems = self._name_problems(saved)
        plans = []
        for component in self.components:
            if component.name in saved:
                try:
                    plans.append((component, component.plan(open_saved(component), self.topology)))
                except StateMismatch as error:
                    found = error.problems or (str(error),)
                    problems += [f"component {component.name}: {problem}" for problem in found]
        if problems:
            raise StateMismatch(
                f"saved and live state differ: {'; '.join(problems[:10])}"
                f"{f' and {len(problems) - 10} more' if len(problems) > 10 else ''}",
                step=step,
                participant=self.topology.me,
                problems=tuple(problems),
            )
        plans.sort(key=lambda plan: isinstance(plan[0], RNGComponent))
        return tuple(plans)

    def _name_problems(self, saved: Collection[str]) -> list[str]:
        live = [component.name for component in self.components]
        problems = [
            f"component {name}: added here, but not in the step; {skip_advice(name)}"
            for name in live
            if name not in saved
        ]
        problems += [
            f"component {name}: in the step, but not added here; restore(skip=[{name!r}]) leaves "
            "it out"
            for name in sorted(set(saved) - set(live) - self.skip)
        ]
        problems += [
            f"skip: component {name}: neither added here nor in the step"
            for name in sorted(self.skip - self.known - set(saved))
        ]
        return problems
