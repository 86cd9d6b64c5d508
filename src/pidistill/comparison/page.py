"""The files of a comparison: `comparison.json`, `.md`, `.html` and `plots/`."""

import base64
import dataclasses
import html
import importlib.resources
import io
import string
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pidistill import images
from pidistill.comparison import plots, table
from pidistill.comparison.costs import Cost
from pidistill.comparison.measure import Terms
from pidistill.comparison.recipe import Recipe, Sweep, file_name
from pidistill.comparison.table import Row, figures
from pidistill.evaluation.plots import to_svg
from pidistill.files import replacing, write_json, write_text
from pidistill.model_folder import load_student

NAME = "comparison"
PICTURES = 14
"""Samples of each configuration that the page shows."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A table with its plots: the runs of a recipe, or one of its sweeps."""

    title: str
    about: str
    rows: list[Row]
    costs: dict[str, Cost]
    """By the identity of the entries, of these rows and others."""
    sweep: Sweep | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that was found."""

    title: str
    budget: str
    """What a run may spend, in words."""
    seeds: str
    """Which seeds the spread is over, in words."""
    sections: list[Section]
    recipe: Recipe | None
    """What was asked; None where folders were named."""


def write_files(
    out: Path, comparison: Comparison, terms: Terms, provenance: dict[str, str]
) -> list[Path]:
    """Write what was found to `out`.

    Args:
        out: The folder.
        comparison: What was found.
        terms: What it was measured with.
        provenance: What a reader needs to make it again, by name.

    Returns:
        The files, the ones for people first.
    """
    teacher = terms.of_teacher
    legend = legend_of(comparison, terms)
    blocks, lines = [], [f"# {comparison.title}", ""]
    (out / "plots").mkdir(parents=True, exist_ok=True)
    for section in comparison.sections:
        tables = tables_of(section, terms)
        drawn = _drawn(section, teacher)
        for name, figure in drawn.items():
            _save(out / "plots" / f"{name}.png", figure)
        lines += [f"## {section.title}", "", *([section.about, ""] if section.about else [])]
        for cells in tables:
            lines += [table.markdown(cells), ""]
        lines += [f"![{name}](plots/{name}.png)" for name in drawn] + [""]
        blocks.append(_block(section, tables, [to_svg(f) for f in drawn.values()], terms))
    lines += [legend, "", *(f"- {key}: {value}" for key, value in provenance.items())]
    write_json(out / f"{NAME}.json", as_json(comparison, terms, provenance))
    write_text(out / f"{NAME}.md", "\n".join(lines) + "\n")
    template = importlib.resources.files("pidistill") / "assets" / "comparison.html"
    page = string.Template(template.read_text("utf-8")).substitute(
        title=html.escape(comparison.title),
        legend=html.escape(legend),
        sections="\n".join(blocks),
        provenance=html.escape("\n".join(f"{key}: {value}" for key, value in provenance.items())),
    )
    write_text(out / f"{NAME}.html", page)
    return [out / f"{NAME}.{suffix}" for suffix in ("html", "md", "json")]


def as_json(comparison: Comparison, terms: Terms, provenance: dict[str, str]) -> dict[str, Any]:
    """All that was found as JSON values; arguments as in `write_files`."""
    recipe = comparison.recipe
    return {
        "title": comparison.title,
        **({"recipe": recipe.model_dump(mode="json", exclude_none=True)} if recipe else {}),
        "provenance": provenance,
        "num_samples": terms.num,
        "seed": terms.seed,
        **({"reference": terms.reference_name} if terms.reference else {}),
        "teacher": terms.of_teacher,
        "sections": {
            section.title: [
                table.as_json(row, section.costs.get(row.entry.identity)) for row in section.rows
            ]
            for section in comparison.sections
        },
    }


def legend_of(comparison: Comparison, terms: Terms) -> str:
    """What the columns of the tables mean."""
    teacher = terms.of_teacher
    text = (
        f"{comparison.budget} {comparison.seeds} error: RMS distance, in the samples' own units, "
        f"to the teacher's solution ({teacher['nfe']} evaluations) of the same noise, over "
        f"{terms.num:,} samples of seed {terms.seed}."
    )
    if "frechet_distance" in teacher:
        text += (
            f" FD: Frechet distance of these samples to {terms.reference_name}; one half of it "
            f"against the other: {figures(teacher['reference_split_frechet_distance'])}."
        )
    return text


def _drawn(section: Section, teacher: dict[str, Any]) -> dict[str, Figure]:
    """The plots of a section, by file name."""
    if not plots.metrics_of(section.rows):
        return {}
    name = file_name(section.title)
    numbers = section.sweep.numbers() if section.sweep else None
    if section.sweep is not None and numbers is not None:
        return {name: plots.line_plot(section.rows, section.sweep, numbers, teacher)}
    drawn = {name: plots.dot_plot(section.rows, teacher)}
    measured = [row for row in section.rows if row.metrics]
    if any(max(row.metrics) > 1 for row in measured):
        metric = plots.metrics_of(measured)[-1]
        drawn[f"{name}-evaluations"] = plots.trade_off(measured, teacher, metric)
    return drawn


def _save(file: Path, figure: Figure) -> None:
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def tables_of(section: Section, terms: Terms) -> list[table.Cells]:
    """The tables of a section: quality, and what it cost."""
    return [
        table.quality(section.rows, terms.of_teacher),
        table.spending(section.rows, section.costs),
    ]


def _block(section: Section, tables: list[table.Cells], svgs: list[str], terms: Terms) -> str:
    """A section of the page."""
    failures = [
        f"<p class=failed>{html.escape(row.entry.name)}, seed {seed}: {html.escape(message)}</p>"
        for row in section.rows
        for seed, message in row.failures.items()
    ]
    return "\n".join(
        [
            f"<h2>{html.escape(section.title)}</h2>",
            f"<p>{html.escape(section.about)}</p>",
            *(_table(cells, name) for cells, name in zip(tables, ("quality", "cost"), strict=True)),
            *failures,
            *(f"<figure>{svg}</figure>" for svg in svgs),
            *_pictures(section.rows, terms),
        ]
    )


def _table(cells: table.Cells, name: str) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in cells.columns)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in cells.lines]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table class="{name}"><tr>{head}</tr>{body}</table></div>'


def _pictures(rows: list[Row], terms: Terms) -> list[str]:
    """The first samples of every configuration, from the same noise as the teacher's."""
    if not images.is_image(terms.teacher.sample_shape):
        return []
    lines = [("teacher", terms.solved.x[:PICTURES])]
    num = len(lines[0][1])
    for row in rows:
        ended = [run for run in row.entry.runs if run.config.seed not in row.failures]
        if ended:
            student = load_student(ended[0].folder, device=terms.solved.x.device)
            steps = student.num_steps
            drawn = student.generate(num, seed=terms.seed, steps=steps)
            lines.append((row.entry.name, drawn.x))
    return [
        f"<figure class=samples><figcaption>{html.escape(name)}</figcaption>"
        f'<img alt="samples of {html.escape(name)}" src="{_data_url(x)}"></figure>'
        for name, x in lines
    ]


def _data_url(x: Tensor) -> str:
    buffer = io.BytesIO()
    picture = images.grid(x, columns=len(x))
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
