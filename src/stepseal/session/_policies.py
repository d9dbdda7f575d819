"""What a restore does with each component: declared in `add`, overridden per call, alike on all.

Pure values: nothing here knows a step or touches live state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from stepseal.errors import InvalidInput
from stepseal.layout import check_component_name, rule_of
from stepseal.protocol import RestoreCalled

if TYPE_CHECKING:
    from collections.abc import Collection

    from stepseal.components import Conversion, Reshard
    from stepseal.layout import AnySharing

__all__ = ["Choice", "Policies", "Policy", "check_policy"]

Policy = Literal["require", "if-present", "skip", "fresh"]
"""`require`: the step must have it. `if-present`: restored if the step has it. `skip`: left as it
is. `fresh`: the same, as a deliberate restart that is recorded."""

_RESTORING = ("require", "if-present")


@dataclass(frozen=True, slots=True)
class Choice:
    """What one restore does with each component."""

    policies: Mapping[str, Policy]
    """Every component that was added, and those of a step that a policy leaves out."""
    by_world: frozenset[str] = frozenset()
    """Restored for the same number of participants, `fresh` for another."""
    only: bool = False
    """Components of a step that `policies` does not name are left out."""
    conversions: Mapping[str, Conversion] = field(default_factory=dict)
    """Component to how its saved keys and dtypes become those of live state."""
    sets: Mapping[str, str] = field(default_factory=dict)
    """Component to a text about its sets of ranks, which must be the same on all."""
    reshards: Mapping[str, Reshard] = field(default_factory=dict)
    """Component to what makes its state where ranks cannot read what those of the save wrote."""

    def call(
        self, number: int, step: int | None, *, fresh: bool, unverified: bool, check_only: bool
    ) -> RestoreCalled:
        """Return the message that joins a restore; all participants must send the same."""
        return RestoreCalled(
            number,
            step,
            fresh,
            dict(self.policies),
            unverified,
            sorted(self.by_world),
            self.only,
            check_only,
            {name: one.fingerprint() for name, one in self.conversions.items()},
            dict(self.sets),
        )


@dataclass(slots=True)
class Policies:
    """The policies that components were added with."""

    _declared: dict[str, Policy] = field(default_factory=dict)
    _by_world: set[str] = field(default_factory=set)
    _reshards: dict[str, Reshard] = field(default_factory=dict)

    def declare(
        self,
        name: str,
        on_restore: Policy,
        on_world_change: Literal["fresh"] | Reshard | None,
        sharing: AnySharing | None,
    ) -> None:
        """Remember what a component was added with; the values were checked before.

        Args:
            name: its name.
            on_restore: its policy.
            on_world_change: what happens where the ranks cannot read what those of the save wrote.
            sharing: its sharing; None where a function decides it later.

        Raises:
            InvalidInput: `on_world_change` of state that any number of participants can read.
        """
        reshard = on_world_change if callable(on_world_change) else None
        if reshard is not None and sharing is not None and not rule_of(sharing).is_for_trees:
            raise InvalidInput(
                f"add({name!r}, on_world_change=...): a function cannot reshard {sharing.name} "
                "tensors: a restore reshards them by itself. Leave it out.",
                component=name,
                found=sharing.value,
            )
        if on_world_change == "fresh" and sharing is not None and rule_of(sharing).any_world:
            raise InvalidInput(
                f"add({name!r}, on_world_change={on_world_change!r}): expected state of each rank, "
                f"set or node, found sharing {sharing.name}, which any number of ranks restores. "
                "Declare sharing=ss.PER_RANK, or leave on_world_change out.",
                component=name,
                found=sharing.value,
            )
        self._declared[name] = on_restore
        if reshard is not None:
            self._reshards[name] = reshard
        elif on_world_change is not None:
            self._by_world.add(name)

    def check_any(self) -> None:
        """Refuse a save of nothing.

        Raises:
            InvalidInput: no component was added.
        """
        if not self._declared:
            raise InvalidInput(
                "save: no component was added: there is nothing to save. Call add() first."
            )

    def choose(
        self,
        policies: Mapping[str, Policy] | None,
        only: Collection[str] | None,
        convert: Mapping[str, Conversion] | None = None,
        sets: Mapping[str, str] | None = None,
    ) -> Choice:
        """Return what one restore does: the call's policies before `only` before the declared ones.

        Raises:
            InvalidInput: a policy or a name is wrong; `.problems` lists all.
        """
        policies = {} if policies is None else policies
        self._check(policies, only)
        chosen = dict(self._declared)
        if only is not None:
            chosen = {
                name: (policy if policy in _RESTORING else "require") if name in only else "skip"
                for name, policy in chosen.items()
            }
        chosen.update(policies)
        return Choice(
            chosen,
            frozenset(self._by_world),
            only is not None,
            convert or {},
            sets or {},
            self._reshards,
        )

    def _check(self, policies: object, only: Collection[str] | None) -> None:
        problems = []
        if not isinstance(policies, Mapping):
            problems = [f"policies: expected a dict of component to policy, found {policies!r:.80}"]
            policies = {}
        for name, policy in policies.items():
            if policy not in get_args(Policy):
                problems.append(f"policies[{name!r}]: {_expected(policy)}")
            elif name not in self._declared and policy != "skip":
                problems.append(
                    f"policies[{name!r}]: no such component was added, so it can only be left out "
                    f"('skip'), found {policy!r}; added: {', '.join(self._declared) or 'none'}"
                )
        if isinstance(only, str):
            problems.append(f"only: expected a list of names, found one string: only=[{only!r}]")
        else:
            problems += [
                f"only: no component {name!r} was added; added: "
                f"{', '.join(self._declared) or 'none'}"
                for name in only or ()
                if name not in self._declared
            ]
        if problems:
            raise InvalidInput(f"restore: {'; '.join(problems)}.", problems=tuple(problems))


def check_policy(name: str, on_restore: str, on_world_change: object) -> None:
    """Refuse a name or a policy that is none.

    Raises:
        InvalidInput: what is wrong, and what is expected.
    """
    check_component_name(name)
    if on_restore not in get_args(Policy):
        raise InvalidInput(f"add({name!r}): on_restore: {_expected(on_restore)}", component=name)
    if on_world_change not in (None, "fresh") and not callable(on_world_change):
        raise InvalidInput(
            f"add({name!r}): on_world_change: expected 'fresh', a function (states, old, new) that "
            f"returns this rank's state, or None, found {on_world_change!r:.80}",
            component=name,
        )


def _expected(found: object) -> str:
    return f"expected one of {', '.join(map(repr, get_args(Policy)))}, found {found!r:.80}"
