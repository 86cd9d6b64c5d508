"""The files of a comparison: `comparison.json`, `.md`, `.html` and `plots/`."""

from pathlib import Path

from pidistill import images
from pidistill.comparison.plan import Section
from pidistill.comparison.plots import plots
from pidistill.comparison.table import Comparison, as_json, legend, tables
from pidistill.files import write_json
from pidistill.model_folder import load_student
from pidistill.noise import device_of, initial_noise
from pidistill.ode import solve
from pidistill.report.page import write_page
from pidistill.report.plots import as_svg, data_uri, save_png
from pidistill.students.labels import labels_for

PICTURES = 14
"""Samples of each configuration on the page."""
POINTS = 1000
"""The same, of points in the plane."""


def write_files(out: str | Path, comparison: Comparison, provenance: dict[str, str]) -> Path:
    """Write all results to the folder `out`, with how they were made, and return the page."""
    out = Path(out)
    (out / "plots").mkdir(parents=True, exist_ok=True)
    sections = []
    for section in comparison.plan.sections:
        figures = plots(comparison, section)
        for name, figure in figures.items():
            save_png(figure, out / "plots" / f"{name}.png")
        block = {
            "title": section.title,
            "about": section.sweep.about if section.sweep else "",
            "tables": tables(comparison, section),
            "failures": [
                (row.name, seed, text)
                for row in comparison.rows[section.title]
                for seed, text in (row.failures or {}).items()
            ],
            "plots": {name: as_svg(figure) for name, figure in figures.items()},
            "pictures": _pictures(comparison, section),
            "is_plane": images.is_plane(comparison.plan.teacher.sample_shape),
        }
        sections.append(block)
    write_json(out / "comparison.json", as_json(comparison, provenance))
    context = {
        "title": comparison.plan.title,
        "subtitle": legend(comparison),
        "sections": sections,
        "provenance": provenance,
    }
    for name in ("comparison.md", "comparison.html"):
        write_page(out / name, name, **context)
    return out / "comparison.html"


def _pictures(comparison: Comparison, section: Section) -> dict[str, str]:
    """Samples of the teacher and of every configuration from the same noise, as data URIs."""
    plan, teacher = comparison.plan, comparison.plan.teacher
    is_plane = images.is_plane(teacher.sample_shape)
    if not (is_plane or images.is_image(teacher.sample_shape)):
        return {}
    num = POINTS if is_plane else PICTURES
    z = initial_noise(teacher, num, seed=plan.evaluation_seed)
    found = {"teacher": solve(teacher, z, steps=40, label=labels_for(teacher, num)).x}
    for row in comparison.rows[section.title]:
        for seed, folder in zip(row.seeds, row.folders, strict=True):
            if seed not in (row.failures or {}):
                student = load_student(folder, device=device_of(teacher))
                steps = student.num_steps
                found[row.name] = student.generate(num, seed=plan.evaluation_seed, steps=steps).x
                break
    if is_plane:
        reach = images.reach_of(found["teacher"])
        return {name: data_uri(images.scatter(x, reach=reach)) for name, x in found.items()}
    return {name: data_uri(images.grid(x, columns=PICTURES)) for name, x in found.items()}
