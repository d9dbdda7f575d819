"""Facts that a restore compares and never changes, such as which dataset other state is about."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

from stepseal.components._trees import TreeComponent
from stepseal.components._types import AnySharing, Sharing
from stepseal.errors import InvalidInput

__all__ = ["Unchanged", "UnchangedComponent"]

Fact: TypeAlias = str | int | float | bool | None


class Unchanged:
    """Facts that must be at a restore what they were at the save: `ckpt.add("dataset", ...)`.

    A restore compares them and refuses where they differ, before anything has changed. It tells
    apart what no state of a loader does: another dataset, tokenizer or vocabulary.

    Args:
        facts: name to value, for example `dataset="c4", revision="v2", num_samples=1000`.

    Raises:
        InvalidInput: there is none, or a value is no str, int, float, bool or None.
    """

    def __init__(self, **facts: Fact) -> None:
        plain = (str, int, float, bool, type(None))
        wrong = [name for name, value in facts.items() if not isinstance(value, plain)]
        if wrong or not facts:
            raise InvalidInput(
                "Unchanged: expected facts that are str, int, float, bool or None, such as "
                f"dataset='c4', found {f'another type for {wrong[0]}' if wrong else 'none'}."
            )
        self.facts = facts


class UnchangedComponent(TreeComponent):
    """Facts of the whole job; REPLICATED unless declared."""

    default_sharing: ClassVar[Sharing | None] = Sharing.REPLICATED

    def __init__(self, name: str, live: Unchanged, declared: AnySharing | None = None) -> None:
        super().__init__(name, declared)
        self._facts = live.facts

    def read_state(self) -> object:
        """Return the facts."""
        return dict(self._facts)

    def write_state(self, value: object) -> None:
        """Do nothing: they are equal."""

    def state_problems(self, value: object) -> list[str]:
        """Name each fact that differs, is gone or is new."""
        if not isinstance(value, dict):
            return [f"expected facts, found {value!r:.80}"]
        live, absent = self._facts, "nothing"
        problems = [
            f"{name}: expected (live) {_shown(live, name, absent)}, found "
            f"{_shown(value, name, absent)}"
            for name in {**live, **value}
            if name not in live or name not in value or live[name] != value[name]
        ]
        if problems:
            problems[-1] += (
                f". restore(policies={{{self.name!r}: 'fresh'}}), at this start only, goes on with "
                "what is live; begin with 'fresh' what depends on it, too"
            )
        return problems


def _shown(facts: dict[str, Fact], name: str, absent: str) -> str:
    return f"{facts[name]!r:.80}" if name in facts else absent
