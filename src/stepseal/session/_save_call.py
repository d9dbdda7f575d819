"""One save or publication on the caller's thread: capture, agree on the cut, then write behind.

Invariant: a failure before the order to write, or in an engine after it, is told to the others; any
later failure goes through the writer, which reports it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from stepseal import errors
from stepseal.layout import Area
from stepseal.protocol import Captured, Teller
from stepseal.session._comparing import answer_with, warn_left_out
from stepseal.session._engines import engines_of, run_engines
from stepseal.session._pending import PendingSave
from stepseal.session._saving import (
    PartWriter,
    capture_all,
    collection_paused,
    planned_bytes,
    reports_of,
    tell_failure,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepseal.components import Component, Registry, ReplicaRule, Topology
    from stepseal.session._annotations import Annotations
    from stepseal.session._inflight import InFlight
    from stepseal.session._wiring import Wiring

__all__ = ["SaveCall", "begin_save"]


@dataclass(frozen=True, slots=True)
class SaveCall:
    """What a call of `save` or `publish` asks for, checked."""

    call: int
    step: int
    mode: Literal["async", "sync", "behind"]
    """`behind` returns once all is captured, and waits for the order to write on the writer's
    thread, except for engines."""
    root: str
    notes: Annotations
    settle: Callable[[], None]
    """Waits for the save in flight, in mode `sync`."""
    fresh: Mapping[str, Mapping[str, object]]
    """Component that began anew in this life to what is recorded of it."""
    called_at_s: float
    """Monotonic time at which the caller began to wait."""
    publish: tuple[str, ...] = ()
    """Components that are published, with `step` as the version; none for a step of all. Others may
    hold some of them."""


def begin_save(
    wiring: Wiring, registry: Registry, topology: Topology, flight: InFlight, asked: SaveCall
) -> PendingSave:
    """Capture all components and start to write; in mode `sync`, wait for the outcome, too.

    Raises:
        CheckpointError: see `Checkpointer.save`.
    """
    driver, steps, step = wiring.driver, wiring.steps, asked.step
    call, publish = asked.call, asked.publish
    area = Area.PUBLISHED if publish else Area.STEPS
    chosen, rules = _chosen(registry, publish)
    names = [one.name for one in chosen]
    is_sync = asked.mode == "sync" or registry.waits_for_files(topology, names)
    with tell_failure(driver, steps, call, step, area), collection_paused():
        staging = None if is_sync else flight.staging(topology.num_on_node)
        registry.ask_sharings(topology, names)
        captured = capture_all(chosen, topology, staging, step, rules=rules, area=area)
    components, notes = reports_of(captured, asked.fresh), asked.notes
    told = (notes.cut, notes.metrics, notes.tags)
    driver.send_captured(Captured(call, step, components, *told, publish=bool(publish)))
    teller = Teller(
        driver, call, topology.world_size, asked.called_at_s, of_bytes=planned_bytes(captured)
    )
    teller.tell()
    pending = PendingSave(call, step, asked.root, driver, steps, area)
    engines = engines_of(chosen)
    share = (topology.rank, topology.world_size)
    if asked.mode == "behind" and not engines:
        teller.freed()
        writer = PartWriter(captured, call, step, driver, steps, share, teller)
        with tell_failure(driver, steps, call, step, area, "write"):
            flight.start(pending, writer, wiring.behind, reads_live=False)
        return pending
    write = driver.wait_write(call, answer_with(captured))
    if write is None:
        flight.let_go()
        pending.wait()
        raise errors.InternalError(f"{area.title(step)}: ended without an order to write")
    warn_left_out(step, write.left_out)
    if engines:
        run_engines(engines, write, step, topology, wiring)
        if not driver.wait_inventory(call):
            pending.wait()
            raise errors.InternalError(f"{area.title(step)}: ended without an inventory")
    if not is_sync:
        teller.freed()
    writer = PartWriter(captured, write, step, driver, steps, share, teller)
    try:
        with tell_failure(driver, steps, call, step, area, "write"):
            flight.start(pending, writer, wiring.behind, reads_live=is_sync)
        if is_sync:
            asked.settle()
    except BaseException:
        flight.thaw()  # however the wait ended: the caller's memory is its own again
        raise
    return pending


def _chosen(
    registry: Registry, publish: tuple[str, ...]
) -> tuple[list[Component], Mapping[str, ReplicaRule]]:
    """Return what is saved here, and how it is compared; nothing that is published is optional."""
    components, rules = registry.components(), registry.rules()
    if not publish:
        return list(components), rules
    chosen = [one for one in components if one.name in publish]
    return chosen, {one.name: replace(rules[one.name], required=True) for one in chosen}
