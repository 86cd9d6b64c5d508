"""`pidistill inspect`: what a teacher, a data set or a run folder is; no file is executed."""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pidistill.cli.console import PATH, Out, duration, json_option
from pidistill.cli.teacher_quality import how_good
from pidistill.errors import PidistillError
from pidistill.files import is_held, read_json
from pidistill.paths import user_path
from pidistill.report.numbers import figures
from pidistill.settings import read_toml
from pidistill.training.config import CONFIG_FILE
from pidistill.training.log import LOG_FILE, preview_columns, read_log
from pidistill.training.sizes import ENOUGH_STEPS

if TYPE_CHECKING:
    from pidistill.data import Dataset

ROWS = 5
"""Of a grid of examples."""
BUNDLED = ("digits", "glyphs")
"""Both a teacher and the data set it was trained on."""
RECENT_LINES = 10
"""Lines of the log whose rate tells the time that remains."""


@click.command()
@click.argument("name", metavar="SPEC_or_DIR_or_DATA")
@click.option(
    "--examples", type=PATH, metavar="FILE.png", help="Draw some images of a data set, by class."
)
@json_option
def inspect(name: str, examples: Path | None, as_json: bool) -> None:
    """Describe a teacher (by its spec), a data set or a run folder, and say where a run stands.

    Executes nothing in any file, and needs no plug-in that a run was made with.
    """
    out, path = Out(as_json), user_path(name)
    from pidistill.data import did_you_mean, is_data_spec, load_data
    from pidistill.evaluation.features.trained import FEATURES_FILE

    is_data = is_data_spec(name) or name in BUNDLED
    if examples is not None and not is_data:
        raise PidistillError(f"--examples draws images of a data set; {name!r} is none")
    data = load_data(name, out.progress) if is_data else None

    facts: dict[str, Any] = {"name": name}
    if any((path / file).is_file() for file in (CONFIG_FILE, "network.json")):
        facts.update(_folder_facts(path))
    elif (path / FEATURES_FILE).is_file():
        facts.update(kind="features", **_features_facts(path / FEATURES_FILE))
    elif data is not None and name not in BUNDLED:
        facts.update(kind="data", **_data_facts(data))
    else:
        try:
            facts.update(_teacher_facts(name))
        except PidistillError as error:
            raise PidistillError(f"{error}{did_you_mean(name)}") from error
        if data is not None:
            facts["data"] = _data_facts(data)
    if examples is not None and data is not None:
        _draw(data, examples)
        facts["examples"] = str(examples)
    width = max(map(len, facts))
    for key, value in facts.items():
        out.say(f"{key.replace('_', ' '):<{width}}  {_text(key, value)}")
    out.result(facts)


def _teacher_facts(spec: str) -> dict[str, Any]:
    from pidistill.teachers import load_teacher

    teacher = load_teacher(spec)
    facts = {
        "kind": type(teacher).__name__,
        "source": teacher.source,
        "sample_shape": list(teacher.sample_shape),
        "num_classes": teacher.num_classes,
        **({"class_names": list(teacher.class_names)} if teacher.class_names else {}),
        **_sigmas(teacher),
        "parameters": sum(parameter.numel() for parameter in teacher.parameters()),
    }
    copied = teacher.network_to_copy()
    if copied is not None:
        network, precondition = copied
        facts["network"] = type(network).__name__
        facts["network_config"] = network.config
        facts["precondition"] = type(precondition).__name__
    return facts


def _features_facts(file: Path) -> dict[str, Any]:
    from pidistill.evaluation.features.trained import Description
    from pidistill.settings import validate

    facts = validate(Description, read_json(file), str(file)).model_dump(exclude={"format"})
    return {**facts, **facts.pop("facts")}


def _draw(data: "Dataset", file: Path) -> None:
    """Write a grid of images, with columns by class."""
    import torch

    from pidistill.sample_files import require_writable, write_samples

    require_writable(file)
    num = len(data)
    present = 0 if data.labels is None else len(data.labels.unique())
    columns = preview_columns(present)
    rows = list(range(min(num, ROWS * columns)))
    if data.labels is not None:  # in turn, and again from the first image of a small class
        of_class = [(data.labels == label).nonzero()[:, 0] for label in data.labels.unique()]
        turns = [divmod(i, len(of_class)) for i in range(ROWS * columns)]
        rows = [int(of_class[c][turn % len(of_class[c])]) for turn, c in turns]
    write_samples(file, data.batch(torch.tensor(rows)), columns)


def _data_facts(data: "Dataset") -> dict[str, Any]:
    mean, deviation = data.moments
    facts: dict[str, Any] = {
        "num_samples": len(data),
        "sample_shape": list(data.sample_shape),
        "num_classes": data.num_classes,
        "mean": mean,
        "sigma_data": deviation,
    }
    if data.labels is not None:
        counts = data.labels.bincount(minlength=data.num_classes).tolist()
        names = data.class_names or map(str, range(data.num_classes))
        facts["classes"] = dict(zip(names, counts, strict=True))
    return facts


def _folder_facts(folder: Path) -> dict[str, Any]:
    """What the folder of a run or of a native teacher says, in the order of interest."""
    from pidistill.training.checkpoint import best_checkpoint

    facts: dict[str, Any] = {}
    if (folder / "network.json").is_file():
        facts.update(_model_facts(folder))
    if (folder / CONFIG_FILE).is_file():
        facts.update(standing(folder))
    best = best_checkpoint(folder / "state")
    if best is not None:
        facts["best_checkpoint"] = str(best)
    if (folder / "metrics.json").is_file():
        metrics = read_json(folder / "metrics.json")
        facts["metrics"] = {k: v for k, v in metrics.items() if not isinstance(v, dict | list)}
    return facts


def _model_facts(folder: Path) -> dict[str, Any]:
    """What `network.json` says, and how large the weights are; the network is not built."""
    from safetensors import SafetensorError, safe_open

    from pidistill.model_folder import KINDS
    from pidistill.precondition import build_precondition

    description = read_json(folder / "network.json")
    weights = sorted(file.name for file in folder.glob("*.safetensors"))
    try:
        network, precondition = description["network"], description["precondition"]
        facts = {
            **{key: description[key] for key in ("kind", "source", "sample_shape", "num_classes")},
            "class_names": description.get("class_names"),
            "evaluations": _evaluations(KINDS.get(description["kind"]), description["options"]),
            **_sigmas(build_precondition(precondition["name"], precondition["config"])),
            "network": network["name"] or network["class"],
            "network_config": network["config"],
            "precondition": precondition["name"],
            "weights": weights,
        }
        if weights:
            with safe_open(folder / weights[0], framework="numpy") as file:
                shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
            facts["parameters"] = sum(map(math.prod, shapes))
    except (KeyError, TypeError, SafetensorError) as error:
        raise PidistillError(f"{folder} does not describe a model: {error!r}") from error
    return {key: value for key, value in facts.items() if value is not None}


def _evaluations(kind: Any, options: dict[str, Any]) -> int | str | None:
    """Evaluations per sample of a student of class `kind`; None for a denoiser."""
    if not hasattr(kind, "any_steps"):
        return None
    return "any" if kind.any_steps else int(options.get("num_steps", kind.num_steps))


def _sigmas(model: Any) -> dict[str, float]:
    return {key: getattr(model, key) for key in ("sigma_min", "sigma_max", "sigma_data")}


def standing(folder: Path) -> dict[str, Any]:
    """Where the run in `folder` stands, by its files alone, as JSON values.

    Always there: `state` (running, finished or stopped) and `next`, the command to type; what is
    not known is left out. Raises `PidistillError` when the run's config or its log is damaged.
    """
    config, log = read_toml(folder / CONFIG_FILE), read_log(folder)
    method, total = config.get("method"), config.get("max_train_steps")
    facts: dict[str, Any] = {
        "trained_by": method.get("name") if isinstance(method, dict) else None,
        "trained_on": config.get("teacher") or config.get("data"),
        "seed": config.get("seed"),
        "max_train_steps": total,
    }
    facts = {key: value for key, value in facts.items() if value is not None}
    measured = [(line["validation"], line["images"]) for line in log if "validation" in line]
    if log:
        try:
            facts.update(_progress(log, total))
            if measured:
                facts["is_trained"], facts["quality"] = how_good(*measured[-1])
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise PidistillError(f"{folder / LOG_FILE} holds no log of a run: {error}") from error
    saved = [int(path.name.removeprefix("step-")) for path in (folder / "state").glob("step-*")]
    if saved:  # an interrupted run is ahead of its log
        facts["step"] = max([int(facts.get("step") or 0), *saved])
    facts["state"] = "finished" if log and log[-1]["step"] == total else "stopped"
    if is_held(folder):
        facts["state"] = "running"
    facts["next"] = _next_command(folder, facts)
    if facts["state"] == "finished" and not facts.get("is_trained", True):
        more = ["--resume", "--max-train-steps", str(max(ENOUGH_STEPS, 2 * facts["step"]))]
        train = ["pidistill", "train-teacher", str(facts["trained_on"]), "--out", str(folder)]
        facts["next"], facts["then"] = shlex.join([*train, *more]), facts["next"]
    return facts


def _progress(log: list[dict[str, Any]], total: Any) -> dict[str, Any]:
    """What the last line of the log says, and what follows from it and from the rate of late."""
    line = log[-1]
    earlier = log[-1 - RECENT_LINES] if len(log) > RECENT_LINES else {"step": 0, "seconds": 0.0}
    facts = {key: line[key] for key in ("step", "images", "seconds", "teacher_evals", "loss")}
    if facts["seconds"] > 0:
        facts["images_per_second"] = facts["images"] / facts["seconds"]
        if facts["step"] < total:
            pace = (facts["seconds"] - earlier["seconds"]) / (facts["step"] - earlier["step"])
            facts["seconds_left"] = (total - facts["step"]) * pace
    return facts


def _next_command(folder: Path, facts: dict[str, Any]) -> str:
    name, is_teacher = str(folder), facts.get("trained_by") == "denoising"
    if facts["state"] == "running":
        words = ["inspect", name]
    elif facts["state"] == "stopped":
        verb = ["train-teacher", str(facts.get("trained_on"))] if is_teacher else ["distill"]
        words = [*verb, "--out", name, "--resume"]
    elif is_teacher:
        words = ["distill", "--teacher", f"native:{folder}", "--out", "DIR"]
    else:
        shape = read_json(folder / "network.json").get("sample_shape")
        suffix = "png" if isinstance(shape, list) and (len(shape) == 3 or shape == [2]) else "npz"
        words = ["sample", name, "-n", "100", "--out", f"samples.{suffix}"]
    return shlex.join(["pidistill", *words])


def _text(key: str, value: Any) -> str:
    """A fact for people to read."""
    if key == "seconds_left":
        return duration(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(name, inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_text(key, inner) for inner in value)
    return figures(value) if type(value) is float else str(value)
