"""Bundles definitions of this package, with their dependencies, into one module.

An exported model includes its code, so that it runs without this package. The code is extracted
from the package's sources, definition by definition, without executing it.
"""

import ast
import functools
import hashlib
import importlib.util
import re
from typing import Any, NamedTuple

Import = ast.Import | ast.ImportFrom
"""An import of one name."""

_CHECKER_COMMENT = re.compile(r"  # (?:type: ignore|noqa)\b.*")


class Definition(NamedTuple):
    """The source of a function, class or constant, and the names it uses, in order."""

    source: str
    uses: list[str]


def bundle(*wanted: str, docstring: str) -> str:
    """The source of a module with the definitions `wanted` and everything they use.

    Args:
        wanted: Definitions as "module:name".
        docstring: The module's docstring.

    Returns:
        Imports of other packages, then the definitions, each after those it uses.

    Raises:
        ValueError: Two definitions have the same name, or one cannot be found.
    """
    imports: set[str] = set()
    sources: dict[str, str] = {}
    origins: dict[str, str] = {}

    def add(module: str, name: str) -> None:
        entry = names_of(module).get(name)
        if entry is None:
            raise ValueError(f"{module} has no top-level definition {name!r}")
        if isinstance(entry, ast.ImportFrom) and is_internal(str(entry.module)):
            if entry.names[0].asname is not None:
                raise ValueError(f"{module}: cannot bundle a renamed import: {ast.unparse(entry)}")
            return add(str(entry.module), name)
        origin = f"{module}:{name}" if isinstance(entry, Definition) else ast.unparse(entry)
        if origins.setdefault(name, origin) != origin:
            raise ValueError(f"two definitions of {name!r}: {origins[name]} and {origin}")
        if not isinstance(entry, Definition):
            imports.add(origin)
        elif name not in sources:
            sources[name] = ""  # in progress: functions may call each other recursively
            for used in entry.uses:
                if used in names_of(module):  # otherwise a local variable or a builtin
                    add(module, used)
            del sources[name]
            sources[name] = entry.source

    for path in wanted:
        add(*path.split(":"))
    lines = sorted(imports, key=lambda line: (line.startswith("from"), line))
    parts = [f'"""{docstring}"""\n\n' + "\n".join(lines), *sources.values()]
    return "\n\n\n".join(parts) + "\n"


def with_checksum(stem: str, source: str) -> str:
    """A module name unique to its content, such as `mlp_1f3c9a72`.

    The diffusers library caches code from all local folders by file name, so exports with different
    code must use different names.
    """
    return f"{stem}_{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def is_internal(module: str) -> bool:
    """Whether `module` belongs to this package."""
    return module.partition(".")[0] == __name__.partition(".")[0]


@functools.cache
def names_of(module: str) -> dict[str, Import | Definition]:
    """The top-level names of a module of this package, found without executing it."""
    loader: Any = importlib.util.find_spec(module).loader  # type: ignore[union-attr]
    return parse_names(loader.get_source(module))


def parse_names(source: str) -> dict[str, Import | Definition]:
    """The top-level names of a module, with their import or definition."""
    names: dict[str, Import | Definition] = {}
    for node in ast.parse(source).body:
        match node:
            case ast.Import():
                for item in node.names:
                    names[item.asname or item.name.partition(".")[0]] = ast.Import([item])
            case ast.ImportFrom():
                for item in node.names:
                    names[item.asname or item.name] = ast.ImportFrom(node.module, [item], 0)
            case ast.FunctionDef() | ast.ClassDef():
                names[node.name] = _definition(node, source)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = _definition(node, source)
    return names


def _definition(node: ast.stmt, source: str) -> Definition:
    first = min(part.lineno for part in [node, *getattr(node, "decorator_list", [])])
    lines = source.splitlines()[first - 1 : node.end_lineno]
    used = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    used.sort(key=lambda name: (name.lineno, name.col_offset))
    text = "\n".join(_CHECKER_COMMENT.sub("", line) for line in lines)
    return Definition(text, list(dict.fromkeys(name.id for name in used)))
