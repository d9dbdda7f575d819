"""`stepseal doctor`: which promises hold on the file system of a root, and what to do."""

from __future__ import annotations

import dataclasses
import re
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stepseal.cli._output import print_line, print_table
from stepseal.doctor import ABILITIES, judge_promises, meet, probe
from stepseal.errors import InvalidInput
from stepseal.layout import size_text, step_name
from stepseal.steps import open_store
from stepseal.storage import Access, root_path

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["examine", "print_judgements"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


def examine(
    path: str,
    *,
    meeting: str | None = None,
    num_participants: int = 1,
    timeout_s: float = 60.0,
    allow_shared: bool = False,
) -> dict[str, Any]:
    """Return what holds on a directory's file system, as JSON-able values.

    Args:
        path: a root, or the directory where one will be made.
        meeting: name of a meeting of several hosts; None examines this host alone.
        num_participants: number of hosts in the meeting.
        timeout_s: seconds to wait for the other hosts.
        allow_shared: accept a directory that other users can write to.

    Raises:
        RootNotFound: the path does not exist.
        InvalidInput: the path is not a directory, or other users can change it; or the meeting's
            name is not valid, or was used before.
        StorageUnavailable: no file or folder can be created in the directory.
    """
    absolute = root_path(path)
    if meeting is not None and not _NAME.fullmatch(meeting):
        raise InvalidInput(
            f"meeting {meeting!r}: expected a name of letters, digits, - and _, at most 64 of them"
        )
    access = Access(allow_shared=allow_shared)
    met = None
    with _ended_politely():
        if meeting is not None:
            met = meet(
                absolute,
                meeting,
                num_participants=num_participants,
                timeout_s=timeout_s,
                access=access,
            )
        found = probe(absolute, access=access)
        layered = found.mount is not None and found.mount.is_layered
        stuck = open_store(absolute, access=access).immovable() if layered else ()
    judgements = judge_promises(found, met, immovable=[step_name(step) for step in stuck])
    return {
        "root": absolute,
        **dataclasses.asdict(found),
        "immovable_steps": list(stuck),
        "meeting": None if met is None else dataclasses.asdict(met),
        "promises": [dataclasses.asdict(judgement) for judgement in judgements],
    }


@contextmanager
def _ended_politely() -> Iterator[None]:
    """Clean up on SIGTERM, which schedulers send, before the process ends."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_judgements(found: dict[str, Any]) -> None:
    """Print the file system, one line per promise, and each ability that is missing."""
    mount = found["mount"]
    if mount is None:
        print_line("file system  not known: /proc does not list it")
    else:
        print_line(f"file system  {mount['fs_type']} at {mount['point']} from {mount['source']}")
        print_line(f"options      {','.join(mount['options'])}")
    free = "not known" if found["free_bytes"] is None else size_text(found["free_bytes"])
    print_line(f"free         {'; '.join([free, *found['free_doubts']])}")
    print_line("")
    rows = [
        (judgement["promise"], judgement["state"], judgement["why"], judgement["advice"] or "-")
        for judgement in found["promises"]
    ]
    print_table(("PROMISE", "STATE", "WHY", "WHAT TO DO"), rows)
    for ability, detail in found["missing"].items():
        print_line(f"missing: {ABILITIES[ability]}: {detail}")
    for peer in (found["meeting"] or {}).get("peers", ()):
        sight = "it saw all participants" if peer["answered"] else "it did not answer"
        print_line(f"met {peer['name']}: {sight}")
