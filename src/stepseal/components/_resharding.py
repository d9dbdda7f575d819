"""State of each rank, set or node for ranks that cannot read it: a function of the user makes it.

The function gets the saved states of all ranks, sets or nodes, and returns the one that this rank
reads now. What it returns is encoded as by a save, and then checked and restored like a payload of
the step. It is called while a step is checked, so nothing live has changed if it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from stepseal.components._advice import leave_out
from stepseal.components._capture import tree_of
from stepseal.components._codecs import decode_tree
from stepseal.components._codecs_words import qualified
from stepseal.components._rng import RNG, RNGComponent
from stepseal.components._types import SavedComponent, Sharing
from stepseal.errors import (
    CheckpointError,
    InvalidInput,
    ParticipantFailed,
    StateMismatch,
    UnsupportedState,
)
from stepseal.layout import Division, rule_of

if TYPE_CHECKING:
    from stepseal.components._types import AnySharing, Component, Topology
    from stepseal.layout import TreeContents

__all__ = ["MADE_ANEW", "Placement", "Reshard", "SavedPayloads", "readers_of", "reshard_saved"]

MADE_ANEW = "on_world_change, what the function returned"
"""Begins each problem with what a function returned."""
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How the state of a component is spread over the ranks of one world."""

    sharing: Sharing
    """The sharing of the component there."""
    world_size: int
    """Number of ranks."""
    coordinates: tuple[str, ...]
    """One per state, in the order of the lowest ranks: `trainer/0` for a rank, `tp=1` for a set,
    `node=0` for a node, and one empty text for state of the whole job."""
    index: int | None = None
    """Position in `coordinates` of the state that this rank reads; None in the world of the save.
    With `PER_RANK` it is the rank."""


Reshard: TypeAlias = Callable[[Sequence[Any], Placement, Placement], Any]
"""Takes the saved states, the world of the save and that of now; returns this rank's state."""


@dataclass(frozen=True, slots=True)
class SavedPayloads:
    """All payloads of a component of kind `tree`, as a step has them."""

    placement: Placement
    reads: Sequence[Callable[[], TreeContents]]
    """Reads and verifies the payload of each coordinate."""


def readers_of(sharing: AnySharing, participants: Sequence[str]) -> dict[str, str]:
    """Return the coordinate of each payload, with the first participant that reads it, in order."""
    readers: dict[str, str] = {}
    for rank, one in enumerate(_coordinates(sharing, participants)):
        readers.setdefault(one, participants[rank])
    return readers


def _coordinates(sharing: AnySharing, participants: Sequence[str]) -> list[str]:
    """Return the coordinate of each participant."""
    if isinstance(sharing, Division):
        found = sharing.coordinates()
        return [found[rank] for rank in range(len(participants))]
    coordinate_of = rule_of(sharing).coordinate
    assert coordinate_of is not None, "only sets have coordinates that a rule cannot give"
    return [coordinate_of(one) for one in participants]


def reshard_saved(
    component: Component, reshard: Reshard, saved: SavedPayloads, topology: Topology
) -> SavedComponent:
    """Return what a step holds for this rank now, as a function of the user makes it.

    Args:
        component: the live component; it is not touched.
        reshard: the function.
        saved: what it takes.
        topology: who takes part now.

    Raises:
        ParticipantFailed: it raised; that exception is the cause. A `CheckpointError` of its own is
            raised as it is.
        Corrupt: a state that it asked for is damaged, whatever it made of that.
        StateMismatch: what it returned is no state of this component.
    """
    sharing, states = component.sharing(topology), _States(component.name, saved.reads)
    new = _placement_now(sharing, topology)
    try:
        with RNGComponent("rng", RNG()).kept():
            found = reshard(states, saved.placement, new)
    except Exception as error:
        states.check()
        if isinstance(error, CheckpointError):
            raise
        text = (
            f"component {component.name}: the function that reshards raised "
            f"{type(error).__name__}: {error}; it was called for {saved.placement.world_size} "
            f"participants at the save and {new.world_size} now. Correct what add(..., "
            f"on_world_change=...) was given; {leave_out(component.name)} leaves it as it is now"
        )
        raise ParticipantFailed(text, component=component.name) from error
    finally:
        states.close()
    states.check()
    problems = states.differences(found)
    if not problems:
        try:
            tree = tree_of(found, component.name)
        except UnsupportedState as error:
            problems = [str(error).rstrip(".")]
    if problems:
        raise StateMismatch(
            f"component {component.name}: {MADE_ANEW}: {'; '.join(problems)}.",
            component=component.name,
            problems=[f"{MADE_ANEW}: {one}" for one in problems],
        )
    return SavedComponent(component.name, "tree", sharing, {}, tree, topology.world_size)


def _placement_now(sharing: AnySharing, topology: Topology) -> Placement:
    mine = _coordinates(sharing, topology.participants)
    coordinates = tuple(dict.fromkeys(mine))
    return Placement(
        sharing=Sharing(sharing.value),
        world_size=topology.world_size,
        coordinates=coordinates,
        index=coordinates.index(mine[topology.rank]),
    )


class _States(Sequence[Any]):
    """The saved states; each access reads, verifies and decodes one anew, and keeps nothing of it.

    Args:
        component: whose states.
        reads: read and verify the payload of each.
    """

    def __init__(self, component: str, reads: Sequence[Callable[[], TreeContents]]) -> None:
        self._component = component
        self._reads = reads
        self._is_open = True
        self._failed: CheckpointError | None = None
        self._types: set[type] = set()
        self._common: set[object] | None = None
        """Keys that all dicts among the states that were read have."""

    def __len__(self) -> int:
        return len(self._reads)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - a state, or a list of them
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not self._is_open:
            raise InvalidInput(
                f"component {self._component}: the saved states are read while the function that "
                "reshards runs, and not after it: take what you need there.",
                component=self._component,
            )
        read = self._reads[index]
        try:
            state = decode_tree(read(), component=self._component)
        except CheckpointError as error:
            self._failed = self._failed or error
            raise
        self._types.add(type(state))
        if isinstance(state, Mapping):
            self._common = set(state) if self._common is None else self._common & set(state)
        return state

    def close(self) -> None:
        """Give nothing any more."""
        self._is_open = False

    def check(self) -> None:
        """Raise what a read raised; a function that goes on without a state would lose it."""
        if self._failed is not None:
            raise self._failed

    def differences(self, made: object) -> list[str]:
        """Return in what a new state is none like those that were read."""
        if made is None:
            return ["expected the state of this rank, found None (is there no `return`?)"]
        if not self._types:
            return []
        is_mapping = isinstance(made, Mapping) and self._common is not None
        if type(made) not in self._types and not is_mapping:
            names = " or ".join(sorted(map(qualified, self._types)))
            return [f"expected {names}, as was saved, found {qualified(type(made))}"]
        if not isinstance(made, Mapping):
            return []
        missing = sorted(map(repr, (self._common or set()) - set(made)))
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        if not missing:
            return []
        return [
            "expected the keys that every saved state has, found none of "
            f"{', '.join(missing[:_SHOWN])}{more}"
        ]
