from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch
from tests.components._memory import world

from stepseal.components._dtensors import Leaf, is_dtensor, leaf_of, owns_plain_tensors
from stepseal.errors import UnsupportedState
from stepseal.layout import Sharing, whole

if TYPE_CHECKING:
    from collections.abc import Callable


def leaf(tensor: torch.Tensor) -> Leaf:
    return leaf_of("model", "weight", tensor, owns_plain=True)


def test_a_plain_tensor_is_whole_and_shares_memory() -> None:
    tensor = torch.nn.Parameter(torch.zeros(2, 3))
    found = leaf(tensor)
    assert (found.shape, found.box, found.writes) == ((2, 3), whole((2, 3)), True)
    assert found.dtype == "float32"
    assert type(found.local) is torch.Tensor
    assert not found.local.requires_grad
    assert found.local.data_ptr() == tensor.data_ptr()


def test_the_first_participant_owns_plain_tensors() -> None:
    first, second = world(2)
    assert owns_plain_tensors(first, [torch.zeros(1)], Sharing.SHARDED)
    assert not owns_plain_tensors(second, [torch.zeros(1)], Sharing.SHARDED)
    assert not leaf_of("model", "weight", torch.zeros(1), owns_plain=False).writes


class Tagged(torch.Tensor):
    """A subclass without behaviour of its own."""


class Wrapper(torch.Tensor):
    """A subclass that holds its data in another tensor."""

    @classmethod
    def __torch_dispatch__(cls, *_args: object) -> object:
        raise NotImplementedError


class ShardedTensor(torch.Tensor):
    """Stands for torch's own class of this name, which needs a process group."""


def ragged(layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=layout)


UNSUPPORTED: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "meta": lambda: torch.empty(2, device="meta"),
    "nested": lambda: ragged(torch.strided),
    "jagged": lambda: ragged(torch.jagged),
    "lazy": torch.nn.UninitializedParameter,
    "ShardedTensor": lambda: torch.ones(2).as_subclass(ShardedTensor),
    "Wrapper": lambda: torch.ones(2).as_subclass(Wrapper),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "kind",
    # jagged tensors import a compiler
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "jagged")) for kind in UNSUPPORTED],
)
def test_tensors_whose_bytes_are_not_their_state_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedState) as caught:
        leaf(UNSUPPORTED[kind]())
    assert (caught.value.component, caught.value.path) == ("model", "weight")
    word = "nested" if kind == "jagged" else kind
    assert word in str(caught.value)


def test_a_subclass_without_behaviour_is_stored_as_a_tensor() -> None:
    found = leaf(torch.ones(2).as_subclass(Tagged))
    assert type(found.local) is torch.Tensor


def test_no_dtensor_exists_before_its_module() -> None:
    assert not is_dtensor(torch.zeros(1))
    assert not is_dtensor(3)
    assert "torch" in sys.modules
