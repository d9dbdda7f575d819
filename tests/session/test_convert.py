"""Conversions: saved keys and dtypes become those of a live module, or nothing is changed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._converting import refused, restored, saved, saved_beside_a_counter
from torch import nn
from torch.distributed.fsdp import fully_shard

import stepseal as ss
from stepseal.testing import MemoryStorage, World, run_ranks

if TYPE_CHECKING:
    from pathlib import Path

StateMismatch = ss.errors.StateMismatch
FP32, FP16, BF16, FP64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
INT64, INT32, INT8, UINT8 = torch.int64, torch.int32, torch.int8, torch.uint8
FP8, COMPLEX, COMPLEX_WIDE = torch.float8_e4m3fn, torch.complex64, torch.complex128


class Extra(nn.Linear):
    """Has state that is no tensor."""

    def __init__(self, word: str = "new") -> None:
        super().__init__(2, 2)
        self.word = word

    def get_extra_state(self) -> dict[str, str]:
        return {"word": self.word}

    def set_extra_state(self, state: dict[str, str]) -> None:
        self.word = state["word"]


class Listening(nn.Linear):
    """Sees its load."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super()._load_from_state_dict(*args, **kwargs)
        self.loads = getattr(self, "loads", 0) + 1


class Net(nn.Module):
    """One layer under a name."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = nn.Linear(6, 5, dtype=dtype)


class Holder(nn.Module):
    """One tensor under a name of choice."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer(name, tensor)


@pytest.mark.parametrize("sharing", [None, ss.PER_RANK])
def test_keys_get_their_live_names(tmp_path: Path, sharing: ss.Sharing | None) -> None:
    old = nn.ModuleDict({"body": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "old": nn.Linear(2, 9)})
    new = nn.ModuleDict({"net": nn.ModuleDict({"body": nn.Linear(2, 2)}), "ln": nn.LayerNorm(2)})
    nn.init.normal_(old["norm"].weight)  # type: ignore[arg-type]
    report = restored(
        saved(tmp_path, old, sharing),
        new,
        ss.Conversion(
            prefix={"body.": "net.body."},
            rename={"norm.weight": "ln.weight", "norm.bias": "ln.bias"},
            drop=["old.*"],
        ),
        sharing,
    )
    pairs = {
        "net.body.weight": "body.weight",
        "net.body.bias": "body.bias",
        "ln.weight": "norm.weight",
        "ln.bias": "norm.bias",
    }
    for live, key in pairs.items():
        assert torch.equal(new.state_dict()[live], old.state_dict()[key])
    assert "converted: 4 renamed, 2 dropped" in report


def test_the_longest_prefix_wins_and_the_empty_one_takes_the_rest(tmp_path: Path) -> None:
    old = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(1, 1)}), "c": nn.Linear(1, 1)})
    new = nn.ModuleDict({"x": nn.Linear(1, 1), "all": nn.ModuleDict({"c": nn.Linear(1, 1)})})
    conversion = ss.Conversion(prefix={"a.": "wrong.", "a.b.": "x.", "": "all."})
    problems = refused(saved(tmp_path, old), new, conversion)
    assert problems == ("component model: prefix: no saved key begins with 'a.'",)
    restored(tmp_path, new, ss.Conversion(prefix={"a.b.": "x.", "": "all."}))
    assert torch.equal(new.get_parameter("x.weight"), old.get_parameter("a.b.weight"))
    assert torch.equal(new.get_parameter("all.c.weight"), old.get_parameter("c.weight"))


def test_two_keys_can_change_places(tmp_path: Path) -> None:
    old = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    new = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    restored(saved(tmp_path, old), new, ss.Conversion(prefix={"a.": "b.", "b.": "a."}))
    for one, other in (("a", "b"), ("b", "a")):
        assert torch.equal(new.get_parameter(f"{one}.weight"), old.get_parameter(f"{other}.weight"))


def test_what_is_new_in_the_model_stays_as_it_is(tmp_path: Path) -> None:
    old = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1000)})
    new = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 10)})
    head = new.get_parameter("head.weight").detach().clone()
    saved(tmp_path, old)
    problems = refused(tmp_path, new, ss.Conversion(drop=["head.*"]))
    assert problems[0].startswith(
        "component model: head.weight: missing in the checkpoint, because"
    )
    report = restored(tmp_path, new, ss.Conversion(drop=["head.*"], keep=["head.*"]))
    assert "converted: 2 dropped, 2 kept" in report
    assert torch.equal(new.get_parameter("head.weight"), head)
    assert torch.equal(new.get_parameter("body.weight"), old.get_parameter("body.weight"))


def test_state_that_is_no_tensor_is_renamed_and_kept_as_well(tmp_path: Path) -> None:
    old = nn.ModuleDict({"one": Extra("one"), "two": Extra("two")})
    new = nn.ModuleDict({"uno": Extra(), "two": Extra()})
    conversion = ss.Conversion(prefix={"one.": "uno."}, drop=["two.*"], keep=["two.*"])
    restored(saved(tmp_path, old), new, conversion)
    words: Any = new
    assert (words["uno"].word, words["two"].word) == ("one", "new")


@pytest.mark.parametrize("sharing", [None, ss.PER_RANK])
def test_a_module_that_loads_by_itself_gets_the_converted_keys(
    tmp_path: Path, sharing: ss.Sharing | None
) -> None:
    old = nn.ModuleDict({"a": nn.Linear(2, 2, dtype=FP32), "gone": nn.Linear(1, 1)})
    new = nn.ModuleDict({"b": Listening(2, 2, dtype=BF16), "fresh": Listening(2, 2)})
    before = new.get_parameter("fresh.weight").detach().clone()
    conversion = ss.Conversion(
        prefix={"a.": "b."}, drop=["gone.*"], keep=["fresh.*"], cast={FP32: BF16}
    )
    report = restored(saved(tmp_path, old, sharing), new, conversion, sharing)
    assert "converted: 2 renamed, 2 dropped, 2 kept, 2 cast, through Listening" in report
    assert torch.equal(new.get_parameter("b.weight"), old.get_parameter("a.weight").to(BF16))
    assert torch.equal(new.get_parameter("fresh.weight"), before)
    loads: Any = new
    assert loads["b"].loads == 1


@pytest.mark.parametrize(
    ("old", "new", "values"),
    [
        (FP32, BF16, [0.1, -3.0, 1e-30]),
        (BF16, FP32, [0.1, 3e38]),
        (FP32, FP16, [0.1, 65504.0, -65504.0, float("inf"), float("nan"), 1e-12]),
        (FP64, FP32, [0.1, 3e38]),
        (BF16, FP8, [448.0, -448.0, 0.3]),
        (INT64, INT32, [2**31 - 1, -(2**31)]),
        (INT8, UINT8, [0, 127]),
        (UINT8, INT8, [0, 127]),
        (INT64, torch.uint64, [0, 2**63 - 1]),
        (INT32, INT64, [-5, 2**31 - 1]),
        (COMPLEX_WIDE, COMPLEX, [1 + 2j, 3e38 - 1e38j]),
    ],
)
def test_a_cast_that_was_asked_for_is_what_torch_makes_of_it(
    tmp_path: Path, old: torch.dtype, new: torch.dtype, values: list[Any]
) -> None:
    tensor = torch.tensor(values, dtype=COMPLEX_WIDE if old.is_complex else None).to(old)
    live = Holder("x", torch.zeros(len(values)).to(new))
    report = restored(saved(tmp_path, Holder("x", tensor)), live, ss.Conversion(cast={old: new}))
    assert "converted: 1 cast" in report
    assert torch.equal(live.x.view(torch.uint8), tensor.to(new).view(torch.uint8))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("old", "new", "value", "shown"),
    [
        (FP32, FP16, 65600.0, "65600.0"),
        (FP32, FP16, -1e30, "-1.0000000"),
        (FP32, BF16, torch.finfo(FP32).max, "3.402"),
        (FP64, FP32, 1e39, "1e+39"),
        (BF16, FP8, 1024.0, "1024.0"),
        (torch.float8_e5m2, FP8, 57344.0, "57344.0"),
        (FP32, FP8, float("inf"), "inf"),
        (FP32, torch.float8_e5m2fnuz, float("-inf"), "-inf"),
        (INT64, INT32, 2**31, "2147483648"),
        (INT8, UINT8, -1, "-1"),
        (UINT8, INT8, 200, "200"),
        (INT64, torch.uint64, -1, "-1"),
        (INT32, torch.uint16, 65536, "65536"),
        (COMPLEX_WIDE, COMPLEX, 1 + 1e39j, "1e+39j"),
    ],
)
@pytest.mark.parametrize("sharing", [None, ss.PER_RANK])
def test_a_cast_that_loses_range_changes_nothing(
    tmp_path: Path,
    old: torch.dtype,
    new: torch.dtype,
    value: Any,  # noqa: ANN401
    shown: str,
    sharing: ss.Sharing | None,
) -> None:
    tensor = torch.zeros(5000, dtype=COMPLEX_WIDE if old.is_complex else FP64)
    if not (old.is_floating_point or old.is_complex):
        tensor = tensor.to(INT64)
    tensor[4000] = value
    saved_beside_a_counter(tmp_path, Holder("x", tensor.to(old)), sharing)
    other, live = {"counter": 0}, Holder("x", torch.zeros(5000).to(new))
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("other", other)
        ckpt.add("model", live, sharing=sharing)
        with pytest.raises(StateMismatch, match="in the range of") as caught:
            ckpt.restore(convert={"model": ss.Conversion(cast={old: new})})
    (problem,) = caught.value.problems
    name = str(new).removeprefix("torch.")
    assert problem.startswith(f"component model: x: expected values in the range of (live) {name}")
    assert shown in problem
    assert not caught.value.tainted
    assert other == {"counter": 0}
    assert not live.x.to(COMPLEX_WIDE).any()  # type: ignore[operator]


def test_a_dtype_that_the_cast_does_not_name_is_still_a_mismatch(tmp_path: Path) -> None:
    saved(tmp_path, nn.Linear(2, 2))
    problems = refused(tmp_path, nn.Linear(2, 2, dtype=FP16), ss.Conversion(cast={FP32: BF16}))
    assert problems[0].endswith("weight: dtype: expected (live) float16, found float32")


def test_ranks_that_convert_differently_are_told_so() -> None:
    storage = MemoryStorage()

    def save(_: int, ckpt: ss.Checkpointer) -> None:
        with ckpt:
            ckpt.add("model", nn.Linear(2, 2), validate="none")
            ckpt.restore()
            ckpt.save(1)

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        keys = ["weight", "bias"]
        with ckpt:
            ckpt.add("model", nn.ModuleDict({"a": nn.Linear(2, 2)}))
            with pytest.raises(StateMismatch, match=r"convert model="):
                ckpt.restore(convert={"model": ss.Conversion(prefix={"": "a."}, keep=keys[:rank])})
            order = keys[:: 1 if rank else -1]
            rename = {key: f"a.{key}" for key in order}
            assert ckpt.restore(convert={"model": ss.Conversion(rename=rename)}) is not None

    World(2, lambda _: storage).run(save)
    World(2, lambda _: storage).run(work)


def test_check_only_tells_of_a_conversion_and_changes_nothing(tmp_path: Path) -> None:
    saved(tmp_path, nn.Linear(2, 2))
    model = nn.Linear(2, 2, dtype=BF16)
    before = model.weight.detach().clone()
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", model)
        found = ckpt.restore(convert={"model": ss.Conversion(cast={FP32: BF16})}, check_only=True)
    assert found is not None
    assert "converted: 2 cast" in found.report["model"]
    assert torch.equal(model.weight, before)


def sharded(rank: int, root: str) -> dict[str, bool]:
    """Load a plain fp32 model into an FSDP2 model in bf16 under another name."""
    torch.manual_seed(3)
    model = Net(BF16)
    fully_shard(model)
    ss.load(
        root,
        model=model,
        convert={"model": ss.Conversion(prefix={"": "net."}, cast={FP32: BF16})},
    )
    whole: Any = model.get_parameter("net.weight")
    expected = ss.open(root).latest().tensors("weight")["weight"].to(BF16)  # type: ignore[union-attr]
    before = whole.full_tensor().clone()
    narrow = Net(FP16)
    fully_shard(narrow)
    with pytest.raises(StateMismatch, match="in the range of"):
        ss.load(
            f"{root}/wide",
            model=narrow,
            convert={"model": ss.Conversion(prefix={"": "net."}, cast={FP32: FP16})},
        )
    return {"equal": torch.equal(before, expected)}


def test_into_a_sharded_module(tmp_path: Path) -> None:
    saved(tmp_path, nn.Linear(6, 5))
    wide = nn.Linear(6, 5)
    with torch.no_grad():
        wide.weight[random.Random(0).randrange(5), 0] = 1e30  # one rank alone holds it
    saved(tmp_path / "wide", wide)
    assert run_ranks(2, sharded, str(tmp_path)) == [{"equal": True}] * 2
