"""What the participants of a restore call alike, and who holds what of a step. Pure decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.protocol._cut import by_role
from stepseal.protocol._failures import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stepseal.protocol import _actions as actions
    from stepseal.protocol import _messages as messages
    from stepseal.protocol._opening import Opening

__all__ = ["differences", "unknown_names", "without_holder"]

_SETS_OF = "sets of "
"""How the facts about the sets of a component begin."""


def differences(
    members: Sequence[str], joined: Mapping[str, messages.RestoreCalled]
) -> dict[str, Failure]:
    """Return who called otherwise than the first participant of its role."""
    first = members[0]
    wanted = _facts_of(joined[first])
    found = {}
    for participant in members:
        has = _facts_of(joined[participant])
        names = [name for name in {**wanted, **has} if has.get(name) != wanted.get(name)]
        if names:
            text = (
                f"called restore with {_shown(has, names)}, but {first} with "
                f"{_shown(wanted, names)}"
            )
            if any(name.startswith(_SETS_OF) for name in names):
                text += ": pass the same same_on= on every rank"
            found[participant] = Failure(errors.StateMismatch.kind, text)
    return found


def _facts_of(call: messages.RestoreCalled) -> dict[str, object]:
    """Return what all must call alike, by the words of the caller."""
    by_world = set(call.by_world)
    components = {
        f"component {name}": f"{policy}{', by world' if name in by_world else ''}"
        for name, policy in call.policies.items()
    }
    conversions = {f"convert {name}": value for name, value in call.conversions.items()}
    sets = {f"{_SETS_OF}{name}": value for name, value in call.sets.items()}
    return {
        "step": call.step,
        "fresh": call.fresh,
        "unverified": call.unverified,
        "only": call.only,
        "check_only": call.check_only,
        **components,
        **conversions,
        **sets,
    }


def _shown(facts: Mapping[str, object], names: list[str]) -> str:
    """Return facts as a text; components with the same sets of ranks are named together."""
    divided: dict[object, list[str]] = {}
    for name in names:
        if name.startswith(_SETS_OF):
            sets = facts.get(name, "absent")
            divided.setdefault(sets, []).append(name.removeprefix(_SETS_OF))
    others = [name for name in names if not name.startswith(_SETS_OF)]
    return ", ".join([
        *(f"{name}={facts.get(name, 'absent')}" for name in others),
        *(f"the sets [{sets}] of {' and '.join(of)}" for sets, of in divided.items()),
    ])  # fmt: skip


def unknown_names(called: Iterable[messages.RestoreCalled], opening: Opening) -> str | None:
    """Return a text about components that the controller names and nobody has; None without any.

    What is to be skipped may be in the step alone.

    Args:
        called: what each participant called.
        opening: what the controller asked for.
    """
    added = {name for call in called for name, policy in call.policies.items() if policy != "skip"}
    added |= {name for call in called if call.only for name in call.policies}
    asked = {name: "policies" for name, policy in opening.policies.items() if policy != "skip"}
    asked |= dict.fromkeys(opening.only or (), "only")
    unknown = [f"{asked[name]}: no component {name!r}" for name in asked if name not in added]
    if not unknown:
        return None
    return (
        f"restore: {'; '.join(unknown)}: no participant has added it; added: "
        f"{', '.join(sorted(added)) or 'none'}. Nothing was changed."
    )


def without_holder(
    event: actions.Selected,
    participants: Iterable[str],
    called: Iterable[messages.RestoreCalled],
    opening: Opening,
) -> str | None:
    """Return a text about components of roles that nobody has now; None if there are none.

    The participants of a role report what they lack of it themselves.

    Args:
        event: the candidate.
        participants: all of the call.
        called: what each of them called.
        opening: what the controller asked for.
    """
    assert event.ref is not None
    here = by_role(participants)
    named = {*opening.policies}
    for call in called:
        named |= call.policies.keys()
    wanted = event.roles.keys() if opening.only is None else event.roles.keys() & {*opening.only}
    left = [one for one in sorted(wanted - named) if event.roles[one] not in here]
    if not left:
        return None
    listed = ", ".join(f"{name} of role {event.roles[name]}" for name in left[:8])
    more = f" and {len(left) - 8} more" if len(left) > 8 else ""
    return (
        f"restore of step {event.ref.step}: nobody holds {listed}{more}. Nothing was changed. "
        f"Admit these roles, or leave components out: policies={{{left[0]!r}: 'skip'}}"
    )
