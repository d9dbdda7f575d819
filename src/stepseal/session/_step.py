"""One step or publication, for reading: every read is verified, and under a lease if it can be."""

from __future__ import annotations

import errno
import fnmatch
import os
from typing import TYPE_CHECKING, Any, TypeVar

from stepseal import errors
from stepseal.components import decode_tree
from stepseal.layout import dcp_fqn, whole
from stepseal.transfer import ReadRequest, StepReader, has_damage, verify_step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    import torch

    from stepseal.layout import Manifest, TreeContents
    from stepseal.steps import Reading, ReadSteps
    from stepseal.transfer import Finding

__all__ = ["Publication", "Step"]

T = TypeVar("T")


class Step:
    """One committed step, or publication, for reading.

    Made by `Run.step` and `open_step`. All reads verify digests; nothing is unpickled. While one
    goes on, the step is leased, so that no coordinator prunes it; a step that is gone is
    `StepNotFound`.
    """

    def __init__(
        self, steps: ReadSteps, root: str, manifest: Manifest, *, key: str | None = None
    ) -> None:
        self.manifest = manifest
        self._key = manifest.key if key is None else key
        self._what = f"{manifest.area.noun} {manifest.step}"
        self.path = os.path.join(root, self._key) if self._key else root
        self._steps = steps
        self._storage = steps.storage

    @property
    def step(self) -> int:
        """Number of the training step; of a publication its version."""
        return self.manifest.step

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics that were known at the save; they cannot be changed."""
        return self.manifest.metrics

    def __repr__(self) -> str:
        """Return what it is, and where."""
        return f"<{type(self).__name__} {self.step} at {self.path}>"

    def verify(self, progress: Callable[[int], None] | None = None) -> tuple[Finding, ...]:
        """Check every byte of every file against its digest.

        Args:
            progress: called with the number of bytes checked since the last call.

        Returns:
            What is wrong or not listed; empty when the step is whole. Damage is an answer, not an
            error.
        """

        def look(advance: Callable[[int], None]) -> tuple[Finding, ...]:
            return verify_step(self._storage, self._key, self.manifest, progress=advance)

        with self._steps.reading(self.manifest) as reading:
            return reading.look(look, is_damaged=has_damage, progress=progress)

    def tensor_names(self) -> tuple[str, ...]:
        """Return the FQNs of all stored tensors, as stock DCP readers name them."""
        return tuple(sorted(self._leased(lambda _: self._tensors())))

    def tensors(
        self, pattern: str = "*", *, component: str | None = None
    ) -> dict[str, torch.Tensor]:
        """Read whole tensors by FQN, verified, into fresh CPU memory.

        Args:
            pattern: shell pattern over FQNs such as `layers.0.*` or `optimizer.state.*`.
            component: only tensors of this component, for example `model`.

        Raises:
            StepNotFound: no FQN matches; the message lists some that exist.
            Corrupt: a digest does not match.
        """
        return self._leased(lambda reading: self._read_tensors(pattern, component, reading.tick))

    def _leased(self, read: Callable[[Reading], T]) -> T:
        """Read under a lease; what is missing or damaged is looked for once more."""
        with self._steps.reading(self.manifest) as reading:
            return reading.look(lambda _: read(reading))

    def _read_tensors(
        self, pattern: str, component: str | None, tick: Callable[[], None]
    ) -> dict[str, torch.Tensor]:
        import torch

        from stepseal.components import DenseSink

        tensors = self._tensors(component)
        names = [name for name in sorted(tensors) if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise errors.StepNotFound(
                f"{self._what}: no tensor matches {pattern!r}; there are {len(tensors)}, for "
                "example "
                f"{', '.join(sorted(tensors)[:3])}",
                step=self.step,
                expected=pattern,
            )
        reader = StepReader(self._storage, self._key, self.manifest)
        found = {}
        requests = []
        wanted = {name: reader.stored(tensors[name][0])[tensors[name][1]] for name in names}
        for boxes in wanted.values():  # before memory is taken for any of them
            reader.check_whole(boxes)
        for name, boxes in wanted.items():
            first = boxes[0].tensor
            dtype = getattr(torch, first.dtype)
            target = self._empty(name, first.shape, dtype)
            sink = DenseSink(target, whole(first.shape), dtype)
            requests += [ReadRequest(box, sink) for box in boxes]
            found[name] = target
        reader.stream(requests, check_cancelled=tick)
        return found

    def _empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        import torch

        try:
            return torch.empty(shape, dtype=dtype, device="cpu")
        except RuntimeError as error:  # what torch raises when memory is refused
            raise errors.StorageUnavailable(
                f"{self._what}: cannot read {name!r:.80}: expected memory for {list(shape)} of "
                f"{dtype}, found too little. Read it where there is more, or in a job that shards "
                "it.",
                step=self.step,
                errno=errno.ENOMEM,
            ) from error

    def value(self, component: str, participant: str | None = None) -> Any:  # noqa: ANN401
        """Return the non-tensor state of a component as it was saved.

        Args:
            component: its name.
            participant: whose payload; None takes the only one, or the first.

        Raises:
            StepNotFound: the step has no such component, or no such state of that participant.
        """
        entry = next((e for e in self.manifest.components if e.name == component), None)
        owners = {} if entry is None else entry.payloads
        owner = owners.get(participant) if participant else next(iter(owners.values()), None)
        found = None if owner is None else self._leased(lambda _: self._tree(component, owner))
        if found is None:
            raise errors.StepNotFound(
                f"{self._what}: component {component} of {participant or 'any participant'}: "
                "no such state; "
                f"components: {', '.join(e.name for e in self.manifest.components)}",
                step=self.step,
                component=component,
                participant=participant,
            )
        return decode_tree(found)

    def _tree(self, component: str, owner: str) -> TreeContents | None:
        reader = StepReader(self._storage, self._key, self.manifest)
        if not reader.has_tree(component, owner):
            return None
        return reader.read_tree(component, owner)

    def _tensors(self, component: str | None = None) -> dict[str, tuple[str, str]]:
        reader = StepReader(self._storage, self._key, self.manifest)
        return {
            dcp_fqn(entry.name, key): (entry.name, key)
            for entry in self.manifest.components
            if entry.kind == "tensors" and component in (None, entry.name)
            for key in reader.stored(entry.name)
        }


class Publication(Step):
    """What was published for readers under one version.

    Made by `Run.publication`, `Run.wait_published` and `open_step`. Each read takes a lease of its
    own. `with publication as held:` takes one for the whole block, also for readers that open files
    by `path`. What `wait_published` returned may have been pruned by then; `held` is then the
    newest one.
    """

    _held: Reading | None = None
    _newer: Callable[[], Publication] | None = None

    def or_newer(self, newer: Callable[[], Publication]) -> Publication:
        """Let a `with` block take what `newer` returns if this one was pruned by then."""
        self._newer = newer
        return self

    @property
    def version(self) -> int:
        """Version, which grows from publication to publication."""
        return self.manifest.step

    def __enter__(self) -> Publication:  # noqa: PYI034 - may be a newer one
        """Keep it from being pruned.

        Raises:
            StepNotFound: it was pruned already; for what `wait_published` returned: removed by
                hand.
        """
        found = self
        while self._held is None:
            try:
                self._held = self._steps.reading(found.manifest).__enter__()
            except errors.StepNotFound:
                if self._newer is None:
                    raise
                found = self._newer()
        found._held = self._held
        return found

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.__exit__(exc_type, exc, traceback)

    def tick(self) -> None:
        """Renew the lease of the `with` block if it is due: call it there every few minutes."""
        if self._held is not None:
            self._held.tick()
