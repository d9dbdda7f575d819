"""`nn.Module` as a component: clean keys, tensors restored in place."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stepseal.components._converting import converted
from stepseal.components._leaves import default_sharing, open_saved
from stepseal.components._module_loading import listeners_of, own_load, plan_through
from stepseal.components._plans import kind_of, mismatch
from stepseal.components._tensors import FlatState, describe_flat, narrowed, plan_flat
from stepseal.components._types import OfModule
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

    from stepseal.components._plans import LeafPlan
    from stepseal.components._types import (
        AnySharing,
        CapturedComponent,
        SavedComponent,
        Topology,
    )

__all__ = [
    "ModuleComponent",
    "in_ddp",
    "key_cleaner",
    "parameter_names",
    "unwrap",
]

_EXTRA_STATE = "_extra_state"
# Wrappers by class name, so that nothing is imported, and the attribute under which each holds the
# module.
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
}


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside DDP and `torch.compile` wrappers."""
    while (attribute := _wrapper_attribute(module)) is not None:
        inner = module._modules[attribute]
        assert inner is not None, "a wrapper holds a module"
        module = inner
    return module


def in_ddp(module: nn.Module) -> bool:
    """Return whether DDP keeps the parameters of a module equal on all ranks."""
    while (attribute := _wrapper_attribute(module)) is not None:
        if any(base.__name__ == "DistributedDataParallel" for base in type(module).__mro__):
            return True
        inner = module._modules[attribute]
        assert inner is not None, "a wrapper holds a module"
        module = inner
    return False


def key_cleaner(root: nn.Module) -> Callable[[str], str]:
    """Return what takes the names of wrappers out of keys of `root`'s state dict or parameters."""
    if any(_wrapper_attribute(module) for module in root.modules()):
        return lambda key: _clean_key(root, key)
    return str


def _clean_key(root: nn.Module, key: str) -> str:
    """Walk down from `root` along `key`, dropping the steps from a wrapper to its module."""
    clean: list[str] = []
    module: nn.Module | None = root
    for part in key.split("."):
        attribute = None if module is None else _wrapper_attribute(module)
        while module is not None and attribute is not None and attribute != part:
            module = module._modules[attribute]  # a wrapper that hides its own name
            attribute = None if module is None else _wrapper_attribute(module)
        module = None if module is None else module._modules.get(part)
        if attribute is None:
            clean.append(part)
    return ".".join(clean)


def parameter_names(module: nn.Module) -> dict[int, str]:
    """Return the clean name of each parameter, by identity; a tied parameter has its first name."""
    root = unwrap(module)
    names: dict[int, str] = {}
    clean = key_cleaner(root)
    for key, parameter in root.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), clean(key))
    return names


class ModuleComponent(OfModule):
    """A module's `state_dict`, under keys that are free of DDP and `torch.compile` prefixes.

    Parameters and persistent buffers are filled in place. What the state dict made anew (hooks) and
    extra state go through `load_state_dict` afterwards. A module that overrides loading, or has
    load hooks, loads all by itself, from private tensors.

    Args:
        name: name of the component.
        module: wrapped or not.
        sharing: declared sharing, None for the default.

    Raises:
        InvalidInput: `module` holds FSDP1 modules, or is a wrapper with a load of its own.
    """

    def __init__(self, name: str, module: nn.Module, *, sharing: AnySharing | None = None) -> None:
        for path, part in module.named_modules():
            if any(cls.__name__ == "FullyShardedDataParallel" for cls in type(part).__mro__):
                raise InvalidInput(
                    f"module cannot be added: component {name}, module {path or '<root>'}: "
                    "expected plain or FSDP2 modules, found FullyShardedDataParallel (FSDP1). Use "
                    "fully_shard (FSDP2).",
                    component=name,
                    path=path,
                )
        inner = unwrap(module)
        if module is not inner and (own := own_load(module)) is not None:
            raise InvalidInput(
                f"module cannot be added: component {name}: expected the load of the wrapped "
                f"module alone, found {own}, which a restore could not call: keys are saved "
                "without the wrapper. Move it into the wrapped module, and add that one.",
                component=name,
            )
        self.name = name
        self.kind = kind_of(sharing)
        self.module = module
        self._declared: AnySharing | None = sharing

    def declare(self, sharing: AnySharing) -> None:
        """Go by another sharing from now on."""
        self.kind = kind_of(sharing)
        self._declared = sharing

    def keys(self) -> tuple[str, ...]:
        """Return every key that the component stores, in order."""
        _, flat = self._read()
        return (*flat.tensors, *flat.values)

    def buffers(self) -> tuple[str, ...]:
        """Return the keys of all buffers, saved or not."""
        root = unwrap(self.module)
        clean = key_cleaner(root)
        return tuple(clean(raw) for raw, _ in root.named_buffers(remove_duplicate=False))

    def unsaved_buffers(self) -> tuple[str, ...]:
        """Return the buffers that no state dict lists."""
        names = self.buffers()
        saved = set(self.keys()) if names else ()
        return tuple(name for name in names if name not in saved)

    def in_ddp(self) -> bool:
        """Return whether DDP keeps the parameters equal on all ranks."""
        return in_ddp(self.module)

    def sharing(self, topology: Topology) -> AnySharing:
        """Return the declared sharing or the default for `topology`."""
        _, flat = self._read()
        return self._sharing_of(flat, topology)

    def describe(self, topology: Topology) -> CapturedComponent:
        """Describe the state on the caller's thread; see `Component`."""
        _, flat = self._read()
        # Ranks may change buffers apart, as BatchNorm does; those of the lowest are saved.
        never = frozenset(self.buffers())
        return describe_flat(flat, self._sharing_of(flat, topology), topology, never=never)

    def plan(self, saved: SavedComponent, topology: Topology) -> LeafPlan:
        """Check a saved state against live state, strictly, and change nothing; see `Component`."""
        state, live = self._read()
        root, sharing = unwrap(self.module), self._sharing_of(live, topology)
        opened = open_saved(saved, sharing, topology)
        opened, flat = converted(opened, live, saved.conversion)
        opened = narrowed(opened, flat, sharing)
        clean = key_cleaner(root)
        listeners = listeners_of(root, clean)
        keys = {clean(raw): raw for raw in state}
        if opened.keys() == {*flat.tensors, *flat.values}:  # nothing to translate
            listeners = [one for one in listeners if not one.is_torch]
        if listeners:
            kept = {raw: state[raw] for key, raw in keys.items() if not flat.has(key)}
            return plan_through(root, flat, opened, sharing, keys, listeners, kept)

        def finish(values: Mapping[str, object]) -> None:
            live = {_storage(tensor) for tensor in (*root.parameters(), *root.buffers())}
            if values or any(_storage(tensor) not in live for tensor in flat.tensors.values()):
                self._load(state, values)

        return plan_flat(flat, opened, sharing, finish)

    def _sharing_of(self, flat: FlatState, topology: Topology) -> AnySharing:
        return default_sharing(self.name, self._declared, flat.tensors.values(), topology)

    def _read(self) -> tuple[dict[str, Any], FlatState]:
        """Return the raw state dict, and its leaves under clean keys; extra state is a value."""
        root, flat = unwrap(self.module), FlatState(self.name)
        state: dict[str, Any] = root.state_dict()
        clean = key_cleaner(root)
        for raw, value in state.items():
            key = clean(raw)
            if raw.rpartition(".")[2] == _EXTRA_STATE:
                flat.add_value(key, value)
            else:
                flat.add(key, value)
        return state, flat

    def _load(self, state: dict[str, Any], values: Mapping[str, object]) -> None:
        """Hand the filled state dict to the module; tensors filled in place meet themselves."""
        root = unwrap(self.module)
        clean = key_cleaner(root)
        for raw in state:
            if clean(raw) in values:
                state[raw] = values[clean(raw)]
        try:
            root.load_state_dict(state)
        except RuntimeError as error:
            raise mismatch(self.name, [f"load_state_dict: {error}"]) from error


def _wrapper_attribute(module: nn.Module) -> str | None:
    """Return the attribute under which a wrapper holds its module, None for other modules."""
    cls: Any = type(module)
    return _wrapper_class(cls)


@functools.lru_cache(maxsize=1024)
def _wrapper_class(cls: type) -> str | None:
    for base in cls.__mro__:
        if base.__name__ in _WRAPPERS and base.__module__.startswith("torch."):
            return _WRAPPERS[base.__name__]
    return None


def _storage(tensor: torch.Tensor) -> int | None:
    """Return the address of the memory behind a tensor, or behind the local part of a DTensor."""
    local = getattr(tensor, "_local_tensor", tensor)
    try:
        return int(local.untyped_storage().data_ptr())
    except (NotImplementedError, RuntimeError):  # a buffer without storage that no state dict lists
        return None
