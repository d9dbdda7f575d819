"""Trainers that describe their state as Forgather's do, added to a `Checkpointer` as they are.

Such a *provider* has `get_state_components()`: a list of descriptions with `key`, `stateful`,
`sharing_pattern`, `process_group_name`, `required`, `validate_replication`, `validation_level` and
`metadata`; and `get_process_groups()`: process groups by name. Nothing of Forgather is imported:
whatever has these attributes will do.

A group of a PER_GROUP component must hold the ranks whose state is *equal*, such as the data
parallel ones. Forgather's own texts also name groups whose ranks hold *different* state (the stages
of a pipeline). stepseal compares the state of the ranks of a group at each save, so such a group
fails the first save, on all ranks, and commits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch.distributed as dist

from stepseal.components import Sharing, per_group
from stepseal.errors import InvalidInput
from stepseal.layout import check_component_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from stepseal.components import DeclaredSharing
    from stepseal.layout import AnySharing
    from stepseal.session import Checkpointer

__all__ = ["Provider", "add_provider"]

_ONE_WORD = {
    "global": Sharing.GLOBAL,
    "per_rank": Sharing.PER_RANK,
    "replicated": Sharing.REPLICATED,
    "per_node": Sharing.PER_NODE,
}
_PATTERNS = (*_ONE_WORD, "per_group")
_LEVELS = ("none", "warn", "quick", "tensor", "full")


class Provider(Protocol):
    """A trainer that says what its state is."""

    def get_state_components(self) -> Iterable[Any]:
        """Return a description of each component."""

    def get_process_groups(self) -> Mapping[str, object]:
        """Return what PER_GROUP components name: this rank's process groups, mesh axes, or sets."""


def add_provider(
    ckpt: Checkpointer, provider: Provider, *, dynamic: Collection[str] = ()
) -> tuple[str, ...]:
    """Add every component that a provider describes; or none, if any description is wrong.

    Every rank calls it, before `restore`. Patterns are read once. A component that is not
    `required` is left out of a save that fails with it, and restored only where a step has it. With
    `validate_replication`, replicas are compared at the `validation_level`, else at the default one
    of `add`. `metadata` is not stored.

    Args:
        ckpt: takes the components, under their keys.
        provider: described above.
        dynamic: keys whose pattern the provider is asked for again at each save; a restore then
            goes by the recorded pattern. For all others, a pattern that differs from the saved one
            is an error that names both.

    Returns:
        The keys, in their order.

    Raises:
        InvalidInput: `problems` lists every description that is wrong, and nothing was added; or
            `add` refuses an object.
    """
    components, groups = list(provider.get_state_components()), provider.get_process_groups()
    problems = _problems(components, groups, dynamic)
    declared: dict[str, DeclaredSharing] = {}
    if not problems:
        for one in components:
            try:
                sharing = _sharing_of(one, groups)
            except InvalidInput as error:
                problems.append(f"{one.key}: {error}")
                continue
            declared[one.key] = _asked(provider, one.key) if one.key in dynamic else sharing
    if problems:
        raise InvalidInput(
            f"add_provider: expected components that can be saved, found: {'; '.join(problems)}. "
            "Nothing was added.",
            problems=problems,
        )
    for one in components:
        ckpt.add(one.key, one.stateful, sharing=declared[one.key], **_options(one))
    return tuple(declared)


def _options(component: Any) -> dict[str, Any]:  # noqa: ANN401 - theirs
    """Return what `add` is told beside the sharing."""
    told: dict[str, Any] = {"required": bool(getattr(component, "required", True))}
    if getattr(component, "validate_replication", False):
        told["validate"] = _word(getattr(component, "validation_level", "tensor"))
    return told


def _asked(provider: Provider, key: str) -> Callable[[], AnySharing]:
    """Return what asks for the pattern of a component at each save."""

    def ask() -> AnySharing:
        found = [one for one in provider.get_state_components() if one.key == key]
        if len(found) != 1:
            raise InvalidInput(
                f"expected one component {key!r} of the provider, found {len(found)}"
            )
        return _sharing_of(found[0], provider.get_process_groups())

    return ask


def _sharing_of(component: Any, groups: Mapping[str, object]) -> AnySharing:  # noqa: ANN401 - theirs
    """Return the sharing that stands for a pattern.

    Raises:
        InvalidInput: a group that names no sets of ranks, or a pattern that there is not.
    """
    pattern = _word(getattr(component, "sharing_pattern", None))
    if pattern == "per_group":
        return per_group(same_on=groups[component.process_group_name])
    if not isinstance(pattern, str) or pattern not in _ONE_WORD:
        raise InvalidInput(f"sharing_pattern: {_expected_pattern(pattern)}")
    return _ONE_WORD[pattern]


def _problems(
    components: list[Any],
    groups: Any,  # noqa: ANN401 - theirs
    dynamic: Collection[str],
) -> list[str]:
    """Return what is wrong with descriptions, all of it, before any group is looked into."""
    if not isinstance(groups, Mapping):
        return [f"get_process_groups: expected a dict of groups by name, found {groups!r:.80}"]
    problems, keys = [], [getattr(one, "key", None) for one in components]
    for number, one in enumerate(components):
        missing = [n for n in ("key", "stateful", "sharing_pattern") if not hasattr(one, n)]
        if missing:
            problems.append(f"component {number}: expected {', '.join(missing)}, found {one!r:.80}")
            continue
        if keys.index(one.key) < number:
            problems.append(f"{one.key}: expected each key once, found it again")
        problems += [f"{one.key}: {text}" for text in _problems_of(one, groups)]
    unknown = sorted(set(dynamic) - set(keys))
    return problems + [f"dynamic: expected keys of components, found {key!r}" for key in unknown]


def _problems_of(component: Any, groups: Mapping[str, object]) -> list[str]:  # noqa: ANN401 - theirs
    """Return what is wrong with one description."""
    problems = []
    try:
        check_component_name(component.key)
    except InvalidInput as error:
        problems.append(str(error))
    pattern, group = (
        _word(component.sharing_pattern),
        getattr(component, "process_group_name", None),
    )
    known = f"one of {sorted(groups)}" if groups else "none, because the provider has no groups"
    if pattern not in _PATTERNS:
        problems.append(f"sharing_pattern: {_expected_pattern(pattern)}")
    elif pattern == "per_group" and group is None:
        problems.append(
            "process_group_name: expected the group of ranks that hold equal state, found none"
        )
    elif group is not None and group not in groups:
        problems.append(f"process_group_name: expected {known}, found {group!r:.80}")
    elif group is not None and pattern != "per_group" and not _is_of_all(groups[group]):
        problems.append(
            f"process_group_name: expected none with {pattern}, found {group!r}, which holds some "
            "of the ranks. Declare per_group"
        )
    if getattr(component, "validate_replication", False) and pattern != "replicated":
        problems.append(f"validate_replication: expected it with replicated alone, found {pattern}")
    level = _word(getattr(component, "validation_level", "tensor"))
    if level not in _LEVELS:
        problems.append(f"validation_level: expected one of {_LEVELS}, found {level!r:.80}")
    return problems


def _word(value: object) -> object:
    """Return the word of an enum member; words stay."""
    word = getattr(value, "value", value)
    return word.lower() if isinstance(word, str) else word


def _expected_pattern(found: object) -> str:
    return f"expected one of {', '.join(_PATTERNS)}, found {found!r:.80}"


def _is_of_all(group: object) -> bool:
    """Tell whether a group is that of all ranks, so that it says nothing."""
    if not isinstance(group, dist.ProcessGroup):
        return False
    return len(dist.get_process_group_ranks(group)) == dist.get_world_size()
