"""What messages advise about objects that cannot be saved or restored as they are."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stepseal.components._torch_in_use import class_of, is_tensor
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.components._codecs_words import Step

__all__ = ["advice_for", "check_no_snapshot", "check_no_stand_in", "leave_out", "warn_own_buffers"]

_log = logging.getLogger("stepseal")
_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_NAME = 64


def advice_for(value: object, component: str, steps: Sequence[Step]) -> str:
    """Return what to do about a value that no codec knows, without the last full stop."""
    if isinstance(value, class_of("torch.nn", "Module")) or _is_stateful(value):
        parts = [_NAME.sub("_", str(key)) for _, key in steps if key is not None]
        name = ".".join(filter(None, [component, *parts]))[:_MAX_NAME].strip(".")
        return (
            "An object with a state of its own is a component: leave it out here, and add it by "
            f"itself, such as add({name!r}, ...)"
        )
    if hasattr(value, "device_mesh") and is_tensor(value):
        return "Pass kind='tensors' to add(), and no sharing: the ranks' parts become one tensor"
    if isinstance(value, class_of("torch.utils.data", "DataLoader")):
        return "Leave it out here, and add a StatefulDataLoader of torchdata as a component"
    if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
        return "Code is no state: leave it out, or store a name and look it up after the restore"
    return (
        "Register it with stepseal.register(cls) (dataclass, enum, namedtuple) or "
        "stepseal.register_codec(...), "
        "or add the component as a (get, set) pair of plain values"
    )


def check_no_snapshot(name: str, state: object, kind: str | None) -> None:
    """Refuse the state dict of an object in place of the object: training would not change it.

    Raises:
        InvalidInput: it looks like the state dict of an optimizer, an LR scheduler or a module.
    """
    if not isinstance(state, Mapping):
        return
    keys = set(state)
    if keys == {"state", "param_groups"}:
        raise _snapshot(name, "optimizer.state_dict()", "the optimizer itself")
    if "_last_lr" in keys and keys & {"last_epoch", "_schedulers"}:
        raise _snapshot(name, "scheduler.state_dict()", "the LR scheduler itself")
    if isinstance(state, OrderedDict) and hasattr(state, "_metadata") and kind != "tensors":
        raise _snapshot(
            name,
            "module.state_dict()",
            "the module itself; or, if this is a copy that you keep up to date yourself, such as "
            f"averaged weights: add({name!r}, ..., kind='tensors')",
        )


def _snapshot(name: str, what: str, instead: str) -> InvalidInput:
    return InvalidInput(
        f"add({name!r}): expected a live object, found what looks like {what}: a snapshot that "
        f"neither follows training nor reaches the object at a restore. Add {instead}.",
        component=name,
        expected="a live object",
        found=what,
    )


def check_no_stand_in(name: str, state: object) -> None:
    """Refuse objects that have a better way in, and name it.

    Raises:
        InvalidInput: a bare random generator, tensor or array, a class, a generator of Python, or
            a data loader without a state.
    """
    numpy, numpy_random = sys.modules.get("numpy"), sys.modules.get("numpy.random")
    found = type(state).__name__
    if isinstance(state, class_of("torch", "Generator")):
        instead = f"add({name!r}, RNG(torch=[generator]))"
    elif numpy_random is not None and isinstance(
        state, (numpy_random.Generator, numpy_random.RandomState)
    ):
        instead = f"add({name!r}, RNG(numpy=[generator]))"
    elif isinstance(state, class_of("torch.utils.data", "DataLoader")) and not _is_stateful(state):
        instead = (
            f"add({name!r}, loader) with a torchdata.stateful_dataloader.StatefulDataLoader, "
            "which knows its position"
        )
    elif inspect.isclass(state):
        instead = f"add({name!r}, {state.__name__}(...)), an object of the class {state.__name__}"
    elif is_tensor(state) or (numpy is not None and isinstance(state, numpy.ndarray)):
        instead = f"add({name!r}, {{'value': it}}), a dict that holds it and is restored in place"
    elif inspect.isgenerator(state):
        instead = "the object that the generator comes from, such as a module for its parameters()"
    else:
        return
    raise InvalidInput(
        f"add({name!r}): a {found} cannot be added as it is. Use {instead}.",
        component=name,
        found=found,
    )


def warn_own_buffers(name: str, module: object, buffers: Sequence[str]) -> None:
    """Tell of buffers that each rank has for itself, and of which only the lowest rank's are saved.

    DDP broadcasts those of rank 0 before each forward, unless it was told not to.
    """
    if buffers and getattr(module, "broadcast_buffers", True) is False:
        _log.warning(
            "stepseal: add(%r): DDP does not broadcast buffers (%s), so that each rank has its "
            "own, and a step holds those of the lowest rank. To restore each rank's, add after it: "
            "add(%r, dict(model.named_buffers()), sharing=ss.PER_RANK, on_world_change='fresh').",
            name,
            ", ".join(buffers[:3]),
            f"{name}_buffers",
        )


def _is_stateful(value: object) -> bool:
    return not inspect.isclass(value) and all(
        callable(getattr(value, method, None)) for method in ("state_dict", "load_state_dict")
    )


def leave_out(name: str) -> str:
    """Return the call that leaves a component as it is, saved or not."""
    return f"restore(policies={{{name!r}: 'skip'}})"
