"""Training methods: one loss per file, all sharing the teachers, students and trainer.

`base.py` defines the contract. Other packages add methods through the entry point group
`pidistill.methods`, scripts through `register`.
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
    "pid-map": ("pid_map", "PIDMap"),
    "correction": ("correction", "Correction"),
    "consistency": ("consistency", "Consistency"),
    "progressive": ("progressive", "Progressive"),
    "boot": ("boot", "BOOT"),
    "knowledge": ("knowledge", "Knowledge"),
    "denoising": ("denoising", "Denoising"),
}
"""Name to (module, class). `denoising` trains teachers; the others distil them."""

ENTRY_POINTS = "pidistill.methods"

_registered: "dict[str, type[Method]]" = {}


def register(cls: "_Class") -> "_Class":
    """Register a method under the default `name` of its settings; usable as a class decorator.

    Raises `PidistillError` if another class has taken the name.
    """
    name = str(cls.Settings.model_fields["name"].default)
    if name in BUILT_IN or _registered.get(name, cls).__qualname__ != cls.__qualname__:
        raise PidistillError(f"method name {name!r} is taken; choose another for {cls.__name__}")
    _registered[name] = cls
    return cls


def distillation_names() -> tuple[str, ...]:
    """The names of all methods that distil a teacher; also available as `NAMES`."""
    built_in = [name for name in BUILT_IN if name != "denoising"]
    plug_ins = importlib.metadata.entry_points(group=ENTRY_POINTS).names
    return tuple(dict.fromkeys([*built_in, *_registered, *sorted(plug_ins)]))


def __getattr__(name: str) -> tuple[str, ...]:
    if name == "NAMES":
        return distillation_names()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def method_class(name: str) -> "type[Method]":
    """The class of the method `name`; raises `PidistillError` if there is none."""
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
                f"unknown method {name!r}; expected one of {known}, a method of an installed "
                "package, or one registered with pidistill.methods.register"
            )
        found = next(iter(points)).load()
    return found
