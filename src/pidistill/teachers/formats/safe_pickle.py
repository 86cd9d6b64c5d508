"""Builds plain data from a pickle without executing any of its code.

A pickle is a program for a small stack machine; Python's own machine imports and calls whatever the
program names. This one decodes the program with `pickletools`, supports only opcodes that build
plain data, and looks up every name in a table from its caller. It is not a subclass of
`pickle.Unpickler`, which sets attributes of any object and hashes any nested value as a key, so
that a file of a few hundred bytes can keep it busy forever.

Size is bounded too: the number of opcodes is limited, and long strings and bytes must actually be
in the file, which limits memory.
"""

import pickletools
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from pidistill.teachers.formats import RefusedError

MAX_OPCODES = 500_000  # five times the number in the largest published checkpoint

IGNORED = ("PROTO", "FRAME", "STOP", "BINPERSID")
"""A persistent id stays a plain value."""
INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")
STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
ARGUMENTS = ("BINFLOAT", *INTEGERS, *STRINGS, *BYTES)
"""Opcodes that push their argument onto the stack."""
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_DICT": dict,
}
OPERANDS = {
    **dict.fromkeys(("TUPLE1", "APPEND", "BUILD"), 1),
    **dict.fromkeys(("TUPLE2", "SETITEM", "STACK_GLOBAL", "REDUCE", "NEWOBJ"), 2),
    "TUPLE3": 3,
}
"""How many values an opcode pops off the stack."""
TO_MARK = ("TUPLE", "APPENDS", "ADDITEMS", "SETITEMS")
"""Opcodes that pop all values above the last mark."""


def read_pickle(
    file: Any, known: Mapping[tuple[str, str], Any], max_opcodes: int = MAX_OPCODES
) -> Any:
    """Read one pickle, up to its STOP, and return its value.

    Args:
        file: An object with `read` and `readline`.
        known: Replacement of each global that the pickle may name, by module and name: a value, or
            a function of plain values that returns a record of the call. Records that accept an
            object's state have a method `set_state`.
        max_opcodes: Maximum number of opcodes.

    Raises:
        RefusedError: The pickle does something that plain data does not need.
        Exception: Any kind, if the file is damaged.
    """
    machine = _Machine(known)
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if number >= max_opcodes:
            raise RefusedError(f"has more than {max_opcodes} opcodes")
        if name in ARGUMENTS:
            machine.stack.append(argument)
        elif name in CONSTANTS:
            machine.stack.append(CONSTANTS[name]())
        elif name in OPERANDS:
            machine.combine(name, machine.taken(OPERANDS[name]))
        elif name in TO_MARK:
            machine.combine(name, machine.above_mark())
        elif name not in IGNORED:
            machine.act(name, argument)
    return machine.stack.pop()


class _Machine:
    """The values under construction; a missing one raises `IndexError` or `KeyError`."""

    def __init__(self, known: Mapping[tuple[str, str], Any]) -> None:
        self.known = known
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the open marks
        self.memo: dict[int, Any] = {}

    def taken(self, size: int) -> list[Any]:
        return [self.stack.pop() for _ in range(size)][::-1]

    def above_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def act(self, opcode: str, argument: Any) -> None:
        match opcode:
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self.find(*argument.split(" ", 1))
            case _:
                raise RefusedError(f"uses the opcode {opcode}")

    def combine(self, opcode: str, values: list[Any]) -> None:
        match opcode:
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(values))
            case "APPEND" | "APPENDS":
                self.top(list).extend(values)
            case "ADDITEMS":
                self.top(set).update(map(_key, values))
            case "SETITEM" | "SETITEMS":
                target = self.top(dict)
                for key, value in zip(values[::2], values[1::2], strict=True):
                    target[_key(key)] = value
            case "STACK_GLOBAL":
                self.find(*values)
            case "REDUCE" | "NEWOBJ":
                function, arguments = values
                if type(function) is not FunctionType or type(arguments) is not tuple:
                    raise RefusedError(f"calls a {type(function).__name__}")
                self.stack.append(function(*arguments))
            case "BUILD":
                if not hasattr(self.stack[-1], "set_state"):
                    raise RefusedError(f"sets the state of a {type(self.stack[-1]).__name__}")
                self.stack[-1].set_state(*values)

    def top(self, kind: type) -> Any:
        """The value on top, which must be of type `kind`."""
        if type(self.stack[-1]) is not kind:
            raise RefusedError(f"changes a {type(self.stack[-1]).__name__} like a {kind.__name__}")
        return self.stack[-1]

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise RefusedError("refers to a global by something other than strings")
        if (module, name) not in self.known:
            raise RefusedError(f"refers to {shown(module)}.{shown(name)}")
        self.stack.append(self.known[module, name])


def _key(value: Any) -> str:
    """`value` if it is a string; hash collisions of strings cannot be provoked."""
    if type(value) is not str:
        raise RefusedError(f"uses a {type(value).__name__} as a key")
    return value


def shown(text: str, length: int = 100) -> str:
    """Text from a file, shortened and printable, for an error message."""
    return "".join(character if character.isprintable() else "?" for character in text[:length])
