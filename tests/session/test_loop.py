"""After a restore, `batches` and `steps` put the random streams back at the right moment."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import stepseal as ss
from stepseal import errors
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = list(range(6))

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata


class Drawing:
    """A loader whose iterator draws from every global stream when it is made, as torch's do."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[int]:
        draw()
        return self._rest()

    def _rest(self) -> Iterator[int]:
        while self.position < len(DATA):
            self.position += 1
            yield DATA[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Stateful(DataLoader[Any]):
    """A loader of torch that has a state."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take nothing."""


GENERATOR = torch.Generator()


def draw() -> tuple[float, ...]:
    own = torch.rand(1, generator=GENERATOR).item()
    return random.random(), np.random.random(), torch.rand(1).item(), own


def new_job(root: Path, loader: object, **options: Any) -> ss.Checkpointer:  # noqa: ANN401
    ckpt = ss.Checkpointer(root, mode="sync", **options)
    ckpt.add("rng", ss.RNG(torch=[GENERATOR]))
    ckpt.add("loader", loader)
    return ckpt


def saved_at(root: Path, step: int) -> list[Any]:
    """Run two epochs, saving once; return what came out after that step."""
    seen = []
    loader = Drawing()
    with new_job(root, loader) as ckpt:
        ckpt.restore()
        number = 0
        for _ in range(2):
            for batch in ckpt.batches(loader):
                number += 1
                seen.append((batch, draw()))
                if number == step:
                    ckpt.save(step)
    return seen[step:]


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_resumed_epoch_goes_on_with_the_saved_streams(tmp_path: Path, step: int) -> None:
    expected = saved_at(tmp_path, step)
    draw()  # a warm-up
    loader, seen = Drawing(), []
    with new_job(tmp_path, loader) as ckpt:
        ckpt.restore()
        draw()  # and another
        for _ in range(2):
            seen += [(batch, draw()) for batch in ckpt.batches(loader)]
    assert seen == expected


def test_a_loop_by_hand_is_not_exact(tmp_path: Path) -> None:
    expected = saved_at(tmp_path, 3)
    loader = Drawing()
    with new_job(tmp_path, loader) as ckpt:
        ckpt.restore()
        assert [(batch, draw()) for batch in loader] != expected[:3]


def test_steps_count_on_from_the_restored_one(tmp_path: Path) -> None:
    with new_job(tmp_path, Drawing()) as ckpt:
        ckpt.restore()
        straight = []
        for step in ckpt.steps(5):
            straight.append((step, draw()))
            if step == 2:
                ckpt.save(2)
    with new_job(tmp_path, Drawing()) as ckpt:
        later = ckpt.steps(5)
        ckpt.restore()
        draw()
        assert [(step, draw()) for step in later] == straight[2:]
        assert [*ckpt.steps(2)] == []


@pytest.mark.parametrize("first", ["steps", "batches"])
def test_both_loops_together(tmp_path: Path, first: str) -> None:
    expected = saved_at(tmp_path, 2)[:4]
    loader = Drawing()
    with new_job(tmp_path, loader) as ckpt:
        ckpt.restore()
        draw()
        loops: Any = zip(ckpt.steps(6), ckpt.batches(loader), strict=True)
        if first == "batches":
            loops = ((step, batch) for batch, step in zip(ckpt.batches(loader), ckpt.steps(6)))  # noqa: B905
        seen = [(step, batch, draw()) for step, batch in loops]
    assert seen == [(step, *one) for step, one in enumerate(expected, 3)]


@pytest.mark.parametrize("number", [-1, 1.0, True, "3"])
def test_steps_wants_a_number(tmp_path: Path, number: Any) -> None:  # noqa: ANN401
    with ss.Checkpointer(tmp_path) as ckpt, pytest.raises(errors.InvalidInput, match="steps"):
        ckpt.steps(number)


def test_streams_are_put_back_once_and_never_after_the_first_step(tmp_path: Path) -> None:
    saved_at(tmp_path, 3)
    with new_job(tmp_path, Drawing()) as ckpt:
        ckpt.restore()
        ckpt.step(4)
        before = torch.get_rng_state()
        assert next(ckpt.steps(9)) == 4
        assert torch.equal(torch.get_rng_state(), before)


def test_skipped_streams_are_left_alone(tmp_path: Path) -> None:
    saved_at(tmp_path, 3)
    with new_job(tmp_path, Drawing()) as ckpt:
        ckpt.restore()
        ckpt.restore(policies={"rng": "skip"})
        before = draw()
        assert next(ckpt.steps(9)) == 4
        assert draw() != before


WARNING = "without ckpt.batches or ckpt.steps"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if WARNING in r.getMessage()]


def test_a_restored_loop_by_hand_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved_at(tmp_path, 3)
    assert warnings_of(caplog) == []
    with new_job(tmp_path, Drawing()) as ckpt:
        ckpt.restore()
        ckpt.step(4)
        ckpt.save(5)
        ckpt.step(6)
    (text,) = warnings_of(caplog)
    assert "for batch in ckpt.batches(loader)" in text
    assert [r.levelno for r in caplog.records if WARNING in r.getMessage()] == [logging.WARNING]


@pytest.mark.parametrize("use", ["steps", "batches"])
def test_who_uses_a_loop_is_not_warned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, use: str
) -> None:
    saved_at(tmp_path, 3)
    loader = Drawing()
    with new_job(tmp_path, loader) as ckpt:
        ckpt.restore()
        next(ckpt.steps(9)) if use == "steps" else next(ckpt.batches(loader))
        ckpt.step(4)
    assert warnings_of(caplog) == []


def test_who_has_neither_loader_nor_streams_is_not_warned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
            ckpt.add("counters", {"n": 1})
            found = ckpt.restore()
            ckpt.save(1 if found is None else 2)
    assert warnings_of(caplog) == []


def test_of_several_ranks_the_first_warns(caplog: pytest.LogCaptureFixture) -> None:
    memory = MemoryStorage()

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        with ckpt:
            ckpt.add("rng", ss.RNG())
            found = ckpt.restore()
            ckpt.save(1 if found is None else 2).wait()

    for _ in range(2):
        World(2, lambda _: memory).run(work)
    assert len(warnings_of(caplog)) == 1


def with_generator() -> Stateful:
    return Stateful(DATA, generator=torch.Generator())  # type: ignore[arg-type]


def test_a_generator_that_nobody_saves_is_refused_in_add(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("rng", ss.RNG())
        with pytest.raises(errors.InvalidInput, match=r"RNG\(torch=\[loader.generator\]\)"):
            ckpt.add("loader", with_generator())
        ckpt.add("loader", Stateful(DATA))  # type: ignore[arg-type]
    with ss.Checkpointer(tmp_path) as ckpt:
        loader = with_generator()
        ckpt.add("loader", loader)
        with pytest.raises(errors.InvalidInput, match="component 'loader'"):
            ckpt.add("rng", ss.RNG())
        ckpt.add("rng", ss.RNG(torch=[loader.generator]))
        ckpt.restore()
        ckpt.save(1).wait()


@pytest.mark.parametrize("call", ["restore", "save", "step"])
def test_a_generator_without_streams_is_refused_before_the_first_step(
    tmp_path: Path, call: str
) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("loader", with_generator())
        with pytest.raises(errors.InvalidInput, match=r"add\('rng'"):
            ckpt.restore() if call == "restore" else getattr(ckpt, call)(1)


def torchdata_loader(**options: Any) -> Any:  # noqa: ANN401 - may not be installed
    module = pytest.importorskip("torchdata.stateful_dataloader")
    return module.StatefulDataLoader(DATA, **options)


class Remembering(torch.utils.data.RandomSampler):
    """A sampler that draws, and has a state."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take nothing."""


def test_a_sampler_that_draws_and_forgets_is_refused(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        forgets = torch.utils.data.WeightedRandomSampler([1.0] * len(DATA), len(DATA))
        with pytest.raises(errors.InvalidInput, match="WeightedRandomSampler"):
            ckpt.add("weighted", torchdata_loader(sampler=forgets))
        batches = torch.utils.data.BatchSampler(
            torch.utils.data.RandomSampler(DATA), 2, drop_last=False
        )
        with pytest.raises(errors.InvalidInput, match="RandomSampler"):
            ckpt.add("batched", torchdata_loader(batch_sampler=batches))
        ckpt.add("remembers", torchdata_loader(sampler=Remembering(DATA)))
        ckpt.add("shuffled", torchdata_loader(shuffle=True))


def test_another_number_of_workers_does_not_fit(tmp_path: Path) -> None:
    with new_job(tmp_path, torchdata_loader()) as ckpt:
        ckpt.save(1)
    other = torchdata_loader(num_workers=2)
    with new_job(tmp_path, other) as ckpt:
        with pytest.raises(errors.StateMismatch, match="num_workers=0") as caught:
            ckpt.restore()
        assert len(caught.value.problems) == 1
        assert ckpt.restore(policies={"loader": "skip"}) is not None


def test_workers_of_a_saved_loader_are_found(tmp_path: Path) -> None:
    state = {"_snapshot": {"_main_snapshot": {"_num_workers": 3}}}
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        saved = Stateful(DATA)  # type: ignore[arg-type]
        saved.state_dict = lambda: state  # type: ignore[assignment, return-value, method-assign]
        ckpt.add("loader", saved)
        ckpt.save(1)
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("loader", Stateful(DATA))  # type: ignore[arg-type]
        with pytest.raises(errors.StateMismatch, match="num_workers=3"):
            ckpt.restore()


@pytest.mark.parametrize("loop", ["none", "steps", "batches"])
def test_an_iterator_made_by_hand_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    loader = torchdata_loader(shuffle=True)
    with new_job(tmp_path, loader) as ckpt:
        next(iter(loader))
        ckpt.save(1)
    loader = torchdata_loader(shuffle=True)
    with new_job(tmp_path, loader) as ckpt:
        ckpt.restore()
        if loop == "steps":
            next(ckpt.steps(9))
        next(ckpt.batches(loader) if loop == "batches" else iter(loader))
    assert ["the iterator of loader" in text for text in warnings_of(caplog)] == (
        [] if loop == "batches" else [True]
    )


def test_streams_are_captured_after_a_loader_that_draws_when_asked(tmp_path: Path) -> None:
    """Asked for its state before the first epoch, torchdata's loader makes its iterator."""
    runs = []
    for _ in range(2):
        loader = torchdata_loader(shuffle=True, generator=GENERATOR)
        with new_job(tmp_path, loader) as ckpt:
            if ckpt.restore() is None:
                ckpt.save(0)
            runs.append([(batch.item(), draw()) for batch in ckpt.batches(loader)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("num_batches", "warns"), [(2, True), (3, False)])
def test_a_save_in_mid_epoch_of_a_loader_without_state_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_batches: int, warns: bool
) -> None:
    loader: Any = DataLoader(torch.arange(6.0), batch_size=2)  # type: ignore[arg-type]
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("counter", {"n": 0})
        for epoch in (1, 2):
            for number, _ in enumerate(ckpt.batches(loader), start=1):
                if number == num_batches:
                    ckpt.save(epoch)
    texts = [one.getMessage() for one in caplog.records if "has no state" in one.getMessage()]
    assert len(texts) == warns
    assert all("save of step 1 in the middle of an epoch" in text for text in texts)


def test_nobody_warns_where_the_length_of_an_epoch_is_unknown_or_the_loader_has_a_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stream(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(DATA)

    loaders: list[Any] = [DataLoader(Stream()), Stateful(torch.arange(6.0)), DATA]  # type: ignore[arg-type]
    with ss.Checkpointer(tmp_path, mode="sync") as ckpt:
        ckpt.add("counter", {"n": 0})
        for step, loader in enumerate(loaders, start=1):
            next(iter(ckpt.batches(loader)))
            ckpt.save(step)
    assert "has no state" not in caplog.text
