"""The house plan as tables, and a checker that reads source text and never imports it.

Imports inside functions and under TYPE_CHECKING count, and so do module names in strings.
A finding reads `path:line: rule: what is wrong`. The reasons: docs/design/0001-house-plan.md.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FACE = "face"
"""The wing of `src/stepseal/__init__.py`."""
_CORE = frozenset(
    {"errors", "layout", "storage", "transfer", "commit", "retention", "components", "session"}
)
_OUTER = frozenset({"cli", "testing", "integrations"})

ARROWS: Mapping[str, frozenset[str]] = {
    "_version": frozenset(),
    "errors": frozenset(),
    "layout": frozenset({"errors"}),
    "storage": frozenset({"errors"}),
    "transfer": frozenset({"errors", "layout", "storage"}),
    "commit": frozenset({"errors", "layout", "storage"}),
    "retention": frozenset({"errors", "layout", "storage", "commit"}),
    "components": frozenset({"errors", "layout"}),
    "session": _CORE - {"session"} | {"_version"},
    FACE: _CORE | {"_version"},
    "cli": frozenset(
        {"_version", "errors", "layout", "storage", "transfer", "commit", "retention"}
    ),
    "__main__": frozenset({"cli"}),
    "testing": _CORE | {FACE},
    "integrations": _CORE | {FACE},
}
"""Wing to the wings it may import.

Nobody imports `testing` or `integrations`; `cli` is started by `python -m stepseal` alone.
"""

WHEN_CALLED: Mapping[tuple[str, str], str] = {
    ("stepseal/cli/_importing.py", "session"): (
        "`stepseal import` runs a whole save, so it needs torch; all other verbs start without"
    ),
}
"""(path, wing) that this one file may import, only inside a function, to the reason."""

TORCH_WINGS = frozenset({"components", "session", "integrations", "testing"})
FOREIGN: Mapping[str, frozenset[str]] = {
    "xxhash": frozenset({"layout"}),
    "msgspec": _CORE | _OUTER,
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
    {"_pickle", "cloudpickle", "dill", "importlib", "marshal", "pickle", "shelve"}
)
UNSAFE_NAMES = frozenset({"__import__", "eval", "exec"})
UNSAFE_DOTTED = frozenset({"torch.load"} | {f"builtins.{name}" for name in UNSAFE_NAMES})

MAX_FILE_LINES = 400
MAX_FACE_LINES = 60
MAX_FUNCTION_LINES = 60

EXEMPT: Mapping[tuple[str, str], str] = {
    ("stepseal/components/_dcp_index.py", "pickle"): (
        "writes `.metadata`, which stock DCP reads as a pickle; stepseal never reads it"
    ),
    ("stepseal/components/_tensors.py", "pickle"): (
        "names `PicklingError`, which `torch.save` raises for values that stock DCP could not read"
    ),
    ("stepseal/__init__.py", "importlib"): "lazy face: `import stepseal` must not import torch",
    ("stepseal/components/__init__.py", "importlib"): "lazy face: torch on first use",
    ("stepseal/session/__init__.py", "importlib"): "lazy face: torch on first use",
    ("stepseal/testing/__init__.py", "importlib"): "lazy face: pytest and torch on first use",
}
"""(path, what) to the reason.

`what` is a module or name of the unsafe sets, or the name of a function that is too long.
"""


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, with the name taken from it where there is one."""

    target: str
    name: str | None
    line: int
    runs: str
    """`load` (when the file is imported), `call` (inside a function) or `types` (never)."""


class Reader(ast.NodeVisitor):
    """Collects what one file imports, which unsafe names it uses, and its functions' lengths."""

    def __init__(self, path: str, text: str) -> None:
        self.module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        is_face = path.endswith("__init__.py")
        self.package = self.module if is_face else self.module.rpartition(".")[0]
        self.imports: list[Import] = []
        self.unsafe: list[tuple[str, int]] = []
        self.functions: list[tuple[str, int, int]] = []
        self._runs = "load"
        self.visit(ast.parse(text, path))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, None, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        target = node.module or ""
        if node.level:
            parts = self.package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1])
            target = f"{above}.{target}" if target else above
        for alias in node.names:
            self._add(target, alias.name, node.lineno)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            self._visit_all(node.body, "types")
        else:
            self.visit(node.test)
            self._visit_all(node.body, self._runs)
        self._visit_all(node.orelse, self._runs)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in UNSAFE_NAMES:
            self.unsafe.append((node.id, node.lineno))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        dotted = ast.unparse(node)
        if dotted in UNSAFE_DOTTED:
            self.unsafe.append((dotted, node.lineno))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        # The table of a lazy face names modules in strings; they are imports like any other.
        if not isinstance(node.value, str):
            return
        target = node.value.split(":")[0]
        if target.startswith("stepseal.") and wing_of(target) in ARROWS:
            self.imports.append(Import(target, None, node.lineno, "call"))

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        num_lines = _num_lines(node)
        if ast.get_docstring(node, clean=False) is not None:  # prose is not length
            num_lines -= _num_lines(node.body[0])
        self.functions.append((node.name, num_lines, node.lineno))
        for outside in (*node.decorator_list, node.args, node.returns):
            if outside is not None:
                self.visit(outside)
        self._visit_all(node.body, "types" if self._runs == "types" else "call")

    def _visit_all(self, body: list[ast.stmt], runs: str) -> None:
        before, self._runs = self._runs, runs
        for child in body:
            self.visit(child)
        self._runs = before

    def _add(self, target: str, name: str | None, line: int) -> None:
        if f"{target}.{name}" in UNSAFE_DOTTED:
            self.unsafe.append((f"{target}.{name}", line))
        self.imports.append(Import(target, name, line, self._runs))


def _num_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


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
        found += [f"{path}:1: {rest}" for rest in _in_size(path, sources[path])]
    for circle in _circles(readers, modules):
        found.append(f"{circle[0]}:1: circle: {', '.join(circle)} import each other")
    return sorted(found)


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
        if imported.target.partition(".")[0] == "stepseal":
            rules = _in_own_import(path, wing, imported.runs, *_resolve(imported, modules))
        else:
            rules = _in_foreign_import(path, wing, imported)
        yield from ((imported.line, rule) for rule in rules)
    for name, line in reader.unsafe:
        if (path, name) not in EXEMPT:
            yield line, f"unsafe: `{name}` may run what a checkpoint names"
    for name, num_lines, line in reader.functions:
        if num_lines > MAX_FUNCTION_LINES and (path, name) not in EXEMPT:
            yield line, f"function-length: `{name}` has {num_lines} lines: split it"


def _in_own_import(path: str, wing: str, runs: str, module: str, name: str | None) -> Iterator[str]:
    other = wing_of(module)
    if other == wing:
        return
    allowed = other in ARROWS[wing] or (runs == "call" and (path, other) in WHEN_CALLED)
    if not allowed:
        yield f"arrow: `{wing}` must not import `{other}`"
    elif module.count(".") > 1:
        yield f"private: import from the face `stepseal.{other}`, not `{module}`"
    elif name is not None and name.startswith("_") and name != "__version__":
        yield f"private: `{name}` is not in the face of `{other}`"


def _in_foreign_import(path: str, wing: str, imported: Import) -> Iterator[str]:
    package = imported.target.partition(".")[0]
    if package in UNSAFE_MODULES:
        if (path, package) not in EXEMPT:
            yield f"unsafe: `{package}` may run what a checkpoint names"
    elif package == "torch":
        if wing not in TORCH_WINGS:
            yield f"torch: `{wing}` must start without torch"
    elif not _is_allowed(package, wing, imported.runs):
        yield f"foreign: `{wing}` must not import `{package}`"
    if package == "numpy" and imported.runs == "load":
        yield "numpy: import it inside the function that needs it; it is optional"


def _is_allowed(package: str, wing: str, runs: str) -> bool:
    if package in sys.stdlib_module_names or wing == "integrations":
        return True
    if package in FOR_TYPES:
        return runs == "types"
    return wing in FOREIGN.get(package, ())


def _in_size(path: str, text: str) -> Iterator[str]:
    num_lines = len(text.splitlines())
    if num_lines > MAX_FILE_LINES:
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
