"""What `ss.ray` says where Ray is missing or not started."""

from __future__ import annotations

import sys
from unittest import mock

import pytest

import stepseal as ss
from stepseal import errors


def test_missing_ray_is_named() -> None:
    with (
        mock.patch.dict(sys.modules, {"ray": None}),
        pytest.raises(errors.InvalidInput, match=r"pip install 'stepseal\[ray\]'"),
    ):
        ss.ray.members("trainer", object())
