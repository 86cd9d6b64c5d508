"""The files of a comparison: `comparison.json`, `.md`, `.html` and `plots/`."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pidistill import images
from pidistill.comparison.plan import Section
from pidistill.comparison.plots import plots
from pidistill.comparison.table import Cells, Comparison, as_json, legend, tables
from pidistill.files import write_json, write_text
from pidistill.model_folder import load_student
from pidistill.noise import device_of, initial_noise
from pidistill.ode import solve
from pidistill.report.page import write_page
from pidistill.report.plots import as_svg, data_uri, save_png
from pidistill.students.base import labels_for

PICTURES = 14
"""Samples of each configuration on the page."""


def write_files(out: str | Path, comparison: Comparison, provenance: dict[str, str]) -> Path:
    """Write all results to the folder `out`.

    Args:
        out: The folder.
        comparison: The results.
        provenance: How they were made, by name.

    Returns:
        The page.
    """
    out = Path(out)
    (out / "plots").mkdir(parents=True, exist_ok=True)
    lines = [f"# {comparison.plan.title}", ""]
    blocks = []
    for section in comparison.plan.sections:
        cells, figures = tables(comparison, section), plots(comparison, section)
        for name, figure in figures.items():
            save_png(figure, out / "plots" / f"{name}.png")
        about = section.sweep.about if section.sweep else ""
        lines += [f"## {section.title}", "", *([about, ""] if about else [])]
        for table in cells:
            lines += [table.markdown(), ""]
        lines += [*(f"![{name}](plots/{name}.png)" for name in figures), ""]
        blocks.append(_block(section, cells, figures, comparison))
    lines += [legend(comparison), "", *(f"- {key}: {value}" for key, value in provenance.items())]
    write_json(out / "comparison.json", as_json(comparison, provenance))
    write_text(out / "comparison.md", "\n".join(lines) + "\n")
    write_page(
        out / "comparison.html",
        "comparison.html",
        title=comparison.plan.title,
        subtitle=legend(comparison),
        sections=blocks,
        provenance=provenance,
    )
    return out / "comparison.html"


def _block(
    section: Section, cells: list[Cells], figures: dict[str, Figure], comparison: Comparison
) -> dict[str, Any]:
    """What the template shows of a section."""
    rows = comparison.rows[section.title]
    return {
        "title": section.title,
        "about": section.sweep.about if section.sweep else "",
        "tables": cells,
        "failures": [(r.name, seed, text) for r in rows for seed, text in r.failures.items()],
        "plots": [as_svg(figure) for figure in figures.values()],
        "pictures": _pictures(comparison, section),
    }


def _pictures(comparison: Comparison, section: Section) -> dict[str, str]:
    """Samples of the teacher and of every configuration from the same noise, as data URIs."""
    plan, teacher = comparison.plan, comparison.plan.teacher
    if not images.is_image(teacher.sample_shape):
        return {}
    z = initial_noise(teacher, PICTURES, seed=plan.evaluation_seed)
    found = {"teacher": solve(teacher, z, steps=40, label=labels_for(teacher, PICTURES)).x}
    for row in comparison.rows[section.title]:
        runs = [r for r in row.configuration.runs if r.config.seed not in row.failures]
        if runs:
            student = load_student(runs[0].folder, device=device_of(teacher))
            drawn = student.generate(PICTURES, seed=plan.evaluation_seed, steps=student.num_steps)
            found[row.name] = drawn.x
    return {name: data_uri(images.grid(x, columns=PICTURES)) for name, x in found.items()}
