"""Replicas are compared before a step is committed: cases V1 to V7, and naive ways that miss them.

Each naive way is what another library does, as a function of the state of all ranks; a test shows
that it accepts what stepseal refuses.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._replicas import pair, refused, save_all
from tests.session._sets import QUICK, in_world
from torch import nn

import stepseal as ss
from stepseal.errors import CheckpointError, ParticipantFailed
from stepseal.storage import KeyNotFound
from stepseal.testing import MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.components import Validation

# -- naive ways ------------------------------------------------------------------------------------


def first_ten(states: Sequence[Any]) -> bool:
    """Compare shapes, dtypes and the first ten values of each tensor."""
    looks = [
        [(key, t.shape, t.dtype, t.flatten()[:10].tolist()) for key, t in state.items()]
        for state in states
    ]
    return all(look == looks[0] for look in looks)


def one_level(states: Sequence[Any]) -> bool:
    """Hash each tensor of the top level and of one level of dicts below it."""

    def hashes(state: dict[str, Any]) -> dict[str, str]:
        found = {}
        for key, value in state.items():
            inner = value if isinstance(value, dict) else {"": value}
            for name, tensor in inner.items():
                if isinstance(tensor, torch.Tensor):
                    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                    found[f"{key}.{name}"] = hashlib.sha256(data).hexdigest()
        return found

    return all(hashes(state) == hashes(states[0]) for state in states)


def close_enough(states: Sequence[Any]) -> bool:
    """Compare each tensor with tolerances."""
    return all(
        torch.allclose(state[key], tensor, rtol=1e-5, atol=1e-8)
        for state in states
        for key, tensor in states[0].items()
    )


def without_bfloat16(states: Sequence[Any]) -> bool:
    """Hash what NumPy can hold, and skip the rest."""

    def hashes(state: dict[str, Any]) -> dict[str, bytes]:
        kept = {k: t for k, t in state.items() if t.dtype != torch.bfloat16}
        return {key: tensor.numpy().tobytes() for key, tensor in kept.items()}

    return all(hashes(state) == hashes(states[0]) for state in states)


def by_value(states: Sequence[Any]) -> bool:
    """Compare values: -0.0 equals 0.0, and NaN equals nothing."""
    return all(
        bool((state[key] == tensor).all()) for state in states for key, tensor in states[0].items()
    )


# -- V1: one element in the middle -----------------------------------------------------------------


@pytest.mark.parametrize("level", ["quick", "tensor", "full"])
def test_v1_one_element_in_the_middle_is_found_at_every_level(level: Validation) -> None:
    states = pair("w", torch.zeros(100), torch.zeros(100))
    states[1]["w"][50] = 1
    assert first_ten(states)
    storage = MemoryStorage()
    error = refused(save_all(states, storage, validate=level))
    assert list(error.failures) == ["trainer/1"]
    assert error.component == "state"
    assert error.path == (None if level == "quick" else "w")
    with pytest.raises(KeyNotFound):
        storage.stat("step-1")


def test_v1_the_last_element_below_every_tolerance_is_found() -> None:
    states = pair("w", torch.ones(100), torch.ones(100))
    states[1]["w"][99] += 1.2e-7
    assert close_enough(states)
    assert refused(save_all(states)).path is None  # quick by default
    assert refused(save_all(states, validate="tensor")).path == "w"


def test_none_compares_nothing_and_equal_state_passes_everywhere() -> None:
    states = pair("w", torch.zeros(4), torch.ones(4))
    assert save_all(states, validate="none") == [None, None]
    same = pair("w", torch.ones(4), torch.ones(4))
    for level in ("none", "quick", "tensor", "full"):
        assert save_all(same, validate=level) == [None, None]


# -- V2: nested state ------------------------------------------------------------------------------


def optimizer_of(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return module, optimizer


def save_trained(
    change: Callable[[nn.Module, torch.optim.Optimizer], None],
    storage: MemoryStorage | None = None,
    sharing: ss.Sharing | None = None,
) -> list[Any]:
    """Save a module and an optimizer on three ranks, of which the last one was changed."""
    trained = [optimizer_of() for _ in range(3)]
    change(*trained[2])

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        module, optimizer = trained[rank]
        ckpt.add("model", module, sharing=sharing)
        ckpt.add("optimizer", optimizer, validate="tensor")
        ckpt.save(1).wait()

    return in_world(3, storage or MemoryStorage(), work)


def test_v2_nested_optimizer_state_is_compared_and_named() -> None:
    def change(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        bias: Any = module[0].bias  # type: ignore[index]
        optimizer.state[bias]["exp_avg"][1] += 1e-3

    states = [optimizer_of()[1].state_dict() for _ in range(2)]
    states[1]["state"][1]["exp_avg"][1] += 1e-3
    assert one_level(states)
    error = refused(save_trained(change))
    assert error.path == "state.0.bias.exp_avg"
    assert "component optimizer" in str(error)
    assert "trainer/0, trainer/1 against trainer/2" in str(error)
    assert list(error.failures) == ["trainer/2"]


def test_v2_options_and_scalars_of_an_optimizer_are_compared_and_named() -> None:
    def change(_: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 0.2

    error = refused(save_trained(change))
    assert error.path is not None
    assert error.path.endswith("lr"), error.path


def drifted(module: nn.Module, _: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        module[1].weight[1, 3] = 7  # type: ignore[index]


def test_v2_modules_said_to_be_replicated_are_compared_tensor_by_tensor() -> None:
    error = refused(save_trained(drifted, sharing=ss.REPLICATED))
    assert error.path == "1.weight"


def test_modules_that_nothing_keeps_equal_are_warned_of_and_the_lowest_ranks_are_saved(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of all tensors, so that a writer other than the lowest rank would be seen by its values."""

    def fill(module: nn.Module, _: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(7)

    storage = MemoryStorage()
    assert save_trained(fill, storage) == [None] * 3
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "save of step 1: component model: " in record.getMessage()
    assert "trainer/0, trainer/1 against trainer/2" in record.getMessage()
    trained = [optimizer_of() for _ in range(3)]
    with torch.no_grad():
        for module, _ in trained:
            for parameter in module.parameters():
                parameter.zero_()

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        module, optimizer = trained[rank]
        ckpt.add("model", module)
        ckpt.add("optimizer", optimizer, validate="tensor")
        ckpt.restore()

    in_world(3, storage, work)
    expected = optimizer_of()[0]
    for module, _ in trained:
        for found, wanted in zip(module.parameters(), expected.parameters(), strict=True):
            assert torch.equal(found, wanted)


def test_v2_trees_are_compared_at_any_depth_and_the_path_is_named() -> None:
    def nested(value: object) -> dict[str, Any]:
        return {"a": [{"b": ({"c": value},)}], "leaf": "x", "items": {1: torch.ones(2)}}

    for bad in (2, torch.zeros(3), "x", {"d": 1}):
        states = [nested(1 if not isinstance(bad, torch.Tensor) else torch.ones(3)), nested(bad)]
        error = refused(save_all(states, kind="tree", sharing=ss.REPLICATED, validate="tensor"))
        assert error.path is not None
        assert error.path.startswith("a.0.b.0.c"), error.path
    odd = nested(1) | {"leaf": "y"}
    found = save_all([nested(1), odd], kind="tree", sharing=ss.REPLICATED, validate="tensor")
    assert refused(found).path == "leaf"


# -- V3: any dtype, any layout ---------------------------------------------------------------------

DTYPES = [
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
    torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]  # fmt: skip


def bits(dtype: torch.dtype, shape: tuple[int, ...], last: int = 0) -> torch.Tensor:
    """Return a tensor of equal bytes, except for the last one."""
    size = math.prod(shape) * dtype.itemsize
    raw = torch.zeros(size, dtype=torch.uint8)
    if size:
        raw[-1 if dtype is torch.bool else -dtype.itemsize] = last
    return raw.view(dtype).view(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_v3_every_dtype_is_compared_bit_by_bit(dtype: torch.dtype) -> None:
    for shape in ((), (3, 5)):
        states = pair("w", bits(dtype, shape), bits(dtype, shape, 1))
        if dtype is torch.bfloat16:
            assert without_bfloat16(states)
        assert refused(save_all(states, validate="tensor")).path == "w"
    same = pair("w", bits(dtype, (2, 2), 1), bits(dtype, (2, 2), 1))
    assert save_all(same, validate="tensor") == [None, None]


def test_v3_layout_and_memory_do_not_matter_and_elements_do() -> None:
    plain = torch.arange(24.0).view(4, 6)
    for other in (plain.T.contiguous().T, torch.stack((plain, plain), -1)[..., 0]):
        assert not other.is_contiguous()
        assert save_all(pair("w", plain, other), validate="tensor") == [None, None]
        for backwards in (False, True):
            changed = other.clone(memory_format=torch.preserve_format)
            changed[3, 5] = -1
            states = pair("w", plain, changed)
            error = refused(save_all(states[::-1] if backwards else states, validate="tensor"))
            assert error.path == "w"
    conj = torch.full((3,), 1 + 2j)
    assert save_all(pair("w", conj.conj(), conj.conj().clone()), validate="quick") == [None] * 2
    assert refused(save_all(pair("w", conj, conj.conj()), validate="quick"))
    empty = pair("w", torch.zeros(0, 3), torch.zeros(0, 3))
    assert save_all(empty, validate="tensor") == [None, None]


def test_v3_equal_nans_are_equal_and_signs_of_zero_are_not() -> None:
    nan = torch.tensor([math.nan, 1.0])
    assert not by_value(pair("w", nan, nan.clone()))
    assert save_all(pair("w", nan, nan.clone()), validate="tensor") == [None, None]
    zeros = pair("w", torch.zeros(2), torch.tensor([0.0, -0.0]))
    assert by_value(zeros)
    assert refused(save_all(zeros, validate="tensor")).path == "w"
    payload = nan.view(torch.int32).clone()
    payload[0] += 1
    other = pair("w", nan, payload.view(torch.float32))
    assert refused(save_all(other, validate="tensor")).path == "w"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (9 << 20) + 5])
def test_v3_writers_and_others_digest_alike_whatever_the_size(size: int) -> None:
    """Each rank writes one of two such tensors, and digests the other one."""
    drawn = torch.randint(0, 255, (size,), dtype=torch.uint8)
    states = [{"a": drawn.clone(), "b": drawn.clone()} for _ in range(2)]
    assert save_all(states, validate="tensor") == [None, None]
    if size:
        states[1]["a"][-1] += 1
        states[0]["b"][0] += 1
        assert refused(save_all(states, validate="tensor")).problems == (
            "component state: a",
            "component state: b",
        )


# -- V4: the failure is the same everywhere --------------------------------------------------------


@pytest.mark.parametrize("odd", [0, 1, 3])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_v4_all_ranks_raise_the_same_whoever_differs_and_the_job_saves_again(
    odd: int, mode: str
) -> None:
    storage = MemoryStorage()

    def work(rank: int, ckpt: ss.Checkpointer) -> CheckpointError:
        state = {"w": torch.full((8,), 5.0)}
        ckpt.add("state", state, validate="tensor")
        ckpt.save(1).wait()
        if rank == odd:
            state["w"][3] = 6
        with pytest.raises(ParticipantFailed) as caught:
            ckpt.save(2).wait()
        state["w"][3] = 5
        ckpt.save(3).wait()
        return caught.value

    found = World(4, lambda _: storage, deadlines=QUICK).run(work, mode=mode)
    error = refused(found)
    others = [f"trainer/{rank}" for rank in range(4) if rank != odd]
    assert list(error.failures) == (others if odd == 0 else [f"trainer/{odd}"])
    steps = [e.name for e in storage.list_dir("") if e.name.startswith("step-")]
    assert steps == ["step-1", "step-3"]
    assert [e.name for e in storage.list_dir(".stepseal/staging")] == []


def test_v4_ranks_that_declare_different_levels_are_told() -> None:
    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("state", {"w": torch.zeros(2)}, validate="quick" if rank else "tensor")
        ckpt.save(1)

    error = refused(in_world(2, MemoryStorage(), work))
    assert "component state: added with validate='quick', but trainer/0" in str(error)
