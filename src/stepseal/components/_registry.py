"""The set of components of a job."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepseal.components._adapting import adapt
from stepseal.components._advice import warn_own_buffers
from stepseal.components._dicts import DictComponent
from stepseal.components._groups import check_sharing
from stepseal.components._loaders import check_generators
from stepseal.components._prepared import scaler_of, unwrapped
from stepseal.components._replicas import ReplicaRule, check_comparable, check_rule
from stepseal.components._rng import RNG, RNGComponent
from stepseal.components._sizes import measure
from stepseal.components._stateful import StatefulComponent, ValueComponent
from stepseal.components._trees import TreeComponent
from stepseal.components._types import Component, OfModule, Sharing
from stepseal.errors import CheckpointError, InvalidInput
from stepseal.layout import Division, check_component_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import torch

    from stepseal.components._adapting import Kind
    from stepseal.components._groups import DeclaredSharing
    from stepseal.components._sizes import StateSize
    from stepseal.components._types import AnySharing, Topology

__all__ = ["Registry"]

_log = logging.getLogger("stepseal")


class Registry:
    """The components of one participant, in the order in which they were added."""

    def __init__(self) -> None:
        self._components: dict[str, Component] = {}
        self._modules: dict[str, torch.nn.Module] = {}
        self._asked: dict[str, Callable[[], object]] = {}
        """Component to what returns its sharing at each save."""
        self._divided: list[str] = []
        """Components that were declared with sets of ranks."""
        self._scalers: dict[str, object] = {}
        """Component to the gradient scaler of a prepared optimizer."""
        self._rules: dict[str, ReplicaRule] = {}
        self._was_checked: set[bool] = set()

    def add(
        self,
        name: str,
        state: Any,  # noqa: ANN401 - told apart below
        *,
        sharing: DeclaredSharing | None,
        kind: Kind | None,
        topology: Topology,
        rule: ReplicaRule | None = None,
    ) -> AnySharing | None:
        """Add one component: an object to adapt, or what is a `Component` of this name already.

        Returns:
            Its sharing; None where a function decides it at each save.

        Raises:
            InvalidInput: the name is taken or not usable, the type is unknown, the sharing must be
                declared or does not fit the ranks of the job, a loader's generator is not in
                `RNG(torch=[...])`, or the object is a snapshot of what lives on.
            UnsupportedState: a plain value that cannot be saved as it is now.
        """
        check_component_name(name)
        if name in self._components:
            raise InvalidInput(
                f"add({name!r}): a component of that name is there already. Names are unique.",
                component=name,
            )
        folded = {other.casefold(): other for other in self._components}
        if name.casefold() in folded:
            raise InvalidInput(
                f"add({name!r}): differs from {folded[name.casefold()]!r} in case only, and would "
                "claim the same files on some file systems. Choose another name.",
                component=name,
            )
        rule = rule or ReplicaRule()
        check_rule(name, rule, sharing)
        asked = sharing if callable(sharing) and not isinstance(sharing, type) else None
        if asked is None and sharing is not None:
            check_sharing(name, sharing)
        declared = Sharing.GLOBAL if callable(sharing) else sharing
        scaler, state = scaler_of(state), unwrapped(name, state)
        component = adapt(name, state, declared, kind, self._modules)
        check_comparable(name, component.kind, rule)
        used = component.sharing(topology) if asked is None else None
        if asked is not None and not hasattr(component, "declare"):
            raise InvalidInput(
                f"add({name!r}): sharing: a {type(state).__name__} decides its sharing by itself, "
                "found a function. Leave it out.",
                component=name,
            )
        check_generators((*self.components(), component), complete=False)
        if isinstance(component, (ValueComponent, DictComponent)):
            component.describe(topology)
        self._check_prefixes({**self._components, name: component})
        self._components[name] = component
        if asked is not None:
            self._asked[name] = asked
        if isinstance(used, Division):
            self._divided.append(name)
        if scaler is not None:
            self._scalers[name] = scaler
        if isinstance(component, OfModule):
            self._modules[name] = component.module
            if topology.world_size > 1:
                warn_own_buffers(name, component.module, component.buffers())
            bare = used is Sharing.REPLICATED and sharing is None and not component.in_ddp()
            rule = replace(rule, default="warn" if bare else "tensor")
        self._rules[name] = rule
        return used

    def rules(self) -> Mapping[str, ReplicaRule]:
        """Return, by name, how the replicas of each component are compared."""
        return self._rules

    def waits_for_files(self, topology: Topology, names: Collection[str]) -> bool:
        """Return whether a save of these compares live state with files: it is synchronous then."""
        full = any(self._rules[name].level == "full" for name in names)
        return full and topology.world_size > 1

    def names(self) -> tuple[str, ...]:
        """Return the names in the order of adding."""
        return tuple(self._components)

    def components(self) -> tuple[Component, ...]:
        """Return the components in the order of adding."""
        return tuple(self._components.values())

    def measure(self, topology: Topology, *, under_way: bool) -> StateSize:
        """Return what a save would write, and copy here; every participant calls it; see there."""
        return measure(self.components(), self._rules, topology, under_way=under_way)

    def ask_sharings(self, topology: Topology, names: Collection[str]) -> None:
        """Let each of these whose sharing is a function go by what that returns now.

        Raises:
            InvalidInput: a function raised or returned no sharing, or one that does not fit.
        """
        for name in self._asked:
            if name in names:
                self._declare(name, self._ask(name), topology)

    def go_by(self, name: str, saved: AnySharing, topology: Topology) -> None:
        """Let a component whose sharing is a function go by what was recorded at a save.

        Where sets share payloads, the function names the sets of now, if there are any.
        """
        if name not in self._asked:
            return
        sharing: object = saved
        if isinstance(saved, Division):
            now, same_world = self._ask(name), len(saved.coordinates()) == topology.world_size
            if getattr(now, "value", None) == saved.value or not same_world:
                sharing = now
        self._declare(name, sharing, topology)

    def declared_sets(self, topology: Topology) -> dict[str, str]:
        """Return, per component with sets of ranks, a text that is equal for equal sets."""
        found = {name: self._components[name].sharing(topology) for name in self._divided}
        return {name: one.shown() for name, one in found.items() if isinstance(one, Division)}

    def _ask(self, name: str) -> object:
        try:
            return self._asked[name]()
        except Exception as error:
            raise InvalidInput(
                f"component {name!r}: sharing: the function raised {type(error).__name__}: {error}",
                component=name,
            ) from error

    def _declare(self, name: str, sharing: object, topology: Topology) -> None:
        check_sharing(name, sharing)
        component: Any = self._components[name]
        component.declare(sharing)
        component.sharing(topology)

    def check_prefixes(self) -> None:
        """Refuse bare keys of `model` that another component's prefixed keys could collide with.

        Raises:
            InvalidInput: a key of `model` begins with the name of another component and a dot.
        """
        self._check_prefixes(self._components)

    def check_complete(self) -> None:
        """Refuse a set of components that cannot be all of a job.

        Raises:
            InvalidInput: see `check_prefixes`; or a prepared optimizer whose gradient scaler is
                missing.
        """
        self.check_prefixes()
        for name, scaler in self._scalers.items():
            held = (one for one in self.components() if isinstance(one, StatefulComponent))
            if not any(one.is_of(scaler) for one in held):
                raise InvalidInput(
                    f"component {name!r}: the prepared optimizer steps with a gradient scaler that "
                    "no component saves. Write add('scaler', accelerator.scaler, "
                    "sharing=ss.REPLICATED).",
                    component=name,
                )

    def check_savable(self, topology: Topology, *, first_step: bool = False) -> None:
        """Find out early what could never be saved: encode every tree, and throw that away.

        Called in `restore` and in each `step`; the first of each that could read all is enough, and
        no later `step` looks. It moves no random stream, and starts no iteration. What the user's
        own code raises tells nothing here: its state may not be there yet.

        Args:
            topology: who takes part; trees that others write are not read.
            first_step: whether training is under way.

        Raises:
            InvalidInput: see `check_complete`.
            UnsupportedState: a value that no codec knows.
        """
        if first_step in self._was_checked:
            return
        if first_step:
            self._was_checked.add(True)
        self.check_complete()
        could_read_all = True
        streams = RNGComponent("rng", RNG())
        before = streams.read_state()
        for component in self._components.values():
            if not isinstance(component, (TreeComponent, DictComponent)):
                continue
            if isinstance(component, StatefulComponent) and component.may_start_iteration(
                under_way=first_step
            ):
                continue
            try:
                component.describe(topology)
            except CheckpointError:
                raise
            except Exception as error:
                could_read_all = False
                _log.debug("stepseal: %s cannot be read yet: %r", component.name, error)
            finally:
                streams.write_state(before)
        if could_read_all:
            self._was_checked.add(first_step)

    def _check_prefixes(self, components: Mapping[str, Component]) -> None:
        model: object = components.get("model")
        others = tuple(f"{name}." for name in components if name != "model")
        if not others or not isinstance(model, OfModule):
            return
        taken = next((key for key in model.keys() if key.startswith(others)), None)  # noqa: SIM118
        if taken is not None:
            raise InvalidInput(
                f"component model: the key {taken!r} begins with the name of another component: "
                "stock DCP readers could not tell them apart. Give that component another name.",
                component="model",
                path=taken,
            )
