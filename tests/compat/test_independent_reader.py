"""`docs/format.md` is enough to read a step: a reader made from it agrees with the library."""

from __future__ import annotations

import ast
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis.strategies import floats
from tests.compat.independent_reader import Step, Tree
from tests.compat.make_v1 import (
    COUNTERS,
    PARTICIPANTS,
    ROOT,
    STEPS,
    cache_state,
    loader_state,
    stage_state,
)

import stepseal as ss
from stepseal.layout import dcp_fqn, encode_document

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.uint8}


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Return the elements in C order, whatever NumPy thinks of their type."""
    if tensor.numel() == 0:
        return b""
    return tensor.contiguous().reshape(-1).view(BITS[tensor.element_size()]).numpy().tobytes()


def assert_agrees(found: Step, step: ss.Step) -> None:
    """Compare all tensors of a step, bit for bit."""
    theirs = {dcp_fqn(*name): name for name in found.tensors}
    tensors = step.tensors()
    assert theirs.keys() == tensors.keys()
    for fqn, name in theirs.items():
        assert found.dtypes[name] == str(tensors[fqn].dtype).removeprefix("torch.")
        assert found.tensors[name].shape == tuple(tensors[fqn].shape)
        assert found.tensors[name].tobytes() == raw_bytes(tensors[fqn]), fqn


def test_it_imports_neither_the_library_nor_torch() -> None:
    tree = ast.parse(Path(__file__).with_name("independent_reader.py").read_text("utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert imported.isdisjoint({"stepseal", "torch", "tests", "msgspec"})


@pytest.mark.parametrize("step", STEPS)
def test_agrees_on_the_tensors_of_a_stored_step(step: int) -> None:
    assert_agrees(Step(ROOT / f"step-{step}"), ss.open(ROOT).step(step))


@pytest.mark.parametrize("step", STEPS)
def test_finds_exactly_the_listed_files(step: int) -> None:
    folder = ROOT / f"step-{step}"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert Step(folder).listed == files


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("rank", range(len(PARTICIPANTS)))
def test_agrees_on_trees(step: int, rank: int) -> None:
    trees = Step(ROOT / f"step-{step}").trees
    assert trees["counters", PARTICIPANTS[0]] == COUNTERS
    found, expected = trees["loader", PARTICIPANTS[rank]], loader_state(step, rank)
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].tobytes() == raw_bytes(value)
            assert found[name].shape == tuple(value.shape)
        elif isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
            assert np.array_equal(found[name], value)
        else:
            assert found[name] == (list(value) if name == "window" else value)


@pytest.mark.parametrize("step", STEPS)
def test_agrees_on_the_payloads_of_sets_and_nodes(step: int) -> None:
    found = Step(ROOT / f"step-{step}")
    for rank, participant in enumerate(PARTICIPANTS):
        assert found.owner_at("stage", f"set={rank}") == participant
        stage = found.trees["stage", participant]
        assert stage["schedule"] == stage_state(step, rank)["schedule"]
        assert stage["scales"].tolist() == stage_state(step, rank)["scales"].tolist()
    assert found.trees["cache", found.owner_at("cache", "node=0")] == cache_state(step)


def test_the_chain_of_documents_leads_from_claim_to_step() -> None:
    newest, oldest = Step(ROOT / "step-7"), Step(ROOT / "step-3")
    assert newest.manifest["parent"]["manifest_sha256"] == oldest.sha256
    assert newest.manifest["run_id"] == oldest.manifest["run_id"]


def test_agrees_on_items_of_several_chunks_and_on_long_sequences(tmp_path: Path) -> None:
    state = {
        "long": torch.arange(700_000, dtype=torch.float32),
        "page": torch.arange(20_000, dtype=torch.float32),
        "small": torch.arange(3),
        "last": torch.arange(300_000, dtype=torch.int64),
    }
    numbers: list[Any] = list(range(12_000))
    with ss.Checkpointer(tmp_path, mode="sync") as checkpointer:
        checkpointer.add("model", state)
        checkpointer.add("numbers", numbers)
        checkpointer.save(1)
    found = Step(tmp_path / "step-1")
    assert_agrees(found, ss.open(tmp_path).step(1))
    assert found.trees["numbers", "trainer/0"] == numbers


def test_agrees_on_the_files_of_an_engine(tmp_path: Path) -> None:
    wrote = {"a/b.pt": b"b" * (2 << 20), "a/.metadata": b"", "latest": b"a"}

    def save(folder: str) -> None:
        for path, data in wrote.items():
            Path(folder, path).parent.mkdir(exist_ok=True)
            Path(folder, path).write_bytes(data)

    with ss.Checkpointer(tmp_path, mode="sync") as checkpointer:
        checkpointer.add("engine", ss.External(save=save, load=print))
        checkpointer.save(1)
    assert Step(tmp_path / "step-1").external == {"engine": wrote}
    (tmp_path / "step-1" / "external" / "engine" / "a" / "more").write_bytes(b"")
    with pytest.raises(AssertionError, match="exactly the listed files"):
        Step(tmp_path / "step-1")


@pytest.mark.parametrize("offset", [0, 700, 2000, -1])
def test_finds_a_flipped_bit(tmp_path: Path, offset: int) -> None:
    """The reader checks what it reads; otherwise agreement would prove less."""
    with ss.Checkpointer(tmp_path, mode="sync") as checkpointer:
        checkpointer.add("model", {"weight": torch.arange(64, dtype=torch.float32)})
        checkpointer.save(1)
    path = tmp_path / "step-1" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[offset % len(data)] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssertionError):
        Step(tmp_path / "step-1")


def spelled(value: float) -> str:
    """Return a float as the specification spells it: the fewest digits, and then the form."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text, point = "".join(map(str, digits)), len(digits) + exponent
    minus = "-" if sign else ""
    if text == "0":
        return f"{minus}0.0"
    if -5 < point <= 0:
        return f"{minus}0.{'0' * -point}{text}"
    if 0 < point <= 16:
        whole = text[:point].ljust(point, "0")
        return f"{minus}{whole}.{text[point:] or '0'}"
    fraction = f".{text[1:]}" if len(text) > 1 else ""
    return f"{minus}{text[0]}{fraction}e{point - 1}"


@given(floats(allow_nan=False, allow_infinity=False))
@example(1e-5)
@example(9.9e-6)
@example(1e16)
@example(9999999999999998.0)
@example(-0.0)
@example(5e-324)
def test_floats_are_spelled_as_specified(value: float) -> None:
    assert encode_document(value).decode() == f"{spelled(value)}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"\\\b\f\n\r\t', r'"\"\\\b\f\n\r\t"'),
        ("\x00\x0b\x1f", r'"\u0000\u000b\u001f"'),
        ("/\x7f\u2028\u00e9\U0001f600", '"/\x7f\u2028\u00e9\U0001f600"'),
    ],
)
def test_strings_are_spelled_as_specified(text: str, expected: str) -> None:
    assert encode_document(text).decode() == f"{expected}\n"


def test_refuses_an_unknown_tag() -> None:
    with pytest.raises(AssertionError, match=r"unknown tag \$new"):
        Tree("components/x/t.json", {"components/x/t.json": b'{"$new": 1}'})
