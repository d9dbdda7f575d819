"""Every order of events of a small abstract model of the protocol, breadth first.

    python -m tests.campaigns.model.run [--size fast|nightly|release] [--mutant NAME]

What follows the real protocol (docs/design/0002, 0005, 0006; `_publish`, `_owned`, `_retire`),
verb by verb: writing in two pieces and reporting; the check of the claims, the rename without
replacing, the exchange with the look before it and the look at what came out, undoing it; the sync
of the root before anybody is told; sweeping; planning a prune, moving by name, looking again,
putting back, deleting; a restore that selects, leases, looks, verifies, looks again and claims; a
reader that leases, looks and reads. Two incarnations run at once, the older one perhaps as a
zombie; each process dies anywhere; power is lost once, with every outcome for each name that was
not synced; in the other half of the model a byte of one step flips instead of steps being pruned.

What is abstracted: messages are lost only as deadlines that pass; participants write alike, so that
two stand for many; files have no bytes but `none, half, whole, foreign`; one save per incarnation
(step 1 is there from before, the older one saves step 2, the newer one the number after what it
restored); the first restore of a root, superseded steps and leases after their holder died are left
out, and a third start is not run but asked in every state: what would it find now?
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from tests.campaigns.harness._sizes import Row, Size, report
from tests.campaigns.model._moves import INITIAL, Rules, State, moves
from tests.campaigns.model._promises import broken_promise

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MUTANTS", "Search", "explore", "run"]

_PROGRAM = "python -m tests.campaigns.model.run"

MUTANTS: dict[str, Rules] = {
    "names-shared": Rules(shared_names=True),
    "commit-before-all-prepared": Rules(commit_early=True),
    "prepared-before-written": Rules(prepare_early=True),
    "pruned-before-commit": Rules(prune_before_commit=True),
    "pruned-without-second-look": Rules(second_look=False),
    "pruned-by-a-stale-job": Rules(stale_prune=True),
    "last-writer-wins": Rules(replace=True),
    "deleted-in-place": Rules(delete_in_place=True),
    "no-lineage": Rules(lineage=False),
    "no-fall-back": Rules(prune=False, rot=True, fall_back=False),
    "no-verify": Rules(prune=False, rot=True, verify=False),
    "told-before-sync": Rules(sync_before_tell=False),
    "no-incarnation-check": Rules(check_current=False),
    "trash-not-searched": Rules(search_trash=False),
    "failed-though-prepared": Rules(ask_staging=False),
}
"""Each must have a counterexample, or the model proves nothing about what it leaves out."""
_REAL = {"prune": Rules(), "rot": Rules(prune=False, rot=True)}


class Search:
    """What was found from one set of rules."""

    def __init__(self) -> None:
        self.num_states = 0
        self.num_moves = 0
        self.depth = 0
        self.broken = ""
        """The first promise that was broken, empty if none was."""
        self.path: tuple[str, ...] = ()
        """The shortest way there."""


def explore(rules: Rules) -> Search:
    """Visit every state that can be reached; stop at the first broken promise."""
    search = Search()
    cames: dict[State, tuple[State, str] | None] = {INITIAL: None}
    todo: deque[tuple[State, int]] = deque([(INITIAL, 0)])
    while todo:
        state, depth = todo.popleft()
        search.num_states += 1
        search.depth = depth
        found = broken_promise(state, rules)
        if found:
            search.broken, search.path = found, tuple(_way_to(state, cames))[::-1]
            return search
        for name, after in moves(state, rules):
            search.num_moves += 1
            if after not in cames:
                cames[after] = (state, name)
                todo.append((after, depth + 1))
    return search


def _way_to(state: State, cames: dict[State, tuple[State, str] | None]) -> Iterator[str]:
    came = cames[state]
    while came is not None:
        state, name = came
        yield name
        came = cames[state]


def run(_size: Size) -> Row:
    """Explore the real rules and every mutant; every size is the whole model."""
    began = time.monotonic()
    real = {name: explore(rules) for name, rules in _REAL.items()}
    mutants = {name: explore(rules) for name, rules in MUTANTS.items()}
    return Row(
        campaign="model",
        unit="states",
        cases=sum(search.num_states for search in real.values()),
        violations=tuple(
            f"{_PROGRAM}  # {name}: {search.broken}: {', '.join(search.path)}"
            for name, search in real.items()
            if search.broken
        ),
        caught=tuple(name for name, search in mutants.items() if search.broken),
        missed=tuple(name for name, search in mutants.items() if not search.broken),
        seconds=time.monotonic() - began,
        notes=(
            *(
                f"{name}: {s.num_states:,} states, {s.num_moves:,} transitions, depth {s.depth}"
                for name, s in real.items()
            ),
            *(
                f"{name}: {s.broken}, after {len(s.path)} moves"
                for name, s in mutants.items()
                if s.broken
            ),
        ),
    )


def _main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=("fast", "nightly", "release"), default="fast")
    parser.add_argument("--mutant", choices=MUTANTS, help="print its shortest counterexample")
    asked = parser.parse_args()
    if asked.mutant is None:
        return report(run(asked.size))
    search = explore(MUTANTS[asked.mutant])
    for number, move in enumerate(search.path, 1):
        print(f"{number:3} {move}")
    print(f"BROKEN: {search.broken}" if search.broken else "nothing was broken")
    return 1 if search.broken else 0


if __name__ == "__main__":
    sys.exit(_main())
