from __future__ import annotations

import pytest
import safetensors.torch
import torch

from stepseal.layout import ITEMSIZE, TO_SAFETENSORS
from stepseal.layout._dtypes import FROM_SAFETENSORS

QUANTIZED = {"qint8", "qint32", "quint8", "quint2x4", "quint4x2"}


def torch_dtypes() -> dict[str, torch.dtype]:
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return {str(dtype).removeprefix("torch."): dtype for dtype in found}


def test_every_plain_torch_dtype_has_its_size() -> None:
    expected = {n: d.itemsize for n, d in torch_dtypes().items() if n not in QUANTIZED}
    assert {name: ITEMSIZE.get(name) for name in expected} == expected


def test_names_agree_with_safetensors() -> None:
    theirs = {n: str(d).removeprefix("torch.") for n, d in safetensors.torch._TYPES.items()}
    assert {name: FROM_SAFETENSORS.get(name) for name in theirs} == theirs


def test_tables_fit_each_other() -> None:
    assert ITEMSIZE.keys() == TO_SAFETENSORS.keys()
    named = {name: other for name, other in TO_SAFETENSORS.items() if other is not None}
    assert {other: name for name, other in named.items()} == dict(FROM_SAFETENSORS)
    assert TO_SAFETENSORS["complex128"] is None


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        ITEMSIZE["float32"] = 5  # type: ignore[index]
