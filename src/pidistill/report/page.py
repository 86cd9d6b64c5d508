"""Pages: jinja2 templates of one family, each a single file that opens without a network."""

import functools
from pathlib import Path
from typing import Any

from pidistill.files import write_text
from pidistill.report.numbers import figures


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pidistill", "report/templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figures"] = figures
    return environment


def render(template: str, **context: Any) -> str:
    """The text of a page.

    Args:
        template: File name in `report/templates`; pages extend `base.html`.
        context: What the template names. HTML escapes it; wrap SVG or other markup that this
            package made in `markupsafe.Markup`.
    """
    text: str = _environment().get_template(template).render(**context)
    return text


def write_page(path: Path, template: str, **context: Any) -> None:
    """Write a page to `path`, at once or not at all; arguments as in `render`."""
    write_text(path, render(template, **context))
