"""`stepseal doctor`: which promises hold on the file system of a root, and what to do."""

from __future__ import annotations

import dataclasses
import re
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stepseal.cli._output import print_line, print_table, size_text
from stepseal.errors import InvalidInput
from stepseal.layout import CONTROL
from stepseal.steps import judge_promises
from stepseal.storage import ABILITIES, Access, meet, probe, root_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepseal.storage import Meeting

__all__ = ["examine", "print_judgements"]

_HOME = f"{CONTROL}/doctor"
"""Where it is at work in a root: a run never looks there."""
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
        meeting: name under which all hosts meet there, or None for this host alone.
        num_participants: how many meet.
        timeout_s: how long to wait for them.
        allow_shared: also where other users can write.

    Raises:
        RootNotFound: nothing is there.
        InvalidInput: it is no directory, or one that others can change; or the meeting's name is
            no name, or was used before.
        StorageUnavailable: nothing can be made in it.
    """
    absolute = root_path(path)
    met = None
    access = Access(allow_shared=allow_shared)
    with _ended_politely():
        if meeting is not None:
            met = _meet(absolute, meeting, num_participants, timeout_s, access)
        found = probe(absolute, home=_HOME, access=access)
    return {
        **dataclasses.asdict(found),
        "root": absolute,
        "meeting": None if met is None else dataclasses.asdict(met),
        "promises": [dataclasses.asdict(judgement) for judgement in judge_promises(found, met)],
    }


@contextmanager
def _ended_politely() -> Iterator[None]:
    """Let SIGTERM, which schedulers send, remove what was made before it ends this process."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _meet(path: str, name: str, num_participants: int, timeout_s: float, access: Access) -> Meeting:
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"meeting {name!r}: expected a name of letters, digits, - and _, at most 64 of them"
        )
    return meet(
        path,
        name,
        num_participants=num_participants,
        timeout_s=timeout_s,
        home=_HOME,
        access=access,
    )


def print_judgements(found: dict[str, Any]) -> None:
    """Print the file system, a line per promise, and what was not honoured."""
    mount = found["mount"]
    if mount is None:
        print_line("file system  not known: /proc does not tell")
    else:
        print_line(f"file system  {mount['fs_type']} at {mount['point']} from {mount['source']}")
        print_line(f"options      {','.join(mount['options'])}")
    inodes = found["free_inodes"]
    room = f"{size_text(found['free_bytes'])}, {'?' if inodes is None else inodes} inodes"
    print_line(f"free         {room}; quota: {found['quota'] or 'none that can be told'}")
    print_line("")
    rows = [
        (judgement["promise"], judgement["state"], judgement["why"], judgement["advice"] or "-")
        for judgement in found["promises"]
    ]
    print_table(("PROMISE", "STATE", "WHY", "WHAT TO DO"), rows)
    missing = [finding for finding in found["findings"] if finding["honoured"] is not True]
    for finding in missing:
        told = "not told" if finding["honoured"] is None else "missing"
        print_line(f"{told}: {ABILITIES[finding['ability']]}: {finding['detail']}")
    for peer in (found["meeting"] or {}).get("peers", ()):
        print_line(f"met {peer['name']}: {_sight(peer)}")


def _sight(peer: dict[str, Any]) -> str:
    if peer["round_trip_s"] is None:
        return "it did not answer"
    return (
        f"there and back {peer['round_trip_s']:.3f} s, its clock {peer['clock_offset_s']:+.3f} s "
        f"from ours (within {peer['clock_error_s']:.3f} s)"
    )
