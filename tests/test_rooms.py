"""The rooms of docs/design.md: who may import whom, and how large a file may be."""

import ast
import functools
import graphlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pidistill"

TABLES = ("pidistill.cli", "pidistill.methods", "pidistill.networks", "pidistill.teachers")
"""Modules that may load those of their own room by name."""

MODULE_NAME = re.compile(r"pidistill(\.\w+)+(:\w+)?")


@functools.cache
def modules():
    """Every module of the package by name, parsed."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text("utf-8"))
    del found["pidistill"]  # it loads the public names on first use
    return found


@functools.cache
def floors():
    """The row of every room in the table of docs/design.md, from the ground up."""
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/design.md").read_text("utf-8"), re.MULTILINE)
    names = [re.findall(r"`(\w+)(?:\.py|/)`", row) for row in rows]
    return {name: floor for floor, row in enumerate(names) for name in row}


def room_of(module):
    return module.split(".")[1]


def owner(name):
    """The module that `name` is, or is in; None if it is not of this package."""
    while name not in modules():
        name, _, _ = name.rpartition(".")
        if not name:
            return None
    return name


def imports(module):
    """The modules of this package that `module` imports, at its top or in a function."""
    checked = {  # imports for type checkers alone
        id(inner)
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    targets = set()
    for node in ast.walk(modules()[module]):
        match node:
            case ast.Import(names=names) if id(node) not in checked:
                targets |= {owner(item.name) for item in names}
            case ast.ImportFrom(module=str(origin), names=names) if id(node) not in checked:
                targets |= {owner(f"{origin}.{item.name}") for item in names}
    return targets - {None, module}


def test_the_table_has_every_room_and_no_other():
    assert {room_of(module) for module in modules()} == floors().keys()


def test_no_room_imports_one_below_it():
    wrong = [
        f"{module} imports {target}"
        for module in modules()
        for target in imports(module)
        if floors()[room_of(target)] > floors()[room_of(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cycle():
    graphlib.TopologicalSorter({module: imports(module) for module in modules()}).prepare()


def test_no_module_is_imported_by_a_name_in_a_string():
    wrong = []
    for module, tree in modules().items():
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if not any(ast.unparse(func).endswith("import_module") for func in called):
            continue  # names of loggers, or of code to bundle
        names = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        wrong += [
            f"{module} names {name}"
            for name in names
            if isinstance(name, str)
            and MODULE_NAME.fullmatch(name)
            and owner(name.partition(":")[0])
            and not (module in TABLES and name.startswith(module))
        ]
    assert not wrong, "\n".join(wrong)


def test_no_long_file_and_no_long_function():
    wrong = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                wrong += [f"{module}:{node.name}: {length} lines"] if length > 60 else []
        if tree.body and tree.body[-1].end_lineno > 300:
            wrong.append(f"{module}: {tree.body[-1].end_lineno} lines")
    assert not wrong, "\n".join(wrong)
