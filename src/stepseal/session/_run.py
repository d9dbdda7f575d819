"""The read side: what a run's root holds, offline; creates, claims and joins nothing."""

from __future__ import annotations

import errno
import fnmatch
import os
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from stepseal import errors
from stepseal.components import DenseSink, decode_tree
from stepseal.layout import check_step, dcp_fqn, step_name, whole
from stepseal.steps import (
    in_lineage,
    locate_root,
    open_step_folder,
    open_store,
    refuse_newer,
)
from stepseal.transfer import ReadRequest, StepReader, has_damage, verify_step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepseal.layout import Manifest, TreeContents
    from stepseal.steps import Reading, ReadSteps, StepEntry
    from stepseal.transfer import Finding

__all__ = ["Run", "Step", "open_run", "open_step"]

T = TypeVar("T")


class Step:
    """One committed step, for reading.

    Made by `Run.step` and `open_step`. All reads verify digests; nothing is unpickled. While one
    goes on, the step is leased, so that no coordinator prunes it; a step that is gone is
    `StepNotFound`.
    """

    def __init__(
        self, steps: ReadSteps, root: str, manifest: Manifest, *, key: str | None = None
    ) -> None:
        self.manifest = manifest
        self._key = step_name(manifest.step) if key is None else key
        self.path = os.path.join(root, self._key) if self._key else root
        self._steps = steps
        self._storage = steps.storage

    @property
    def step(self) -> int:
        """Training step number."""
        return self.manifest.step

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics that were known at the save."""
        return self.manifest.metrics

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
        tensors = self._tensors(component)
        names = [name for name in sorted(tensors) if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise errors.StepNotFound(
                f"step {self.step}: no tensor matches {pattern!r}; there are {len(tensors)}, for "
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
        try:
            return torch.empty(shape, dtype=dtype, device="cpu")
        except RuntimeError as error:  # what torch raises when memory is refused
            raise errors.StorageUnavailable(
                f"step {self.step}: cannot read {name!r:.80}: expected memory for {list(shape)} of "
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
                f"step {self.step}: component {component} of {participant or 'any participant'}: "
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


class Run:
    """All steps of one root, for reading; every call looks anew.

    Made by `open_run`.
    """

    def __init__(self, steps: ReadSteps, root: str) -> None:
        self.root = root
        self.run_id = steps.run_id()
        self._steps = steps

    def steps(self) -> tuple[int, ...]:
        """Return the committed steps of this run, ascending."""
        return tuple(e.step for e in self.entries() if e.state == "committed")

    def entries(self) -> tuple[StepEntry, ...]:
        """Return every folder with a step's name, with its state: committed, damaged or foreign."""
        return self._steps.entries(self.run_id)

    def foreign(self) -> tuple[str, ...]:
        """Return names in the root that look like checkpoints of somebody else."""
        return self._steps.foreign()

    def latest(self) -> Step | None:
        """Return the newest step that a restore would choose by lineage, or None."""
        limits = self._steps.lineage_limits()
        for entry in reversed(self.entries()):
            if entry.state != "committed" or entry.manifest is None:
                continue
            if in_lineage(limits, entry.manifest.incarnation, entry.step):
                return Step(self._steps, self.root, entry.manifest)
        return None

    def step(self, step: int) -> Step:
        """Return one committed step.

        Raises:
            StepNotFound: it is not there, or not of this run.
            Corrupt: it is there, but its manifest is damaged.
            IncompatibleFormat: a newer release wrote it.
        """
        entry = self._steps.entry(check_step(step), self.run_id)
        refuse_newer(entry)
        if entry.state == "damaged":
            raise errors.Corrupt(
                f"step {step}: {entry.problem}",
                step=step,
                path=entry.name,
                problems=(entry.problem,),
            )
        if entry.state == "foreign" or entry.manifest is None:
            raise errors.StepNotFound(f"step {step}: {entry.problem}", step=step, path=entry.name)
        return Step(self._steps, self.root, entry.manifest)

    def best(self, metric: str, *, mode: str = "min") -> Step | None:
        """Return the committed step with the best value of a metric, or None where no step has it.

        Args:
            metric: name as given to `save(metrics=...)`; NaN never wins.
            mode: `min` or `max`.

        Raises:
            InvalidInput: `mode` is neither.
        """
        if mode not in ("min", "max"):
            raise errors.InvalidInput(f"mode={mode!r}: expected 'min' or 'max'", found=mode)
        sign = 1.0 if mode == "min" else -1.0
        scored = [
            (sign * value, entry.manifest)
            for entry in self.entries()
            if entry.state == "committed" and entry.manifest is not None
            for value in (entry.manifest.metrics.get(metric),)
            if value is not None and value == value
        ]
        if not scored:
            return None
        return Step(self._steps, self.root, min(scored, key=lambda item: item[0])[1])


def open_run(root: str | os.PathLike[str]) -> Run:
    """Open a root for reading.

    Args:
        root: directory of the run.

    Raises:
        RootNotFound: there is no such directory, or neither a format marker nor a step in it.
        Corrupt: the marker is damaged, or missing although there are steps.
        IncompatibleFormat: it was made by a newer format version.
    """
    path = locate_root(root)
    return Run(open_store(path), path)


def open_step(path: str | os.PathLike[str]) -> Step:
    """Open the folder of one step for reading, wherever it was copied to and under any name.

    Args:
        path: of the folder.

    Raises:
        StepNotFound: there is no such folder, or no manifest in it.
        Corrupt: the manifest is damaged.
        IncompatibleFormat: a newer release wrote it.
    """
    steps, manifest, key = open_step_folder(path)
    place = locate_root(path)
    return Step(steps, os.path.dirname(place) if key else place, manifest, key=key)
