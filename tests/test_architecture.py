"""The house keeps its plan, and the checker that says so fails on a bad example of each rule."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests import _architecture
from tests._architecture import (
    ARROWS,
    EXEMPT,
    UNSAFE_DOTTED,
    UNSAFE_MODULES,
    UNSAFE_NAMES,
    WHEN_CALLED,
    findings,
    long_files,
    reachable,
    torch_findings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SRC = Path(__file__).resolve().parent.parent / "src"


@functools.cache
def house() -> dict[str, str]:
    files = sorted((SRC / "stepseal").rglob("*.py"))
    return {path.relative_to(SRC).as_posix(): path.read_text("utf-8") for path in files}


@functools.cache
def files_of_tests() -> dict[str, str]:
    files = sorted((SRC.parent / "tests").rglob("*.py"))
    return {path.relative_to(SRC.parent).as_posix(): path.read_text("utf-8") for path in files}


def is_there(module: str) -> bool:
    path = module.replace(".", "/")
    return f"{path}.py" in house() or f"{path}/__init__.py" in house()


def test_house_keeps_its_plan() -> None:
    found = findings(house())
    assert not found, "\n" + "\n".join(found)


def test_files_of_tests_are_no_longer_than_those_of_the_house() -> None:
    found = long_files(files_of_tests())
    assert not found, "\n" + "\n".join(found)


def test_plan_has_no_circle() -> None:
    graph = {wing: set(below) for wing, below in ARROWS.items()}
    assert not [wing for wing in graph if wing in reachable(graph, wing)]


def test_plan_lets_nobody_import_the_outermost_wings() -> None:
    importers = {
        wing: {other for other, below in ARROWS.items() if wing in below}
        for wing in ("cli", "doctor", "testing", "integrations", "__main__")
    }
    assert importers == {
        "cli": {"__main__"},
        "doctor": {"cli"},
        "testing": set(),
        "integrations": {_architecture.FACE},
        "__main__": set(),
    }


def test_exemptions_give_reasons_and_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for (path, what), reason in EXEMPT.items():
        assert reason
        without = {key: why for key, why in EXEMPT.items() if key != (path, what)}
        monkeypatch.setattr(_architecture, "EXEMPT", without)
        found = findings(house()) + long_files(files_of_tests())
        assert any(finding.startswith(f"{path}:") for finding in found), f"{path}: {what}"


def test_imports_on_call_give_reasons_and_are_needed() -> None:
    for (path, wing), reason in WHEN_CALLED.items():
        assert reason
        assert f"from stepseal.{wing} import" in house()[path]


def test_cli_actors_and_the_wings_below_start_without_torch() -> None:
    faces = [f"stepseal.{wing}" for wing in sorted(ARROWS["cli"] | ARROWS["actors"] | {"cli"})]
    faces += ["stepseal.actors", "stepseal.integrations"]
    missing = [face for face in faces if not is_there(face)]
    if missing:
        pytest.skip(f"not built yet: {', '.join(missing)}")
    program = f"import sys, {', '.join(faces)}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_only_listed_files_load_torch() -> None:
    found = torch_findings(house())
    assert not found, "\n" + "\n".join(found)


LISTED = frozenset({"stepseal/components/_tensors.py"})


@pytest.mark.parametrize(
    "text",
    [
        "import torch",
        "import torch.distributed as dist",
        "try:\n    from torch import nn\nfinally: ...",
        "class A:\n    import torch",
        "from stepseal.components._tensors import FlatState",
        "from stepseal.components import _tensors",
        "import stepseal.components._tensors",
    ],
)
def test_checker_finds_files_that_load_torch(text: str) -> None:
    tree = {"stepseal/components/_tensors.py": "import torch", "stepseal/components/_a.py": text}
    (finding,) = torch_findings(tree, LISTED)
    assert finding.startswith("stepseal/components/_a.py:")
    assert torch_findings(tree, LISTED | {"stepseal/components/_a.py"}) == []


def test_checker_finds_listed_files_that_load_no_torch() -> None:
    tree = {"stepseal/components/_tensors.py": "def f():\n    import torch"}
    (finding,) = torch_findings(tree, LISTED)
    assert finding.endswith("loads none")


def test_checker_lets_functions_and_type_checkers_import_torch() -> None:
    tree = {
        "stepseal/components/_tensors.py": "import torch",
        "stepseal/components/_a.py": "if TYPE_CHECKING:\n    import torch",
        "stepseal/components/_b.py": "def f():\n    import torch\n    import torch.nn",
        "stepseal/components/_c.py": (
            "def f():\n    from stepseal.components._tensors import FlatState"
        ),
    }
    assert torch_findings(tree, LISTED) == []


def in_layout(text: str) -> dict[str, str]:
    return {"stepseal/layout/_a.py": text}


def in_steps(text: str) -> dict[str, str]:
    return {"stepseal/steps/_a.py": text}


def in_protocol(text: str) -> dict[str, str]:
    return {"stepseal/protocol/_a.py": text}


def in_session(text: str) -> dict[str, str]:
    return {"stepseal/session/_a.py": text}


def in_foreign(text: str) -> dict[str, str]:
    return {"stepseal/foreign/_a.py": text}


def in_components(text: str) -> dict[str, str]:
    return {"stepseal/components/_a.py": text}


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 60
BAD: Mapping[str, tuple[str, dict[str, str]]] = {
    "unknown wing": ("plan", {"stepseal/utils/__init__.py": ""}),
    "unknown top-level file": ("plan", {"stepseal/helpers.py": ""}),
    "sideways": ("arrow", in_layout("import stepseal.storage")),
    "sideways, from the root": ("arrow", in_layout("from stepseal import storage")),
    "steps to transfer": ("arrow", in_steps("from stepseal.transfer import X")),
    "steps to doctor": ("arrow", in_steps("from stepseal.doctor import X")),
    "protocol to storage": ("arrow", in_protocol("from stepseal.storage import X")),
    "protocol to steps": ("arrow", in_protocol("from stepseal.steps import X")),
    "steps to protocol": ("arrow", in_steps("from stepseal.protocol import X")),
    "a rename above steps": ("moves", in_session("def f(storage):\n    storage.rename(1, 2)")),
    "an exchange above steps": ("moves", in_protocol("def f(s):\n    s.disk.exchange(1, 2)")),
    "a directory sync above steps": (
        "moves",
        {"stepseal/retention/_a.py": "def f(storage):\n    storage.sync_dir('')"},
    ),
    "components to storage": ("arrow", in_components("from stepseal.storage import X")),
    "components to foreign": ("arrow", in_components("from stepseal.foreign import X")),
    "foreign to steps": ("arrow", in_foreign("from stepseal.steps import X")),
    "foreign to session": ("arrow", in_foreign("def f():\n    from stepseal.session import X")),
    "up, in a function": ("arrow", in_steps("def f():\n    import stepseal.session")),
    "up, async": ("arrow", in_steps("async def f():\n    import stepseal.session")),
    "up, for types": ("arrow", in_steps("if TYPE_CHECKING:\n    import stepseal.session")),
    "up, unless types": ("arrow", in_steps("if TYPE_CHECKING: ...\nelse: import stepseal.cli")),
    "up, relative": ("arrow", in_layout("from ..steps import X")),
    "up, relative to the root": ("arrow", in_layout("from .. import steps")),
    "up, in a class": ("arrow", in_layout("class A:\n    from stepseal.transfer import X")),
    "up, in a lazy table": ("arrow", in_session("T = {'X': 'stepseal.integrations.ray:X'}")),
    "up, through the root's face": ("arrow", in_session("import stepseal")),
    "cli to session, when the file is loaded": (
        "arrow",
        {"stepseal/cli/_importing.py": "from stepseal.session import Run"},
    ),
    "cli to session, in a table": (
        "arrow",
        {"stepseal/cli/_importing.py": "T = {'X': 'stepseal.session:Run'}"},
    ),
    "cli to session, in a function of another file": (
        "arrow",
        {"stepseal/cli/_a.py": "def f():\n    from stepseal.session import Run"},
    ),
    "cli to session": ("arrow", {"stepseal/cli/_a.py": "from stepseal.session import Run"}),
    "errors to a wing": ("arrow", {"stepseal/errors.py": "from stepseal.layout import Box"}),
    "testing to cli": ("arrow", {"stepseal/testing/_a.py": "from stepseal.cli import main"}),
    "private module": ("private", in_steps("from stepseal.layout._boxes import Box")),
    "private module, whole": ("private", in_steps("import stepseal.layout._boxes")),
    "private module, as a name": ("private", in_steps("from stepseal.layout import _boxes")),
    "public module, no face": ("private", in_steps("from stepseal.layout.boxes import Box")),
    "private module, by attribute": (
        "private",
        in_session("from stepseal import steps\nsteps._publish.publish()"),
    ),
    "private module, by attribute of a renamed wing": (
        "private",
        in_session("import stepseal.steps as c\ndef f():\n    c._attempts.begin()"),
    ),
    "up, by attribute": ("arrow", in_layout("import stepseal.errors\nstepseal.steps.open_store()")),
    "private name": ("private", in_steps("from stepseal.errors import _rebuild")),
    "torch in steps": ("torch", in_steps("import torch.distributed as dist")),
    "torch in a function": ("torch", in_layout("def f():\n    from torch import Tensor")),
    "torch for types": ("torch", in_steps("if TYPE_CHECKING:\n    import torch")),
    "torch in the root's face": ("torch", {"stepseal/__init__.py": "import torch"}),
    "numpy": ("numpy", in_components("import numpy as np")),
    "numpy behind try": ("numpy", in_components("try:\n    import numpy\nfinally: ...")),
    "new dependency": ("foreign", in_steps("def f():\n    import requests")),
    "click outside cli": ("foreign", in_steps("import click")),
    "typing_extensions at run time": ("foreign", in_steps("import typing_extensions")),
    "pickle": ("unsafe", in_steps("def f():\n    import pickle")),
    "pickle in foreign": ("unsafe", in_foreign("import pickle")),
    "marshal": ("unsafe", in_layout("from marshal import loads")),
    "shelve": ("unsafe", in_layout("import shelve")),
    "importlib": ("unsafe", in_layout("from importlib import import_module")),
    "importlib in another face": ("unsafe", {"stepseal/layout/__init__.py": "import importlib"}),
    "eval": ("unsafe", in_layout("x = eval('1')")),
    "exec by another name": ("unsafe", in_layout("run = exec")),
    "exec as attribute": ("unsafe", in_layout("import builtins\nbuiltins.exec('')")),
    "import by name": ("unsafe", in_layout("__import__('os')")),
    "torch.load": ("unsafe", in_components("import torch\ntorch.load('x')")),
    "torch.load by name": ("unsafe", in_components("from torch import load")),
    "torch.load, torch renamed": ("unsafe", in_components("import torch as t\nt.load('x')")),
    "torch.load, renamed in a function": (
        "unsafe",
        in_components("def f():\n    from torch import serialization as s\n    s.load('x')"),
    ),
    "torch.load where it is defined": (
        "unsafe",
        in_components("import torch\ntorch.serialization.load('x')"),
    ),
    "torch.load from where it is defined": (
        "unsafe",
        in_components("from torch.serialization import load"),
    ),
    "torch.load by getattr": ("unsafe", in_components("import torch\ngetattr(torch, 'load')")),
    "DCP's readers": (
        "unsafe",
        in_session("import torch.distributed.checkpoint as dcp\ndcp.load({})"),
    ),
    "DCP's readers by attributes": (
        "unsafe",
        in_session("import torch.distributed as dist\ndist.checkpoint.load({})"),
    ),
    "numpy.load": (
        "unsafe",
        in_components("def f():\n    import numpy as np\n    np.load('x')"),
    ),
    "allow_pickle": ("unsafe", in_components("def f(np):\n    np.load('x', allow_pickle=True)")),
    "compile": ("unsafe", in_layout("c = compile('1', 'x', 'exec')")),
    "runpy": ("unsafe", in_steps("import runpy")),
    "pkgutil": ("unsafe", in_steps("import pkgutil\npkgutil.resolve_name('os:system')")),
    "builtins renamed": ("unsafe", in_layout("import builtins as b\nb.exec('')")),
    "importlib in an eager face": (
        "unsafe",
        {"stepseal/session/__init__.py": "from importlib import import_module"},
    ),
    "open in layout": ("pure", in_layout("def f():\n    return open('x').read()")),
    "os in layout": ("pure", in_layout("import os")),
    "pathlib in layout": ("pure", in_layout("def f():\n    from pathlib import Path")),
    "socket in errors": ("pure", {"stepseal/errors.py": "import socket"}),
    "function in a face": ("face-logic", {"stepseal/layout/__init__.py": "def f(): ..."}),
    "call in a face": ("face-logic", {"stepseal/steps/__init__.py": "import os\nos.getcwd()"}),
    "computed table in a face": (
        "face-logic",
        {"stepseal/steps/__init__.py": "T = {n: n for n in 'ab'}"},
    ),
    "branch in a face": ("face-logic", {"stepseal/steps/__init__.py": "if x:\n    y = 1"}),
    "circle of two": (
        "circle",
        {
            "stepseal/layout/_a.py": "from ._b import x",
            "stepseal/layout/_b.py": "def f():\n    from . import _a",
        },
    ),
    "circle through types": (
        "circle",
        {
            "stepseal/layout/_a.py": "if TYPE_CHECKING:\n    from stepseal.layout._b import X",
            "stepseal/layout/_b.py": "import stepseal.layout._c",
            "stepseal/layout/_c.py": "from stepseal.layout import _a",
        },
    ),
    "circle through the own face": (
        "circle",
        {
            "stepseal/layout/__init__.py": "from stepseal.layout._a import x",
            "stepseal/layout/_a.py": "from stepseal.layout import y",
        },
    ),
    "long file": ("file-length", in_layout("x = 1\n" * 401)),
    "long face": ("face-length", {"stepseal/layout/__init__.py": "x = 1\n" * 61}),
    "long function": ("function-length", in_layout(LONG_FUNCTION)),
    "long async function": ("function-length", in_layout("async " + LONG_FUNCTION)),
    "long method": (
        "function-length",
        in_layout("if x:\n  class A:\n    def f(self):\n" + "     x\n" * 60),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_checker_finds(case: str) -> None:
    rule, sources = BAD[case]
    found = findings(sources)
    assert {finding.split(": ")[1] for finding in found} == {rule}, found


def test_checker_finds_every_unsafe_module_and_name() -> None:
    for module in UNSAFE_MODULES | UNSAFE_DOTTED:
        found = findings(in_components(f"def f():\n    import {module}"))
        assert "unsafe" in found[0]
    for name in UNSAFE_NAMES:
        assert "unsafe" in findings(in_components(f"x = {name}"))[0]


def test_checker_finds_long_files_of_any_tree() -> None:
    assert "file-length" in long_files({"tests/test_a.py": "x = 1\n" * 401})[0]


def test_checker_accepts_the_plan_as_drawn() -> None:
    tree = {
        "stepseal/errors.py": "import enum",
        "stepseal/_version.py": "__version__ = '0'",
        "stepseal/session/_b.py": "from stepseal._version import __version__",
        "stepseal/layout/_b.py": "import xxhash, json\nx = 1\n" + "x = 1\n" * 398,
        "stepseal/layout/_a.py": "from ._b import f\nfrom stepseal.errors import Corrupt",
        "stepseal/layout/__init__.py": "'A docstring: stepseal.session.'\nM = 'stepseal.json'",
        "stepseal/storage/_a.py": "if TYPE_CHECKING:\n    from typing_extensions import Self",
        "stepseal/transfer/_a.py": "from stepseal import layout, storage\nlayout.Box.whole()",
        "stepseal/components/_a.py": "import torch, re\nre.compile('x')\nmodel.eval()",
        "stepseal/components/_b.py": "import math\ndef f():\n    import numpy",
        "stepseal/components/_c.py": "if TYPE_CHECKING:\n    import numpy",
        "stepseal/components/_dcp_index.py": "import pickle",
        "stepseal/foreign/_a.py": "import pickletools, torch, zipfile, stepseal.storage",
        "stepseal/session/_a.py": "import stepseal.steps, stepseal.transfer, stepseal.components",
        "stepseal/testing/__init__.py": "import importlib\nT = {'Run': 'stepseal.session'}",
        "stepseal/cli/_a.py": "import click\nfrom stepseal.transfer import verify_step",
        "stepseal/integrations/ray.py": "import ray\nfrom stepseal.actors import Member",
        "stepseal/testing/_a.py": "def f():\n    '''" + "prose\n" * 100 + "'''\n" + "    x\n" * 59,
    }
    assert findings(tree) == []
