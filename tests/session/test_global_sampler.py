"""One position for the whole job: no sample is skipped or repeated, on any number of ranks."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader

import stepseal as ss
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepseal.components import GlobalSampler

InvalidInput, StateMismatch = ss.errors.InvalidInput, ss.errors.StateMismatch
NUM_SAMPLES, BATCH_SIZE = 101, 3

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata

Ledger = list[tuple[int, int, list[int]]]
"""Step, epoch, and the samples that one rank trained on."""


def loader_of(sampler: GlobalSampler, num_workers: int = 0) -> DataLoader[Any]:
    samples: Any = torch.arange(NUM_SAMPLES)
    return DataLoader(samples, batch_sampler=sampler, num_workers=num_workers)


def life(
    storage: MemoryStorage, num_ranks: int, last_step: int, *, saves_at: Iterable[int] = ()
) -> list[Ledger]:
    """Train up to a step, and die there; return what each rank trained on."""
    saves = frozenset(saves_at)

    def work(rank: int, ckpt: ss.Checkpointer) -> Ledger:
        sampler = ss.GlobalSampler(NUM_SAMPLES, BATCH_SIZE, seed=5, rank=rank, num_ranks=num_ranks)
        loader, ledger = loader_of(sampler), list[tuple[int, int, list[int]]]()
        ckpt.add("data", sampler)
        ckpt.add("model", {"w": torch.zeros(2)})
        with ckpt:
            resumed = ckpt.restore()
            step = resumed.step if resumed else 0
            while step < last_step:
                for batch in ckpt.batches(loader):
                    step += 1
                    ledger.append((step, sampler.epoch, batch.tolist()))
                    if step in saves:
                        ckpt.save(step)
                    if step == last_step:
                        break
        return ledger

    return World(num_ranks, lambda _: storage).run(work)


def trained(lives: list[tuple[int, list[Ledger]]]) -> list[tuple[int, int]]:
    """Return (epoch, sample) of every sample of the run that counts, as the lives went on."""
    return [
        (epoch, sample)
        for last_step, ledgers in lives
        for ledger in ledgers
        for step, epoch, samples in ledger
        if step <= last_step
        for sample in samples
    ]


def shrinking_and_growing() -> list[tuple[int, list[Ledger]]]:
    """Return what a job trained on with 4, 2 and 3 ranks, with the last step of each life."""
    storage = MemoryStorage()
    return [
        (5, life(storage, 4, 7, saves_at=[5])),  # steps 6 and 7 are lost, and done again
        (12, life(storage, 2, 12, saves_at=[12])),
        (30, life(storage, 3, 30)),
    ]


def test_no_sample_is_skipped_or_repeated_when_the_world_changes() -> None:
    lives = shrinking_and_growing()
    assert [ledger[0][0] for _, ledgers in lives for ledger in ledgers] == [1] * 4 + [6] * 2 + [
        13
    ] * 3
    counts = Counter(trained(lives))
    assert set(counts.values()) == {1}
    first = [sample for epoch, sample in counts if epoch == 0]
    assert len(first) == 5 * 12 + 6 * 6  # the 5 that are left fill no global batch of 6


def in_batches(sampler: GlobalSampler, state: dict[str, Any]) -> None:
    """Go on after as many batches of each rank as before, as samplers of one rank do."""
    num_before = {60: 4, 72: 2}[state["consumed"]]
    position = state["consumed"] // (BATCH_SIZE * num_before) * sampler.global_batch_size
    sampler.epoch, sampler.consumed = state["epoch"], min(position, NUM_SAMPLES)


def by_rank(sampler: GlobalSampler) -> torch.Tensor:
    """Order the samples by a seed of each rank, so that ranks may meet."""
    generator = torch.Generator().manual_seed(sampler.rank)
    return torch.randperm(sampler.num_samples, generator=generator)


@pytest.mark.parametrize(
    ("name", "variant"), [("load_state_dict", in_batches), ("_order", by_rank)]
)
def test_the_ledger_finds_variants_of_the_sampler(
    name: str,
    variant: Any,  # noqa: ANN401 - in the place of a method
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ss.GlobalSampler, name, variant)
    assert set(Counter(trained(shrinking_and_growing())).values()) != {1}


def test_one_epoch_has_one_order_on_any_number_of_ranks() -> None:
    orders = []
    for num_ranks in (1, 2, 3):
        ledgers = life(MemoryStorage(), num_ranks, 4)
        steps = zip(*ledgers, strict=True)
        orders.append([one for step in steps for _, _, samples in step for one in samples][:12])
    assert orders[0] == orders[1] == orders[2]
    assert orders[0] != sorted(orders[0])


def test_epochs_differ_and_what_fills_no_global_batch_is_counted() -> None:
    sampler = ss.GlobalSampler(10, 2, rank=1, num_ranks=2)
    epochs = []
    for _ in range(2):
        epochs.append(list(sampler))
        for _ in epochs[-1]:
            sampler.advance()
        with pytest.raises(InvalidInput, match=r"leave sampler.advance\(\)"):
            sampler.advance()
        sampler.end_epoch()
    assert [len(epoch) for epoch in epochs] == [2, 2]
    assert epochs[0] != epochs[1]
    assert (sampler.epoch, sampler.consumed, sampler.num_dropped) == (2, 0, 4)
    plain = ss.GlobalSampler(10, 2, shuffle=False, rank=1, num_ranks=2)
    assert list(plain) == [[2, 3], [6, 7]]


def draws(storage: MemoryStorage, num_workers: int, steps: range, *, save: int | None) -> list[Any]:
    """Return what a life saw: batch, and a number from the global stream, per step."""

    def work(_: int, ckpt: ss.Checkpointer) -> list[Any]:
        torch.manual_seed(1)
        sampler = ss.GlobalSampler(NUM_SAMPLES, 10, rank=0, num_ranks=1)
        loader, seen = loader_of(sampler, num_workers), list[Any]()
        ckpt.add("data", sampler)
        ckpt.add("rng", ss.RNG())
        with ckpt:
            resumed = ckpt.restore()
            torch.rand(3)  # a warm-up
            step = resumed.step if resumed else 0
            while step < steps.stop - 1:
                for batch in ckpt.batches(loader):
                    step += 1
                    seen.append((step, batch.tolist(), torch.rand(1).item()))
                    if step == save:
                        ckpt.save(step)
                    if step == steps.stop - 1:
                        break
        return seen

    return World(1, lambda _: storage).run(work)[0]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("at", [4, 10, 13])  # in the middle, at the end, in the second epoch
def test_a_resumed_run_is_exact(num_workers: int, at: int) -> None:
    storage = MemoryStorage()
    whole = draws(storage, num_workers, range(1, 25), save=at)
    resumed = draws(storage, num_workers, range(at + 1, 25), save=None)
    assert resumed == whole[at:]


def test_a_loop_by_hand_is_refused_where_nobody_counts() -> None:
    def work(_: int, ckpt: ss.Checkpointer) -> None:
        sampler = ss.GlobalSampler(NUM_SAMPLES, 10, rank=0, num_ranks=1)
        loader = loader_of(sampler)
        ckpt.add("data", sampler)
        with ckpt:
            ckpt.restore()
            next(iter(loader))
            with pytest.raises(InvalidInput, match="none was counted"):
                ckpt.save(1)
            sampler.advance()
            assert ckpt.save(2).wait().step == 2

    World(1, lambda _: MemoryStorage()).run(work)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"num_samples": 90}, r"num_samples: expected \(live\) 90, found 101: another dataset"),
        ({"seed": 6}, r"seed: expected \(live\) 6, found 5"),
        ({"shuffle": False}, "shuffle"),
        ({"dataset": "b"}, r"dataset: expected \(live\) 'b', found ''"),
    ],
)
def test_another_dataset_is_refused_or_begins_by_policy(other: dict[str, Any], text: str) -> None:
    storage = MemoryStorage()
    life(storage, 1, 3, saves_at=[3])

    def work(_: int, ckpt: ss.Checkpointer) -> None:
        arguments: dict[str, Any] = {"num_samples": NUM_SAMPLES, "seed": 5, **other}
        sampler = ss.GlobalSampler(batch_size=BATCH_SIZE, rank=0, num_ranks=1, **arguments)
        ckpt.add("data", sampler)
        ckpt.add("model", {"w": torch.zeros(2)})
        with ckpt:
            with pytest.raises(StateMismatch, match=text):
                ckpt.restore()
            restored = ckpt.restore(policies={"data": "fresh"})
            assert restored is not None
            assert restored.fresh["data"] == {"step": 3}
        assert sampler.consumed == 0

    World(1, lambda _: storage).run(work)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_samples": 0, "batch_size": 1}, "num_samples: expected an int of at least 1"),
        ({"num_samples": 9, "batch_size": "2"}, "batch_size: expected an int"),
        ({"num_samples": 9, "batch_size": 2, "rank": 3, "num_ranks": 3}, "less than num_ranks=3"),
        ({"num_samples": 5, "batch_size": 2, "rank": 0, "num_ranks": 3}, "one global batch.*6"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        ss.GlobalSampler(**arguments)


def test_the_sampler_is_added_and_not_its_loader(caplog: pytest.LogCaptureFixture) -> None:
    StatefulDataLoader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def work(_: int, ckpt: ss.Checkpointer) -> None:
        sampler = ss.GlobalSampler(NUM_SAMPLES, 10, rank=0, num_ranks=1)
        samples: Any = torch.arange(NUM_SAMPLES)
        with pytest.raises(InvalidInput, match=r"add\('data', loader.batch_sampler\)"):
            ckpt.add("data", StatefulDataLoader(samples, batch_sampler=sampler))
        ckpt.add("other", {"a": 1})
        with ckpt:
            ckpt.restore()
            for _batch in ckpt.batches(loader_of(sampler)):
                ckpt.save(1)
                break

    with caplog.at_level(logging.WARNING):
        World(1, lambda _: MemoryStorage()).run(work)
    assert "the loader has no state" in caplog.text


def test_batches_that_were_looked_at_before_the_restore_do_not_count() -> None:
    storage = MemoryStorage()
    life(storage, 1, 3, saves_at=[3])

    def work(_: int, ckpt: ss.Checkpointer) -> None:
        sampler = ss.GlobalSampler(NUM_SAMPLES, BATCH_SIZE, seed=5, rank=0, num_ranks=1)
        loader = loader_of(sampler)
        ckpt.add("data", sampler)
        ckpt.add("model", {"w": torch.zeros(2)})
        next(iter(loader))
        with ckpt:
            assert ckpt.restore() is not None
            next(iter(ckpt.batches(loader)))
            assert sampler.consumed == 4 * BATCH_SIZE
            ckpt.save(4)

    World(1, lambda _: storage).run(work)


def test_an_epoch_that_nobody_ends_is_told() -> None:
    sampler = ss.GlobalSampler(6, 3, rank=0, num_ranks=1)
    for _ in sampler:
        sampler.advance()
    assert list(sampler) == []  # a job that was saved at the end of an epoch begins so
    with pytest.raises(InvalidInput, match="epoch 0 is over"):
        list(sampler)
    sampler.end_epoch()
    assert len(list(sampler)) == 2


def test_a_loader_that_takes_it_for_single_samples_is_refused() -> None:
    def work(_: int, ckpt: ss.Checkpointer) -> None:
        sampler = ss.GlobalSampler(NUM_SAMPLES, 10, rank=0, num_ranks=1)
        samples: Any = torch.arange(NUM_SAMPLES)
        ckpt.add("data", sampler)
        with ckpt:
            ckpt.restore()
            single: Any = sampler
            with pytest.raises(InvalidInput, match="batch_sampler="):
                next(iter(ckpt.batches(DataLoader(samples, sampler=single))))

    World(1, lambda _: MemoryStorage()).run(work)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_counted_by_the_loop_alone(num_workers: int) -> None:
    def work(_: int, ckpt: ss.Checkpointer) -> None:
        sampler = ss.GlobalSampler(NUM_SAMPLES, 10, rank=0, num_ranks=1)
        loader = loader_of(sampler, num_workers)
        ckpt.add("data", sampler)
        with ckpt:
            ckpt.restore()
            for step, _batch in enumerate(ckpt.batches(loader), start=1):
                with pytest.raises(InvalidInput, match=r"leave sampler.advance\(\)"):
                    sampler.advance()
                if step == 4:
                    next(iter(loader))  # somebody looks at a batch in the middle
                assert sampler.consumed == 10 * step
            next(iter(loader))
            ckpt.save(1)

    World(1, lambda _: MemoryStorage()).run(work)
