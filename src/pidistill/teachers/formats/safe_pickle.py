"""Reads pickles without executing anything that they say.

A pickle is a program for a small stack machine. Python's own machine imports and calls whatever
the program names. The machine here is another one: it knows the opcodes that build plain data,
imports and calls nothing, and has an inert record in place of each of the few globals that its
user knows (see `edm_pickle`). Any other global, and any opcode that has no place in plain data,
ends the reading with an error that names it.

The hazards that remain are of size. Opcodes, calls, open marks and the length of names are
bounded. Nothing is allocated for bytes that are only claimed. No step looks into nested values,
so neither depth nor a value that contains itself costs anything. Keys are strings, whose hashes
nobody can make collide.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_OPCODES = 500_000  # five times what the largest published checkpoint has
MAX_CALLS = 50_000
MAX_MARKS = 1_000
MAX_LINE = 4_096
MAX_COPY = 65_536  # longer arguments stay views into the file

# Opcodes that push their argument.
INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1")
FLOATS = ("FLOAT", "BINFLOAT")
STRINGS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "SHORT_BINSTRING")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")


class RefusedError(Exception):
    """What is wrong with the file, as the rest of a sentence that begins with its name."""


@dataclasses.dataclass
class Budget:
    """What is left to all machines that read one file."""

    opcodes: int = MAX_OPCODES
    calls: int = MAX_CALLS


class Window:
    """Bytes with a position: what `pickletools` needs to read the arguments of opcodes."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.position = 0

    def read(self, size: int) -> bytes | memoryview:
        """The next `size` bytes, or as many as there are."""
        part = self.view[self.position : self.position + size]
        self.position += len(part)
        return bytes(part) if size <= MAX_COPY else part

    def readline(self) -> bytes:
        """The next line, cut off where it is unreasonably long."""
        chunk = bytes(self.view[self.position : self.position + MAX_LINE])
        line = chunk[: chunk.find(b"\n") + 1] or chunk
        self.position += len(line)
        return line


class Record:
    """Inert stand-in for an object; a subclass may take the state that a pickle gives it."""

    def set_state(self, state: Any) -> None:
        """Take `state`, or raise `RefusedError`."""
        raise RefusedError(f"sets the state of {kind_of(self)}")


@dataclasses.dataclass(frozen=True)
class Global(Record):
    """Stands for something importable; `build` makes an inert record of a call to it."""

    name: str
    build: Callable[[tuple[Any, ...]], Any]


class Machine:
    """A stack machine that builds plain data from a pickle and executes nothing."""

    def __init__(
        self,
        known: dict[tuple[str, str], Global],
        budget: Budget,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        """Make an empty machine.

        Args:
            known: The globals that the pickle may name, by module and name.
            budget: What the machine may spend.
            persistent: Makes a record of a persistent id, where the pickle may hold any.
        """
        self.known = known
        self.budget = budget
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the open marks
        self.memo: dict[int, Any] = {}

    def run(self, window: Window) -> Any:
        """Read one pickle from `window`, up to its STOP, and return its value."""
        while True:
            self.budget.opcodes -= 1
            if self.budget.opcodes < 0:
                raise RefusedError(f"has more than {MAX_OPCODES} opcodes")
            code = window.read(1)
            if not code:
                raise RefusedError("is cut short")
            opcode = _OPCODES.get(code[0])
            if opcode is None:
                raise RefusedError(f"uses the opcode {_opcode_name(code[0])}")
            if opcode.act is None:
                return self.pop()
            opcode.act(self, opcode.read_argument(window) if opcode.read_argument else None)

    # The stack and the memo.

    def pop(self) -> Any:
        """Take the top value off the stack."""
        if not self.stack:
            raise RefusedError("takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        """The top value of the stack."""
        if not self.stack:
            raise RefusedError("takes a value from an empty stack")
        return self.stack[-1]

    def push(self, value: Any) -> None:
        """Put `value` on the stack."""
        self.stack.append(value)

    def push_tuple(self, size: int) -> None:
        """Replace the top `size` values by a tuple of them."""
        values = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(values)))

    def mark(self) -> None:
        """Open a mark: an empty stack over this one."""
        if len(self.below) >= MAX_MARKS:
            raise RefusedError(f"opens more than {MAX_MARKS} marks")
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Close the last mark and return the values above it."""
        if not self.below:
            raise RefusedError("goes back to a mark that is not there")
        values, self.stack = self.stack, self.below.pop()
        return values

    def remember(self, key: int) -> None:
        """Keep the top value under `key`."""
        self.memo[key] = self.top()

    def recall(self, key: int) -> None:
        """Push the value kept under `key`."""
        if key not in self.memo:
            raise RefusedError(f"recalls value {key}, which it never kept")
        self.push(self.memo[key])

    # Containers, which are always this machine's own.

    def extend(self, values: list[Any]) -> None:
        """Append `values` to the list on top."""
        if type(self.top()) is not list:
            raise RefusedError(f"appends to {kind_of(self.top())}")
        self.top().extend(values)

    def add(self, values: list[Any]) -> None:
        """Add `values` to the set on top."""
        if type(self.top()) is not set or any(type(value) is not str for value in values):
            raise RefusedError("makes a set of something other than strings")
        self.top().update(values)

    def set_items(self, values: list[Any]) -> None:
        """Set items of the dictionary on top; keys and values take turns."""
        if type(self.top()) is not dict or len(values) % 2:
            raise RefusedError(f"sets an item of {kind_of(self.top())}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:
                raise RefusedError(f"uses {kind_of(key)} as a key")
            self.top()[key] = value

    def push_dict(self, values: list[Any]) -> None:
        """Push a dictionary; keys and values take turns."""
        self.push({})
        self.set_items(values)

    # Globals and calls: only those on the list, and only as records.

    def push_global(self, module: Any, name: Any) -> None:
        """Push the record of a global, if it is known."""
        if type(module) is not str or type(name) is not str:
            raise RefusedError(f"refers to a global by {kind_of(module)} and {kind_of(name)}")
        if (module, name) not in self.known:
            raise RefusedError(f"refers to {shown(module)}.{shown(name)}")
        self.push(self.known[module, name])

    def push_stack_global(self) -> None:
        """Push the record of the global that the top two values name."""
        name, module = self.pop(), self.pop()
        self.push_global(module, name)

    def call(self) -> None:
        """Replace a known global and its arguments by the record of the call."""
        self.budget.calls -= 1
        if self.budget.calls < 0:
            raise RefusedError(f"makes more than {MAX_CALLS} calls")
        arguments, function = self.pop(), self.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise RefusedError(f"calls {kind_of(function)}")
        self.push(function.build(arguments))

    def set_state(self) -> None:
        """Give the record on top the state above it."""
        state, target = self.pop(), self.top()
        if not isinstance(target, Record):
            raise RefusedError(f"sets the state of {kind_of(target)}")
        target.set_state(state)

    def push_persistent(self) -> None:
        """Replace a persistent id by its record."""
        if self.persistent is None:
            raise RefusedError("uses the opcode BINPERSID")
        self.push(self.persistent(self.pop()))

    def refuse_instance(self, names: str) -> None:
        """Refuse INST, which names and calls a global at once."""
        raise RefusedError(f"uses the opcode INST of {shown(names.replace(' ', '.', 1))}")


class _Opcode(NamedTuple):
    """How the argument of an opcode is read, and what the machine does; None stops it."""

    read_argument: Callable[[Any], Any] | None
    act: Callable[[Machine, Any], None] | None


def _opcode_name(code: int) -> str:
    names = {ord(info.code): info.name for info in pickletools.opcodes}
    return names.get(code, f"{code:#04x}")


def _opcodes() -> dict[int, _Opcode]:
    """The opcodes that the machine knows, by code."""
    push: Callable[[Machine, Any], None] = lambda m, argument: m.push(argument)  # noqa: E731
    acts: dict[str, Callable[[Machine, Any], Any] | None] = {
        **dict.fromkeys((*INTEGERS, *FLOATS, *STRINGS, *BYTES), push),
        "STOP": None,
        "PROTO": lambda m, _: None,
        "FRAME": lambda m, _: None,
        "NONE": lambda m, _: m.push(None),
        "NEWTRUE": lambda m, _: m.push(True),
        "NEWFALSE": lambda m, _: m.push(False),
        "EMPTY_LIST": lambda m, _: m.push([]),
        "EMPTY_TUPLE": lambda m, _: m.push(()),
        "EMPTY_DICT": lambda m, _: m.push({}),
        "EMPTY_SET": lambda m, _: m.push(set()),
        "LIST": lambda m, _: m.push(m.pop_mark()),
        "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
        "TUPLE1": lambda m, _: m.push_tuple(1),
        "TUPLE2": lambda m, _: m.push_tuple(2),
        "TUPLE3": lambda m, _: m.push_tuple(3),
        "DICT": lambda m, _: m.push_dict(m.pop_mark()),
        "MARK": lambda m, _: m.mark(),
        "POP": lambda m, _: m.pop(),
        "POP_MARK": lambda m, _: m.pop_mark(),
        "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, key: m.remember(key)),
        **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, key: m.recall(key)),
        "APPEND": lambda m, _: m.extend([m.pop()]),
        "APPENDS": lambda m, _: m.extend(m.pop_mark()),
        "ADDITEMS": lambda m, _: m.add(m.pop_mark()),
        "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
        "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
        "GLOBAL": lambda m, names: m.push_global(*names.split(" ", 1)),
        "INST": lambda m, names: m.refuse_instance(names),
        "STACK_GLOBAL": lambda m, _: m.push_stack_global(),
        "REDUCE": lambda m, _: m.call(),
        "NEWOBJ": lambda m, _: m.call(),
        "BUILD": lambda m, _: m.set_state(),
        "BINPERSID": lambda m, _: m.push_persistent(),
    }
    readers = {info.name: info.arg.reader for info in pickletools.opcodes if info.arg}
    readers["STRING"] = lambda window: window.readline().decode("latin-1")  # escapes stay
    return {
        ord(info.code): _Opcode(readers.get(info.name), acts[info.name])
        for info in pickletools.opcodes
        if info.name in acts
    }


_OPCODES = _opcodes()


def kind_of(value: Any) -> str:
    """What `value` is, for an error: never the value itself, which may be huge."""
    return value.name if isinstance(value, Global) else f"a {type(value).__name__}"


def shown(text: str, length: int = 100) -> str:
    """Text from a file, fit for one line."""
    return "".join(character if character.isprintable() else "?" for character in text[:length])
