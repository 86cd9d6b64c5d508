"""Training methods: one loss a file, on the same teacher, student and trainer.

`base.py` has the contract. A method of another package is found through the entry point group
`pidistill.methods`, one of a script through `register`.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, TypeVar

from pidistill.errors import PidistillError

if TYPE_CHECKING:
    from pidistill.methods.base import Method

    _Class = TypeVar("_Class", bound=type[Method])

BUILT_IN = {
    "pid": ("pid", "PID"),
    "consistency": ("consistency", "Consistency"),
    "progressive": ("progressive", "Progressive"),
    "boot": ("boot", "BOOT"),
    "knowledge": ("knowledge", "Knowledge"),
    "denoising": ("denoising", "Denoising"),
}
"""Module in this package and class, by name. `denoising` trains teachers; the others distil."""

ENTRY_POINTS = "pidistill.methods"

_registered: "dict[str, type[Method]]" = {}


def register(cls: "_Class") -> "_Class":
    """Make a method known under the name that its settings have; may decorate the class.

    Raises `PidistillError` when the name is taken by another class.
    """
    name = str(cls.Settings.model_fields["name"].default)
    if name in BUILT_IN or _registered.get(name, cls).__qualname__ != cls.__qualname__:
        raise PidistillError(f"method name {name!r} is taken; choose another for {cls.__name__}")
    _registered[name] = cls
    return cls


def distillation_names() -> tuple[str, ...]:
    """The names of all methods that distil a teacher; also there as `NAMES`."""
    built_in = [name for name in BUILT_IN if name != "denoising"]
    plug_ins = importlib.metadata.entry_points(group=ENTRY_POINTS).names
    return tuple(dict.fromkeys([*built_in, *_registered, *sorted(plug_ins)]))


def __getattr__(name: str) -> tuple[str, ...]:
    if name == "NAMES":
        return distillation_names()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def method_class(name: str) -> "type[Method]":
    """The class of the method `name`.

    Raises `PidistillError` when there is none.
    """
    found: type[Method]
    if name in BUILT_IN:
        module, class_name = BUILT_IN[name]
        found = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
    elif name in _registered:
        found = _registered[name]
    else:
        points = importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)
        if not points:
            known = ", ".join((*distillation_names(), "denoising"))
            raise PidistillError(
                f"method {name!r} is not known; expected one of {known}, or a method of an "
                "installed package or one made known by pidistill.methods.register"
            )
        found = next(iter(points)).load()
    return found
