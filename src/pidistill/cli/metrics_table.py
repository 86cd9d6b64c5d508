"""The table of metrics that `evaluate` and `quickstart` print."""

from typing import Any

from pidistill.cli.console import Out

COLUMNS = ["", "NFE", "ms/sample", "Frechet distance", "RMS error"]

KEYS = {
    "NFE": "nfe",
    "ms/sample": "ms_per_sample",
    "Frechet distance": "frechet_distance",
    "kernel distance": "kernel_distance",
    "Inception Score": "inception_score",
    "precision": "precision",
    "recall": "recall",
    "RMS error": "rms_error",
}
"""Which metric a column shows, in the order of columns."""


def metrics_columns(metrics: dict[str, Any]) -> list[str]:
    """The columns of a table of these metrics: those of every table, and what else was measured."""
    return ["", *(title for title, key in KEYS.items() if title in COLUMNS or key in metrics)]


def metrics_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """The rows of teacher and student, under `metrics_columns`; what was not measured is a dash."""
    rows = []
    columns = metrics_columns(metrics)[1:]
    if "teacher_nfe" in metrics:
        own = {KEYS[title]: metrics.get(f"teacher_{KEYS[title]}") for title in columns}
        cells = ["0 (by definition)" if key == "rms_error" else number(own[key]) for key in own]
        rows.append([_teacher(metrics), *cells])
    for one in metrics.get("measurements", [metrics]):
        label = metrics.get("target", "student")
        if "measurements" in metrics:
            label = ", ".join(
                [one.get("weights", label).removesuffix(".safetensors"), f"seed {one['seed']}"]
            )
        rows.append([label, *(number(one.get(KEYS[title])) for title in columns)])
    return rows


def _teacher(metrics: dict[str, Any]) -> str:
    few = metrics.get("error_num_samples", metrics["num_samples"])
    text = "teacher, 40 nodes of Heun"
    return text if few == metrics["num_samples"] else f"{text}, {few} samples"


def number(value: int | float | None) -> str:
    """A number to three digits, a count as it is, or a dash."""
    if isinstance(value, int):
        return str(value)
    return "-" if value is None else f"{value:.3g}"


def print_metrics(out: Out, metrics: dict[str, Any]) -> None:
    """Print the table and what a reader needs to judge it."""
    title = f"{metrics['num_samples']} samples"
    if "seed" in metrics and "measurements" not in metrics:
        title += f", seed {metrics['seed']}"
    out.table(title, metrics_columns(metrics), metrics_rows(metrics))
    print_context(out, metrics)


def print_context(out: Out, metrics: dict[str, Any]) -> None:
    """Print the quantiles of the error, the floor of the distance, diversity, and speed."""
    if "error_quantiles" in metrics:
        quantiles = metrics["error_quantiles"].items()
        text = ", ".join(f"{float(q):.0%}: {value:.3f}" for q, value in quantiles)
        out.say(f"error of a sample, quantiles: {text}")
    if "reference_split_frechet_distance" in metrics:
        split = metrics["reference_split_frechet_distance"]
        out.say(f"one half of the reference against the other: Frechet distance {split:.3g}")
    _print_diagnostics(out, metrics)
    for summary in metrics.get("over_seeds", []):
        for name, values in summary.items():
            if name != "weights":
                whose = f"{summary['weights']}, " if "weights" in summary else ""
                out.say(
                    f"{whose}{name} over the seeds: least {values['min']:.4g}, mean "
                    f"{values['mean']:.4g}, spread {values['spread']:.2g}"
                )
    if "teacher_ms_per_sample" in metrics:
        gain = metrics["teacher_ms_per_sample"] / metrics["ms_per_sample"]
        out.say(f"the student is {gain:.0f} times faster a sample than the teacher's solve")


def _print_diagnostics(out: Out, metrics: dict[str, Any]) -> None:
    """Print what the diagnostics say, a line each."""
    if "straightness" in metrics:
        out.say(
            f"bend of the paths (0: straight): {metrics['straightness']:.3g}; the teacher's "
            f"{metrics['teacher_straightness']:.3g}"
        )
    if "nearest_sample" in metrics:
        values = metrics["nearest_sample"]
        out.say(
            f"{metrics['duplicates']} of the samples are the same as an earlier one; of "
            f"{values['num_samples']}, {values['look_the_same']} look like another"
            f"{_beside_teacher(values, 'look_the_same')}; median distance to the nearest other "
            f"{values['median']:.3g}{_beside_teacher(values, 'median')}"
        )
    if "nearest_training_image" in metrics:
        values = metrics["nearest_training_image"]
        out.say(
            f"of {values['num_samples']} samples, {values['look_the_same']} look like an image of "
            f"the reference{_beside_teacher(values, 'look_the_same')}; median distance to the "
            f"nearest {values['median']:.3g}{_beside_teacher(values, 'median')}"
        )


def _beside_teacher(values: dict[str, Any], name: str) -> str:
    key = f"teacher_{name}"
    return f" (teacher: {number(values[key])})" if key in values else ""
