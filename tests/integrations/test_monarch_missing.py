"""What `ss.monarch` says where Monarch is missing."""

from __future__ import annotations

import sys
from unittest import mock

import pytest

import stepseal as ss
from stepseal import errors


def test_missing_monarch_is_named() -> None:
    with (
        mock.patch.dict(sys.modules, {"monarch": None, "monarch.actor": None}),
        pytest.raises(errors.InvalidInput, match=r"pip install 'stepseal\[monarch\]'"),
    ):
        ss.monarch.members("trainer", object())
