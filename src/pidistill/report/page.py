"""Pages from jinja2 templates, each a single file that works offline."""

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
    """Render a template to text.

    Args:
        template: File name in `report/templates`; pages extend `base.html`.
        context: Variables of the template. HTML templates escape them; wrap SVG or other markup
            made by this package in `markupsafe.Markup`.
    """
    text: str = _environment().get_template(template).render(**context)
    return text


def write_page(path: Path, template: str, **context: Any) -> None:
    """Write a page to `path` atomically; arguments as in `render`."""
    write_text(path, render(template, **context))
