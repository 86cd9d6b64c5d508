"""The tables of a comparison: a row per configuration, with mean and range over its seeds."""

import dataclasses
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from pidistill.comparison.costs import Cost
from pidistill.comparison.plan import Plan, Search, Section
from pidistill.report.numbers import figures

METRICS = {"rms_error": "error", "frechet_distance": "FD", "label_agreement": "labels"}
"""What is measured of a student, and the heads of its columns."""

DATA = {"noise": "none", "images": "images", "pairs": "none; makes pairs"}
"""What a method needs beside the teacher, by what it trains on."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number over the seeds."""

    mean: float
    min: float
    max: float
    values: list[float]

    @classmethod
    def over(cls, values: list[float]) -> "Spread":
        """The spread of `values`, which are not empty."""
        return cls(statistics.fmean(values), min(values), max(values), values)

    def __str__(self) -> str:
        """The mean; with smallest and largest if there are several."""
        if len(self.values) == 1:
            return figures(self.mean)
        return f"{figures(self.mean)} ({figures(self.min)}-{figures(self.max)})"


@dataclasses.dataclass(frozen=True)
class Row:
    """A configuration and its results, by the names that `comparison.json` has for them."""

    name: str
    method: str
    identity: str
    folders: list[Path]
    seeds: list[int]
    needs: str
    """What its method trains on, a key of `DATA`."""
    steps: int | None
    """Of one run; None where every run failed."""
    images: int | None
    """Samples that one run sees; None where every run failed."""
    metrics: dict[int, dict[str, Spread]]
    """By NFE and name (see `METRICS`); empty where every run failed."""
    teacher_evals: int | None = None
    """Of one run, those before its first step included; None where every run failed."""
    teacher_backwards: int | None = None
    """Backward passes through the teacher of one run; None where every run failed."""
    train_seconds: list[float] | None = None
    """Of the runs that succeeded, where there are some."""
    rate: float | None = None
    """The student's highest learning rate; None if the plan does not know it."""
    search: Search | None = None
    """How the learning rate was chosen, if it was."""
    failures: dict[int, str] | None = None
    """Errors of the runs that failed, by seed, where there are some."""

    @property
    def best(self) -> dict[str, Spread]:
        """The metrics at the smallest NFE; there are some."""
        return self.metrics[min(self.metrics)]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All results."""

    plan: Plan
    teacher: dict[str, Any]
    """The teacher's metrics: `nfe`, and with a reference `frechet_distance` and
    `reference_split_frechet_distance`."""
    rows: dict[str, list[Row]]
    """By the title of the section."""
    costs: dict[str, Cost] = dataclasses.field(default_factory=dict)
    """What training costs, by the identity of the configuration; empty until it is measured."""


class Cells(NamedTuple):
    """A table for people."""

    columns: list[str]
    lines: list[list[str]]


def tables(comparison: Comparison, section: Section) -> list[Cells]:
    """The tables of a section: quality, what training cost, and how learning rates were chosen."""
    rows = comparison.rows[section.title]
    found = [quality(rows, comparison.teacher), spending(rows, comparison.costs)]
    return [*found, rates(rows)] if any(row.search for row in rows) else found


def quality(rows: list[Row], teacher: dict[str, Any]) -> Cells:
    """A line per configuration and NFE, after a line for the teacher."""
    metrics = [name for name in METRICS if name == "rms_error" or name in teacher]
    of_teacher = [
        "0 by definition" if name == "rms_error" else figures(teacher[name]) for name in metrics
    ]
    lines = [["teacher", str(teacher["nfe"]), *of_teacher, ""]]
    for row in rows:
        name, data = row.name, DATA[row.needs]
        if row.failures:
            name += f" [{len(row.failures)} of {len(row.seeds)} failed]"
        if not row.metrics:
            lines.append([name, "-", *("-" for _ in metrics), data])
        for steps, found in row.metrics.items():
            lines.append([name, str(steps), *(str(found[key]) for key in metrics), data])
    return Cells(["", "NFE", *(METRICS[name] for name in metrics), "data needed"], lines)


def spending(rows: list[Row], costs: dict[str, Cost]) -> Cells:
    """A line per configuration: what one of its runs spent."""
    lines = []
    for row in rows:
        cost = costs.get(row.identity)
        cells = {
            "": row.name,
            "steps": figures(row.steps),
            "images": figures(row.images),
            "teacher evals": figures(row.teacher_evals),
            "backwards": figures(row.teacher_backwards),
            "train s": _seconds(statistics.fmean(row.train_seconds) if row.train_seconds else None),
            "ms/step": "-" if cost is None else figures(1000 * cost.seconds_per_step),
            "peak MB": "-" if cost is None else f"{cost.memory / 1e6:,.0f}",
        }
        lines.append(list(cells.values()))
    return Cells(list(cells), lines)


def rates(rows: list[Row]) -> Cells:
    """A line per configuration: its learning rate, and what it took to choose it."""
    lines = []
    for row in rows:
        search = row.search
        if search is None or row.rate is None:
            continue
        evals = search.teacher_evals + 2 * search.teacher_backwards
        edge = " (edge)" if search.is_edge else ""
        lines.append(
            [
                row.name,
                f"{row.rate:.3g}",
                f"x{search.multiple:g}{edge}",
                str(len(search.results)),
                figures(evals),
                _seconds(search.seconds),
            ]
        )
    columns = ["", "learning rate", "multiple", "tries", "tries' evals", "tries' s"]
    return Cells(columns, lines)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.0f}"


def legend(comparison: Comparison) -> str:
    """What the columns mean, for people."""
    plan, teacher, seeds = comparison.plan, comparison.teacher, comparison.plan.seeds()
    if len(seeds) == 1:
        text = f"One seed, {seeds[0]}: no spread."
    else:
        named = ", ".join(map(str, seeds))
        text = f"Means over the seeds {named}, with the smallest and the largest in parentheses."
    text = (
        f"{plan.budget} {text} error: RMS distance to the teacher's solution "
        f"({teacher['nfe']} evaluations) from the same noise, in the units of the samples, over "
        f"{plan.num_samples:,} samples of seed {plan.evaluation_seed}."
    )
    if "frechet_distance" in teacher:
        text += f" FD: Frechet distance of these samples to {plan.reference}."
    if "reference_split_frechet_distance" in teacher:
        split = figures(teacher["reference_split_frechet_distance"])
        text += f" Between two halves of {plan.reference} it is {split}."
    if "label_agreement" in teacher:
        text += " labels: how often the features' classifier finds the class that was asked for."
    search = plan.recipe and plan.recipe.learning_rates
    if search:
        judged = METRICS[search.judged_by(plan.reference)]
        text += (
            f" Every run trains at the learning rate of lowest {judged} among those that were "
            f"tried with {search.share:.3g} of its budget. multiple: of the rate that it is set "
            "to; edge: one beyond it might be better. tries' evals: a backward pass counts as two."
        )
    return text


def as_json(comparison: Comparison, provenance: dict[str, str]) -> dict[str, Any]:
    """All results as JSON values, with how they were made; what was not measured is left out."""
    plan, recipe = comparison.plan, comparison.plan.recipe
    return {
        "title": plan.title,
        **({"recipe": recipe.model_dump(mode="json", exclude_none=True)} if recipe else {}),
        "provenance": provenance,
        "num_samples": plan.num_samples,
        "seed": plan.evaluation_seed,
        **({"reference": plan.reference} if "frechet_distance" in comparison.teacher else {}),
        "teacher": comparison.teacher,
        "sections": {
            title: [_row_as_json(row, comparison.costs.get(row.identity)) for row in rows]
            for title, rows in comparison.rows.items()
        },
    }


def _row_as_json(row: Row, cost: Cost | None) -> dict[str, Any]:
    values = {key: value for key, value in dataclasses.asdict(row).items() if value is not None}
    values["folders"] = [folder.name for folder in row.folders]
    if cost is not None:
        values["cost"] = {"ms_per_step": 1000 * cost.seconds_per_step, "memory": cost.memory}
    return values
