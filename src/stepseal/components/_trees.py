"""Components of kind `tree`: nested state that goes through the typed codecs, whoever holds it.

A tree is taken whole on the caller's thread and handed back whole; nothing live is touched before
`apply`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from stepseal.components._capture import describe_value
from stepseal.components._codecs import decode_tree
from stepseal.components._fitting import sharing_problem
from stepseal.components._groups import resolved
from stepseal.components._types import (
    AnySharing,
    CapturedComponent,
    SavedComponent,
    Sharing,
    Topology,
)
from stepseal.errors import InvalidInput, StateMismatch
from stepseal.layout import check_component_name, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepseal.components._ranges import RangeScan
    from stepseal.layout import BytesSource, TensorSink

__all__ = ["TreeComponent", "TreePlan"]


@dataclass(slots=True)
class TreePlan:
    """A tree that was decoded and checked, ready to be handed over."""

    _put: Callable[[], None]
    sinks: Mapping[str, TensorSink] = field(default_factory=dict)
    """Always empty: a tree has no tensors of its own."""
    scans: Mapping[str, RangeScan] = field(default_factory=dict)
    """Always empty, too."""

    def apply(self) -> None:
        """Hand the value to the live object. Changes live state."""
        self._put()


class TreeComponent:
    """One nested state as one tree; subclasses say where it is read from and written to.

    Args:
        name: name of the component.
        declared: sharing that the user declared, None for the default of the class.

    Raises:
        InvalidInput: a bad name, or a sharing that a tree cannot have.
    """

    kind: str = "tree"
    default_sharing: ClassVar[Sharing | None] = None
    """Sharing where none is declared; None: GLOBAL in a world of one, else it must be declared."""

    def __init__(self, name: str, declared: AnySharing | None = None) -> None:
        check_component_name(name)
        self.name = name
        self._declared: AnySharing | None = None
        if declared is not None:
            self.declare(declared)

    def declare(self, sharing: AnySharing) -> None:
        """Go by another sharing from now on.

        Raises:
            InvalidInput: a tree cannot have it.
        """
        if not rule_of(sharing).is_for_trees:
            raise InvalidInput(
                f"component {self.name!r}: expected a sharing of a tree, found "
                f"{sharing.name}, which only tensors have. Declare sharing=ss.PER_RANK, "
                "ss.REPLICATED or ss.GLOBAL.",
                component=self.name,
                found=sharing.value,
            )
        self._declared = sharing

    def read_state(self) -> object:
        """Return the live state; called once per capture by owners of a payload."""
        raise NotImplementedError

    def write_state(self, value: object) -> None:
        """Put a value, new and owned by the callee, in place of the live state."""
        raise NotImplementedError

    def state_problems(self, value: object) -> list[str]:
        """Return why a saved value does not fit the live object; changes nothing."""
        return []

    def placement(self, value: object) -> tuple[list[str], Callable[[], None]]:
        """Return why a value that fits cannot be put in place, and what does it; changes nothing.

        Args:
            value: decoded, without problems; owned by the callee.
        """
        return [], lambda: self.write_state(value)

    def bytes_copies(self, value: object) -> tuple[BytesSource, ...]:
        """Return the copies of `value` for stock DCP readers; asked on rank 0 only."""
        return ()

    def sharing(self, topology: Topology) -> AnySharing:
        """Return the declared sharing or the default for `topology`.

        Raises:
            InvalidInput: several participants and nothing declared, or sets that do not fit them.
        """
        if self._declared is not None:
            return resolved(self.name, self._declared, topology)
        if self.default_sharing is not None:
            return self.default_sharing
        if topology.world_size == 1:
            return Sharing.GLOBAL
        raise InvalidInput(
            f"component {self.name!r}: expected a declared sharing among {topology.world_size} "
            "participants, found none. "
            "Declare sharing=ss.PER_RANK (each its own state), ss.REPLICATED (all the same), "
            "ss.GLOBAL (rank 0's), ss.PER_NODE or ss.per_group(same_on=...); a dict of tensors, "
            "or an object whose state_dict is one, needs none with kind='tensors'.",
            component=self.name,
        )

    def describe(self, topology: Topology) -> CapturedComponent:
        """Describe the state on the caller's thread; only who writes it reads it; see `Component`.

        Raises:
            UnsupportedState: a value that no codec knows; `.component` and `.path` lead to it.
        """
        sharing = self.sharing(topology)
        return describe_value(self.name, sharing, topology, self.read_state, self.bytes_copies)

    def plan(self, saved: SavedComponent, topology: Topology) -> TreePlan:
        """Decode and check a saved tree, and change nothing.

        Raises:
            StateMismatch: kind, sharing, world or content differ; `.problems` lists all.
            Corrupt: the document breaks the format.
        """
        self._refuse(self._payload_problems(saved, topology))
        tree = saved.tree
        if tree is None:
            raise self._mismatch(
                [f"expected a payload for {topology.me}, found none: restore another step"]
            )
        value = decode_tree(tree, component=self.name)
        self._refuse(self.state_problems(value))
        problems, put = self.placement(value)
        self._refuse(problems)
        return TreePlan(put)

    def _payload_problems(self, saved: SavedComponent, topology: Topology) -> list[str]:
        if saved.kind != self.kind:
            return [
                f"saved as {saved.kind!r}, now {self.kind!r}: add the object that was saved "
                f"under this name, with kind={saved.kind!r} if it is a dict, a (get, set) pair or "
                "has a state_dict"
            ]
        problem = sharing_problem(saved, self.sharing(topology), self.kind, topology)
        return [problem] if problem else []

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise self._mismatch(problems)

    def _mismatch(self, problems: list[str]) -> StateMismatch:
        return StateMismatch(
            f"cannot restore component {self.name!r}: {'; '.join(problems)}.",
            component=self.name,
            problems=problems,
        )
