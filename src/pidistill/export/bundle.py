"""Source code that travels: definitions of this package and all that they use of it, as one file.

An exported model brings its code along, so that it runs where this package is not installed. The
code is not a second copy to maintain: it is cut out of the package's own sources, definition by
definition, and none of it is executed here.
"""

import ast
import functools
import hashlib
import importlib.util
import re
from importlib.machinery import SourceFileLoader
from typing import NamedTuple

PACKAGE = __name__.partition(".")[0]

_CHECKER_COMMENT = re.compile(r"  # (?:type: ignore|noqa)\b.*")


class Import(NamedTuple):
    """One name that a module imports: `from module import name as alias`."""

    module: str
    name: str | None
    """None for `import module`."""
    alias: str | None

    def line(self) -> str:
        """The import as a line of its own."""
        renamed = f" as {self.alias}" if self.alias else ""
        if self.name is None:
            return f"import {self.module}{renamed}"
        return f"from {self.module} import {self.name}{renamed}"


class Definition(NamedTuple):
    """A function, a class or a constant at the top of a module."""

    source: str
    uses: list[str]
    """The names in it, in order of appearance."""


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
    imports: dict[str, Import] = {}
    sources: dict[str, str] = {}
    origins: dict[str, str] = {}

    def add(module: str, name: str) -> None:
        entry = names_of(module).get(name)
        if entry is None:
            return  # a local variable or a builtin
        if isinstance(entry, Import) and is_internal(entry.module):
            if entry.name is None or entry.alias is not None:
                raise ValueError(f"{module}: {entry.line()!r} cannot be bundled; import names only")
            add(entry.module, entry.name)
            return
        origin = entry.line() if isinstance(entry, Import) else f"{module}:{name}"
        if origins.setdefault(name, origin) != origin:
            raise ValueError(f"two definitions of {name!r}: {origins[name]} and {origin}")
        if isinstance(entry, Import):
            imports[name] = entry
        elif name not in sources:
            sources[name] = ""  # in progress: functions may use each other in a circle
            for used in entry.uses:
                add(module, used)
            del sources[name]
            sources[name] = entry.source

    for path in wanted:
        module, name = path.split(":")
        if name not in names_of(module):
            raise ValueError(f"{module} defines no {name!r} at its top")
        add(module, name)
    lines = sorted({entry.line() for entry in imports.values()}, key=_import_order)
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
    return module.partition(".")[0] == PACKAGE


@functools.cache
def names_of(module: str) -> dict[str, Import | Definition]:
    """What each name at the top of a module of this package stands for; nothing is executed."""
    spec = importlib.util.find_spec(module)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise ValueError(f"the source code of {module} is not there")
    return parse_names(spec.loader.get_source(module) or "")


def parse_names(source: str) -> dict[str, Import | Definition]:
    """What each name at the top of a module stands for."""
    names: dict[str, Import | Definition] = {}
    for node in ast.parse(source).body:
        match node:
            case ast.Import():
                for item in node.names:
                    names[item.asname or item.name.partition(".")[0]] = Import(
                        item.name, None, item.asname
                    )
            case ast.ImportFrom(module=str(origin), level=0):
                for item in node.names:
                    names[item.asname or item.name] = Import(origin, item.name, item.asname)
            case ast.FunctionDef() | ast.ClassDef():
                names[node.name] = _definition(node, source)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = _definition(node, source)
    return names


def _definition(node: ast.stmt, source: str) -> Definition:
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    lines = source.splitlines()[first - 1 : node.end_lineno]
    uses = [
        (part.lineno, part.col_offset, part.id)
        for part in ast.walk(node)
        if isinstance(part, ast.Name)
    ]
    names = dict.fromkeys(name for _, _, name in sorted(uses))
    return Definition("\n".join(_CHECKER_COMMENT.sub("", line) for line in lines), list(names))


def _import_order(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line
