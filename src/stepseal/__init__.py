"""stepseal: one step folder is one agreed cut of a job, whole and verified, or not a step.

Names are loaded on first use, so that importing stepseal costs nothing and metadata tools never
load torch.
"""
# ruff: noqa: I001 - names side by side keep the face on one page

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepseal import errors
from stepseal._version import __version__

if TYPE_CHECKING:
    from stepseal.protocol import Deadlines
    from stepseal.components import (
        RNG, Conversion, External, GlobalSampler, Placement, Sharing, Unchanged, per_group,
        register, register_codec, sharded,
    )  # fmt: skip
    from stepseal.retention import Retention, latest
    from stepseal.session import (
        Checkpointer, Imported, LoadReport, PendingSave, Restored, Run, Saved, Step, every,
        import_dcp, load, open_step, save,
    )  # fmt: skip
    from stepseal.session import open_run as open  # noqa: A004 - reads as stepseal.open(root)
    from stepseal.storage import Access

    GLOBAL = Sharing.GLOBAL
    REPLICATED = Sharing.REPLICATED
    SHARDED = Sharing.SHARDED
    PER_RANK = Sharing.PER_RANK
    PER_NODE = Sharing.PER_NODE

__all__ = [
    "Access", "GLOBAL", "PER_NODE", "PER_RANK", "REPLICATED", "RNG", "SHARDED", "Checkpointer",
    "Conversion", "Deadlines", "External", "GlobalSampler", "Imported", "LoadReport", "PendingSave",
    "Placement", "Restored", "Retention", "Run", "Saved", "Sharing", "Step", "Unchanged",
    "__version__", "errors", "every", "import_dcp", "latest", "load", "open", "open_step",
    "per_group", "register", "register_codec", "save", "sharded",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the names above
    if name not in __all__:
        raise AttributeError(f"module 'stepseal' has no attribute {name!r}")
    from stepseal import components, protocol, retention, session, storage

    if name in ("GLOBAL", "REPLICATED", "SHARDED", "PER_RANK", "PER_NODE"):
        return components.Sharing[name]
    if name == "open":
        return session.open_run
    owner = next(
        wing for wing in (session, components, retention, protocol, storage) if name in wing.__all__
    )
    return getattr(owner, name)


def __dir__() -> list[str]:
    return sorted(__all__)
