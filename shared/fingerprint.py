"""Fingerprint of the code behind a command: what a change to the sources really changes.

An artifact is addressed by the hash of everything that made it. Snakemake hashes a rule's command, parameters and
inputs, but not the Python code that the command runs. ``fingerprint("papers.wpr.train")`` supplies that missing part:
a hash over the syntax trees of the named module and of everything it uses inside the project's own packages.

What counts is decided on the level of top-level definitions, not of files: a module that says
``from shared.lm.batches import collate`` depends on ``collate`` and on what ``collate`` refers to, not on its
neighbours. Comments, docstrings, and formatting do not count. Statements with side effects at import (calls, loops,
conditionals) of every module reached always count. Imports by computed name (``importlib.import_module(variable)``)
cannot be seen; do not use them in stages.

Only the standard library is imported here, since the Snakefile calls this each time it is read.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PROJECT_PACKAGES = ("papers", "shared")
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class _Import:
    """What a local name stands for: ``symbol`` of ``module``, or the module itself when ``symbol`` is None."""

    module: str
    symbol: str | None


@dataclass
class _Module:
    """A parsed module: definitions by the name they bind, imports by local name, and import-time side effects."""

    name: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, _Import] = field(default_factory=dict)
    side_effects: list[ast.stmt] = field(default_factory=list)


def fingerprint(module: str, *, root: Path = _ROOT) -> str:
    """Hash of the code that ``python -m module`` runs, as 20 hexadecimal digits.

    Args:
        module: dotted name of a module inside one of the project's packages.
        root: the folder that holds those packages.

    Raises:
        ValueError: ``module`` (or a project module that it imports) does not exist, or does not parse.
    """
    reached = _Reach(root.resolve())
    reached.whole_module(module)
    digest = hashlib.sha256()
    for key in sorted(reached.parts):
        digest.update("\0".join((*key, reached.parts[key], "")).encode())
    return digest.hexdigest()[:20]


def dependencies(module: str, *, root: Path = _ROOT) -> list[str]:
    """Names of the project's modules of which at least one definition is used by ``module``, sorted."""
    reached = _Reach(root.resolve())
    reached.whole_module(module)
    return sorted({name for name, _ in reached.parts})


class _Reach:
    """Everything reachable from a starting module, as canonical source by (module, definition)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts: dict[tuple[str, str], str] = {}
        self._visited: set[tuple[str, str | None]] = set()
        self._imported: set[str] = set()

    def whole_module(self, name: str) -> None:
        module = self._enter(name, None)
        if module is None:
            return
        for symbol in module.definitions:
            self.symbol(name, symbol)
        # An unused import may still have side effects, and `import x` of a package names what others re-export.
        for target in module.imports.values():
            self._follow(target)

    def symbol(self, name: str, symbol: str) -> None:
        """Include one top-level name of a module: a definition, a re-export, or a submodule of a package."""
        module = self._enter(name, symbol)
        if module is None:
            return
        if symbol in module.definitions:
            for statement in module.definitions[symbol]:
                self._include(module, symbol, statement)
        elif symbol in module.imports:
            self._follow(module.imports[symbol])
        elif self._path(f"{name}.{symbol}") is not None:
            self.whole_module(f"{name}.{symbol}")

    def _enter(self, name: str, symbol: str | None) -> _Module | None:
        """The parsed module, on the first visit for this symbol; what its import runs always counts."""
        if (name, symbol) in self._visited:
            return None
        self._visited.add((name, symbol))
        path = self._path(name)
        if path is None:
            raise ValueError(f"fingerprint: no module {name!r} in {', '.join(PROJECT_PACKAGES)}")
        module = _parse(name, path, path.stat().st_mtime_ns)
        self._import(module)
        return module

    def _import(self, module: _Module) -> None:
        """What runs when a module is imported: its statements with side effects, after those of its packages."""
        if module.name in self._imported:
            return
        self._imported.add(module.name)
        parent = module.name.rpartition(".")[0]
        if parent and (path := self._path(parent)):
            self._import(_parse(parent, path, path.stat().st_mtime_ns))
        for index, statement in enumerate(module.side_effects):
            self._include(module, f"<statement {index}>", statement)

    def _include(self, module: _Module, label: str, statement: ast.stmt) -> None:
        text = _canonical(statement)
        key = (module.name, label)
        self.parts[key] = self.parts.get(key, "") + text
        for target in self._references(statement, module):
            if isinstance(target, str):
                self.symbol(module.name, target)
            else:
                self._follow(target)

    def _follow(self, target: _Import) -> None:
        if target.module.partition(".")[0] not in PROJECT_PACKAGES:
            self.parts[("<external>", f"{target.module}:{target.symbol}")] = ""
        elif target.symbol is None or target.symbol == "*":
            self.whole_module(target.module)
        else:
            self.symbol(target.module, target.symbol)

    def _references(self, statement: ast.stmt, module: _Module) -> Iterator[str | _Import]:
        """What a statement refers to: top-level names of its own module, or imported names."""
        dotted = {name for name in module.imports if "." in name}
        modules_by_attribute: set[int] = set()
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from _imported_names(node, module.name.rpartition(".")[0]).values()
            elif isinstance(node, ast.Attribute):
                path = _dotted_name(node)
                if path in dotted:
                    yield module.imports[path]
                # `batches.collate`, where `batches` is a module, depends on `collate` alone.
                if isinstance(node.value, ast.Name) and (target := module.imports.get(node.value.id)):
                    as_module = f"{target.module}.{target.symbol}" if target.symbol else target.module
                    if target.symbol is None or self._path(as_module) is not None:
                        modules_by_attribute.add(id(node.value))
                        yield _Import(as_module, node.attr)
            elif isinstance(node, ast.Name) and id(node) not in modules_by_attribute:
                if node.id in module.definitions:
                    yield node.id
                elif node.id in module.imports:
                    yield module.imports[node.id]

    def _path(self, name: str) -> Path | None:
        if name.partition(".")[0] not in PROJECT_PACKAGES:
            return None
        base = self.root.joinpath(*name.split("."))
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
        return None


@cache
def _parse(name: str, path: Path, _mtime_ns: int) -> _Module:
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise ValueError(f"fingerprint: {path}: line {error.lineno}: {error.msg}") from error
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    module = _Module(name)
    for statement in tree.body:
        if _is_docstring(statement):
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            module.imports.update(_imported_names(statement, package))
            continue
        bound = list(_bound_names(statement))
        for symbol in bound:
            module.definitions.setdefault(symbol, []).append(statement)
        if not bound:
            module.side_effects.append(statement)
    return module


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    """Names that a plain definition or assignment binds; nothing for a statement with side effects."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets) if all(_plain_target(target) for target in targets):
            for target in targets:
                yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def _plain_target(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) or (
        isinstance(target, ast.Tuple) and all(isinstance(element, ast.Name) for element in target.elts)
    )


def _imported_names(statement: ast.Import | ast.ImportFrom, package: str) -> dict[str, _Import]:
    if isinstance(statement, ast.Import):
        # `import a.b` binds `a`, but what it depends on is `a.b`.
        return {alias.asname or alias.name: _Import(alias.name, None) for alias in statement.names}
    base = statement.module or ""
    if statement.level:
        parents = package.split(".")
        base = ".".join([*parents[: len(parents) - statement.level + 1], *([base] if base else [])])
    return {alias.asname or alias.name: _Import(base, alias.name) for alias in statement.names}


def _dotted_name(node: ast.expr) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _canonical(node: object) -> str:
    """Text of a syntax tree without positions, docstrings and empty fields, the same for every Python version."""
    match node:
        case ast.Constant(value=value):
            return f"{type(value).__name__}:{value!r}"
        case ast.AST():
            fields = (f"{name}={_canonical(value)}" for name, value in ast.iter_fields(node) if value not in (None, []))
            return f"{type(node).__name__}({','.join(fields)})"
        case list():
            return f"[{','.join(_canonical(item) for item in node if not _is_docstring(item))}]"
        case _:
            return repr(node)
