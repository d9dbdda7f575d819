"""Random streams of a job on 4, then 2, then 3 ranks: none comes twice, and each comes again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import stepseal as ss
from stepseal.components import _reseed
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Sequence

Draws = list[float]


def life(storage: MemoryStorage, num_ranks: int, last: int, how: Any = "fresh") -> list[Draws]:  # noqa: ANN401
    """Draw once per step and stream up to a step, save it, and draw on; return draws per rank."""

    def work(rank: int, ckpt: ss.Checkpointer) -> Draws:
        stream, other = (
            torch.Generator().manual_seed(rank),
            np.random.Generator(np.random.PCG64(rank)),
        )
        ckpt.add("rng", ss.RNG(torch=[stream], numpy=[other]), on_world_change=how)
        with ckpt:
            restored = ckpt.restore()
            drawn: Draws = []
            for step in range(restored.step if restored else 0, last):
                drawn.append(torch.rand(1, generator=stream, dtype=torch.float64).item())
                drawn.append(other.random())
                if step == last - 1:
                    ckpt.save(last)
        return drawn

    return World(num_ranks, lambda _: storage).run(work)


def drawn(lives: list[list[Draws]]) -> list[float]:
    return [one for ranks in lives for draws in ranks for one in draws]


def run(how: Any = "fresh") -> list[float]:  # noqa: ANN401 - as of add
    storage = MemoryStorage()
    return drawn([life(storage, num, 3 * (k + 1), how) for k, num in enumerate((4, 2, 3))])


def test_no_stream_comes_twice_on_four_then_two_then_three_ranks() -> None:
    draws = run()
    assert len(draws) == 2 * 3 * (4 + 2 + 3)
    assert len(set(draws)) == len(draws)


def test_back_on_the_first_number_of_ranks_no_old_stream_goes_on() -> None:
    storage = MemoryStorage()
    lives = [life(storage, num, 3 * (k + 1)) for k, num in enumerate((3, 2, 3))]
    assert len(set(drawn(lives))) == len(drawn(lives))


def test_the_same_restart_begins_the_same_streams() -> None:
    storage = MemoryStorage()
    life(storage, 4, 3)
    again = storage.after_power_loss(lambda *_: 1.0)
    assert life(storage, 2, 6) == life(again, 2, 6)


def by_number(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> Any:  # noqa: ANN401
    """Give each rank the stream of its number, and the others one of these once more."""
    assert new.index is not None
    return states[new.index % len(states)]


def test_the_draws_find_ranks_that_take_the_stream_of_their_number() -> None:
    draws = run(by_number)
    assert len(set(draws)) < len(draws)


VARIANTS: list[tuple[str, Any]] = [
    (
        "one stream for all",
        lambda self, stream: int.from_bytes(f"{self.step}{stream}".encode(), "big") % 2**63,
    ),
    ("the rank alone", lambda self, _: self.rank),
]


@pytest.mark.parametrize(("name", "seed_of"), VARIANTS)
def test_the_draws_find_seeds_that_meet(
    name: str,
    seed_of: Any,  # noqa: ANN401 - in the place of a method
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_reseed.Streams, "seed_of", seed_of)
    draws = run()
    assert len(set(draws)) < len(draws), name
