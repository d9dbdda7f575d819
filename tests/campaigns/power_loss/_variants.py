"""Broken protocols as changes of what a job did: a call left out, or made too late."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns.power_loss._disk import Operation

    Change = Callable[[list[Operation]], list[Operation]]

__all__ = ["VARIANTS", "Variant"]

_STAGED = re.compile(r"(\.stepseal/staging/(step-\d+)\.\d+\.[0-9a-f]{32})(?:/(.*))?")
_COORDINATORS = {"manifest.json", ".metadata", ".nonce"}


@dataclass(frozen=True)
class Variant:
    """A protocol that breaks a promise when the power goes."""

    change: Change
    workload: str = "mixed"


def _without(*wanted: str) -> Change:
    """Leave out the calls whose text matches one of these patterns."""
    patterns = [re.compile(text) for text in wanted]

    def change(operations: list[Operation]) -> list[Operation]:
        kept = [o for o in operations if not any(p.fullmatch(o.text) for p in patterns)]
        assert len(kept) < len(operations), f"{wanted}: nothing is left out: this breaks nothing"
        return kept

    return change


def _late(
    wanted: Callable[[Operation], bool], until: Callable[[Operation, Operation], bool]
) -> Change:
    """Make the calls that are `wanted` only after the first later one that ends their `until`."""

    def change(operations: list[Operation]) -> list[Operation]:
        done: list[Operation] = []
        waiting: list[Operation] = []
        num_late = 0
        for operation in operations:
            if wanted(operation):
                waiting.append(operation)
                continue
            done.append(operation)
            ready = [late for late in waiting if until(late, operation)]
            done += [_moved(late) for late in ready]
            waiting = [late for late in waiting if late not in ready]
            num_late += len(ready)
        assert num_late, "nothing is late: this variant breaks nothing"
        return done

    return change


def _moved(operation: Operation) -> Operation:
    """A directory is synced where its step's folder is by now."""
    if operation.verb != "sync_dir" or (match := _STAGED.fullmatch(operation.key)) is None:
        return operation
    inside = f"/{match[3]}" if match[3] else ""
    return replace(operation, key=f"{match[2]}{inside}")


def _is_sync_of_step(operation: Operation) -> bool:
    return operation.verb in ("sync", "sync_dir") and _STAGED.fullmatch(operation.key) is not None


def _is_sync_of_part(operation: Operation) -> bool:
    match = _STAGED.fullmatch(operation.key)
    inside = None if match is None else match[3]
    return operation.verb in ("sync", "sync_dir") and bool(inside) and inside not in _COORDINATORS


def _is_its_commit(late: Operation, operation: Operation) -> bool:
    match = _STAGED.fullmatch(late.key)
    assert match is not None
    moves = operation.verb in ("rename", "exchange")
    return moves and (operation.key, operation.target) == (match[1], match[2])


def _is_sync_of_commit(operation: Operation) -> bool:
    return operation.verb == "sync_dir" and operation.key in ("", ".stepseal/staging")


def _is_acknowledged(_late: Operation, operation: Operation) -> bool:
    return operation.event is not None and operation.event.kind == "acknowledged"


_STEP = r"\.stepseal/staging/step-[^/]*"
VARIANTS = {
    "no-file-is-synced": Variant(_without(rf"sync {_STEP}/.*")),
    "payload-not-synced": Variant(_without(rf"sync {_STEP}/.*\.distcp")),
    "trees-not-synced": Variant(_without(rf"sync {_STEP}/components/.*")),
    "part-documents-not-synced": Variant(_without(rf"sync {_STEP}/parts/.*\.json")),
    "part-indexes-not-synced": Variant(_without(rf"sync {_STEP}/parts/.*\.safetensors")),
    "manifest-not-synced": Variant(_without(rf"sync {_STEP}/manifest\.json")),
    "dcp-index-not-synced": Variant(_without(rf"sync {_STEP}/\.metadata")),
    "staging-folder-not-synced": Variant(_without(rf"sync_dir {_STEP}")),
    "parts-directories-not-synced": Variant(_without(rf"sync_dir {_STEP}/.+")),
    "root-not-synced": Variant(_without("sync_dir ")),
    "committed-before-sync": Variant(_late(_is_sync_of_step, _is_its_commit)),
    "prepared-before-sync": Variant(_late(_is_sync_of_part, _is_its_commit)),
    "acknowledged-before-root-sync": Variant(_late(_is_sync_of_commit, _is_acknowledged)),
    "claim-not-synced": Variant(_without(r"sync_dir \.stepseal/incarnations"), "superseding"),
    "claim-bytes-not-synced": Variant(_without(r"sync \.stepseal/incarnations/.*"), "superseding"),
    "marker-bytes-not-synced": Variant(_without(r"sync \.tmp-.*")),
    "superseded-area-not-synced": Variant(
        _without(r"sync_dir \.stepseal/superseded"), "superseding"
    ),
}
"""To leave out one of these syncs alone is not noticed, since nothing is promised of what they make
durable: of `.nonce`, of `latest`, and of the folder `.stepseal/staging`, whose part in a commit the
sync of the root does."""
