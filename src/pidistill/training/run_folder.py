"""A run folder's config, and its teacher and data, which it knows by content.

The config says where teacher and data are, and `inputs.json` has hashes of what they are. So a run
goes on after its teacher has moved, and never with another one under the same path.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidistill.data import Dataset, fingerprint
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.files import read_json, write_json
from pidistill.model_folder import read_description, weights_name
from pidistill.settings import read_toml
from pidistill.teachers import load_teacher, sources, split_spec
from pidistill.teachers.fingerprint import teacher_fingerprint
from pidistill.training.config import (
    CONFIG_FILE,
    INPUTS_FILE,
    RunConfig,
    parse_config,
    write_config,
)
from pidistill.training.log import read_log

if TYPE_CHECKING:
    from pidistill.teachers.formats.latent import LatentDecoder


def read_config(folder: Path) -> RunConfig:
    """The config of the run in `folder`.

    Raises `PidistillError` if it is missing or invalid.
    """
    path = folder / CONFIG_FILE
    return parse_config([read_toml(path)], origin=str(path))


def input_hashes(teacher: Denoiser | None, data: Dataset | None) -> dict[str, str]:
    """Content hashes of a run's teacher and data."""
    hashes = {} if teacher is None else {"teacher": teacher_fingerprint(teacher)}
    return hashes if data is None else {**hashes, "data": fingerprint(data)}


def require_same_inputs(folder: Path, inputs: dict[str, str], config: RunConfig) -> None:
    """Raise `PidistillError` if the run in `folder` was started with other inputs than these."""
    path = folder / INPUTS_FILE
    started = read_json(path) if path.is_file() else inputs
    for name in ("teacher", "data"):
        if started.get(name) != inputs.get(name):
            raise PidistillError(
                f"{name} {getattr(config, name)!r} is not the one that the run in {folder} was "
                f"started with: its content differs; name that one with --{name}"
            )


def write_start(folder: Path, config: RunConfig, inputs: dict[str, str]) -> None:
    """Write what a run was started with."""
    write_config(folder / CONFIG_FILE, config)
    write_json(folder / INPUTS_FILE, inputs)


def what_is_measured(folder: Path, ema: float | None) -> dict[str, Any]:
    """What the metrics of a run refer to: the file of weights and the training step."""
    weights = read_description(folder).get("weights") if ema is None else weights_name(ema)
    log = read_log(folder)
    return {
        "weights": weights,
        **({"step": log[-1]["step"]} if log else {}),
    }


def teacher_spec(folder: str | Path) -> str | None:
    """The teacher's spec in the run's config, or None; works even if the method is unknown.

    Raises `PidistillError` if the config is damaged.
    """
    path = Path(folder) / CONFIG_FILE
    spec = read_toml(path).get("teacher") if path.is_file() else None
    return None if spec is None else str(spec)


def teacher_of_run(folder: Path, say: Callable[[str], None]) -> Denoiser | None:
    """The teacher that the run's config names, or None, reported to `say`, if it cannot be loaded.

    Sampling and evaluation work without the teacher, except for comparisons with it.

    Raises `PidistillError` if the config is damaged.
    """
    spec = teacher_spec(folder)
    if spec is None:
        say("continuing without a teacher: the run's config names none")
        return None
    try:
        teacher = load_teacher(spec)
    except PidistillError as error:
        say(f"continuing without the teacher: {error}; if it has moved, name it with --teacher")
        return None
    if is_own_teacher(folder, teacher):
        return teacher
    say(
        f"continuing without the teacher: {spec} has changed since this run was trained; name the "
        "teacher it was trained with as --teacher"
    )
    return None


def is_own_teacher(folder: Path, teacher: Denoiser) -> bool:
    """Whether the run in `folder` was trained with this teacher, as far as its files say."""
    path = folder / INPUTS_FILE
    known = read_json(path).get("teacher") if path.is_file() else None
    return known is None or known == teacher_fingerprint(teacher)


def decoder_of_run(
    folder: Path, teacher: str | None, say: Callable[[str], None]
) -> "LatentDecoder | None":
    """The latent decoder of the run's teacher, or None if the teacher has none.

    A run folder contains no decoder. `teacher` is the teacher's spec, or None for that of the run's
    config. If it cannot be opened, calls `say` with one line.
    """
    try:
        kind, locator = split_spec(str(teacher or teacher_spec(folder)))
    except PidistillError:
        if teacher is not None:
            raise
        return None
    load_decoder = getattr(sources()[kind].load(), "load_decoder", lambda locator: None)
    try:
        return load_decoder(locator)
    except PidistillError as error:
        say(f"without the latent decoder, if the teacher has one: {error}")
        return None
