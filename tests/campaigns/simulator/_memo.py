"""Pure functions that a seed calls again and again with the same bytes, remembered.

What they return depends on their arguments alone, and is immutable: nothing but time is saved.
"""

from __future__ import annotations

import functools
from typing import Any

from tests.campaigns.simulator import _participant as _sim_participant
from tests.campaigns.simulator import _state as _sim_state

from stepseal.layout import decode_manifest, unseal
from stepseal.steps import _attempts, _catalog, _claims
from stepseal.storage import check_key, split_key
from stepseal.testing import _memory

__all__ = ["remember"]


def remember() -> None:
    """Let this process remember from now on."""
    decode = functools.lru_cache(256)(decode_manifest)
    for module in (_attempts, _catalog, _sim_participant, _sim_state):
        _replace(module, "decode_manifest", decode)
    _replace(_claims, "unseal", functools.lru_cache(256)(unseal))
    _replace(_catalog, "unseal", functools.lru_cache(16)(unseal))
    _replace(_memory, "check_key", functools.lru_cache(4096)(check_key))
    _replace(_memory, "split_key", functools.lru_cache(4096)(split_key))


def _replace(module: Any, name: str, new: object) -> None:  # noqa: ANN401 - a module
    assert hasattr(module, name), f"{module.__name__}.{name} is gone"
    setattr(module, name, new)
