"""The states of the model, and all that can happen in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["INITIAL", "Rules", "Side", "State", "in_lineage", "moves", "selected"]

ABSENT, STAGED, PLACED, TRASHED, ASIDE, GONE, DISPLACED = range(7)
"""Where an attempt is. DISPLACED: under the staging name of the attempt that took its place."""
NONE, HALF, WHOLE, FOREIGN = range(4)
"""What of a part is there. FOREIGN: whole, but of another attempt."""
ATTEMPTS = (0, 1, 2)
"""Which incarnation makes which: one each; 0 was committed before all this."""
_IDLE = frozenset({"done", "dead"})


@dataclass(frozen=True)
class Rules:
    """What the protocol does; the defaults are the real one."""

    prune: bool = True
    rot: bool = False
    shared_names: bool = False
    commit_early: bool = False
    prepare_early: bool = False
    prune_before_commit: bool = False
    second_look: bool = True
    stale_prune: bool = False
    replace: bool = False
    delete_in_place: bool = False
    lineage: bool = True
    fall_back: bool = True
    verify: bool = True
    sync_before_tell: bool = True
    check_current: bool = True
    search_trash: bool = True
    look_at_displaced: bool = True
    ask_staging: bool = True


class Side(NamedTuple):
    """The coordinator of one incarnation, and its two participants."""

    doing: str
    reported: int = 0
    """Bits of the participants that reported their part."""
    seen: int = 0
    """Newest claim when it looked last."""
    target: int = -1
    """Attempt that it restores, or prunes."""
    number: int = 0
    """Step of that."""
    other: int = -1
    """Attempt that it displaced."""
    tried: int = 0
    """Bits of the attempts that were verified and are damaged."""


class State(NamedTuple):
    """Everything at one instant."""

    where: tuple[int, int, int]
    durable: tuple[bool, bool, bool]
    """Whether a power loss would show the attempt in its place."""
    steps: tuple[int, int, int]
    parts: tuple[tuple[int, int], ...]
    old: Side
    new: Side
    claim: int
    """The newest."""
    parent: int
    """Attempt that the newest claim descends from."""
    lease: int
    """Step that the newer incarnation leases while it restores."""
    reader: tuple[str, int]
    """What the reader does, and which attempt it reads."""
    asker: str
    """What a participant of the older incarnation does that prepared and lost its coordinator."""
    told: int
    """Bits of the attempts of which somebody was told that they are committed."""
    aborted: int
    rotten: int
    """Attempt of which a byte flipped, or -1."""
    power: bool
    """Power may still be lost."""
    wrong: str
    """A promise that a move broke."""


INITIAL = State(
    where=(PLACED, STAGED, ABSENT),
    durable=(True, False, False),
    steps=(1, 2, 0),
    parts=((WHOLE, WHOLE), (NONE, NONE), (NONE, NONE)),
    old=Side("write"),
    new=Side("restore"),
    claim=1,
    parent=0,
    lease=0,
    reader=("idle", -1),
    asker="hears",
    told=1,
    aborted=0,
    rotten=-1,
    power=True,
    wrong="",
)


def _at(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _move(state: State, attempt: int, where: int) -> State:
    return state._replace(where=_at(state.where, attempt, where))  # type: ignore[arg-type]


def standing(state: State, step: int) -> int:
    """Return the attempt in the place of a step, or -1."""
    for attempt in ATTEMPTS:
        if state.where[attempt] == PLACED and state.steps[attempt] == step:
            return attempt
    return -1


def in_lineage(state: State, attempt: int) -> bool:
    """Tell whether an attempt descends to the newest claim."""
    if state.claim == 1:
        return attempt in (0, 1)
    if attempt in (2, state.parent):
        return True
    return attempt == 0 and state.parent == 1


def selected(state: State, rules: Rules, tried: int = 0) -> int:
    """Return the attempt that a restore would choose now, or -1."""
    found = [
        attempt
        for attempt in ATTEMPTS
        if state.where[attempt] == PLACED
        and not tried >> attempt & 1
        and (in_lineage(state, attempt) or not rules.lineage)
    ]
    parent = state.parent
    if rules.search_trash and state.where[parent] == TRASHED and not tried >> parent & 1:
        found.append(parent)  # it is put back first
    return max(found, key=lambda attempt: state.steps[attempt], default=-1)


def _mine(incarnation: int) -> str:
    return "old" if incarnation == 1 else "new"


def moves(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """Return all that can happen next, each with its name."""
    if state.wrong:
        return
    for incarnation in (1, 2):
        side: Side = state.old if incarnation == 1 else state.new
        if side.doing in _IDLE:
            continue
        name = _mine(incarnation)
        for what, after in _STEPS[side.doing](state, side, incarnation, rules):
            yield f"{name}: {what}", after
        yield f"{name}: dies", _kill(state, incarnation)
    yield from _reader(state, rules)
    yield from _asker(state, rules)
    if rules.rot and state.rotten < 0:
        yield from _rot(state)
    if state.power:
        yield from _lose_power(state)


def _set(state: State, incarnation: int, side: Side) -> State:
    return state._replace(old=side) if incarnation == 1 else state._replace(new=side)


def _kill(state: State, incarnation: int) -> State:
    state = _set(state, incarnation, Side("dead"))
    return state._replace(lease=0) if incarnation == 2 else state


def _reader(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    doing, attempt = state.reader
    if doing == "idle":
        for found in ATTEMPTS:
            if state.where[found] == PLACED:
                yield f"reader: leases {found}", state._replace(reader=("leased", found))
    elif doing == "leased":
        stands = state.where[attempt] == PLACED
        after = ("reading", attempt) if stands else ("done", -1)
        yield "reader: looks", state._replace(reader=after)
    elif doing == "reading":
        yield "reader: reads a part", state._replace(reader=("reading on", attempt))
    elif doing == "reading on":
        wrong = ""
        if state.where[attempt] == PLACED and FOREIGN in state.parts[attempt]:
            wrong = "a reader never sees a mixed step"
        if state.rotten == attempt and not rules.verify:
            wrong = "no wrong byte is read"
        yield "reader: reads", state._replace(reader=("done", -1), wrong=wrong)


def _asker(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """Read the outcome from storage: the place, staging, and the place again."""
    doing, there = state.asker, state.where[1]
    if doing == "hears" and state.old.reported == 3:
        yield "asker: loses its coordinator", state._replace(asker="looks")
    elif doing in ("looks", "looks again"):
        if there == PLACED:
            if state.rotten == 1:  # whose step it is cannot be told
                yield "asker: cannot tell", state._replace(asker="done")
                return
            durable = tuple(where == PLACED for where in state.where)
            after = state._replace(asker="done", told=state.told | 2, durable=durable)  # type: ignore[arg-type]
            yield "asker: finds it committed", after
        elif doing == "looks again" or not rules.ask_staging:
            failed = there in (STAGED, ABSENT, GONE) and not state.told & 2
            aborted = state.aborted | (2 if failed else 0)
            yield "asker: finds it gone", state._replace(asker="done", aborted=aborted)
        else:
            yield "asker: does not find it", state._replace(asker="asks staging")
    elif doing == "asks staging":
        then = "done" if there == STAGED else "looks again"
        yield "asker: looks at staging", state._replace(asker=then)


def _rot(state: State) -> Iterator[tuple[str, State]]:
    placed = [attempt for attempt in ATTEMPTS if state.where[attempt] == PLACED]
    if len(placed) > 1:
        for attempt in placed:
            others = [other for other in placed if other != attempt]
            if any(in_lineage(state, other) for other in others):
                yield f"a byte of {attempt} flips", state._replace(rotten=attempt)


def _lose_power(state: State) -> Iterator[tuple[str, State]]:
    """End all processes; names that were not synced may have any of their states."""
    dead = state._replace(
        old=Side("dead"),
        new=state.new if state.new == Side("restore") else Side("dead"),
        lease=0,
        reader=("done", -1),
        asker="done",
        power=False,
    )
    found = {dead}
    for attempt in ATTEMPTS:
        placed = state.where[attempt] == PLACED
        if placed != state.durable[attempt]:
            hidden = state.where[attempt] if not placed else STAGED
            found |= {
                _move(each, attempt, where) for each in list(found) for where in (PLACED, hidden)
            }
    for each in sorted(found):
        occupied = [each.steps[a] for a in ATTEMPTS if each.where[a] == PLACED]
        if len(occupied) == len(set(occupied)):
            durable = tuple(each.where[a] == PLACED for a in ATTEMPTS)
            yield "power is lost", each._replace(durable=durable)  # type: ignore[arg-type]


from tests.campaigns.model._steps import STEPS as _STEPS  # noqa: E402 - they need the types above
