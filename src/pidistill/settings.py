"""Settings: read TOML, merge layers and validate them strictly.

Imports no torch, since command-line options are generated from these models.
"""

import difflib
import sys
import typing
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from pidistill.errors import PidistillError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_Model = TypeVar("_Model", bound=pydantic.BaseModel)

STRICT = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
"""Strict validation: rejects unknown keys and values of the wrong type, such as true or "3" for a
number; integers are accepted as real numbers."""


def validate(model: type[_Model], values: dict[str, Any], origin: str, prefix: str = "") -> _Model:
    """Build `model` from a TOML table.

    Args:
        model: The pydantic model.
        values: The table.
        origin: Where the table comes from, for errors.
        prefix: Prefix of its keys in errors, such as `"method."`.

    Raises:
        PidistillError: A key is unknown (the message names a similar one, or all) or a value is
            invalid; only the first problem is reported.
    """
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        raise PidistillError(_first_problem(model, error, origin, prefix)) from error


def _first_problem(
    model: type[pydantic.BaseModel], error: pydantic.ValidationError, origin: str, prefix: str
) -> str:
    problems = error.errors(include_url=False)
    unknown = (one for one in problems if one["type"] == "extra_forbidden")
    problem = next(unknown, problems[0])  # a key that is missing may be there, misspelt
    *table, last = location = problem["loc"] or ("",)
    key = prefix + ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, table)
        near = difflib.get_close_matches(str(last), known, n=1)
        if not near:
            return f"{origin}: unknown key {key!r}; expected one of {', '.join(known)}"
        nearest = prefix + ".".join(map(str, [*table, *near]))
        return f"{origin}: unknown key {key!r}; did you mean {nearest!r}?"
    if problem["type"] == "missing":
        return f"{origin}: {key} is missing; set it, too"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "sequence_str":
        message = "expected a list, such as [1, 2]"
    where = f"{key} is {problem['input']!r}: " if problem["loc"] else ""
    return f"{origin}: {where}{message[0].lower()}{message[1:]}"


def _keys_at(model: type[pydantic.BaseModel], location: list[int | str]) -> list[str]:
    """The known keys of the table at `location` of `model`."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            kind = model.model_fields[part].annotation
            for inner in (kind, *typing.get_args(kind)):
                if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel):
                    model = inner
    return list(model.model_fields)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge `above` over `below` recursively; a table with a different `name` replaces the old."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if (
            isinstance(value, dict)
            and isinstance(old, dict)
            and value.get("name", old.get("name")) == old.get("name")
        ):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def nested(key: str, value: Any) -> dict[str, Any]:
    """Expand a dotted key into tables: `method.step` gives `{"method": {"step": value}}`."""
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return dict(value)


def parse_toml_value(text: str) -> Any:
    """Parse a TOML value; anything else is a string, so quotes are optional."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; raises `PidistillError` if it is missing or malformed."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PidistillError(f"config file {path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PidistillError(f"config file {path} is not readable as TOML: {error}") from error
