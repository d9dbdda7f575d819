from __future__ import annotations

import subprocess
import sys

import pytest

import stepseal.testing


def test_every_name_is_there_and_no_other() -> None:
    for name in stepseal.testing.__all__:
        assert getattr(stepseal.testing, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = stepseal.testing.NoSuchName


def test_importing_the_face_imports_no_pytest() -> None:
    script = (
        "import sys, stepseal.testing as t; t.FaultyStorage; "
        "sys.exit('pytest' in sys.modules or 'torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], check=False, env=environment)
    assert done.returncode == 0
