"""The table of metrics that `evaluate` and `quickstart` print."""

from typing import Any

from pidistill.cli.console import Out
from pidistill.report.numbers import figures

KEYS = {
    "NFE": "nfe",
    "ms/sample": "ms_per_sample",
    "Frechet distance": "frechet_distance",
    "kernel distance": "kernel_distance",
    "Inception Score": "inception_score",
    "precision": "precision",
    "recall": "recall",
    "label agreement": "label_agreement",
    "RMS error": "rms_error",
}
"""The metric shown in each column, in order."""
COLUMNS = ["", "NFE", "ms/sample", "Frechet distance", "RMS error"]
"""The columns of every table."""


QUALITY = {
    "held_out_accuracy": "accuracy of the features' classifier on held-out images of its data",
    "held_out_retrieval": "held-out images that the features find again in another view",
}
"""How good features of one's own are (see `pidistill train-features`)."""


def metrics_columns(metrics: dict[str, Any]) -> list[str]:
    """The columns for these metrics: `COLUMNS`, and whatever else was measured."""
    return ["", *(title for title, key in KEYS.items() if title in COLUMNS or key in metrics)]


def metrics_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """The rows of teacher and student; a dash means not measured."""
    keys = [KEYS[title] for title in metrics_columns(metrics)[1:]]
    rows = []
    if "teacher_nfe" in metrics:
        cells = {key: figures(metrics.get(f"teacher_{key}")) for key in keys}
        cells["rms_error"] = "0 (by definition)"
        rows.append([_teacher(metrics), *(cells[key] for key in keys)])
    label = metrics.get("target", "student")
    for one in metrics.get("measurements", [metrics]):
        name = label
        if "measurements" in metrics:
            weights = one.get("weights", label).removesuffix(".safetensors")
            name = f"{weights}, seed {one['seed']}"
        rows.append([name, *(figures(one.get(key)) for key in keys)])
    return rows


def _teacher(metrics: dict[str, Any]) -> str:
    few = metrics.get("error_num_samples", metrics["num_samples"])
    text = "teacher, 40 nodes of Heun"
    return text if few == metrics["num_samples"] else f"{text}, {few:,} samples"


def print_metrics(out: Out, metrics: dict[str, Any]) -> None:
    """Print the table and its context."""
    title = f"{metrics['num_samples']:,} samples"
    if "seed" in metrics and "measurements" not in metrics:
        title += f", seed {metrics['seed']}"
    out.table(title, metrics_columns(metrics), metrics_rows(metrics))
    print_context(out, metrics)


def print_context(out: Out, metrics: dict[str, Any]) -> None:
    """Print error quantiles, the noise floor of the Frechet distance, diversity and speed."""
    if "error_quantiles" in metrics:
        quantiles = metrics["error_quantiles"].items()
        text = ", ".join(f"{float(q):.0%}: {figures(value)}" for q, value in quantiles)
        out.say(f"error per sample, quantiles: {text}")
    if "reference_split_frechet_distance" in metrics:
        split = figures(metrics["reference_split_frechet_distance"])
        out.say(f"Frechet distance between two halves of the reference: {split}")
    if "label_agreement" in metrics:
        out.say("label agreement: share of samples that a classifier assigns to their own label")
    for key, what in QUALITY.items():
        if key in metrics.get("features_facts", {}):
            out.say(f"{what}: {figures(metrics['features_facts'][key])}")
    if "straightness" in metrics:
        out.say(
            f"straightness of the paths (0: straight): {figures(metrics['straightness'])}; the "
            f"teacher's: {figures(metrics['teacher_straightness'])}"
        )
    if "nearest_sample" in metrics:
        out.say(f"{metrics['duplicates']:,} samples are exact copies of an earlier one")
        _print_neighbours(out, metrics["nearest_sample"], "another sample")
    if "nearest_training_image" in metrics:
        _print_neighbours(out, metrics["nearest_training_image"], "an image of the reference")
    for summary in metrics.get("over_seeds", []):
        whose = f"{summary['weights']}, " if "weights" in summary else ""
        for name, values in summary.items():
            if name != "weights":
                out.say(
                    f"{whose}{name} over the seeds: min {values['min']:.4g}, mean "
                    f"{values['mean']:.4g}, spread {values['spread']:.2g}"
                )
    if "teacher_ms_per_sample" in metrics:
        gain = metrics["teacher_ms_per_sample"] / metrics["ms_per_sample"]
        out.say(f"the student samples {gain:.0f} times faster than the teacher")


def _print_neighbours(out: Out, values: dict[str, Any], what: str) -> None:
    """Print how many samples look like `what`, and their median distance from it."""

    def shown(name: str) -> str:
        of_teacher = values.get(f"teacher_{name}")
        text = figures(values[name])
        return text if of_teacher is None else f"{text} (teacher: {figures(of_teacher)})"

    out.say(
        f"{shown('look_the_same')} of {values['num_samples']:,} samples look like {what}; median "
        f"distance to the nearest: {shown('median')}"
    )
