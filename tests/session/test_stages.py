"""Stages of a pipeline: keys differ between ranks, and another division of the layers restores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from tests.session._sets import in_world
from torch import nn

import stepseal as ss
from stepseal.components import Taken
from stepseal.components import _tensors as tensors
from stepseal.errors import CheckpointError
from stepseal.layout import decode_manifest
from stepseal.session import _indexer as indexer
from stepseal.storage import exists, read_bytes
from stepseal.testing import MemoryStorage
from stepseal.transfer import StepReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stepseal.components import DeclaredSharing
    from stepseal.storage import Storage

StateMismatch, ParticipantFailed = ss.errors.StateMismatch, ss.errors.ParticipantFailed
FOUR: list[list[int]] = [[0, 1], [2], [3, 4], []]
"""Layers of each of four stages: uneven, and the last has none."""
REPLICAS = ss.sharded(same_on=[[0, 2], [1, 3]])
"""Of two stages, each on two ranks."""


class Layer(nn.Module):
    """Parameters, buffers, and a value that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.calls = 0

    def get_extra_state(self) -> object:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401
        self.calls = state["calls"]


class Stage(nn.Module):
    """Some layers under their names in the whole model, and a buffer that all stages hold."""

    def __init__(self, layers: Iterable[int], tied: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(number): Layer() for number in layers})
        self.register_buffer("rotary", torch.arange(3.0))
        if tied:
            self.embedding = nn.Linear(2, 2, bias=False)

    def fill(self, seed: int) -> None:
        """Give each tensor and value what its name and the seed say."""
        for name, tensor in self.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor) and name != "rotary":
                stream = torch.Generator().manual_seed(seed + sum(map(ord, name)))
                with torch.no_grad():
                    tensor.copy_(100 * torch.rand(tensor.shape, generator=stream))
        for number, layer in self.layers.items():
            assert isinstance(layer, Layer)
            layer.calls = seed + int(number)


def job(
    divided: Sequence[Iterable[int]],
    sharing: DeclaredSharing | None,
    *,
    saves: bool = False,
    seed: Callable[[int], int] = lambda _rank: 7,
    validate: Literal["none"] | None = None,
) -> Callable[[int, ss.Checkpointer], dict[str, Any]]:
    """Return what a rank does; the first and the last layers share an embedding."""

    def work(rank: int, ckpt: ss.Checkpointer) -> dict[str, Any]:
        last = max((n for layers in divided for n in layers), default=0)
        stage = Stage(divided[rank], not divided[rank] or bool({0, last} & {*divided[rank]}))
        optimizer = torch.optim.AdamW([{"params": list(stage.parameters())}], lr=0.1)
        if saves:
            stage.fill(seed(rank))
            for parameter in stage.parameters():
                parameter.grad = parameter.detach().clone()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.25
        ckpt.add("model", stage, sharing=sharing, validate=validate)
        ckpt.add("optimizer", optimizer, sharing=sharing, validate=validate)
        if saves:
            ckpt.save(1).wait()
        else:
            ckpt.restore()
        assert optimizer.param_groups[0]["lr"] == 0.25
        names: dict[Any, str] = {p: name for name, p in stage.named_parameters()}
        held = {f"{names[p]}.{k}": v for p, s in optimizer.state.items() for k, v in s.items()}
        return {**stage.state_dict(), **held}

    return work


def comes_back(saved: list[Any], restored: list[Any]) -> bool:
    """Tell whether all that was saved was restored, to the last bit, and nothing else."""
    if any(isinstance(one, Exception) for one in (*saved, *restored)):
        return False
    whole, back = ({k: v for held in ranks for k, v in held.items()} for ranks in (saved, restored))
    equal = (
        torch.equal(v, whole[k]) if torch.is_tensor(v) else v == whole[k]
        for held in restored
        for k, v in held.items()
        if k in whole
    )
    return whole.keys() == back.keys() and all(equal)


def writers(storage: Storage, component: str) -> dict[str, list[str]]:
    """Return who stored each tensor of step 1."""
    manifest = decode_manifest(read_bytes(storage, "step-1/manifest.json", 1 << 20))
    stored = StepReader(storage, "step-1", manifest).stored(component)
    return {key: [box.participant for box in boxes] for key, boxes in stored.items()}


WHOLE = [[0, 1, 2, 3, 4]]
DIVISIONS: list[tuple[Sequence[Iterable[int]], DeclaredSharing | None]] = [
    ([[0, 1, 2], [3, 4]], ss.SHARDED),
    ([[0], [1, 2], [3, 4]], ss.SHARDED),
    (FOUR, ss.SHARDED),
    (WHOLE, ss.SHARDED),
    (WHOLE, None),
    ([[0, 1, 2], [3, 4], [0, 1, 2], [3, 4]], REPLICAS),
]


@pytest.mark.parametrize(("divided", "sharing"), DIVISIONS)
def test_another_division_of_the_layers_restores(
    divided: Sequence[Iterable[int]], sharing: DeclaredSharing | None
) -> None:
    storage = MemoryStorage()
    saved = in_world(4, storage, job(FOUR, ss.SHARDED, saves=True))
    assert comes_back(saved, in_world(len(divided), storage, job(divided, sharing)))


@pytest.mark.parametrize(("divided", "sharing"), DIVISIONS)
def test_whatever_saved_the_layers_stages_restore_them(
    divided: Sequence[Iterable[int]], sharing: DeclaredSharing | None
) -> None:
    storage = MemoryStorage()
    saved = in_world(len(divided), storage, job(divided, sharing, saves=True))
    assert comes_back(saved, in_world(2, storage, job([[0], [1, 2, 3, 4]], ss.SHARDED)))


def test_what_a_set_holds_is_written_by_its_lowest_rank_and_by_each_set_that_holds_it() -> None:
    storage = MemoryStorage()
    divided = [[0, 1], [2], [0, 1], [2]]
    saved = in_world(4, storage, job(divided, REPLICAS, saves=True))
    found = writers(storage, "model")
    assert found["layers.1.linear.weight"] == ["trainer/0"]
    assert found["layers.2.norm.running_mean"] == ["trainer/1"]
    assert found["rotary"] == found["embedding.weight"] == ["trainer/0", "trainer/1"]
    moments = writers(storage, "optimizer")
    assert moments["state.layers.2.linear.bias.exp_avg"] == ["trainer/1"]
    assert comes_back(saved, in_world(4, storage, job(divided, REPLICAS)))


def test_values_of_a_set_that_differ_commit_nothing() -> None:
    storage = MemoryStorage()
    divided = [[0], [1], [0], [1]]
    drifted = job(divided, REPLICAS, saves=True, seed=lambda rank: rank // 2)
    for error in in_world(4, storage, drifted):
        assert isinstance(error, ParticipantFailed)
        assert set(error.failures) == {"trainer/2", "trainer/3"}
        assert "embedding.weight" in str(error)
    assert not exists(storage, "step-1")


def test_the_values_of_a_set_that_is_not_compared_are_those_of_its_lowest_rank() -> None:
    storage = MemoryStorage()
    divided = [[0], [1], [0], [1]]
    drifted = job(divided, REPLICAS, saves=True, seed=lambda rank: rank // 2, validate="none")
    saved = in_world(4, storage, drifted)
    restored = in_world(4, storage, job(divided, REPLICAS))
    assert comes_back(saved[:2], restored)
    assert not comes_back(saved, restored[:2])


def test_one_name_with_two_values_commits_nothing() -> None:
    storage = MemoryStorage()
    anew = [[0, 1], [0, 1]]  # a stage that counts its layers anew
    for error in in_world(2, storage, job(anew, ss.SHARDED, saves=True, seed=lambda rank: rank)):
        assert isinstance(error, StateMismatch)
        text = (
            "component model: layers.0.linear.weight: other elements on trainer/1 than on trainer/0"
        )
        assert text in error.problems
        assert any("_extra_state: another value on trainer/1" in one for one in error.problems)
        assert any(one.startswith("component optimizer: state.") for one in error.problems)
        assert not any("rotary" in one for one in error.problems)
    assert not exists(storage, "step-1")


def test_one_name_with_two_shapes_commits_nothing() -> None:
    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("model", nn.Linear(2, 2 + rank), sharing=ss.SHARDED)
        ckpt.save(1).wait()

    for error in in_world(2, MemoryStorage(), work):
        assert isinstance(error, StateMismatch)
        assert "weight: float32 [2, 2] on trainer/0, float32 [3, 2] on trainer/1" in str(error)


def test_stages_that_are_not_declared_are_refused_with_the_way_on() -> None:
    for error in in_world(4, MemoryStorage(), job(FOUR, None, saves=True)):
        assert isinstance(error, ParticipantFailed)
        assert set(error.failures) == {"trainer/1", "trainer/2", "trainer/3"}
        assert "(stages of a pipeline: declare sharing=ss.SHARDED)" in str(error)


def test_ranks_of_a_set_that_hold_different_keys_are_refused_and_named() -> None:
    wrong = ss.sharded(same_on=[[0, 1], [2, 3]])  # stages along same_on
    divided = [[0, 1], [2], [0, 1], [2]]
    for error in in_world(4, MemoryStorage(), job(divided, wrong, saves=True)):
        assert isinstance(error, ParticipantFailed)
        assert set(error.failures) == {"trainer/1", "trainer/3"}
        assert "the ranks of set=0 must hold the same keys, shapes and dtypes" in str(error)


def test_a_pipeline_group_where_ranks_hold_equal_state_is_meant_is_refused_and_named() -> None:
    wrong = ss.per_group(same_on=[[0, 1], [2, 3]])
    divided = [[0, 1], [2], [0, 1], [2]]
    for error in in_world(4, MemoryStorage(), job(divided, wrong, saves=True)):
        assert isinstance(error, ParticipantFailed)
        assert set(error.failures) == {"trainer/1", "trainer/3"}
        assert "the ranks of set=1 must hold equal state" in str(error)
        assert "declare sharing=ss.PER_RANK" in str(error)


@pytest.mark.parametrize("sharing", [ss.SHARDED, ss.sharded(same_on=[[0], [1]])])
def test_what_no_stage_takes_is_listed_by_all_ranks(sharing: DeclaredSharing) -> None:
    storage = MemoryStorage()
    in_world(4, storage, job(FOUR, ss.SHARDED, saves=True))
    for error in in_world(2, storage, job([[0, 1], [3, 4]], sharing)):
        assert isinstance(error, StateMismatch)
        assert not error.tainted
        tail = "unexpected in the checkpoint: no rank takes it"
        listed = {one.removesuffix(f": {tail}") for one in error.problems}
        assert "component model: layers.2.norm.running_var" in listed
        assert "component model: layers.2._extra_state" in listed
        assert "component optimizer: param_groups.layers.2.linear.bias" in listed
        assert "component optimizer: state.layers.2.linear.bias.exp_avg" in listed
        assert all(".2." in one and tail in one for one in error.problems)


def test_what_a_stage_wants_and_the_step_has_not_is_listed_by_all_ranks() -> None:
    storage = MemoryStorage()
    in_world(4, storage, job(FOUR, ss.SHARDED, saves=True))
    for error in in_world(2, storage, job([[0, 1, 2, 5], [3, 4, 6]], ss.SHARDED)):
        assert isinstance(error, StateMismatch)
        assert set(error.failures) == {"trainer/0", "trainer/1"}
        for number in (5, 6):
            name = f"layers.{number}.linear.weight"
            assert f"component model: {name}: missing in the checkpoint" in error.problems
            missing = f"component optimizer: param_groups[0]: {name}: missing in the checkpoint"
            assert missing in error.problems


def test_options_that_differ_between_stages_stay_with_their_parameters() -> None:
    def divided(layers: list[list[int]], rates: list[float] | None) -> Any:  # noqa: ANN401
        def work(rank: int, ckpt: ss.Checkpointer) -> list[float]:
            stage = Stage(layers[rank], tied=False)
            groups = [{"params": list(layer.parameters())} for layer in stage.layers.values()]
            optimizer = torch.optim.SGD(groups, lr=rates[rank] if rates else 9.0)
            ckpt.add("model", stage, sharing=ss.SHARDED)
            ckpt.add("optimizer", optimizer, sharing=ss.SHARDED)
            if rates:
                ckpt.save(1).wait()
            else:
                ckpt.restore()
            return [group["lr"] for group in optimizer.param_groups]

        return work

    storage = MemoryStorage()
    in_world(2, storage, divided([[0], [1, 2]], [0.5, 0.25]))
    assert in_world(2, storage, divided([[0, 1], [2]], None)) == [[0.5, 0.25], [0.25]]
    assert in_world(1, storage, divided([[0, 1, 2]], None)) == [[0.5, 0.25, 0.25]]


def test_one_group_of_parameters_with_different_options_is_refused() -> None:
    storage = MemoryStorage()

    def add(ckpt: ss.Checkpointer, layers: list[int], rate: float) -> None:
        stage = Stage(layers, tied=False)
        ckpt.add("model", stage, sharing=ss.SHARDED)
        optimizer = torch.optim.SGD(stage.parameters(), lr=rate)
        ckpt.add("optimizer", optimizer, sharing=ss.SHARDED)

    def save(rank: int, ckpt: ss.Checkpointer) -> None:
        add(ckpt, [rank], 0.5 + rank)
        ckpt.save(1).wait()

    def restore(_rank: int, ckpt: ss.Checkpointer) -> None:
        add(ckpt, [0, 1], 0.5)
        ckpt.restore()

    assert in_world(2, storage, save) == [None, None]
    (error,) = in_world(1, storage, restore)
    assert isinstance(error, StateMismatch)
    assert "found options that differ in ['lr']: divide the parameters into groups" in str(error)


def only_the_first_rank(topology: Any, _near: Any, _sharing: Any) -> bool:  # noqa: ANN401
    return bool(topology.rank == 0)


def test_the_broken_variants_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain tensors are written by rank 0 alone; nobody says what is left; replicas differ."""
    storage = MemoryStorage()
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "owns_plain_tensors", only_the_first_rank)
        saved = in_world(4, storage, job(FOUR, ss.SHARDED, saves=True))
    assert not comes_back(saved, in_world(4, storage, job(FOUR, ss.SHARDED)))
    storage = MemoryStorage()
    saved = in_world(4, storage, job(FOUR, ss.SHARDED, saves=True))
    with monkeypatch.context() as patch:
        patch.setattr(Taken, "left", lambda _: "0")
        restored = in_world(2, storage, job([[0, 1], [3, 4]], ss.SHARDED))
    assert not any(isinstance(one, Exception) for one in restored)  # so the test above would fail
    assert not comes_back(saved, restored)
    with monkeypatch.context() as patch:
        patch.setattr(indexer, "replica_problems", lambda _: [])
        anew = job([[0, 1], [0, 1]], ss.SHARDED, saves=True, seed=lambda rank: rank)
        for error in in_world(2, MemoryStorage(), anew):  # a second net, without names of ranks
            assert isinstance(error, CheckpointError)
            assert not isinstance(error, StateMismatch)
