"""What the source text of one file imports, names and defines, for the house plan's checker.

Names are followed through `import a as b` and `from a import b as c`, wherever in the file that
stands. They are not followed through assignments, which is why whole modules are refused where
one of their names would do harm.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, with the name taken from it where there is one.

    A name that is reached by attributes (`steps.Pins` after `from stepseal import steps`) is an
    import like any other.
    """

    target: str
    name: str | None
    line: int
    runs: str
    """`load` (when the file is imported), `call` (inside a function) or `types` (never)."""
    is_stated: bool = True
    """By an import statement; else by attributes or in a string, and perhaps no module at all."""

    @property
    def dotted(self) -> str:
        """The full name of what is imported."""
        return self.target if self.name is None else f"{self.target}.{self.name}"


class Reader(ast.NodeVisitor):
    """Collects what one file imports and names, its functions' lengths, and a face's logic."""

    def __init__(self, path: str, text: str) -> None:
        self.module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        is_face = path.endswith("__init__.py")
        self.package = self.module if is_face else self.module.rpartition(".")[0]
        self.imports: list[Import] = []
        self.attributes: list[tuple[str, int]] = []
        """What is reached from imported names, from the module on: `torch.serialization.load`."""
        self.members: list[tuple[str, int]] = []
        """What stands behind a dot, whatever it is a member of."""
        self.names: list[tuple[str, int]] = []
        """Plain names that no import made, and the names of keyword arguments."""
        self.functions: list[tuple[str, int, int]] = []
        tree = ast.parse(text, path)
        self.logic = [node.lineno for node in tree.body if not _is_face_like(node)]
        """Lines of the statements that a face must not have."""
        self._runs = "load"
        self._aliases = dict(pair for node in ast.walk(tree) for pair in self._bound_by(node))
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.imports.append(Import(alias.name, None, node.lineno, self._runs))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        target = self._target_of(node)
        for alias in node.names:
            self.imports.append(Import(target, alias.name, node.lineno, self._runs))

    def visit_If(self, node: ast.If) -> None:
        if _is_for_types(node):
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
        if node.id not in self._aliases:
            self.names.append((node.id, node.lineno))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.members.append((node.attr, node.lineno))
        dotted = self._dotted(node)
        if dotted is None:
            self.generic_visit(node)
        else:
            self._add_attribute(dotted, node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) == "getattr" and len(node.args) > 1:
            owner, name = self._dotted(node.args[0]), node.args[1]
            if owner is not None and isinstance(name, ast.Constant):
                self._add_attribute(f"{owner}.{name.value!s}", node.lineno)
        self.names += [(word.arg, node.lineno) for word in node.keywords if word.arg]
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        # The table of a lazy face names modules in strings; they are imports like any other.
        if isinstance(node.value, str) and node.value.startswith("stepseal."):
            target = node.value.split(":")[0]
            self.imports.append(Import(target, None, node.lineno, self._runs, is_stated=False))

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

    def _bound_by(self, node: ast.AST) -> list[tuple[str, str]]:
        """Return (name in this file, what it stands for) for each name that an import makes."""
        if isinstance(node, ast.Import):
            tops = [alias.name.partition(".")[0] for alias in node.names]
            return [
                (alias.asname, alias.name) if alias.asname else (top, top)
                for alias, top in zip(node.names, tops, strict=True)
            ]
        if isinstance(node, ast.ImportFrom):
            target = self._target_of(node)
            return [(alias.asname or alias.name, f"{target}.{alias.name}") for alias in node.names]
        return []

    def _target_of(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.package.split(".")
        above = ".".join(parts[: len(parts) - node.level + 1])
        return f"{above}.{node.module}" if node.module else above

    def _dotted(self, node: ast.expr) -> str | None:
        """Return the full name of names joined by dots that begin with an imported one."""
        if isinstance(node, ast.Name):
            return self._aliases.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._dotted(node.value)
            return owner and f"{owner}.{node.attr}"
        return None

    def _add_attribute(self, dotted: str, line: int) -> None:
        self.attributes.append((dotted, line))
        package, *rest = dotted.split(".")
        if package == "stepseal" and rest:
            wing, name = (rest[0], rest[1]) if len(rest) > 1 else ("", rest[0])
            target = f"stepseal.{wing}" if wing else "stepseal"
            self.imports.append(Import(target, name, line, self._runs, is_stated=False))


def _num_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _is_for_types(node: ast.If) -> bool:
    return ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _is_face_like(node: ast.stmt) -> bool:
    """Tell whether a face may have this statement: imports, plain tables, the two lazy hooks."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.If):
        return _is_for_types(node) and not node.orelse
    if isinstance(node, ast.FunctionDef):
        return node.name in {"__getattr__", "__dir__"}
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.Expr)) and node.value is not None:
        return _is_plain(node.value)
    return False


def _is_plain(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True
