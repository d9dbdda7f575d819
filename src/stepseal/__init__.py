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
    from stepseal import integrations
    from stepseal.actors import Coordinator, Participant, Rank, fetched, in_process, processes
    from stepseal.actors import ranks, serve
    from stepseal.protocol import Deadlines
    from stepseal.components import (
        RNG, Conversion, External, GlobalSampler, Placement, Sharing, Unchanged, per_group,
        register, register_codec, sharded,
    )  # fmt: skip
    from stepseal.retention import Retention, latest
    from stepseal.session import (
        Checkpointer, Commit, Imported, LoadReport, PendingSave, Publication, Restored, Run, Saved,
        Step, before, every, import_dcp, load, on_signal, open_step, save,
    )  # fmt: skip
    from stepseal.session import open_run as open  # noqa: A004 - reads as stepseal.open(root)
    from stepseal.storage import Access

    monarch, ray = integrations.monarch, integrations.ray
    GLOBAL, REPLICATED, SHARDED = Sharing.GLOBAL, Sharing.REPLICATED, Sharing.SHARDED
    PER_RANK, PER_NODE = Sharing.PER_RANK, Sharing.PER_NODE

__all__ = [
    "Access", "Checkpointer", "Commit", "Conversion", "Coordinator", "Deadlines", "External",
    "GLOBAL", "GlobalSampler", "Imported", "LoadReport", "PER_NODE", "PER_RANK", "Participant",
    "PendingSave", "Placement", "Publication", "REPLICATED", "RNG", "Rank", "Restored", "Retention",
    "Run", "SHARDED", "Saved", "Sharing", "Step", "Unchanged", "__version__", "before", "errors",
    "every", "fetched", "import_dcp", "in_process", "latest", "load", "monarch", "on_signal",
    "open", "open_step", "per_group", "processes", "ranks", "ray", "register", "register_codec",
    "save", "serve", "sharded",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the names above
    if name not in __all__:
        raise AttributeError(f"module 'stepseal' has no attribute {name!r}")
    from stepseal import actors, components, integrations, protocol, retention, session, storage

    if name in ("GLOBAL", "REPLICATED", "SHARDED", "PER_RANK", "PER_NODE"):
        return components.Sharing[name]
    wings = (session, actors, components, retention, protocol, storage, integrations)
    name = "open_run" if name == "open" else name
    return getattr(next(wing for wing in wings if name in wing.__all__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
