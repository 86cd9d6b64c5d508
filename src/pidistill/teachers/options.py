"""Options in the locator of a teacher or of data: `NAME?OPTION=VALUE&...`. Imports no torch."""

import math
from typing import Any

from pidistill.errors import PidistillError
from pidistill.paths import user_path

Options = dict[str, type[float] | type[int] | type[str] | type[bool]]
"""The options of a kind of teacher or data, and the types of their values."""
PATHS = ("guide", "vae", "prompts")
"""Options whose values are paths, in every kind."""
WORDS = {"true": True, "false": False}
EXPECTED = {str: "text", int: "an integer", float: "a finite number", bool: "true or false"}


def parse_options(kind: str, locator: str, known: Options) -> tuple[str, dict[str, Any]]:
    """Split the locator of a teacher of this kind into its name and its options.

    Raises `PidistillError` if an option is unknown or has a bad value.
    """
    name, _, query = locator.partition("?")
    options: dict[str, Any] = {}
    for part in query.split("&") if query else []:
        key, _, text = part.partition("=")
        if key not in known:
            raise PidistillError(
                f"unknown option {key!r} in '{kind}:{locator}'; expected ?OPTION=VALUE&... with "
                f"OPTION one of {', '.join(known)}"
            )
        try:
            options[key] = WORDS[text.lower()] if known[key] is bool else known[key](text)
        except (ValueError, KeyError):
            options[key] = math.nan
        if options[key] in ("", math.inf, -math.inf) or options[key] != options[key]:
            expected = EXPECTED[known[key]]
            raise PidistillError(
                f"option {key} is {text!r} in '{kind}:{locator}'; expected {expected}"
            )
    return name, options


def absolute_options(query: str) -> str:
    """`OPTION=VALUE&...` with the paths that exist made absolute."""
    parts = []
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        path = user_path(value)
        is_path = key in PATHS and value and path.exists()
        parts.append(f"{key}{equals}{path.resolve()}" if is_path else part)
    return "&".join(parts)
