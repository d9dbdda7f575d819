"""Engines that write files of their own: called inside a save, and given verified files back.

Invariants: what an engine raises in a save is told to the coordinator, and all participants raise
the coordinator's one error; no engine sees a folder before every byte of it was verified.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stepseal.components import (
    RNG,
    ExternalComponent,
    RNGComponent,
    SavedComponent,
    outside_inference_mode,
)
from stepseal.errors import (
    CheckpointError,
    InternalError,
    InvalidInput,
    ParticipantFailed,
    StateMismatch,
)
from stepseal.layout import external_folder, holders_of
from stepseal.protocol import resolve_save
from stepseal.session._saving import require_same_root
from stepseal.storage import make_dirs
from stepseal.transfer import check_external

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stepseal.components import Component, Topology
    from stepseal.layout import AnySharing, ComponentEntry, Manifest
    from stepseal.protocol import Write
    from stepseal.session._wiring import Wiring
    from stepseal.steps import StepStore
    from stepseal.storage import Storage
    from stepseal.transfer import StepReader

_log = logging.getLogger("stepseal")

__all__ = ["engines_of", "make_folder", "run_engines", "saved_engine", "verify_engines"]


def engines_of(components: Iterable[Component]) -> list[ExternalComponent]:
    """Return the components whose engines write files, in the order in which they were added."""
    return [one for one in components if isinstance(one, ExternalComponent)]


def run_engines(
    engines: Sequence[ExternalComponent],
    write: Write,
    step: int,
    topology: Topology,
    wiring: Wiring,
) -> None:
    """Let all engines write into the attempt, then report that they have returned.

    Raises:
        CheckpointError: the save has failed, here or elsewhere; on all participants the same error.
            What the engine raised here is the cause.
    """
    driver, steps = wiring.driver, wiring.steps
    try:
        require_same_root(steps, driver, write, step)
        for engine in engines:
            _run(engine, write, step, topology, steps)
    except BaseException as error:
        driver.send_failed(write.call, step, "engines", error)
        if not isinstance(error, Exception):
            raise  # interrupted
        if not isinstance(error, CheckpointError):
            _log.error("stepseal: save of step %d: %s", step, error, exc_info=error)
        state = driver.wait_outcome(write.call, None)
        assert state is not None, "without a limit, the wait ends with the save"
        try:
            resolve_save(state, step, steps)
        except CheckpointError as told:
            cause = error.__cause__ if isinstance(error, ParticipantFailed) else error
            raise told from cause
        finally:
            driver.forget(write.call)
        raise InternalError(f"save of step {step}: committed without an engine") from error
    driver.send_returned(write.call, write.attempt)


def make_folder(component: str, write: Write, step: int, steps: StepStore) -> str:
    """Make the folder of an external component in the attempt; return its path.

    Raises:
        InvalidInput: the root has no path on this host.
        StorageUnavailable: it cannot be made.
    """
    storage = steps.storage
    key = f"{write.staging}/{external_folder(component)}"
    path = storage.local_path(key)
    if path is None:
        raise InvalidInput(
            f"save of step {step}: component {component}: an engine needs a root with a path on "
            "this host, found one without. Save it into a directory.",
            step=step,
            component=component,
        )
    make_dirs(storage, key, base=write.staging)
    return path


def _run(
    engine: ExternalComponent, write: Write, step: int, topology: Topology, steps: StepStore
) -> None:
    path = make_folder(engine.name, write, step, steps)
    try:
        with RNGComponent("rng", RNG()).kept(), outside_inference_mode():  # as if it never ran
            engine.save_to(path, topology)
    except Exception as error:
        text = f"component {engine.name}: its engine raised {type(error).__name__}: {error}"
        raise ParticipantFailed(
            f"save of step {step}: {topology.me}: {text}",
            step=step,
            component=engine.name,
            participant=topology.me,
            failures={topology.me: text},
        ) from error


def saved_engine(
    storage: Storage, manifest: Manifest, entry: ComponentEntry, saved: AnySharing, live: Component
) -> SavedComponent:
    """Return what a step holds for an engine; its files are verified by `verify_engines`.

    Raises:
        StateMismatch: an engine saved the component and another kind of object is live, or the
            other way round.
    """
    folder = storage.local_path(f"{manifest.key}/{external_folder(entry.name)}")
    problem = None
    if live.kind != entry.kind:
        problem = f"saved as {entry.kind}, now {live.kind}: only ss.External loads external files"
    elif folder is None:
        problem = "files of an engine need a root with a path on this host"
    if problem is not None:
        raise StateMismatch(f"{entry.name}: {problem}", problems=(problem,))
    world = len(holders_of(manifest, entry))
    return SavedComponent(entry.name, "external", saved, {}, None, world, folder=folder or "")


def verify_engines(
    engines: Iterable[ExternalComponent],
    storage: Storage,
    manifest: Manifest,
    reader: StepReader,
    topology: Topology,
) -> None:
    """Verify the files of engines: their set wholly, and this participant's share of the bytes.

    Raises:
        Corrupt: the files are not those that were committed.
    """
    share = (topology.rank, topology.world_size)
    for engine in engines:
        check_external(storage, manifest.key, manifest, reader, engine.name, share=share)
