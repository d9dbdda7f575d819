"""What a coordinator does next, for each thing that it may be doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.campaigns.model import _moves as model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.campaigns.model._moves import Rules, Side, State

    Moves = Iterator[tuple[str, State]]
    Step = Callable[[State, Side, int, Rules], Moves]

__all__ = ["STEPS"]


def _go(state: State, n: int, side: Side, doing: str) -> State:
    return model._set(state, n, side._replace(doing=doing))


def _abort(state: State, n: int, side: Side) -> State:
    """Tell of an abort, and remove staging if it is still there."""
    state = state._replace(aborted=state.aborted | 1 << n)
    if state.where[n] == model.STAGED:
        state = model._move(state, n, model.GONE)
    return _go(state, n, side, "done")


# -- save ------------------------------------------------------------------------------------------


def _write(state: State, side: Side, n: int, rules: Rules) -> Moves:
    for p in (0, 1):
        has = state.parts[n][p]
        gone = state.where[n] != model.STAGED
        if has in (model.NONE, model.HALF) and not gone:
            more = has + 1
            shared = rules.shared_names and n == 2 and state.steps[1] == state.steps[2]
            if shared and state.where[1] == model.STAGED and state.parts[1][p] == model.WHOLE:
                more = model.FOREIGN
            parts = list(state.parts)
            parts[n] = (more, parts[n][1]) if p == 0 else (parts[n][0], more)
            yield f"participant {p} writes", state._replace(parts=tuple(parts))
        done = has in (model.WHOLE, model.FOREIGN) or (rules.prepare_early and has == model.HALF)
        if done and not side.reported >> p & 1:
            reported = side._replace(reported=side.reported | 1 << p)
            yield f"participant {p} reports", model._set(state, n, reported)
    ready = side.reported == 3 or (rules.commit_early and side.reported)
    if ready:
        yield "all are prepared", _go(state, n, side, "check")
    yield "its deadline passes", _abort(state, n, side)
    if rules.prune_before_commit and side.target < 0:
        yield from _plan_over(state, side, n, rules, newest=n, then="write")


def _check(state: State, side: Side, n: int, rules: Rules) -> Moves:
    then = "commit" if side.doing == "check" else "exchange"
    looked = side._replace(seen=state.claim)
    if state.claim > n and rules.check_current:
        yield "sees a newer claim", _abort(state, n, looked)
    else:
        yield "checks the claims", _go(state, n, looked, then)


def _commit(state: State, side: Side, n: int, rules: Rules) -> Moves:
    if state.where[n] != model.STAGED:
        yield "finds staging swept", _abort(state, n, side)
        return
    there = model.standing(state, state.steps[n])
    if there < 0:
        yield "renames", _judged(_placed(state, n, side), side, n)
    elif rules.replace:
        replaced = model._move(state, there, model.GONE)
        yield "replaces", _judged(_placed(replaced, n, side), side, n)
    elif model.in_lineage(state, there):
        yield "finds the step taken", _abort(state, n, side)
    else:
        yield "finds a step that does not count", _go(state, n, side, "check2")


def _placed(state: State, n: int, side: Side) -> State:
    state = model._move(state, n, model.PLACED)
    return _go(state, n, side, "sync")


def _judged(state: State, side: Side, n: int) -> State:
    """Judge a commit point."""
    if side.seen > n:
        return state._replace(wrong="who saw a newer claim commits nothing")
    if state.claim > n and model.in_lineage(state, n) and n != state.parent:
        return state._replace(wrong="a zombie never enters the lineage")
    return state


def _exchange(state: State, side: Side, n: int, rules: Rules) -> Moves:
    there = model.standing(state, state.steps[n])
    if state.where[n] != model.STAGED or there < 0:
        yield "finds nothing to exchange", _abort(state, n, side)
        return
    state = model._move(state, there, model.DISPLACED)
    state = _judged(model._move(state, n, model.PLACED), side, n)
    then = "displaced" if rules.look_at_displaced else "sync"
    yield "exchanges", _go(state, n, side._replace(other=there), then)


def _displaced(state: State, side: Side, n: int, _rules: Rules) -> Moves:
    good = model.in_lineage(state, side.other)
    yield "looks at what came out", _go(state, n, side, "undo" if good else "sync")


def _undo(state: State, side: Side, n: int, _rules: Rules) -> Moves:
    state = model._move(model._move(state, n, model.STAGED), side.other, model.PLACED)
    yield "exchanges back", _abort(state, n, side)


def _synced(state: State) -> State:
    durable = tuple(state.where[a] == model.PLACED for a in model.ATTEMPTS)
    return state._replace(durable=durable)  # type: ignore[arg-type]


def _sync(state: State, side: Side, n: int, rules: Rules) -> Moves:
    if side.other >= 0 and state.where[side.other] == model.DISPLACED:
        state = model._move(state, side.other, model.ASIDE)
    if rules.sync_before_tell:
        state = _synced(state)
    yield "syncs the root", _go(state, n, side, "tell")


def _tell(state: State, side: Side, n: int, rules: Rules) -> Moves:
    told = state._replace(told=state.told | 1 << n)
    if not state.durable[n] and state.claim == n and state.where[n] == model.PLACED:
        told = told._replace(wrong="what is acknowledged survives power loss")
    yield "tells", _go(told, n, side, "sweep" if n == 2 else "plan" if rules.prune else "done")


def _sweep(state: State, side: Side, n: int, rules: Rules) -> Moves:
    if state.where[1] == model.STAGED:
        state = model._move(state, 1, model.GONE)
    yield "sweeps", _go(state, n, side, "plan" if rules.prune else "done")


# -- prune -----------------------------------------------------------------------------------------


def _guarded(state: State, attempt: int, n: int, rules: Rules) -> bool:
    """Tell whether a lease, or the newest claim's parent, protects the number of a step."""
    step = state.steps[attempt]
    doing, read = state.reader
    if doing in ("leased", "reading", "reading on") and state.steps[read] == step:
        return True
    if state.lease == step:
        return True
    if rules.stale_prune and n == 1:
        return False  # it knows no other claim than its own, which has no parent here
    return state.claim == 2 and state.steps[state.parent] == step


def _replaced(state: State, n: int, rules: Rules) -> bool:
    return state.claim > n and not rules.stale_prune


def _plan_over(state: State, side: Side, n: int, rules: Rules, *, newest: int, then: str) -> Moves:
    """Choose what goes: good steps older than the newest that nothing protects."""
    for attempt in model.ATTEMPTS:
        goes = (
            state.where[attempt] == model.PLACED
            and state.steps[attempt] < state.steps[newest]
            and model.in_lineage(state, attempt)
            and not _guarded(state, attempt, n, rules)
        )
        if goes:
            chosen = side._replace(target=attempt, number=state.steps[attempt])
            yield f"plans to prune {attempt}", _go(_synced(state), n, chosen, "prune")
            return
    if then != "write":
        yield "has nothing to prune", _go(state, n, side, then)


def _plan(state: State, side: Side, n: int, rules: Rules) -> Moves:
    placed = [a for a in model.ATTEMPTS if state.where[a] == model.PLACED]
    good = [a for a in placed if model.in_lineage(state, a)]
    if _replaced(state, n, rules) or not good:
        yield "plans nothing", _go(state, n, side, "done")
        return
    newest = max(good, key=lambda a: state.steps[a])
    yield from _plan_over(state, side, n, rules, newest=newest, then="done")


def _prune(state: State, side: Side, n: int, rules: Rules) -> Moves:
    then = "done" if _replaced(state, n, rules) else "move"
    yield "checks the claims", _go(state, n, side._replace(seen=state.claim), then)


def _take(state: State, side: Side, n: int, rules: Rules) -> Moves:
    there = model.standing(state, side.number)
    if there < 0:
        yield "finds nothing to prune", _go(state, n, side, "done")
    elif rules.delete_in_place:
        parts = list(state.parts)
        parts[there] = (model.HALF, model.WHOLE)
        yield "deletes in place", _go(state._replace(parts=tuple(parts)), n, side, "done")
    else:
        moved = model._move(state, there, model.TRASHED)
        yield "moves to the trash", _go(moved, n, side._replace(other=there), "look")


def _look(state: State, side: Side, n: int, rules: Rules) -> Moves:
    state = _synced(state)
    kept = (
        side.other != side.target
        or _replaced(state, n, rules)
        or _guarded(state, side.other, n, rules)
    )
    then = "back" if kept and rules.second_look else "delete"
    yield "looks again", _go(state, n, side._replace(seen=state.claim), then)


def _back(state: State, side: Side, n: int, _rules: Rules) -> Moves:
    if state.where[side.other] != model.TRASHED:
        yield "finds it put back", _go(state, n, side, "done")
        return
    free = model.standing(state, state.steps[side.other]) < 0
    state = model._move(state, side.other, model.PLACED if free else model.ASIDE)
    yield "puts it back", _go(_synced(state), n, side, "done")


def _delete(state: State, side: Side, n: int, _rules: Rules) -> Moves:
    if state.where[side.other] == model.TRASHED:
        state = model._move(state, side.other, model.GONE)
    yield "deletes", _go(state, n, side, "done")


# -- restore ---------------------------------------------------------------------------------------


def _restore(state: State, side: Side, n: int, rules: Rules) -> Moves:
    found = model.selected(state, rules, side.tried)
    if found < 0:
        yield "finds nothing to resume", _go(state, n, side, "done")
        return
    if state.where[found] == model.TRASHED:
        state = model._move(state, found, model.PLACED)
    chosen = side._replace(target=found, number=state.steps[found])
    yield f"selects {found}", _go(state, n, chosen, "lease")


def _lease(state: State, side: Side, n: int, _rules: Rules) -> Moves:
    yield "leases it", _go(state._replace(lease=side.number), n, side, "stand")


def _stand(state: State, side: Side, n: int, _rules: Rules) -> Moves:
    stands = model.standing(state, side.number) == side.target
    if side.doing == "stand":
        then = "verify" if stands else "restore"
    else:
        then = "claim" if stands else "restore"
    yield "looks whether it stands", _go(state, n, side, then)


def _verify(state: State, side: Side, n: int, rules: Rules) -> Moves:
    if state.where[side.target] != model.PLACED:
        yield "cannot read it", _go(state, n, side, "restore")
    elif state.rotten == side.target and rules.verify:
        tried = side._replace(tried=side.tried | 1 << side.target)
        then = "restore" if rules.fall_back else "done"
        yield "finds it damaged", _go(state, n, tried, then)
    else:
        wrong = "no wrong byte is loaded" if state.rotten == side.target else ""
        yield "restores it", _go(state._replace(wrong=wrong), n, side, "parent")


def _claim(state: State, side: Side, n: int, _rules: Rules) -> Moves:
    state = state._replace(
        claim=2,
        parent=side.target,
        steps=model._at(state.steps, 2, side.number + 1),  # type: ignore[arg-type]
        lease=0,
    )
    yield "claims", _go(state, n, side._replace(target=-1), "begin")


def _begin(state: State, side: Side, n: int, _rules: Rules) -> Moves:
    yield "begins to save", _go(model._move(state, 2, model.STAGED), n, side, "write")


STEPS: dict[str, Step] = {
    "write": _write,
    "check": _check,
    "commit": _commit,
    "check2": _check,
    "exchange": _exchange,
    "displaced": _displaced,
    "undo": _undo,
    "sync": _sync,
    "tell": _tell,
    "sweep": _sweep,
    "plan": _plan,
    "prune": _prune,
    "move": _take,
    "look": _look,
    "delete": _delete,
    "back": _back,
    "restore": _restore,
    "lease": _lease,
    "stand": _stand,
    "verify": _verify,
    "parent": _stand,
    "claim": _claim,
    "begin": _begin,
}
