"""Reading a run folder: its config and its teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.model_folder import read_description, weights_name
from pidistill.settings import read_toml
from pidistill.teachers import load_teacher, split_spec
from pidistill.training.config import CONFIG_FILE, RunConfig, parse_config
from pidistill.training.log import read_log

if TYPE_CHECKING:
    from pidistill.teachers.formats.latent import LatentDecoder


def read_config(folder: Path) -> RunConfig:
    """The config of the run in `folder`.

    Raises `PidistillError` if it is missing or invalid.
    """
    path = folder / CONFIG_FILE
    return parse_config([read_toml(path)], origin=str(path))


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
        return load_teacher(spec)
    except PidistillError as error:
        say(f"continuing without the teacher: {error}")
        return None


def decoder_of_run(folder: Path, say: Callable[[str], None]) -> "LatentDecoder | None":
    """The latent decoder of the run's teacher, or None if the teacher has none.

    A run folder contains no decoder. If the teacher cannot be opened, calls `say` with one line.
    """
    try:
        kind, locator = split_spec(str(teacher_spec(folder)))
    except PidistillError:
        return None
    if kind != "diffusers":
        return None
    from pidistill.teachers.diffusers import load_decoder

    try:
        return load_decoder(locator)
    except PidistillError as error:
        say(f"without the latent decoder, if the teacher has one: {error}")
        return None
