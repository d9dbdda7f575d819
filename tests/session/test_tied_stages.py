"""Tied weights: one parameter with two names here, two parameters on two stages there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._sets import in_world
from torch import nn

import stepseal as ss
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Sequence

StateMismatch = ss.errors.StateMismatch
STAGES, WHOLE = [["embed"], ["head"]], [["embed", "head"]]


class Ends(nn.Module):
    """Both ends of a model, or one of them."""

    def __init__(self, names: Sequence[str], tied: bool) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(2, 2, bias=False))
        if tied:
            self.head.weight = self.embed.weight  # type: ignore[union-attr]


def run(
    storage: MemoryStorage,
    held: list[list[str]],
    *,
    saves: bool = False,
    tied: bool = False,
    slopes: Sequence[float] = (3.0, 3.0),
) -> list[Any]:
    """Save after one step, or restore; return per rank the moments by the name of the parameter."""

    def work(rank: int, ckpt: ss.Checkpointer) -> dict[str, float]:
        model = Ends(held[rank], tied)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        ckpt.add("model", model, sharing=ss.SHARDED)
        ckpt.add("optimizer", optimizer, sharing=ss.SHARDED)
        if saves:
            for parameter in model.parameters():
                nn.init.ones_(parameter)
                parameter.grad = torch.full_like(parameter, slopes[rank])
            optimizer.step()
            ckpt.save(1).wait()
        else:
            ckpt.restore()
        names: dict[Any, str] = {one: name for name, one in model.named_parameters()}
        moments = {names[p]: held["momentum_buffer"] for p, held in optimizer.state.items()}
        return {name: moment.unique().item() for name, moment in moments.items()}

    return in_world(len(held), storage, work)


def test_what_is_tied_here_goes_to_two_stages_and_back() -> None:
    storage = MemoryStorage()
    assert run(storage, WHOLE, saves=True, tied=True) == [{"embed.weight": 3.0}]
    assert run(storage, STAGES) == [{"embed.weight": 3.0}, {"head.weight": 3.0}]
    storage = MemoryStorage()
    run(storage, STAGES, saves=True)
    assert run(storage, WHOLE, tied=True) == [{"embed.weight": 3.0}]
    assert run(storage, WHOLE) == [{"embed.weight": 3.0, "head.weight": 3.0}]


def test_a_tied_parameter_that_only_one_stage_saved_has_the_name_of_the_other_here() -> None:
    storage = MemoryStorage()
    run(storage, [["head"]], saves=True)
    (error,) = run(storage, WHOLE, tied=True)
    assert error.problems == ("component model: embed.weight: missing in the checkpoint",)


def test_state_that_differs_cannot_be_that_of_one_parameter() -> None:
    storage = MemoryStorage()
    run(storage, STAGES, saves=True, slopes=(3.0, 4.0))
    (error,) = run(storage, WHOLE, tied=True)
    assert isinstance(error, StateMismatch)
    assert any("head.weight: tied (live) to embed.weight" in one for one in error.problems)


def test_what_was_tied_and_is_two_parameters_here_is_refused() -> None:
    storage = MemoryStorage()
    run(storage, WHOLE, saves=True, tied=True)
    (error,) = run(storage, WHOLE)
    assert isinstance(error, StateMismatch)
    text = "component optimizer: param_groups[0]: head.weight: missing in the checkpoint"
    assert text in error.problems


@pytest.mark.parametrize("tied", [True, False])
def test_ties_are_noted_only_where_there_are_some(tied: bool) -> None:
    from stepseal.components._optimizer_names import names_of, tied_names

    model = Ends(WHOLE[0], tied)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modules = {"model": model}
    found = tied_names(names_of("optimizer", optimizer, modules), modules)
    assert found == ({"head.weight": "embed.weight"} if tied else {})
