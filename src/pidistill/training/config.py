"""Run configs: pydantic models, read from TOML presets, files and command-line flags.

Later layers override earlier ones: preset, then file, then flags. An unknown key is an error that
names the closest known one. Imports no torch, since flags are generated from `RunConfig`.
"""

import json
from pathlib import Path
from typing import Any, Literal

import pydantic
import tomli_w

from pidistill.errors import PidistillError
from pidistill.files import write_text
from pidistill.methods import method_class
from pidistill.methods.settings import MethodSettings, OptimizerSettings
from pidistill.presets import read_preset as read_preset
from pidistill.settings import STRICT, merge, validate

CONFIG_FILE = "config.toml"
"""Name of the config in a run folder."""

INPUTS_FILE = "inputs.json"
"""In a run folder: content hashes of the run's teacher and data (see `training.run_folder`)."""

CHANGEABLE = (
    "max_train_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "keep_best",
    "logging_steps",
    "preview_steps",
    "report_to",
    "gradient_accumulation_steps",
    "max_micro_batch",
    "torch_compile",
    "allow_tf32",
)
"""Keys that may change when a run resumes: its length, its logging and how it uses the machine."""


MAX_STEPS, MAX_BATCH = 2**40, 2**20
"""Far above any real use, yet sample counts still fit in 63 bits."""


class _Table(pydantic.BaseModel):
    model_config = {**STRICT, "use_attribute_docstrings": True}


class NetworkTable(_Table):
    """The table `[network]`: an architecture to use instead of the teacher's."""

    name: str
    """Name in `pidistill.networks.NETWORKS`."""
    config: dict[str, Any] = {}
    """Its arguments, without sample shape and number of classes, which are filled in."""

    @pydantic.field_validator("config")
    @classmethod
    def _plain_values(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Reject what `network.json` cannot hold, such as dates and non-finite numbers."""
        try:
            json.dumps(config, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not plain finite values: {error}") from error
        return config


class RunConfig(OptimizerSettings):
    """Everything that determines a run, named as in diffusers' and accelerate's scripts."""

    teacher: str | None = None
    """The teacher to distil: digits, glyphs, mixture:NAME, or a path."""
    data: str | None = None
    """Images to train on, such as digits, folder:PATH, npz:FILE, idx:FOLDER or hf:NAME."""
    seed: int = pydantic.Field(default=0, ge=0, lt=2**63)
    """Seed of all random numbers in the run."""
    max_train_steps: int = pydantic.Field(default=3000, ge=1, le=MAX_STEPS)
    """Total optimizer steps."""
    batch_size: int = pydantic.Field(default=128, ge=1, le=MAX_BATCH)
    """Samples per optimizer step, over all processes and accumulated micro-batches."""
    gradient_accumulation_steps: int = pydantic.Field(default=1, ge=1)
    """Micro-batches per process and optimizer step; does not change the result."""
    max_micro_batch: int | None = pydantic.Field(default=None, ge=1)
    """Maximum samples that a process evaluates at once: gradient_accumulation_steps is multiplied
    as needed, so the same settings suit any number of processes."""
    torch_compile: bool | None = None
    """Compile the networks: faster steps after minutes of compilation. If unset, on a CUDA device
    if the run is long enough to earn it."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision in which networks are evaluated; all else, and the weights, stay in float32."""
    allow_tf32: bool = True
    """Let CUDA devices round float32 to TF32 in convolutions and matrix products of training."""
    ema_rates: list[float] = pydantic.Field(default=[0.999], min_length=1)
    """Decay rates of the weight averages, such as "[0.999, 0.9999]"; by default, samples are drawn
    with the first."""
    ema_warmup: bool = True
    """Average over fewer steps at first: the rate is at most (step + 1) / (step + 10)."""
    logging_steps: int = pydantic.Field(default=50, ge=1)
    """Steps between lines of metrics.jsonl."""
    checkpointing_steps: int = pydantic.Field(default=1000, ge=1)
    """Steps between checkpoints."""
    checkpoints_total_limit: int = pydantic.Field(default=2, ge=1)
    """Number of newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest loss, averaged over about 100 steps."""
    preview_steps: int = pydantic.Field(default=1000, ge=0)
    """Steps between grids of samples in previews/; 0 disables them."""
    report_to: list[str] = pydantic.Field(default=[])
    """Trackers to log to: all, or names such as tensorboard and wandb, separated by commas."""
    network: NetworkTable | None = None
    """The network to train; by default a copy of the teacher's."""
    method: pydantic.SerializeAsAny[MethodSettings]
    """The settings of the method, which `name` selects (`pidistill.methods.NAMES`)."""

    @pydantic.field_validator("teacher")
    @classmethod
    def _absolute_teacher(cls, teacher: str | None) -> str | None:
        from pidistill.teachers import absolute_spec

        return None if teacher is None else absolute_spec(teacher)

    @pydantic.field_validator("report_to", mode="before")
    @classmethod
    def _tracker_names(cls, names: Any) -> Any:
        """Accept `"tensorboard,wandb"` and `"none"`, as other training scripts do."""
        if not isinstance(names, str):
            return names
        return [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]

    @pydantic.field_validator("report_to")
    @classmethod
    def _known_trackers(cls, names: list[str]) -> list[str]:
        from pidistill.training.tracking import TRACKERS

        for name in names:
            if name not in ("all", *TRACKERS):
                raise ValueError(f"{name!r} is not one of all, {', '.join(TRACKERS)}")
        return names

    @pydantic.field_validator("ema_rates")
    @classmethod
    def _rates_in_range(cls, rates: list[float]) -> list[float]:
        for rate in rates:
            if not 0 < rate < 1:
                raise ValueError(f"{rate} is not between 0 and 1")
        if len({f"{rate:g}" for rate in rates}) < len(rates):
            raise ValueError(f"{rates} contains a rate twice")
        return rates


def parse_config(layers: list[dict[str, Any]], origin: str = "config") -> RunConfig:
    """Merge layers, later ones overriding earlier ones, and validate the result.

    Tables are merged key by key, except that a `[method]` or `[network]` with a different name
    replaces the old one. Raises `PidistillError` with one line on the first problem.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer)
    table = merged.get("method", {})
    if not isinstance(table, dict):
        raise PidistillError(f"{origin}: method is {table!r}; expected a table with a name")
    name = table.get("name")
    if not isinstance(name, str):
        raise PidistillError(f"{origin}: method.name is {name!r}; expected the name of a method")
    try:
        kind = method_class(name)
    except PidistillError as error:
        raise PidistillError(f"{origin}: {error}") from error
    settings = validate(kind.Settings, table, origin, prefix="method.")
    return validate(RunConfig, {**merged, "method": settings}, origin)


def write_config(path: Path, config: RunConfig) -> None:
    """Write a config as TOML, atomically; omits values that are None."""
    write_text(path, config_text(config))


def config_text(config: RunConfig) -> str:
    """A config as TOML; omits values that are None."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))


def require_same_run(old: RunConfig, new: RunConfig, folder: Path) -> None:
    """Raise `PidistillError` unless `new` continues the run that `old` began in `folder`.

    Teacher and data may be elsewhere if the run knows them by content.
    """
    by_content = {"teacher", "data"} if (folder / INPUTS_FILE).is_file() else set()
    free = {*CHANGEABLE, *by_content}
    before, after = _leaves(old.model_dump(exclude=free)), _leaves(new.model_dump(exclude=free))
    for key in [*before, *after]:
        if before.get(key) != after.get(key):
            raise PidistillError(
                f"{key} is {after.get(key)!r}, but the run in {folder} was started with "
                f"{before.get(key)!r}; omit it to resume, or choose another run folder"
            )


def _leaves(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, dict) and value
        leaves |= _leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return leaves
