"""The training loop of a job, and the random streams that a restored one begins with.

Making the iterator of a loader draws from the global random streams, and so does a forward pass
that warms up. What is drawn between `restore` and the first batch is no part of the run that was
saved. So the streams are put back once more at the last moment: after the iterator was made, and
before it gives its first batch.

Invariants: streams are put back once per restore, never after the first step; a loader that begins
an epoch draws its order, as it did in the run that was saved; one that goes on in the middle of an
epoch leaves no trace in the streams. Every rank decides alike, from its calls alone.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, TypeVar

from stepseal.components import (
    LoaderComponent,
    RNGComponent,
    SamplerComponent,
    begin_to_resume,
    check_generators,
    has_no_state,
    sampler_of,
    waits_to_resume,
)
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from stepseal.components import Component, Registry, SharedPosition, Topology
    from stepseal.session._reports import Restored

__all__ = ["Loop", "Looping"]

_log = logging.getLogger("stepseal")
Batch = TypeVar("Batch")
_MANY_EMPTY = 1000


class Looping:
    """The two loops of a `Checkpointer`."""

    _loop: Loop

    @property
    def should_stop(self) -> bool:
        """True once a trigger ends the training loop; it changes in `step` or `save`, on all ranks.

        `steps` and `batches` end by themselves; a loop by hand asks after each step.
        """
        return self._loop.should_stop

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches of one epoch; after a restore, those that are left of it, exactly.

        Every rank calls it, in the place of `for batch in loader`, for each epoch anew. It ends
        early where `should_stop` became True. The loader's iterator is made when the first batch is
        asked for. Once after a restore, the random streams are then put back to where they were
        saved.

        Args:
            loader: the loader itself, a torch or torchdata loader or any other iterable; wrap what
                this returns, for example in tqdm, not the loader.
        """
        return self._loop.batches(loader)

    def steps(self, num_steps: int) -> Iterator[int]:
        """Yield the numbers of the training steps that are left, up to and with `num_steps`.

        Every rank calls it, after `restore`. It begins with the restored step + 1, or with 1, and
        ends early where `should_stop` became True. Once after a restore, the random streams are put
        back to where they were saved, when the first number is asked for.

        Args:
            num_steps: number of the last training step.

        Raises:
            InvalidInput: `num_steps` is not an int of at least 0.
        """
        if type(num_steps) is not int or num_steps < 0:
            raise InvalidInput(
                f"steps({num_steps!r}): expected the number of the last step, an int of at least 0",
                expected=">= 0",
                found=num_steps,
            )
        return self._loop.steps(num_steps)


class Loop:
    """What one participant's training loop does with the streams after a restore.

    Args:
        registry: the components of this participant.
        topology: who takes part.
    """

    def __init__(self, registry: Registry, topology: Topology) -> None:
        self._registry = registry
        self._warns = topology.rank == 0
        self.should_stop = False
        """All ranks stop at the step that they are at."""
        self._num_empty = 0
        """How often `batches` gave none, because the loop is over."""
        self._step = 0
        """The restored step."""
        self._restored: Sequence[Component] = ()
        """What the streams of this run depend on, until its first step."""
        self._begun = False
        self._is_first_loop = False
        """No iterator was made by `batches` since the restore."""
        self._was_entered = self._warned = False
        self._waiting: list[LoaderComponent] = []
        """Loaders of torchdata whose iterator is to be made by `batches`, and by nobody else."""
        self._batches_left: int | None = None
        """Of an epoch under way whose loader has no state; None where no such epoch is."""

    def stops(self) -> bool:
        """Return whether the loop ends here."""
        return self.should_stop

    def restoring(self) -> None:
        """Forget an earlier restore.

        Raises:
            InvalidInput: the generator of a loader is not saved.
        """
        check_generators(self._registry.components(), complete=True)
        self._forget()

    def restored(self, found: Restored | None, components: Sequence[Component]) -> None:
        """Take note of what a restore brought back; None for a fresh start."""
        self._step = 0 if found is None else found.step
        if found is not None:
            kinds = (RNGComponent, LoaderComponent)
            self._restored = [one for one in components if isinstance(one, kinds)]
            self._is_first_loop = True
            self._waiting = self._loaders_to_resume()

    def begin(self) -> None:
        """Warn at the first step after a restore if the streams may be elsewhere by now.

        Raises:
            InvalidInput: the generator of a loader is not saved.
        """
        if self._begun:
            return
        check_generators(self._registry.components(), complete=True)
        self._warn(unused=bool(self._restored) and not self._was_entered)
        self._forget()
        self._begun = True

    def saving(self, step: int) -> None:
        """Warn at the first save that a resume cannot take up where it is in an epoch."""
        if self._warns and not self._warned and self._batches_left:
            self._warned = True
            _log.warning(
                "stepseal: save of step %d in the middle of an epoch, and the loader has no state: "
                "a job that resumes from it begins the epoch anew, and sees its samples twice. "
                "Save where an epoch ends, or give the loader a position: add a StatefulDataLoader "
                "of torchdata, or an ss.GlobalSampler that is the loader's batch_sampler.",
                step,
            )

    def end(self) -> None:
        """Warn if batches were read after a restore and no step was ever said to be done."""
        self._warn(unused=False)
        self._forget()

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Make the iterator at the first `next`, then yield its batches."""
        if self.stops():
            self._warn_of_endless_loop()
            return
        sampler = self._sampler_of(loader)
        forgets = sampler is None and has_no_state(loader)
        num_batches = _num_batches(loader) if forgets else None
        for number, batch in enumerate(self._iterator(loader), start=1):
            self._batches_left = None if num_batches is None else num_batches - number
            if sampler is not None:
                sampler.count()  # a step in the body of the loop is saved with its batch
            yield batch
            if self.stops():  # told in the body of the loop
                return
        self._batches_left = None
        if sampler is not None:
            sampler.end_epoch()

    def _warn_of_endless_loop(self) -> None:
        """Say what to write, where a loop around `batches` may go on for ever without one."""
        self._num_empty += 1
        if self._warns and self._num_empty == _MANY_EMPTY:
            _log.warning(
                "stepseal: should_stop is True, and batches() was called %d times since, and gave "
                "none: leave the loop around it, `while step < num_steps and not "
                "ckpt.should_stop`.",
                self._num_empty,
            )

    def steps(self, num_steps: int) -> Iterator[int]:
        """Put the streams back at the first `next`, then count."""
        self._enter()
        self._waiting = self._loaders_to_resume()
        for step in range(self._step + 1, num_steps + 1):
            if self.stops():
                return
            yield step

    def _iterator(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        self._enter()
        for one in self._registry.components():
            if isinstance(one, LoaderComponent) and one.loader is loader:
                one.begin_iteration()
        is_first, self._is_first_loop = self._is_first_loop, False
        if waits_to_resume(loader):  # torchdata: `state_dict` makes the iterator and keeps it
            self._waiting = [one for one in self._waiting if one.loader is not loader]
            with self._streams_kept():
                begin_to_resume(loader)
            return iter(loader)  # draws only where the saved epoch was over
        if not is_first or self._begins_epoch(loader):
            return iter(loader)  # what it draws belongs to the run
        with self._streams_kept():
            return iter(loader)

    def _begins_epoch(self, loader: object) -> bool:
        """Tell whether a loader of torch's begins an epoch; other loaders may go on with one."""
        from torch.utils.data import DataLoader

        sampler = self._sampler_of(loader)
        at_start = sampler is None or not sampler.consumed
        return isinstance(loader, DataLoader) and at_start

    def _sampler_of(self, loader: object) -> SharedPosition | None:
        """Return the sampler of a loader that is a component; its position is counted here."""
        sampler, components = sampler_of(loader), self._registry.components()
        samplers = [one.sampler for one in components if isinstance(one, SamplerComponent)]
        return sampler if any(one is sampler for one in samplers) else None

    def _enter(self) -> None:
        self._was_entered = True
        for rng in self._streams():
            rng.put_back()

    def _warn(self, *, unused: bool) -> None:
        by_hand = [one.name for one in self._waiting if not waits_to_resume(one.loader)]
        if self._warns and (unused or by_hand):
            what = f"the iterator of {', '.join(by_hand)} was made" if by_hand else "the loop runs"
            _log.warning(
                "stepseal: after restore() %s without ckpt.batches or ckpt.steps: what drew from "
                "the random streams since then (making the iterator of a loader does) makes this "
                "run differ from the one that was saved. Write `for batch in "
                "ckpt.batches(loader)`, or `for step in ckpt.steps(num_steps)` where there is no "
                "loader.",
                what,
            )

    def _loaders_to_resume(self) -> list[LoaderComponent]:
        loaders = [one for one in self._restored if isinstance(one, LoaderComponent)]
        return [one for one in loaders if waits_to_resume(one.loader)]

    def _forget(self) -> None:
        self._restored, self._waiting = (), []
        self._begun = self._is_first_loop = self._was_entered = False
        for rng in self._streams():
            rng.forget()

    def _streams(self) -> list[RNGComponent]:
        return [one for one in self._registry.components() if isinstance(one, RNGComponent)]

    @contextlib.contextmanager
    def _streams_kept(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for rng in self._streams():
                stack.enter_context(rng.kept())
            yield


def _num_batches(loader: Iterable[object]) -> int | None:
    """Return the number of batches in an epoch, None where the loader does not know."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # a dataset without a length
        return None
