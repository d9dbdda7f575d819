"""No sample is skipped and none comes twice after a resume, whoever made the loader."""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._ledgers import BATCHES, KINDS, NUM_SAMPLES, PLACES, Life, life

import stepseal as ss
from stepseal.components import _loaders
from stepseal.errors import StateMismatch
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # by torchdata
]

ITERABLE = ("hf iterable", "hf interleaved", "hf bare")
CELLS = [
    *((kind, 0, place, "") for kind in KINDS for place in PLACES),
    *(
        (kind, 0, place, told)
        for kind in ITERABLE
        for place in PLACES
        for told in ("before", "after")
    ),
    *(
        (kind, 2, place, "")
        for kind in ("torchdata", "sampler")
        for place in ("middle", "second last")
    ),
    ("hf map", 2, "middle", ""),
    ("hf sampler", 2, "last", ""),
    ("hf iterable", 2, "middle", "before"),
    ("hf iterable", 2, "last", "after"),
]
"""Kind, workers, place, and how the dataset hears of epochs."""


def needs(kind: str) -> None:
    """Skip where a library is missing."""
    if kind not in ("sampler", "by hand", "hf sampler", "hf bare"):
        pytest.importorskip("torchdata")
    if kind.startswith("hf"):
        pytest.importorskip("datasets", reason="datasets, by Hugging Face, is not installed")


def ids(ledger: Life) -> list[tuple[int, ...]]:
    return [samples for _, samples in ledger]


def unlike_one_run(kind: str, num_workers: int, place: str, told: str) -> list[str]:
    """Return in what a life that was saved and resumed differs from one that was not."""
    storage, make = MemoryStorage(), functools.partial(KINDS[kind], num_workers)
    _, whole = life(storage, make, save=place, set_epoch=told)
    first, rest = life(storage, make, set_epoch=told)
    found = [] if first == PLACES[place] else [f"resumed at {first}"]
    if ids(rest) != ids(whole[first:]):
        found.append(f"trained on {ids(rest)}, not on {ids(whole[first:])}")
    trained = ids(whole[:first] + rest)
    for epoch in range(len(trained) // BATCHES):
        batches = trained[epoch * BATCHES : (epoch + 1) * BATCHES]
        counts = Counter(sample for samples in batches for sample in samples)
        if counts != Counter(range(NUM_SAMPLES)):
            found.append(f"epoch {epoch} trained on {dict(counts)}")
    return found


# torchdata ends the workers of a dropped iterator in its finaliser, where one may be gone already.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*_StatefulMultiProcessingDataLoaderIter"
    ":pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(("kind", "num_workers", "place", "told"), CELLS)
def test_a_resumed_life_trains_on_what_is_left(
    kind: str, num_workers: int, place: str, told: str
) -> None:
    needs(kind)
    assert unlike_one_run(kind, num_workers, place, told) == []


def counts_nothing(sampler: ss.GlobalSampler) -> None:
    sampler._is_counted = True


VARIANTS: list[tuple[Any, str, Any, tuple[str, int, str, str]]] = [
    (_loaders, "forget_position", lambda *_: None, ("hf iterable", 0, "middle", "")),
    (_loaders, "forget_position", lambda *_: None, ("hf bare", 0, "middle", "")),
    (_loaders, "set_saved_epoch", lambda *_: None, ("hf bare", 0, "second", "after")),
    (
        ss.GlobalSampler,
        "count",
        counts_nothing,
        ("sampler", 0, "middle", ""),
    ),
]


@pytest.mark.parametrize(("owner", "name", "variant", "cell"), VARIANTS)
def test_the_ledger_finds_variants_that_lose_the_position(
    owner: Any,  # noqa: ANN401 - a module or a class
    name: str,
    variant: Any,  # noqa: ANN401 - in the place of a function
    cell: tuple[str, int, str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs(cell[0])
    monkeypatch.setattr(owner, name, variant)
    assert unlike_one_run(*cell) != []


def other_dataset(storage: MemoryStorage, num_samples: int, **policies: Any) -> Any:  # noqa: ANN401
    """Return what a job on a dataset of this size trains on, or the error that refuses it."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def work(_: int, ckpt: ss.Checkpointer) -> Any:  # noqa: ANN401
        loader: Iterable[torch.Tensor] = stateful(torch.arange(num_samples), batch_size=2)
        ckpt.add("data", loader)
        with ckpt:
            try:
                ckpt.restore(policies=policies)
            except StateMismatch as error:
                return error
            seen = []
            for batch in ckpt.batches(loader):
                seen += batch.tolist()
                if len(seen) == 4:
                    ckpt.save(len(seen) + 100 * num_samples)
            return seen

    return World(1, lambda _: storage).run(work)[0]


def test_a_loader_of_another_dataset_is_refused_and_begins_by_policy() -> None:
    storage = MemoryStorage()
    assert other_dataset(storage, 6) == [0, 1, 2, 3, 4, 5]
    assert other_dataset(storage, 6) == [4, 5]
    error = other_dataset(storage, 8)
    assert error.problems == (
        "component data: dataset: expected (live) 8 samples, found 6: another dataset. "
        "restore(policies={'data': 'fresh'}), at this start only, begins with its first sample",
    )
    assert other_dataset(storage, 8, data="fresh") == list(range(8))


def test_without_the_comparison_samples_of_another_dataset_would_be_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = MemoryStorage()
    assert other_dataset(storage, 6) == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(_loaders.LoaderComponent, "state_problems", lambda *_: [])
    assert other_dataset(storage, 8) == [4, 5, 6, 7]
