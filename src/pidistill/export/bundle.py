"""Definitions of this package, and all that they use of it, as the source of one module.

An exported model brings its code along, so that it runs without this package. The code is cut out
of the package's own sources, definition by definition; none of it is executed here.
"""

import ast
import functools
import hashlib
import importlib.util
import re
from typing import Any, NamedTuple

Import = ast.Import | ast.ImportFrom
"""An import of a single name."""

_CHECKER_COMMENT = re.compile(r"  # (?:type: ignore|noqa)\b.*")


class Definition(NamedTuple):
    """The source of a function, a class or a constant, and the names in it, in order."""

    source: str
    uses: list[str]


def bundle(*wanted: str, docstring: str) -> str:
    """The source of a module that holds the definitions `wanted` and all that they use.

    Args:
        wanted: Definitions as "module:name".
        docstring: The module's docstring.

    Returns:
        Imports of other packages, then the definitions, each after those that it uses.

    Raises:
        ValueError: Two of the definitions have the same name, or one cannot be found.
    """
    imports: set[str] = set()
    sources: dict[str, str] = {}
    origins: dict[str, str] = {}

    def add(module: str, name: str) -> None:
        entry = names_of(module).get(name)
        if entry is None:
            raise ValueError(f"{module} defines no {name!r} at its top")
        if isinstance(entry, ast.ImportFrom) and is_internal(str(entry.module)):
            if entry.names[0].asname is not None:
                raise ValueError(f"{module}: {ast.unparse(entry)!r} renames what is to be bundled")
            return add(str(entry.module), name)
        origin = f"{module}:{name}" if isinstance(entry, Definition) else ast.unparse(entry)
        if origins.setdefault(name, origin) != origin:
            raise ValueError(f"two definitions of {name!r}: {origins[name]} and {origin}")
        if not isinstance(entry, Definition):
            imports.add(origin)
        elif name not in sources:
            sources[name] = ""  # in progress: functions may use each other in a circle
            for used in entry.uses:
                if used in names_of(module):  # else a local variable or a builtin
                    add(module, used)
            del sources[name]
            sources[name] = entry.source

    for path in wanted:
        add(*path.split(":"))
    lines = sorted(imports, key=lambda line: (line.startswith("from"), line))
    parts = [f'"""{docstring}"""\n\n' + "\n".join(lines), *sources.values()]
    return "\n\n\n".join(parts) + "\n"


def with_checksum(stem: str, source: str) -> str:
    """A module name that no other content has, such as `mlp_1f3c9a72`.

    The diffusers library keeps the code of all local folders in one cache, by file name: two
    exports that differ in their code must differ in their names.
    """
    return f"{stem}_{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def is_internal(module: str) -> bool:
    """Whether `module` belongs to this package."""
    return module.partition(".")[0] == __name__.partition(".")[0]


@functools.cache
def names_of(module: str) -> dict[str, Import | Definition]:
    """What each name at the top of a module of this package stands for; nothing is executed."""
    loader: Any = importlib.util.find_spec(module).loader  # type: ignore[union-attr]
    return parse_names(loader.get_source(module))


def parse_names(source: str) -> dict[str, Import | Definition]:
    """What each name at the top of a module stands for."""
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
