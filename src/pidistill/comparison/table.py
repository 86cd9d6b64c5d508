"""The tables of a comparison: a row per configuration, with mean and range over its seeds."""

import dataclasses
import statistics
from typing import Any, NamedTuple

from pidistill.comparison.costs import Cost
from pidistill.comparison.plan import Configuration, Plan, Section
from pidistill.report.numbers import figures

METRICS = {"rms_error": "error", "frechet_distance": "FD"}
"""What is measured of a student, and the heads of its columns."""

DATA = {"noise": "none", "images": "images", "pairs": "none; makes pairs"}
"""What a method needs beside the teacher, by what it trains on."""


class Spread(NamedTuple):
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
    """A configuration and its results."""

    configuration: Configuration
    metrics: dict[int, dict[str, Spread]]
    """By NFE and name (see `METRICS`); empty where every run failed."""
    train_seconds: list[float]
    """Of the runs that succeeded."""
    teacher_evaluations: int | None
    """Of one run, those before its first step included; None where every run failed."""
    failures: dict[int, str]
    """Errors of the runs that failed, by seed."""

    @property
    def name(self) -> str:
        """The name of the configuration."""
        return self.configuration.name

    @property
    def images(self) -> int:
        """Samples that one run sees."""
        config = self.configuration.config
        return config.max_train_steps * config.batch_size

    def metric(self, name: str) -> Spread | None:
        """A metric at the smallest NFE; None where there is none."""
        return self.metrics[min(self.metrics)].get(name) if self.metrics else None


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
    """What training costs, by the identity of the configuration; filled in once it is measured."""


class Cells(NamedTuple):
    """A table for people."""

    columns: list[str]
    lines: list[list[str]]

    def markdown(self) -> str:
        """The table in Markdown."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.columns, rule, *self.lines))


def tables(comparison: Comparison, section: Section) -> list[Cells]:
    """The tables of a section: quality, and what training cost."""
    rows = comparison.rows[section.title]
    return [quality(rows, comparison.teacher), spending(rows, comparison.costs)]


def quality(rows: list[Row], teacher: dict[str, Any]) -> Cells:
    """A line per configuration and NFE, after a line for the teacher."""
    metrics = {"rms_error": "error"}
    lines = [["teacher", str(teacher["nfe"]), "0 by definition"]]
    if "frechet_distance" in teacher:
        metrics = METRICS
        lines[0].append(figures(teacher["frechet_distance"]))
    lines[0].append("")
    for row in rows:
        name, data = row.name, DATA[row.configuration.needs]
        if row.failures:
            name += f" [{len(row.failures)} of {len(row.configuration.runs)} failed]"
        if not row.metrics:
            lines.append([name, "-", *("-" for _ in metrics), data])
        for steps, found in row.metrics.items():
            lines.append([name, str(steps), *(str(found[key]) for key in metrics), data])
    return Cells(["", "NFE", *metrics.values(), "data needed"], lines)


def spending(rows: list[Row], costs: dict[str, Cost]) -> Cells:
    """A line per configuration: what one of its runs spent."""
    columns = ["", "steps", "images", "teacher evals", "train s", "ms/step", "peak MB"]
    lines = []
    for row in rows:
        steps = row.configuration.config.max_train_steps
        numbers = [figures(number) for number in (steps, row.images, row.teacher_evaluations)]
        seconds = f"{statistics.fmean(row.train_seconds):,.0f}" if row.train_seconds else "-"
        cost = costs.get(row.configuration.identity)
        per_step = "-" if cost is None else figures(1000 * cost.seconds_per_step)
        memory = "-" if cost is None else f"{cost.memory / 1e6:,.0f}"
        lines.append([row.name, *numbers, seconds, per_step, memory])
    return Cells(columns, lines)


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
    return text


def as_json(comparison: Comparison, provenance: dict[str, str]) -> dict[str, Any]:
    """All results as JSON values.

    Args:
        comparison: The results.
        provenance: How they were made, by name.
    """
    plan = comparison.plan
    recipe = plan.recipe
    return {
        "title": plan.title,
        **({"recipe": recipe.model_dump(mode="json", exclude_none=True)} if recipe else {}),
        "provenance": provenance,
        "num_samples": plan.num_samples,
        "seed": plan.evaluation_seed,
        **({"reference": plan.reference} if "frechet_distance" in comparison.teacher else {}),
        "teacher": comparison.teacher,
        "sections": {
            title: [_row_as_json(row, comparison.costs) for row in rows]
            for title, rows in comparison.rows.items()
        },
    }


def _row_as_json(row: Row, costs: dict[str, Cost]) -> dict[str, Any]:
    configuration = row.configuration
    cost = costs.get(configuration.identity)
    content = {
        "name": row.name,
        "method": configuration.config.method.name,
        "identity": configuration.identity,
        "folders": [run.folder.name for run in configuration.runs],
        "seeds": [run.config.seed for run in configuration.runs],
        "needs": configuration.needs,
        "steps": configuration.config.max_train_steps,
        "images": row.images,
        "teacher_evals": row.teacher_evaluations,
        "metrics": {
            str(steps): {name: spread._asdict() for name, spread in found.items()}
            for steps, found in row.metrics.items()
        },
        "train_seconds": row.train_seconds or None,
        "failures": {str(seed): text for seed, text in row.failures.items()} or None,
    }
    if cost is not None:
        content["cost"] = {"ms_per_step": 1000 * cost.seconds_per_step, "memory": cost.memory}
    return {key: value for key, value in content.items() if value is not None}
