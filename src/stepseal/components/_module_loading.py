"""Loading a module through its own code, where that code wants to see a load.

A module whose class overrides loading, or that has load hooks, gets private tensors under the saved
keys, and its own load puts them in place. All other modules are filled in place, without a copy.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stepseal.components._dtensors import is_dtensor
from stepseal.components._leaves import leaves_of
from stepseal.components._plans import mismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stepseal.components._leaves import OpenedState
    from stepseal.components._plans import LeafPlan
    from stepseal.components._tensors import FlatState
    from stepseal.components._types import AnySharing

__all__ = ["Listener", "listeners_of", "own_load", "plan_through"]

# Torch's load hooks of these keep the keys as they are once `state_dict` was called.
_KEEPS_KEYS = "torch.distributed."


@dataclass(frozen=True, slots=True)
class Listener:
    """Code that sees the load of one module, with the keys that begin with its prefix."""

    prefix: str
    """Beginning of the clean keys that it sees: empty for the root, else a path and a dot."""
    raw: str
    """The same of the module's own keys."""
    name: str
    """Qualified name of the code, for messages."""
    is_torch: bool
    """Torch's own: it matters only for old keys, which it may translate."""


def own_load(module: nn.Module) -> str | None:
    """Return the name of a module's own `load_state_dict`, None where it is torch's."""
    function = getattr(module.load_state_dict, "__func__", module.load_state_dict)
    if function is nn.Module.load_state_dict or _is_torch(function):
        return None
    return f"{type(module).__qualname__}.load_state_dict"


def listeners_of(root: nn.Module, clean: Callable[[str], str]) -> list[Listener]:
    """Return all code that sees `root.load_state_dict`, besides what every module has.

    Args:
        root: the module, without wrappers.
        clean: takes the names of wrappers out of a key.
    """
    own = own_load(root)
    found = [] if own is None else [Listener("", "", own, is_torch=False)]
    for path, module in root.named_modules(remove_duplicate=False):
        raw = f"{path}." if path else ""
        prefix = f"{clean(path)}." if path and clean(path) else ""
        function: Any = getattr(module._load_from_state_dict, "__func__", None)
        if function is None or not _is_torch(function):
            name = f"{type(module).__qualname__}._load_from_state_dict"
            found.append(Listener(prefix, raw, name, is_torch=False))
        hooks = (
            *module._load_state_dict_pre_hooks.values(),
            *module._load_state_dict_post_hooks.values(),
        )
        for hook in hooks:
            function = _innermost(hook)
            if not _module_of(function).startswith(_KEEPS_KEYS):
                name = getattr(function, "__qualname__", type(function).__qualname__)
                name = f"load hook {name}"
                found.append(Listener(prefix, raw, name, is_torch=_is_torch(function)))
    return found


def plan_through(
    root: nn.Module,
    live: FlatState,
    opened: OpenedState,
    sharing: AnySharing,
    raw_keys: Mapping[str, str],
    listeners: Sequence[Listener],
    kept: Mapping[str, object],
) -> LeafPlan:
    """Plan to read a saved state into private tensors, and to hand them to the module's own load.

    Keys, shapes and dtypes are compared now wherever no listener can translate them; what is left
    is compared while the module loads.

    Args:
        root: the module, without wrappers.
        live: its leaves now that are restored, under clean keys.
        opened: the saved state.
        sharing: the sharing in use.
        raw_keys: clean key to the module's own key.
        listeners: code that sees the load.
        kept: raw key to the live value of a leaf that stays as it is.

    Raises:
        StateMismatch: a difference that no listener sees; `.problems` lists all.
    """
    values = opened.value if isinstance(opened.value, dict) else {}
    problems = _problems(live, opened, values, tuple(one.prefix for one in listeners))
    problems += opened.tie_problems(
        leaves_of(live.component, live.tensors, sharing, owns_plain=False)
    )
    if problems:
        raise mismatch(live.component, problems)
    device = next((tensor.device for tensor in live.tensors.values()), torch.device("cpu"))
    private: dict[str, torch.Tensor] = {}
    for key, saved in opened.tensors.items():
        dtype, mine = getattr(torch, saved.dtype), live.tensors.get(key)
        if mine is not None and tuple(mine.shape) == saved.shape:
            private[key] = torch.empty_like(mine, dtype=dtype, requires_grad=False)
        else:
            private[key] = torch.empty(saved.shape, dtype=dtype, device=device)
    leaves = leaves_of(live.component, private, sharing, owns_plain=False)

    def finish() -> None:
        taken = {
            raw_keys.get(key) or _raw(key, listeners): value
            for key, value in {**private, **values}.items()
        }
        taken.update(kept)
        _load(live.component, root, taken, frozenset(raw_keys.values()))

    names = ", ".join(dict.fromkeys(one.name for one in listeners))
    return opened.plan(leaves, finish, note=f"through {names}, by way of one private copy")


def _problems(
    live: FlatState, opened: OpenedState, values: Mapping[str, object], prefixes: tuple[str, ...]
) -> list[str]:
    """Return every difference that no listener may take away; its keys begin with its prefix."""
    found = []
    # Where an old key belongs on a mesh, nobody knows.
    seen = () if any(map(is_dtensor, live.tensors.values())) else prefixes
    for key, tensor in live.tensors.items():
        saved, dtype = opened.tensors.get(key), str(tensor.dtype).removeprefix("torch.")
        if saved is None:
            if not key.startswith(seen):
                found.append(opened.missing(key))
            continue
        shape = list(tensor.shape)
        if shape != list(saved.shape) and not key.startswith(seen):
            found.append(f"{key}: shape: expected (live) {shape}, found {list(saved.shape)}")
        if dtype != saved.dtype:
            found.append(f"{key}: dtype: expected (live) {dtype}, found {saved.dtype}")
    found += [
        opened.missing(key) for key in live.values if key not in values and not key.startswith(seen)
    ]
    for key in (*opened.tensors, *values):
        known = key in (live.tensors if key in opened.tensors else live.values)
        if not known and not key.startswith(seen):
            found.append(f"{key}: unexpected in the checkpoint")
    return found


def _load(
    component: str, root: nn.Module, state: dict[str, object], live_keys: frozenset[str]
) -> None:
    """Call the module's own load, and compare what it took.

    Raises:
        StateMismatch: a live key got nothing, a saved key went nowhere, or a dtype would have been
            cast.
    """
    # The versions of the code that runs now: a step does not hold those of the code that saved it.
    private: Any = OrderedDict(state)  # a plain dict has no room for `_metadata`
    private._metadata = getattr(root.state_dict(), "_metadata", None)
    cast: list[str] = []
    modules: list[Any] = list(root.modules())
    note = functools.partial(_note_casts, cast)
    checks = [module.register_load_state_dict_pre_hook(note) for module in modules]
    try:
        answer = root.load_state_dict(private)
    except RuntimeError as error:
        raise mismatch(component, [f"load_state_dict: {error}"]) from error
    finally:
        for check in checks:
            check.remove()
    missing = [key for key in getattr(answer, "missing_keys", ()) if key in live_keys]
    unexpected = [key for key in getattr(answer, "unexpected_keys", ()) if key not in live_keys]
    problems = [
        *(f"{key}: the module's own load gave it no value" for key in missing),
        *(f"{key}: the module's own load did not take it" for key in unexpected),
        *cast,
    ]
    if problems:
        raise mismatch(component, problems)


def _note_casts(
    found: list[str], module: nn.Module, state: Mapping[str, Any], prefix: str, *_rest: object
) -> None:
    """Note tensors, after all other hooks translated them, that loading would cast in silence."""
    for name, live in (*module._parameters.items(), *module._buffers.items()):
        new = state.get(prefix + name)
        if live is not None and isinstance(new, torch.Tensor) and new.dtype != live.dtype:
            found.append(f"{prefix}{name}: dtype: expected (live) {live.dtype}, found {new.dtype}")


def _raw(key: str, listeners: Sequence[Listener]) -> str:
    """Return an old key as the module that translates it spells its place."""
    deepest = max((one for one in listeners if key.startswith(one.prefix)), key=_depth)
    return deepest.raw + key[len(deepest.prefix) :]


def _depth(listener: Listener) -> int:
    return len(listener.prefix)


def _innermost(hook: Any) -> Any:  # noqa: ANN401 - any callable
    """Return the function behind torch's wrapper of a hook, and behind partials."""
    hook = getattr(hook, "hook", hook)
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook


def _module_of(function: Callable[..., object]) -> str:
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _is_torch(function: Callable[..., object]) -> bool:
    return _module_of(function).startswith("torch.")
