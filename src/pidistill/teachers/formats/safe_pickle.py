"""Builds plain data from a pickle without executing anything that it says.

A pickle is a program for a small stack machine; Python's own machine imports and calls whatever the
program names. This one decodes the program with `pickletools`, knows the opcodes that build plain
data, and looks every name up in a table that its caller gives. It is not a subclass of
`pickle.Unpickler`, because that hashes any nested value as a key, which a file of a few hundred
bytes can make last for ever, and sets attributes of any object.

What remains is size. The number of opcodes is bounded, and so is the memory, since only strings and
bytes that are really in the file can be long.
"""

import pickletools
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

MAX_OPCODES = 500_000  # five times what the largest published checkpoint has

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_DICT": dict,
}
INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")
STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
ARGUMENTS = ("BINFLOAT", *INTEGERS, *STRINGS, *BYTES)
"""Opcodes that push their argument."""
IGNORED = ("PROTO", "FRAME", "STOP", "BINPERSID")
"""A persistent id stays the plain value that it is."""


class RefusedError(Exception):
    """What is wrong with the file, as the rest of a sentence that begins with its name."""


def read_pickle(
    file: Any, known: Mapping[tuple[str, str], Any], max_opcodes: int = MAX_OPCODES
) -> Any:
    """Read one pickle, up to its STOP, and return its value.

    Args:
        file: Has `read` and `readline`.
        known: What stands for each global that the pickle may name, by module and name: a function
            of plain values that makes a record of the call, or a value. A record that takes the
            state of an object has a method `set_state`.
        max_opcodes: How many opcodes it may have.

    Raises:
        RefusedError: It does something that plain data does not need.
        Exception: Of any kind, when the file is damaged.
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
        elif name in ACTIONS:
            ACTIONS[name](machine, argument)
        elif name not in IGNORED:
            raise RefusedError(f"uses the opcode {name}")
    return machine.stack.pop()


class _Machine:
    """The values under construction; a missing one is an `IndexError` or a `KeyError`."""

    def __init__(self, known: Mapping[tuple[str, str], Any]) -> None:
        self.known = known
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the open marks
        self.memo: dict[int, Any] = {}

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def taken(self, size: int) -> list[Any]:
        """The top `size` values, taken off the stack."""
        return [self.stack.pop() for _ in range(size)][::-1]

    def push_tuple(self, values: list[Any]) -> None:
        self.stack.append(tuple(values))

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def add(self, values: list[Any]) -> None:
        self.top(set).update(map(_key, values))

    def set_items(self, values: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    def top(self, kind: type) -> Any:
        """The value on top, which has to be of this type."""
        if type(self.stack[-1]) is not kind:
            raise RefusedError(f"changes a {type(self.stack[-1]).__name__} like a {kind.__name__}")
        return self.stack[-1]

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise RefusedError("refers to a global by something other than strings")
        if (module, name) not in self.known:
            raise RefusedError(f"refers to {shown(module)}.{shown(name)}")
        self.stack.append(self.known[module, name])

    def call(self) -> None:
        function, arguments = self.taken(2)
        if type(function) is not FunctionType or type(arguments) is not tuple:
            raise RefusedError(f"calls a {type(function).__name__}")
        self.stack.append(function(*arguments))

    def set_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not hasattr(target, "set_state"):
            raise RefusedError(f"sets the state of a {type(target).__name__}")
        target.set_state(state)


ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda m, _: m.mark(),
    "MEMOIZE": lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda m, key: m.memo.update({key: m.stack[-1]})),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, key: m.stack.append(m.memo[key])),
    "TUPLE": lambda m, _: m.push_tuple(m.above_mark()),
    "TUPLE1": lambda m, _: m.push_tuple(m.taken(1)),
    "TUPLE2": lambda m, _: m.push_tuple(m.taken(2)),
    "TUPLE3": lambda m, _: m.push_tuple(m.taken(3)),
    "APPEND": lambda m, _: m.extend(m.taken(1)),
    "APPENDS": lambda m, _: m.extend(m.above_mark()),
    "ADDITEMS": lambda m, _: m.add(m.above_mark()),
    "SETITEM": lambda m, _: m.set_items(m.taken(2)),
    "SETITEMS": lambda m, _: m.set_items(m.above_mark()),
    "GLOBAL": lambda m, names: m.find(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.find(*m.taken(2)),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.set_state(),
}


def _key(value: Any) -> str:
    """`value`, if it is a string: nobody can make the hashes of strings collide."""
    if type(value) is not str:
        raise RefusedError(f"uses a {type(value).__name__} as a key")
    return value


def shown(text: str, length: int = 100) -> str:
    """Text from a file, fit for one line of an error."""
    return "".join(character if character.isprintable() else "?" for character in text[:length])
