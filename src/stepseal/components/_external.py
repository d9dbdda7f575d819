"""State that another engine saves and loads by itself, as files in a folder that stepseal owns."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepseal.components._types import CapturedComponent, Sharing
from stepseal.errors import InvalidInput, StateMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepseal.components._ranges import RangeScan
    from stepseal.components._types import AnySharing, SavedComponent, Topology
    from stepseal.layout import TensorSink

__all__ = ["External", "ExternalComponent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """An engine that writes and reads files of its own; `add("engine", External(...))`.

    Both functions take the path of a folder, a str. They are called on the caller's thread inside
    `save` and `restore`, on all ranks in the same order, so collectives are allowed inside.

    Args:
        save: writes files below the folder, and returns when all of them are complete. Called on
            every rank, for one folder; with `sharing=GLOBAL` on the lowest rank alone. None where
            `Participant.save_async` or `save_sync` saves the component.
        load: reads them back; must not change them. Called on every rank, after every byte was
            verified.
        any_world: whether another number of ranks than that of the save can load them. With
            `sharing=GLOBAL` every number can.
    """

    save: Callable[[str], object] | None = None
    load: Callable[[str], object]
    any_world: bool = False


class ExternalComponent:
    """The component of an engine; its bytes go past stepseal.

    Args:
        name: component name.
        engine: what saves and loads.
        declared: SHARDED or GLOBAL; None for SHARDED.

    Raises:
        InvalidInput: the engine lacks a function, or the sharing is another one.
    """

    def __init__(self, name: str, engine: External, declared: AnySharing | None = None) -> None:
        for role in ("save", "load"):
            found = getattr(engine, role)
            if not (callable(found) or (role == "save" and found is None)):
                raise InvalidInput(
                    f"add({name!r}): External: {role}: expected a function that takes the path of "
                    f"a folder, found {found!r:.80}.",
                    component=name,
                )
        if declared not in (None, Sharing.SHARDED, Sharing.GLOBAL):
            raise InvalidInput(
                f"add({name!r}): sharing: expected SHARDED (every rank calls the engine) or GLOBAL "
                f"(the lowest rank alone) for External, found {declared.name}. An engine with a "
                "file per rank is SHARDED.",
                component=name,
                found=declared.value,
            )
        self.name = name
        self.kind = "external"
        self._engine = engine
        self._sharing = declared or Sharing.SHARDED

    def sharing(self, topology: Topology) -> AnySharing:
        """Return SHARDED, or GLOBAL where the lowest rank writes alone."""
        return self._sharing

    def describe(self, topology: Topology) -> CapturedComponent:
        """Return no facts: the engine writes its files later in the same save.

        Raises:
            InvalidInput: the engine has no function that saves.
        """
        if self._engine.save is None:
            raise InvalidInput(
                f"component {self.name}: External has no save=, so it is saved by save_async or "
                "save_sync of a Participant, with gates= of the Coordinator; found a save without.",
                component=self.name,
            )
        return CapturedComponent(self.name, self.kind, self._sharing, "", None)

    def save_to(self, folder: str, topology: Topology) -> None:
        """Let the engine write into a folder, if it writes on this rank."""
        save = self._engine.save
        if save is not None and (self._sharing is Sharing.SHARDED or topology.rank == 0):
            save(folder)

    def plan(self, saved: SavedComponent, topology: Topology) -> ExternalPlan:
        """Return how the engine loads the files of a step.

        Raises:
            StateMismatch: another number of ranks saved them, and the engine does not say that this
                is no matter.
        """
        before, now = saved.num_participants, topology.world_size
        any_world = self._engine.any_world or saved.sharing is Sharing.GLOBAL
        if before != now and not any_world:
            problem = (
                f"saved by an engine on {before} ranks, now {now}: restore it on {before}, or "
                "declare External(..., any_world=True) if the engine can"
            )
            raise StateMismatch(f"{self.name}: {problem}", problems=(problem,))
        return ExternalPlan(functools.partial(self._engine.load, saved.folder))


class ExternalPlan:
    """Calls the engine once everything was verified."""

    note = "files of an engine"
    sinks: Mapping[str, TensorSink] = {}
    scans: Mapping[str, RangeScan] = {}

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def apply(self) -> None:
        """Let the engine load the folder."""
        self._load()
