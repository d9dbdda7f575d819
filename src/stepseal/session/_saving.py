"""One participant's share of a save: capture on the caller's thread, write on another.

Invariants: the writer reads only buffers that nobody changes (private memory, or live memory while
the caller is blocked in a synchronous save); it reports `Prepared` only after everything is durable
and closed; any failure of it reaches the coordinator.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from typing import TYPE_CHECKING

from stepseal.components import CapturedComponent, RNGComponent, Sharing, capture
from stepseal.errors import CheckpointError, ParticipantFailed, StorageUnavailable
from stepseal.layout import Area, Division, PartContents
from stepseal.protocol import ComponentReport, PartReport, failure_of, resolve_save
from stepseal.session._comparing import Staged, answer_with, left_out, told_digests, warn_left_out
from stepseal.steps import parse_folder
from stepseal.transfer import write_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stepseal.components import Component, ReplicaRule, StagingMemory, Topology
    from stepseal.layout import PartIndex
    from stepseal.process import Behind
    from stepseal.protocol import ParticipantDriver, Teller, Write
    from stepseal.steps import StepStore

_log = logging.getLogger("stepseal")

__all__ = [
    "PartWriter",
    "SaveGivenUp",
    "capture_all",
    "collection_paused",
    "planned_bytes",
    "reports_of",
    "require_same_root",
    "tell_failure",
]


class SaveGivenUp(CheckpointError):
    """The attempt ended while this participant was still writing; the coordinator knows why."""

    kind = "save_given_up"


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Keep the garbage collector from walking a whole training job between two small objects.

    Thousands of tensors make thousands of objects, none of them garbage: each walk would only
    lengthen the time that the caller is blocked.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def capture_all(
    components: Iterable[Component],
    topology: Topology,
    memory: StagingMemory | None,
    step: int,
    *,
    rules: Mapping[str, ReplicaRule],
    digests: bool = True,
    area: Area = Area.STEPS,
) -> tuple[CapturedComponent, ...]:
    """Capture every component at one cut, in the order in which they were added, the RNG last.

    Asking torchdata's loader for its state may make its iterator, which draws. An optional
    component that cannot be captured is returned as failed.

    Args:
        components: all components.
        topology: who takes part.
        memory: private memory to stage all bytes in, or None.
        step: number of the step, for messages.
        rules: component to how it is compared with what others hold.
        digests: False captures the same, but digests nothing.
        area: whether it is for a step or for a publication, for messages.

    Raises:
        CheckpointError: from a component, as it is.
        ParticipantFailed: a component raised anything else; that exception is the cause.
    """
    captured: list[CapturedComponent] = []
    for component in sorted(components, key=lambda one: isinstance(one, RNGComponent)):
        rule = rules[component.name]
        try:
            captured.append(capture(component, topology, memory, rule, digests=digests))
        except Exception as error:
            if not rule.required:
                _log.warning("stepseal: save of step %d: %s", step, error, exc_info=error)
                captured.append(_not_captured(component, error))
                continue
            if isinstance(error, CheckpointError):
                raise
            text = f"component {component.name} raised {type(error).__name__}: {error}"
            raise ParticipantFailed(
                f"{area.title(step)}: {topology.me}: {text}. Nothing was committed; older steps "
                "are untouched.",
                step=step,
                component=component.name,
                participant=topology.me,
                failures={topology.me: text},
            ) from error
    return tuple(captured)


def _not_captured(component: Component, error: Exception) -> CapturedComponent:
    why = f"component {component.name} could not be captured: {failure_of(error).message}"
    return CapturedComponent(
        component.name, component.kind, Sharing.GLOBAL, "", None, required=False, failed=why
    )


def planned_bytes(captured: Iterable[CapturedComponent]) -> int:
    """Return the bytes of data that this participant is going to write."""
    return sum(
        sum(tensor.data.size_bytes for tensor in one.tensors)
        + sum(array.data.size_bytes for tree in one.trees for array in tree.arrays)
        for one in captured
    )


def reports_of(
    captured: Sequence[CapturedComponent], fresh: Mapping[str, Mapping[str, object]]
) -> list[ComponentReport]:
    """Return what the coordinator compares across participants, and writes into the manifest.

    Args:
        captured: of all components.
        fresh: component that began anew in this life to what is recorded of it.
    """
    return [
        ComponentReport(
            c.name,
            c.kind,
            c.sharing.value,
            c.fingerprint,
            None if c.payload is None else c.payload.coordinate,
            c.payload is not None and c.payload.writes,
            {"fresh": dict(fresh[c.name])} if c.name in fresh else {},
            c.sharing.shown() if isinstance(c.sharing, Division) else "",
            dict(c.sharing.axes) if isinstance(c.sharing, Division) else {},
            c.required,
            c.validate,
            dict(c.digests.sets) if c.digests else {},
            c.digests.of_sets() if c.digests and not c.required else {},
            c.failed,
        )
        for c in captured
    ]


@contextlib.contextmanager
def tell_failure(
    driver: ParticipantDriver,
    steps: StepStore,
    call: int,
    step: int,
    area: Area = Area.STEPS,
    phase: str = "capture",
) -> Iterator[None]:
    """Tell the coordinator what fails inside, so that the others need not wait for the deadline."""
    publish = area is Area.PUBLISHED
    try:
        yield
    except CheckpointError as error:
        driver.send_failed(call, step, phase, error, publish=publish)
        _await_abort(driver, steps, call, step)
        raise
    except BaseException as error:  # interrupted
        driver.send_failed(call, step, phase, error, publish=publish)
        raise


def _await_abort(driver: ParticipantDriver, steps: StepStore, call: int, step: int) -> None:
    """Let the abort of our own failure arrive, so that all start the next call alike."""
    state = driver.wait_outcome(call, None)
    if state is not None:
        try:
            resolve_save(state, step, steps)
        except CheckpointError as error:
            _log.debug("stepseal: %s", error)
    driver.forget(call)


def require_same_root(steps: StepStore, driver: ParticipantDriver, write: Write, step: int) -> None:
    """Prove by the attempt's nonce that this participant sees the coordinator's root."""
    key = write.staging
    found = steps.find_nonce(key)
    if found != write.nonce:
        name = parse_folder(key, None)
        what = (Area.STEPS if name is None else name.area).title(step)
        raise StorageUnavailable(
            f"{what}: {driver.participant} does not see the coordinator's root: "
            f"expected the nonce of this attempt in {key}, found {found or 'nothing'}. Is the root "
            "on storage shared by all hosts?",
            step=step,
            participant=driver.participant,
            path=key,
        )


class PartWriter:
    """Writes one participant's part of one attempt on a background thread.

    Args:
        captured: frozen buffers.
        order: the coordinator's order to write, or its call: the writer then waits for it.
        step: step number.
        driver: line to the coordinator.
        steps: the root.
        share: number of this participant's share of external files, and of all shares.
        teller: tells how far this participant is.
    """

    def __init__(
        self,
        captured: Sequence[CapturedComponent],
        order: Write | int,
        step: int,
        driver: ParticipantDriver,
        steps: StepStore,
        share: tuple[int, int],
        teller: Teller,
    ) -> None:
        self._captured = tuple(captured)
        self._share = share
        self.teller = teller
        self._index: PartIndex | None = None
        self._call = order if isinstance(order, int) else order.call
        self._order: Write | None = None
        if not isinstance(order, int):
            self._take(order)
        self._step = step
        self._driver = driver
        self._steps = steps
        self._storage = steps.storage
        self._lock = threading.Lock()
        self._given_up = False
        self._done = threading.Event()

    def _take(self, order: Write) -> None:
        """Take the order to write, which may leave components out."""
        self._order = order
        self._captured = left_out(self._captured, order.left_out)
        self._external = tuple(c.name for c in self._captured if c.kind == "external")
        self._contents = PartContents(
            tensors=tuple(t for c in self._captured for t in c.tensors),
            bytes_copies=tuple(b for c in self._captured for b in c.bytes_copies),
            trees=tuple(t for c in self._captured for t in c.trees),
        )

    def _await_order(self) -> Write | None:
        """Wait for the order to write, and answer what is asked before it; None without one."""
        if self._order is None:
            write = self._driver.wait_write(self._call, answer_with(self._captured))
            if write is not None:
                warn_left_out(self._step, write.left_out)
                self._take(write)
        return self._order

    def start(self, behind: Behind) -> None:
        """Begin to write.

        Raises:
            ParticipantFailed: a thread is needed, and cannot be had.
        """
        self._done = behind.start(self._run)

    def run(self) -> None:
        """Write on this thread."""
        self._run()

    def give_up(self) -> None:
        """Let the buffers change: a part that was not reported yet never will be."""
        with self._lock:
            self._given_up = True

    def wait_idle(self, timeout_s: float | None) -> bool:
        """Wait until the buffers are not read any more; False if storage blocks for longer."""
        return self._done.wait(timeout_s)

    def _run(self) -> None:
        call = self._call
        write = self._await_order()
        if write is None:  # the save has ended, and the coordinator knows why
            return
        try:
            self._check_given_up()
            require_same_root(self._steps, self._driver, write, self._step)
            ref = write_part(
                self._storage,
                write.staging,
                step=self._step,
                attempt=write.attempt,
                participant=self._driver.participant,
                ordinal=write.ordinal,
                contents=self._contents,
                check_cancelled=self._check_given_up,
                external=self._external,
                share=self._share,
                take_index=self._take_index,
                on_bytes=self.teller.count,
            )
            part = PartReport(ref.path, ref.size_bytes, ref.sha256)
            digests = told_digests(self._captured, self._index)
            with self._lock:
                self._check_given_up()
                self.teller.tell()
                self._driver.send_prepared(call, write.attempt, part, digests)
            if digests:
                staged = Staged(self._storage, write, self._step, self._check_given_up)
                answer = answer_with(self._captured, staged)
                self._driver.answer_until_settled(call, answer)
        except SaveGivenUp as error:
            if self._given_up:  # else the outcome is already known to everybody
                self._driver.send_failed(call, self._step, "write", error)
        except BaseException as error:
            if not isinstance(error, (CheckpointError, OSError)):
                _log.exception("stepseal: %s: defect while writing", self._driver.participant)
            self._driver.send_failed(call, self._step, "write", error)

    def _take_index(self, index: PartIndex) -> None:
        self._index = index

    def _check_given_up(self) -> None:
        if self._given_up:
            raise SaveGivenUp(
                f"save of step {self._step}: interrupted in a synchronous save", step=self._step
            )
        if self._driver.ended(self._call):
            raise SaveGivenUp(f"save of step {self._step}: given up", step=self._step)
