"""Where a job stands in its data, and what its callbacks remember, over a resume.

Each promise is tested on state that a trainer of the wild has lost, and on the mistake that lost
it: the same comparison must see it.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from torch.utils.data import Dataset

import stepseal as ss
from stepseal.testing import assert_exact_resume

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

NUM_BATCHES = 4


class Loader:
    """Batches in order; with `ends` false, it forgets that an epoch ends with its last batch."""

    def __init__(self, *, ends: bool = True) -> None:
        self.position = 0
        self._ends = ends

    def __iter__(self) -> Iterator[int]:
        while self.position < NUM_BATCHES:
            self.position += 1
            yield self.position - 1
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        position = state["position"]
        self.position = position % NUM_BATCHES if self._ends else position


def counts(root: Path, loader: Loader, *, save: bool) -> list[int]:
    """Return how many batches each epoch of a life had; saved with the last batch of the first."""
    found = []
    with ss.Checkpointer(root, mode="sync") as ckpt:
        ckpt.add("loader", loader)
        restored = ckpt.restore()
        step = 0 if restored is None else restored.step
        for _ in range(2):
            count = 0
            for _ in ckpt.batches(loader):
                count, step = count + 1, step + 1
                if save and step == NUM_BATCHES:
                    ckpt.save(step)
            found.append(count)
    return found


@pytest.mark.parametrize("ends", [True, False])
def test_a_save_with_the_last_batch_resumes_with_a_whole_epoch(tmp_path: Path, ends: bool) -> None:
    assert counts(tmp_path, Loader(), save=True) == [NUM_BATCHES] * 2
    whole = counts(tmp_path, Loader(ends=ends), save=False) == [NUM_BATCHES] * 2
    assert whole is ends


class Samples(Dataset[int]):
    """Samples whose batches are in the hands of workers before anybody asks for them."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> int:
        return index


def with_workers(root: Path, *, early: bool) -> list[list[int]]:
    """Return the batches of a life whose workers begin before the restore, or after it."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    loader = stateful(Samples(), batch_size=2, num_workers=2, prefetch_factor=4)
    started = iter(loader) if early else None
    with ss.Checkpointer(root, mode="sync") as ckpt:
        ckpt.add("loader", loader)
        restored = ckpt.restore()
        seen = []
        for batch in ckpt.batches(loader) if started is None else started:
            seen.append(batch.tolist())
            if restored is None and len(seen) == 3:
                ckpt.save(3)
    return seen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # by torchdata
def test_workers_get_the_saved_position_before_they_fetch_ahead(tmp_path: Path) -> None:
    whole = with_workers(tmp_path, early=False)
    assert len(whole) == 12
    assert with_workers(tmp_path, early=False) == whole[3:]
    assert with_workers(tmp_path, early=True) != whole[3:]  # what was fetched ahead is the start


class Source:
    """Numbers of one source, shuffled by a stream of its own."""

    def __init__(self, seed: int) -> None:
        self._stream = random.Random(seed)
        self._count = 0

    def draw(self) -> tuple[int, float]:
        self._count += 1
        return self._count, self._stream.random()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "stream": self._stream.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = state["count"]
        self._stream.setstate(state["stream"])


class Interleaved:
    """Draws from sources, and from interleaved ones, by weights that follow what each has given.

    With `forgets`, its state lacks how much each has given, as that of a known trainer did.
    """

    def __init__(self, sources: Iterable[Source | Interleaved], *, forgets: bool) -> None:
        self.sources = list(sources)
        self.given = [0] * len(self.sources)
        self._forgets = forgets

    def draw(self) -> tuple[Any, ...]:
        least = min(range(len(self.sources)), key=lambda at: (self.given[at] * (at + 1), at))
        self.given[least] += 1
        return (least, *self.sources[least].draw())

    def state_dict(self) -> dict[str, Any]:
        given = {} if self._forgets else {"given": list(self.given)}
        return {"sources": [source.state_dict() for source in self.sources], **given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = list(state.get("given", [0] * len(self.sources)))
        for source, inner in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(inner)


class SamplingJob:
    """A job that only samples."""

    def __init__(self, *, forgets: bool) -> None:
        inner = Interleaved([Source(1), Source(2)], forgets=forgets)
        self.sampler = Interleaved([inner, Source(3), Source(4)], forgets=False)

    def add_to(self, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("sampler", self.sampler)
        checkpointer.add("rng", ss.RNG())

    def train(self, step: int) -> object:
        return self.sampler.draw()

    def state(self) -> dict[str, Any]:
        return {}


def test_nested_samplers_go_on_with_their_counters(tmp_path: Path) -> None:
    places: dict[str, Any] = {"num_steps": 20, "save_at": [4, 9]}
    assert_exact_resume(partial(SamplingJob, forgets=False), tmp_path / "whole", **places)
    with pytest.raises(AssertionError, match="restored from step 4: outcome after step"):
        assert_exact_resume(partial(SamplingJob, forgets=True), tmp_path / "forgets", **places)


class Detector:
    """Remembers losses; one that was never fed has no mean."""

    def __init__(self, *losses: float, bad: bool = False) -> None:
        self.losses, self.mean = [*losses], sum(losses) / len(losses) if losses else None
        self._bad = bad

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._bad:
            raise ValueError("cannot take this")
        self.losses, self.mean = state["losses"], state["mean"]


def with_callbacks(root: Path, callbacks: dict[str, Detector]) -> ss.Checkpointer:
    ckpt = ss.Checkpointer(root, mode="sync")
    for name, callback in callbacks.items():
        ckpt.add(name, callback)
    return ckpt


def test_callbacks_are_matched_by_name_and_an_unfed_one_takes_its_state(tmp_path: Path) -> None:
    with with_callbacks(tmp_path, {"loss": Detector(1.0, 3.0), "norm": Detector()}) as ckpt:
        ckpt.save(1)
    unfed, fed = Detector(), Detector(9.0)
    with with_callbacks(tmp_path, {"norm": fed, "loss": unfed}) as ckpt:  # in another order
        ckpt.restore()
    assert (unfed.losses, unfed.mean) == ([1.0, 3.0], 2.0)
    assert (fed.losses, fed.mean) == ([], None)
    by_index = {"callback_0": Detector(), "callback_1": Detector()}
    with with_callbacks(tmp_path, by_index) as ckpt, pytest.raises(ss.errors.StateMismatch):
        ckpt.restore()  # names of places, which move, match nothing and are told


def test_one_bad_callback_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    with with_callbacks(tmp_path, {"loss": Detector(1.0), "norm": Detector(2.0)}) as ckpt:
        ckpt.save(1)
    found = {"loss": Detector(bad=True), "norm": Detector()}
    with with_callbacks(tmp_path, found) as ckpt:
        with pytest.raises(ss.errors.ParticipantFailed, match="component loss") as caught:
            ckpt.restore()
        assert "restore(policies={'loss': 'skip'})" in str(caught.value)
        restored = ckpt.restore(policies={"loss": "skip"})
    assert restored is not None
    assert restored.report["loss"] == "left as it was (skip)"
    assert found["norm"].losses == [2.0]
    assert found["loss"].losses == []
