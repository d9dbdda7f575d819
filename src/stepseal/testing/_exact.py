"""Tests exact resume: a run that stops and resumes must equal a run that never stops.

Everything is compared bit by bit: NaN equals itself, and 0.0 is not -0.0.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from stepseal.session import Checkpointer
from stepseal.testing._identical import find_difference, snapshot

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from stepseal.protocol import Deadlines

__all__ = ["ResumableJob", "assert_exact_resume"]

_RNG = "rng"


class ResumableJob(Protocol):
    """A training job that is small enough to run many times.

    Each run uses a new object. The function that makes it builds everything from scratch and seeds
    the random streams.
    """

    def add_to(self, checkpointer: Checkpointer) -> None:
        """Add every component, as the real job does.

        A job with a loader takes its batches from `checkpointer.batches(loader)`, here or later;
        the run that never stops has no checkpointer.
        """
        ...

    def train(self, step: int) -> object:
        """Train one step and return its result, for example the loss."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Return all state that a resume must restore, by component, even if it was not added.

        The global random streams are always compared, so they may be left out.
        """
        ...


def assert_exact_resume(
    make_job: Callable[[], ResumableJob],
    root: str | os.PathLike[str],
    *,
    num_steps: int,
    save_at: Iterable[int] | None = None,
    mode: Literal["async", "sync"] = "async",
    deadlines: Deadlines | None = None,
) -> None:
    """Test that a job resumes exactly from every step in `save_at`.

    The job runs once without saves, once with saves, and once from each saved step. Resumed runs
    use new objects, and their random streams are disturbed before the restore. Every rank calls
    this function with its own job. Blocks for about `num_steps * len(save_at) / 2` training steps.

    Args:
        make_job: builds everything from scratch, and seeds the random streams.
        root: empty directory for the steps; kept for inspection.
        num_steps: length of the uninterrupted run, steps 1 to `num_steps`.
        save_at: steps to save at and resume from; None for all.
        mode: mode of the saves.
        deadlines: deadlines of the checkpointers.

    Raises:
        AssertionError: the runs differ. The message names the step of the resume, the step of the
            difference, the first component, path and element that differ, and the likely cause if
            random streams differ.
        CheckpointError: a save or restore failed.
    """
    steps = sorted(range(1, num_steps + 1) if save_at is None else save_at)
    straight = _Record()
    straight.run(make_job(), range(1, num_steps + 1), steps)
    with Checkpointer(root, mode=mode, deadlines=deadlines) as checkpointer:
        saving, record = make_job(), _Record()
        saving.add_to(checkpointer)
        record.run(saving, range(1, num_steps + 1), steps, checkpointer.save)
    _compare(straight, record, None)
    for step in steps:
        resumed, record = make_job(), _Record()
        _disturb_streams(step)
        with Checkpointer(root, mode=mode, deadlines=deadlines) as checkpointer:
            resumed.add_to(checkpointer)
            checkpointer.restore(step)
            record.streams[step] = _streams()
            record.states[step] = _state_of(resumed)
            record.run(resumed, range(step + 1, num_steps + 1))
        _compare(straight, record, step)


class _Record:
    """Recorded results and states of one run."""

    def __init__(self) -> None:
        self.outcomes: dict[int, object] = {}
        self.streams: dict[int, dict[str, Any]] = {}
        self.states: dict[int, dict[str, Any]] = {}

    def run(
        self,
        job: ResumableJob,
        steps: range,
        save_at: Iterable[int] = (),
        save: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Train; record all results, and the state at `save_at` and at the end."""
        marked = {*save_at, *steps[-1:]}
        for step in steps:
            self.outcomes[step] = snapshot(job.train(step))
            self.streams[step] = _streams()
            if step in marked:
                if step in save_at:
                    save(step)
                self.states[step] = _state_of(job)


def _state_of(job: ResumableJob) -> dict[str, Any]:
    streams = _streams()  # first: asked for its state, a loader may draw
    state: dict[str, Any] = snapshot(dict(job.state()))
    return {**state, _RNG: {**streams, **({"own": state[_RNG]} if _RNG in state else {})}}


def _streams() -> dict[str, Any]:
    streams: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if "numpy.random" in sys.modules:
        streams["numpy"] = snapshot(_numpy_random().get_state(legacy=False))
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        streams["cuda"] = torch.cuda.get_rng_state_all()
    return streams


def _disturb_streams(seed: int) -> None:
    """Move the random streams to a state that no run reaches; only a restore brings them back."""
    random.seed(-1 - seed)
    torch.manual_seed(-1 - seed)
    if "numpy.random" in sys.modules:
        _numpy_random().seed(2**32 - 1 - seed % 2**31)


def _numpy_random() -> Any:  # noqa: ANN401 - a module
    return sys.modules["numpy.random"]


def _compare(straight: _Record, other: _Record, restored: int | None) -> None:
    """Raise at the first step whose result or state differs."""
    what = "saving" if restored is None else f"restored from step {restored}"
    for step in sorted(other.states.keys() | other.outcomes.keys()):
        for kind, expected, found in (
            ("outcome", straight.outcomes, other.outcomes),
            ("state", straight.states, other.states),
        ):
            if step not in found:
                continue
            difference = find_difference(expected[step], found[step])
            if difference is not None:
                raise AssertionError(
                    f"{what}: {kind} after step {step}: {difference}: expected the value of the "
                    f"run that never stopped.{_likely_cause(straight, other, step, restored)}"
                )


def _likely_cause(straight: _Record, other: _Record, step: int, restored: int | None) -> str:
    """Return why a resumed run's random streams went astray by `step`; empty if they did not."""
    apart = (
        number
        for number, streams in sorted(other.streams.items())
        if number <= step and find_difference(straight.streams[number], streams) is not None
    )
    first = next(apart, None)
    if first is None or restored is None:
        return ""
    if first == restored:
        return (
            " The random streams differ right after the restore: likely no component saves them. "
            "Add stepseal.RNG()."
        )
    return (
        f" The random streams differ after step {first}: likely the loader's iterator drew from "
        "the global stream after the restore: use ckpt.batches(loader), or ckpt.steps(num_steps) "
        "without a loader. Generators of your own belong into stepseal.RNG()."
    )
