"""The table of a comparison: a row a configuration, with mean and spread over its seeds."""

import dataclasses
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from pidistill.comparison.costs import Cost
from pidistill.comparison.measure import Terms, measure
from pidistill.comparison.plan import Entry, progress_of

DATA = {"noise": "none", "images": "images", "pairs": "none; makes pairs"}
"""What a reader needs to have for a method, beside the teacher, by what the method trains on."""


def figures(value: float) -> str:
    """A number to three significant figures, large ones without an exponent: 0.170, 242, 1,520."""
    if abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".rstrip(".")


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number over the seeds."""

    values: list[float]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def low(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.values)

    def __str__(self) -> str:
        """The mean, with smallest and largest where there are several."""
        if len(self.values) == 1:
            return figures(self.mean)
        return f"{figures(self.mean)} ({figures(self.low)}-{figures(self.high)})"


@dataclasses.dataclass(frozen=True)
class Row:
    """A configuration and what came of it."""

    entry: Entry
    metrics: dict[int, dict[str, Spread]]
    """By evaluations a sample, by name; empty where no run ended well."""
    train_seconds: Spread | None
    teacher_evaluations: int | None
    """Of one run, those before its first step included; None where no run ended well."""
    failures: dict[int, str]
    """Errors of the runs that did not end well, by seed."""

    @property
    def images(self) -> int:
        """Samples that a run sees."""
        return self.entry.config.max_train_steps * self.entry.config.batch_size

    @property
    def student_evaluations(self) -> int:
        """Of one run, those of copies that follow the student included."""
        return self.images * self.entry.student_evaluations

    def metric(self, name: str, steps: int | None = None) -> Spread | None:
        """A metric at `steps` evaluations a sample, by default the fewest, or None."""
        if not self.metrics:
            return None
        return self.metrics.get(min(self.metrics) if steps is None else steps, {}).get(name)


def make_row(entry: Entry, terms: Terms, evaluations: list[int], failures: dict[Path, str]) -> Row:
    """Measure the runs of an entry that ended well, and sum them up.

    Args:
        entry: The entry, whose runs are trained.
        terms: What they are measured with.
        evaluations: Evaluations a sample.
        failures: Errors of the runs that did not end well, by folder.
    """
    runs = [run for run in entry.runs if run.folder not in failures]
    spent = [progress_of(run.folder) for run in runs]
    return Row(
        entry,
        _over_seeds([measure(run.folder, terms, evaluations) for run in runs]),
        Spread([values["seconds"] for values in spent]) if runs else None,
        spent[0]["teacher_evals"] if runs else None,
        {run.config.seed: failures[run.folder] for run in entry.runs if run.folder in failures},
    )


def _over_seeds(of_seeds: list[dict[int, dict[str, Any]]]) -> dict[int, dict[str, Spread]]:
    """From the metrics of every seed, by evaluations, to spreads."""
    return {
        steps: {
            name: Spread([of_seed[steps][name] for of_seed in of_seeds])
            for name, value in metrics.items()
            if isinstance(value, float)
        }
        for steps, metrics in (of_seeds[0] if of_seeds else {}).items()
    }


class Cells(NamedTuple):
    """A table for people to read."""

    columns: list[str]
    lines: list[list[str]]


def quality(rows: list[Row], teacher: dict[str, Any]) -> Cells:
    """A line a configuration and number of evaluations; the first line is the teacher's.

    Args:
        rows: The rows.
        teacher: The teacher's own metrics (`Terms.of_teacher`).
    """
    distance = teacher.get("frechet_distance")
    lines = [["teacher", str(teacher["nfe"]), "0 by definition", figures(distance or 0), ""]]
    for row in rows:
        name, data = row.entry.name, DATA[row.entry.needs]
        if row.failures:
            name += f" [{len(row.failures)} of {len(row.entry.runs)} failed]"
        if not row.metrics:
            lines.append([name, "-", "-", "-", data])
        for steps, metrics in row.metrics.items():
            shown = [str(metrics.get(key, "-")) for key in ("rms_error", "frechet_distance")]
            lines.append([name, str(steps), *shown, data])
    if distance is None:
        lines = [[*line[:3], line[4]] for line in lines]
        return Cells(["", "NFE", "error", "data needed"], lines)
    return Cells(["", "NFE", "error", "FD", "data needed"], lines)


def spending(rows: list[Row], costs: dict[str, Cost]) -> Cells:
    """What a run of each configuration spent.

    Args:
        rows: The rows.
        costs: What a step costs, by the identity of the entry, of these rows and others.
    """
    timed = any(row.entry.identity in costs for row in rows)
    columns = ["", "steps", "images", "teacher evals", "student evals", "train s"]
    columns += ["ms/step", "peak MB"] if timed else []
    lines = [
        [
            row.entry.name,
            f"{row.entry.config.max_train_steps:,}",
            f"{row.images:,}",
            "-" if row.teacher_evaluations is None else f"{row.teacher_evaluations:,}",
            f"{row.student_evaluations:,}",
            "-" if row.train_seconds is None else f"{row.train_seconds.mean:,.0f}",
            *(_cost_cells(costs.get(row.entry.identity)) if timed else []),
        ]
        for row in rows
    ]
    return Cells(columns, lines)


def _cost_cells(cost: Cost | None) -> list[str]:
    """What a step costs; dashes where it is not known."""
    if cost is None:
        return ["-", "-"]
    return [figures(cost.ms_per_step), f"{cost.memory / 1e6:.0f}"]


def as_json(row: Row, cost: Cost | None) -> dict[str, Any]:
    """A row as JSON values, with every seed's numbers."""
    runs = row.entry.runs
    content: dict[str, Any] = {
        "name": row.entry.name,
        "method": row.entry.config.method.name,
        "identity": row.entry.identity,
        "folders": [run.folder.name for run in runs],
        "seeds": [run.config.seed for run in runs],
        "needs": row.entry.needs,
        "steps": row.entry.config.max_train_steps,
        "images": row.images,
        "student_evals": row.student_evaluations,
        "metrics": {
            str(steps): {
                name: {"mean": s.mean, "min": s.low, "max": s.high, "values": s.values}
                for name, s in metrics.items()
            }
            for steps, metrics in row.metrics.items()
        },
    }
    if row.teacher_evaluations is not None:
        content["teacher_evals"] = row.teacher_evaluations
    if row.train_seconds is not None:
        content["train_seconds"] = row.train_seconds.values
    if cost is not None:
        content["cost"] = dataclasses.asdict(cost)
    if row.failures:
        content["failures"] = {str(seed): message for seed, message in row.failures.items()}
    return content


def markdown(cells: Cells) -> str:
    """A table in Markdown."""
    rule = ["---", *["---:"] * (len(cells.columns) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells.columns, rule, *cells.lines))
