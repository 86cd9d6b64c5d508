"""The table of metrics that `evaluate` and `quickstart` print."""

from typing import Any

from pidistill.cli.console import Out

COLUMNS = ["", "NFE", "ms/sample", "Frechet distance", "RMS error"]


def metrics_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """The rows of teacher and student; what was not measured is a dash."""
    rows = []
    if "teacher_nfe" in metrics:
        rows.append(
            [
                "teacher, 40 nodes of Heun",
                str(metrics["teacher_nfe"]),
                number(metrics.get("teacher_ms_per_sample")),
                number(metrics.get("teacher_frechet_distance")),
                "0 (by definition)",
            ]
        )
    rows.append(
        [
            "student",
            str(metrics["nfe"]),
            number(metrics.get("ms_per_sample")),
            number(metrics.get("frechet_distance")),
            number(metrics.get("rms_error")),
        ]
    )
    return rows


def number(value: float | None) -> str:
    """A number to three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"


def print_metrics(out: Out, metrics: dict[str, Any]) -> None:
    """Print the table and what a reader needs to judge it."""
    title = f"{metrics['num_samples']} samples, seed {metrics['seed']}"
    out.table(title, COLUMNS, metrics_rows(metrics))
    print_context(out, metrics)


def print_context(out: Out, metrics: dict[str, Any]) -> None:
    """Print the quantiles of the error, the floor of the distance, and the gain in speed."""
    if "error_quantiles" in metrics:
        quantiles = metrics["error_quantiles"].items()
        text = ", ".join(f"{float(q):.0%}: {value:.3f}" for q, value in quantiles)
        out.say(f"error of a sample, quantiles: {text}")
    if "reference_split_frechet_distance" in metrics:
        split = metrics["reference_split_frechet_distance"]
        out.say(f"one half of the reference against the other: Frechet distance {split:.3g}")
    if "teacher_ms_per_sample" in metrics:
        gain = metrics["teacher_ms_per_sample"] / metrics["ms_per_sample"]
        out.say(f"the student is {gain:.0f} times faster a sample than the teacher's solve")
