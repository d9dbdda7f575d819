"""The house plan as tables, and a checker that reads source text and never imports it.

Imports inside functions and under TYPE_CHECKING count, and so do module names in strings.
A finding reads `path:line: rule: what is wrong`. The reasons: docs/design/0001-house-plan.md.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests._reader import Import, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FACE = "face"
"""The wing of `src/stepseal/__init__.py`."""
_CORE = frozenset(
    {"errors", "process", "layout", "storage", "transfer", "protocol", "steps", "retention"}
    | {"components", "foreign", "session"}
)
_OUTER = frozenset({"cli", "testing", "integrations"})

ARROWS: Mapping[str, frozenset[str]] = {
    "_version": frozenset(),
    "errors": frozenset(),
    "process": frozenset({"errors"}),
    "layout": frozenset({"errors"}),
    "storage": frozenset({"errors"}),
    "transfer": frozenset({"errors", "process", "layout", "storage"}),
    "protocol": frozenset({"errors", "process", "layout"}),
    "steps": frozenset({"errors", "process", "layout", "storage"}),
    "retention": frozenset({"errors", "layout", "steps"}),
    "doctor": frozenset({"errors", "layout", "storage"}),
    "components": frozenset({"errors", "layout"}),
    "foreign": frozenset({"errors", "layout", "storage", "components"}),
    "session": _CORE - {"session"} | {"_version"},
    "actors": frozenset(
        {"errors", "process", "layout", "storage", "protocol", "steps", "retention", "components"}
        | {"session", "_version"}
    ),
    FACE: _CORE | {"_version", "actors", "integrations"},
    "cli": frozenset(
        {"_version", "errors", "layout", "storage", "transfer", "steps", "retention", "doctor"}
    ),
    "__main__": frozenset({"cli"}),
    "testing": _CORE | {FACE},
    "integrations": _CORE | {"actors"},
}
"""Wing to the wings it may import.

Nobody imports `testing`, and only the package's face `integrations`; `cli` is started by `python -m
stepseal` alone, and only `cli` imports `doctor`.
"""

WHEN_CALLED: Mapping[tuple[str, str], str] = {
    ("stepseal/cli/_importing.py", "session"): (
        "`stepseal import` runs a whole save, so it needs torch; all other verbs start without"
    ),
}
"""(path, wing) that this one file may import, only inside a function, to the reason."""

TORCH_WINGS = frozenset({"components", "foreign", "session", "integrations", "testing"})
_WITH_TORCH = {
    "components": (
        *("_codecs_tensors", "_converting", "_dcp_index", "_differences", "_dtensors", "_frames"),
        *("_leaf_capture", "_leaves", "_module_loading", "_modules", "_optimizer_groups"),
        *("_optimizer_loading", "_optimizer_names", "_optimizer_own", "_optimizer_stages"),
        *("_optimizer_state", "_optimizer_ties", "_optimizers", "_ranges", "_samplers", "_sinks"),
        *("_tensor_places", "_tensors", "_with_torch"),
    ),
    "foreign": ("__init__", "_folder", "_values"),
    "integrations": ("forgather",),
    "testing": ("_exact", "_identical", "_ranks"),
}
LOADS_TORCH = frozenset(
    f"stepseal/{wing}/{name}.py" for wing, names in _WITH_TORCH.items() for name in names
)
"""Files that load torch when they are imported.

All others import it, and these files, inside the functions that need it: a participant that owns
only trees has no torch in its process.
"""
FOREIGN: Mapping[str, frozenset[str]] = {
    "xxhash": frozenset({"layout"}),
    "msgspec": _CORE | _OUTER | {"actors"},
    "numpy": _CORE | _OUTER,
    "click": frozenset({"cli"}),
    "rich": frozenset({"cli", "session"}),
    "hypothesis": frozenset({"testing"}),
    "pytest": frozenset({"testing"}),
}
"""Third-party package to the wings that may import it; torch has a rule of its own.

`integrations` may import any; what only type checkers need is in `FOR_TYPES`.
"""

FOR_TYPES = frozenset({"_typeshed", "typing_extensions"})

UNSAFE_MODULES = frozenset(
    {"_pickle", "builtins", "cloudpickle", "code", "codeop", "dill", "imp", "importlib", "joblib"}
    | {"jsonpickle", "marshal", "pickle", "pkgutil", "pydoc", "runpy", "shelve", "zipimport"}
)
UNSAFE_DOTTED = frozenset(
    {"numpy.lib.format.read_array", "numpy.lib.npyio", "numpy.load", "torch.distributed.checkpoint"}
    | {
        "torch.export",
        "torch.hub",
        "torch.jit",
        "torch.load",
        "torch.package",
        "torch.serialization.load",
    }
    | {"torch.utils.model_zoo"}
)
"""With all that is in them: some of it reads a pickle, or code."""
UNSAFE_NAMES = frozenset({"__builtins__", "__import__", "compile", "eval", "exec", "allow_pickle"})

MOVES = frozenset({"rename", "exchange", "sync_dir"})
"""Verbs of storage that decide what a reader sees, and what survives power loss."""
MOVING_WINGS = frozenset({"storage", "steps", "transfer", "doctor", "testing"})
"""`transfer` syncs the directories of the part that it writes, and `doctor` tries out what a file
system does; all else is for `steps`."""

PURE_WINGS = frozenset({"_version", "errors", "layout"})
PURE_MODULES = frozenset(
    {"__future__", "abc", "binascii", "bisect", "collections", "dataclasses", "datetime", "enum"}
    | {
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "json",
        "math",
        "numbers",
        "operator",
        "re",
        "string",
        "struct",
    }
    | {"types", "typing", "unicodedata"}
)
"""What pure wings may use of the standard library: values in, values out."""
IMPURE_NAMES = frozenset({"input", "open", "print"})

MAX_FILE_LINES = 400
MAX_FACE_LINES = 60
MAX_FUNCTION_LINES = 60

EXEMPT: Mapping[tuple[str, str], str] = {
    ("stepseal/components/_conversion.py", "rename"): "reads the field of this name",
    ("stepseal/components/_dcp_index.py", "pickle"): (
        "writes `.metadata`, which stock DCP reads as a pickle; stepseal never reads it"
    ),
    ("stepseal/components/_dcp_index.py", "torch.distributed.checkpoint"): (
        "makes the values of `.metadata` from DCP's own classes, and calls no reader"
    ),
    ("stepseal/components/_tensors.py", "pickle"): (
        "names `PicklingError`, which `torch.save` raises for values that stock DCP could not read"
    ),
    (
        "tests/protocol/test_incarnation.py",
        "file-length",
    ): "one test per stored change of an action",
    ("stepseal/testing/__init__.py", "importlib"): "lazy face: pytest and torch on first use",
}
"""(path, what) to the reason.

`what` is a name of the unsafe sets or of the moves, the name of a function that is too long, or
`file-length`.
"""


def wing_of(module: str) -> str:
    """Return the wing that a module of stepseal lives in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else FACE


def findings(sources: Mapping[str, str]) -> list[str]:
    """Return every break of the plan in a tree given as path below src to source text."""
    readers = {path: Reader(path, text) for path, text in sources.items()}
    modules = {reader.module for reader in readers.values()}
    found = []
    for path, reader in readers.items():
        found += [f"{path}:{line}: {rest}" for line, rest in _in_file(path, reader, modules)]
    found += long_files(sources)
    for circle in _circles(readers, modules):
        found.append(f"{circle[0]}:1: circle: {', '.join(circle)} import each other")
    return sorted(found)


def torch_findings(
    sources: Mapping[str, str], loads_torch: frozenset[str] = LOADS_TORCH
) -> list[str]:
    """Return every file that loads torch and is not listed, and every listed one that does not."""
    readers = {path: Reader(path, text) for path, text in sources.items()}
    paths = {reader.module: path for path, reader in readers.items()}
    found, loading = [], set()
    for path, reader in readers.items():
        for imported in (one for one in reader.imports if one.runs == "load" and one.is_stated):
            other = paths.get(_resolve(imported, set(paths))[0], "")
            if imported.target.partition(".")[0] == "torch" or other in loads_torch:
                loading.add(path)
                if path not in loads_torch:
                    found.append(
                        f"{path}:{imported.line}: torch: import `{imported.dotted}` inside the "
                        "function that needs it, or list the file"
                    )
    idle = sorted(loads_torch - loading)
    return sorted(found) + [f"{path}:1: torch: is listed, and loads none" for path in idle]


def _resolve(imported: Import, modules: set[str]) -> tuple[str, str | None]:
    """Return (module, name in it); `from a import b` names the module `a.b` where there is one."""
    target, name = imported.target, imported.name
    joined = f"{target}.{name}"
    if joined in modules or (target == "stepseal" and name in ARROWS):
        return joined, None
    return target, name


def _in_file(path: str, reader: Reader, modules: set[str]) -> Iterator[tuple[int, str]]:
    wing = wing_of(reader.module)
    if wing not in ARROWS:
        yield 1, f"plan: `{wing}` is not in the house plan; redraw the plan first"
        return
    for imported in reader.imports:
        if imported.target.partition(".")[0] != "stepseal":
            rules = _in_foreign_import(path, wing, imported)
        elif imported.is_stated or wing_of(imported.target) in ARROWS:
            rules = _in_own_import(path, wing, imported.runs, *_resolve(imported, modules))
        else:
            continue
        yield from ((imported.line, rule) for rule in rules)
    yield from _in_names(path, wing, reader)
    if path.endswith("__init__.py"):
        for line in reader.logic:
            yield line, "face-logic: expected imports, `__all__` and the table of a lazy face"
    for name, num_lines, line in reader.functions:
        if num_lines > MAX_FUNCTION_LINES and (path, name) not in EXEMPT:
            yield line, f"function-length: `{name}` has {num_lines} lines: split it"


def _in_names(path: str, wing: str, reader: Reader) -> Iterator[tuple[int, str]]:
    used = [(name, line) for name, line in reader.names if name in UNSAFE_NAMES]
    used += [(what, line) for name, line in reader.attributes if (what := _unsafe(name))]
    for name, line in used:
        if (path, name) not in EXEMPT:
            yield line, f"unsafe: `{name}` may run what a checkpoint names"
    for name, line in reader.members:
        if name in MOVES and wing not in MOVING_WINGS and (path, name) not in EXEMPT:
            yield line, f"moves: `{wing}` must not call `{name}`; ask the step store"
    for name, line in reader.names:
        if name in IMPURE_NAMES and wing in PURE_WINGS:
            yield line, f"pure: `{wing}` must not call `{name}`; values in, values out"


def _unsafe(dotted: str) -> str | None:
    """Return which unsafe thing this name is, or lies in."""
    unsafe = UNSAFE_MODULES | UNSAFE_DOTTED
    return next((what for what in unsafe if f"{dotted}.".startswith(f"{what}.")), None)


def _in_own_import(path: str, wing: str, runs: str, module: str, name: str | None) -> Iterator[str]:
    other = wing_of(module)
    if other == wing:
        return
    allowed = other in ARROWS[wing] or (runs == "call" and (path, other) in WHEN_CALLED)
    if not allowed:
        yield f"arrow: `{wing}` must not import `{other}`"
    elif module.count(".") > 1:
        yield f"private: import from the face `stepseal.{other}`, not `{module}`"
    elif name is not None and name.startswith("_") and not name.endswith("__"):
        yield f"private: `{name}` is not in the face of `{other}`"


def _in_foreign_import(path: str, wing: str, imported: Import) -> Iterator[str]:
    package = imported.target.partition(".")[0]
    unsafe = _unsafe(imported.dotted)
    if unsafe is not None:
        if (path, unsafe) not in EXEMPT:
            yield f"unsafe: `{unsafe}` may run what a checkpoint names"
    elif package == "torch":
        if wing not in TORCH_WINGS:
            yield f"torch: `{wing}` must start without torch"
    elif not _is_allowed(package, wing, imported.runs):
        yield f"foreign: `{wing}` must not import `{package}`"
    elif wing in PURE_WINGS and package in sys.stdlib_module_names - PURE_MODULES:
        yield f"pure: `{wing}` must not import `{package}`; values in, values out"
    if package == "numpy" and imported.runs == "load":
        yield "numpy: import it inside the function that needs it; it is optional"


def _is_allowed(package: str, wing: str, runs: str) -> bool:
    if package in sys.stdlib_module_names or wing == "integrations":
        return True
    if package in FOR_TYPES:
        return runs == "types"
    return wing in FOREIGN.get(package, ())


def long_files(sources: Mapping[str, str]) -> list[str]:
    """Return every file that is too long, of any tree; the plan itself is only that of src."""
    return [f"{path}:1: {rest}" for path, text in sources.items() for rest in _in_size(path, text)]


def _in_size(path: str, text: str) -> Iterator[str]:
    num_lines = len(text.splitlines())
    if num_lines > MAX_FILE_LINES and (path, "file-length") not in EXEMPT:
        yield f"file-length: {num_lines} lines, at most {MAX_FILE_LINES}: split it"
    if path.endswith("__init__.py") and num_lines > MAX_FACE_LINES:
        yield f"face-length: {num_lines} lines, at most {MAX_FACE_LINES}: faces hold no logic"


def _circles(readers: Mapping[str, Reader], modules: set[str]) -> list[list[str]]:
    """Return each group of files that import each other in a loop, by path."""
    paths = {reader.module: path for path, reader in readers.items()}
    graph = {
        path: {paths[m] for i in reader.imports if (m := _resolve(i, modules)[0]) in paths} - {path}
        for path, reader in readers.items()
    }
    below = {path: reachable(graph, path) for path in graph}
    groups = {tuple(sorted(p for p in below[path] if path in below[p])) for path in graph}
    return sorted(list(group) for group in groups if len(group) > 1)


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Return every node that a path of at least one arrow leads to."""
    seen: set[str] = set()
    pending = [start]
    while pending:
        new = graph[pending.pop()] - seen
        seen |= new
        pending += new
    return seen
